"""Loads `tagi serve` with many clients, and says what comes out: wrong and lost answers, throughput, memory.

    python tests/serving/load.py checkpoints/smollm2-135m --clients 64 --adapters 16 --requests 5000
    python tests/serving/load.py t5 --requests 5000        # a tiny T5 with cross-attention to the instruction
    python tests/serving/load.py t5-small --requests 500   # the same in T5-small's shape, but for its vocabulary

An answer is right if it is what `model.generate` alone gives for the request's own adapter and input; where it differs
in a near-tie of two tokens (1e-3 of a logit) it is counted apart. Throughput is compared with `model.generate` one by
one, and with the backbone alone in the same batches, every answer of the same length. Beside wall time stands the
time of the processor, which other work on the machine does not change.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from modeling_tagi import TagiModel  # noqa: E402
from modeling_tagi.serving.engine import Engine  # noqa: E402
from modeling_tagi.serving.limits import Limits  # noqa: E402
from modeling_tagi.serving.rows import Row  # noqa: E402

VERBS = (
    "write the first word of", "write the last word of", "count the words of", "name the topic of",
    "say whether there is a colour in", "translate into french", "write in capitals", "spell backwards",
)  # fmt: skip
WORDS = "red green blue one two three four apple pear plum cat dog house river stone paper winter summer".split()
NEAR = 1e-3


def instructions(number: int) -> list[str]:
    return [f"{VERBS[n % 8]} the {'text' if n < 8 else 'list'} {n // 8 or ''}".strip() for n in range(number)]


def inputs(number: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.choice((3, 5, 8, 12, 20)))) for _ in range(number)]


class OneByOne:
    """Answers by `model.generate` alone, each asked for once, with the processor's seconds that it took."""

    def __init__(self, model: TagiModel, max_tokens: int):
        self.model, self.max_tokens, self.answers, self.seconds = model, max_tokens, {}, 0.0
        self.adapters = {}

    def answer(self, instruction: str, text: str) -> str:
        if instruction not in self.adapters:
            self.adapters[instruction] = self.model.generate_adapter(instruction)
        if (instruction, text) not in self.answers:
            began = time.process_time()
            self.answers[instruction, text] = self._generate(instruction, text)[0]
            self.seconds += time.process_time() - began
        return self.answers[instruction, text]

    def _generate(self, instruction: str, text: str, **options):
        batch = self.model.encode_inputs(text)
        output = self.model.generate(
            **batch, adapter=self.adapters[instruction], max_new_tokens=self.max_tokens, do_sample=False, **options
        )
        ids = output.sequences if options else output
        written = ids[0, 0 if self.model.config.is_encoder_decoder else batch["input_ids"].shape[1]:]
        return self.model.tokenizer.decode(written, skip_special_tokens=True), output

    def smallest_gap(self, instruction: str, text: str) -> float:
        """Returns the smallest difference between the two likeliest tokens of a step."""
        _, output = self._generate(instruction, text, output_scores=True, return_dict_in_generate=True)
        return min(float(-score[0].topk(2).values.diff()) for score in output.scores)


async def ask_all(url: str, asked: list[dict], clients: int) -> list:
    """Returns for each request its answer's (text, tokens), or what became of it."""
    answers, left = [None] * len(asked), iter(enumerate(asked))

    async def client():
        async with httpx.AsyncClient(base_url=url, timeout=600) as session:
            for number, body in left:
                try:
                    answer = await session.post("/v1/completions", json=body)
                    said = answer.json()
                    answers[number] = (said["choices"][0]["text"], said["usage"]["completion_tokens"])
                except (httpx.HTTPError, LookupError, ValueError) as error:
                    answers[number] = f"{type(error).__name__}: {error}"

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def measured(server: psutil.Process, url: str, asked: list[dict], clients: int) -> tuple[list, dict]:
    used, began = sum(server.cpu_times()[:2]), time.perf_counter()
    answers = asyncio.run(ask_all(url, asked, clients))
    seconds, used = time.perf_counter() - began, sum(server.cpu_times()[:2]) - used
    tokens = sum(one[1] for one in answers if isinstance(one, tuple))
    return answers, {
        "requests": len(asked), "seconds": round(seconds, 1), "server_cpu_seconds": round(used, 1),
        "requests_per_second": round(len(asked) / seconds, 2), "requests_per_cpu_second": round(len(asked) / used, 2),
        "tokens_per_cpu_second": round(tokens / used, 1), "server_mb": round(server.memory_info().rss / 1e6),
    }  # fmt: skip


