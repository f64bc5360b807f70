"""A server of a tiny model, on a loopback port of this machine."""

import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")

from modeling_tagi.serving.adapters_on_disk import AdaptersOnDisk  # noqa: E402
from modeling_tagi.serving.api import make_app  # noqa: E402
from modeling_tagi.serving.limits import Limits  # noqa: E402
from modeling_tagi.serving.service import Service  # noqa: E402


class Served:
    """A server that runs in a thread: its `url`, its `service`, and a client of httpx that knows the url."""

    def __init__(self, service, key=None):
        self.service = service
        self.server = uvicorn.Server(uvicorn.Config(make_app(service, key), port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.005)
        self.url = "http://127.0.0.1:{}".format(self.server.servers[0].sockets[0].getsockname()[1])
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def stop(self):
        """Stops it as a signal does, and waits until it has stopped."""
        self.client.close()
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def serving():
    """`with serving(model, folder, limits=…, names=…, key=…) as served`: a server of the model; see [`Served`]."""

    @contextmanager
    def of(model, folder, key=None, names=None, max_bytes=None, **limits):
        service = Service(model, AdaptersOnDisk.of(model, folder, max_bytes), Limits(**limits), names)
        served = Served(service, key)
        try:
            yield served
        finally:
            served.stop()

    return of


@pytest.fixture(scope="session")
def models(make_model, tokenizer):
    """`models(family, fusion)`: a tiny model with a tokenizer, made once."""
    made = {}

    def of(family, fusion="cross_attention"):
        if (family, fusion) not in made:
            model = made[family, fusion] = make_model(family, fusion)
            model.tokenizer = tokenizer
            with torch.no_grad():  # or these would answer nearly the same to every instruction
                for weight in (w for stack in model.hypernetwork.stacks for w in stack.output_weights):
                    weight *= 10 if family in ("t5", "gpt2") else 1
        return made[family, fusion]

    return of


@pytest.fixture(scope="session")
def alone():
    """`alone(model, instruction, input, max_new_tokens)`: what `model.generate` answers to one input; `None` as the
    instruction is the backbone as it is, which reads a text as the tokenizer gives it."""

    def answer(model, instruction, text, max_new_tokens=12):
        adapter = None if instruction is None else model.generate_adapter(instruction)
        batch = model.encode_inputs(text) if adapter is not None else model.tokenizer([text], return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        output = model.generate(
            ids, attention_mask=mask, adapter=adapter, max_new_tokens=max_new_tokens, do_sample=False
        )
        written = 0 if model.config.is_encoder_decoder else ids.shape[1]
        return model.tokenizer.decode(output[0, written:], skip_special_tokens=True)

    return answer