def beside_the_backbone(model: TagiModel, one: OneByOne, texts: list[str], tokens: int, batches: int) -> dict:
    """Returns the processor's seconds of a batch of 32 with adapters and without, each the least of `batches`; every
    answer has `tokens`."""
    engine, draw, seconds = Engine(model, Limits()), random.Random(1), {"adapters": float("inf"), "bare": float("inf")}
    names = list(one.adapters)
    drawn = [(draw.choice(names), engine.read_input(draw.choice(texts)).ids) for _ in range(32)]
    for _ in range(batches):
        for kind in seconds:
            rows = [Row(ids, max_new_tokens=tokens) for _, ids in drawn]
            for row, (name, _) in zip(rows, drawn):
                if kind == "adapters":
                    row.adapter, row.name = one.adapters[name], name
            began = time.process_time()
            engine.run(rows)
            assert all(len(row.written) == tokens for row in rows), rows[0].error
            seconds[kind] = min(seconds[kind], time.process_time() - began)
    return {**{kind: round(value, 3) for kind, value in seconds.items()},
            "share_of_the_bare_throughput": round(seconds["bare"] / seconds["adapters"], 3)}  # fmt: skip


def tiny(family: str, folder: Path) -> str:
    """Saves a tiny model whose adapters answer differently, and returns its folder."""
    import conftest
    from transformers import T5Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:?"
    family, shape = family.partition("-")[::2]
    shape = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8} if shape == "small" else {}
    backbone = conftest._make_backbone(family, **shape)
    model = conftest._make_model(family, backbone=backbone, max_instruction_length=64)
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    model.tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)
    with torch.no_grad():
        for weight in (w for stack in model.hypernetwork.stacks for w in stack.output_weights):
            weight *= 10
    model.save_pretrained(folder)
    return str(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a checkpoint, or what is made: t5, t5-small, llama, …")
    for name, default in (("clients", 64), ("adapters", 16), ("requests", 5000), ("inputs", 12), ("max_tokens", 16),
                          ("bare_requests", 0), ("batches", 6)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        checkpoint = options.checkpoint
        if not Path(checkpoint).exists():
            checkpoint = tiny(checkpoint, Path(place) / "model")
        command = [sys.executable, "-m", "modeling_tagi.commands.main", "serve", checkpoint, "--port", "0", "--json",
                   "--adapters", f"{place}/adapters"]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                print(json.dumps(loaded(options, checkpoint, process), indent=2))
            finally:
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def loaded(options, checkpoint: str, process) -> dict:
    ready = json.loads(process.stdout.readline())
    server, url = psutil.Process(process.pid), ready["url"]
    model = TagiModel.from_pretrained(checkpoint).eval()
    one, texts = OneByOne(model, options.max_tokens), inputs(options.inputs)
    draw = random.Random(2)
    drawn = [(draw.choice(instructions(options.adapters)), draw.choice(texts)) for _ in range(options.requests)]
    asked = [{"model": f"tagi:{name}", "prompt": text, "max_tokens": options.max_tokens} for name, text in drawn]
    tenth = max(1, len(asked) // 10)
    first, beginning = measured(server, url, asked[:tenth], options.clients)
    rest, found = measured(server, url, asked[tenth:], options.clients)
    answers = first + rest
    bare = [{**body, "model": ready["backbone"]} for body in asked[: options.bare_requests]]
    without = measured(server, url, bare, options.clients)[1] if bare else None
    differing = [number for number, (said, it) in enumerate(zip(answers, drawn))
                 if isinstance(said, tuple) and said[0] != one.answer(*it)]  # fmt: skip
    gaps = {it: one.smallest_gap(*it) for it in {drawn[number] for number in differing}}
    rate = len(one.answers) / one.seconds
    lost = [said for said in answers if not isinstance(said, tuple)]
    return {
        "checkpoint": options.checkpoint, "clients": options.clients, "adapters": options.adapters,
        "threads": os.environ.get("OMP_NUM_THREADS"), "lost": len(lost), "lost_because": lost[:1],
        "differ_in_a_near_tie": sum(gaps[drawn[number]] < NEAR for number in differing),
        "wrong": sum(gaps[drawn[number]] >= NEAR for number in differing),
        "different_answers": len({said for said in answers if isinstance(said, tuple)}),
        "first_tenth": beginning, "rest": found, "bare_backbone": without,
        "one_by_one_per_cpu_second": round(rate, 2),
        "times_one_by_one": round(found["requests_per_cpu_second"] / rate, 2),
        "same_batches_cpu_seconds": beside_the_backbone(model, one, texts, options.max_tokens, options.batches),
    }  # fmt: skip


if __name__ == "__main__":
    main()
