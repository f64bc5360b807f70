"""What stays, what ends, and what one request does to others."""

import asyncio
import io
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.serving.batching import choose
from modeling_tagi.serving.decoding import drawn
from modeling_tagi.serving.engine import Engine
from modeling_tagi.serving.limits import Limits
from modeling_tagi.serving.model_names import read_names
from modeling_tagi.serving.rows import Row


def test_an_adapter_is_made_described_downloaded_and_used_by_its_id(models, serving, alone, tmp_path):
    model = models("llama", "none")
    with serving(model, tmp_path / "adapters") as served:
        made = served.client.post(
            "/v1/adapters", json={"instruction": "say no", "demonstrations": [["a", "no"], ["b", "no"]]}
        )
        assert made.status_code == 201
        said = made.json()
        assert said == served.client.get(f"/v1/adapters/{said['id']}").json()
        assert served.client.get("/v1/adapters").json()["data"] == [{"id": said["id"], "object": "adapter"}]
        packed = served.client.get(said["download"])
        assert packed.headers["Content-Type"] == "application/zip"
        zipfile.ZipFile(io.BytesIO(packed.content)).extractall(tmp_path / "unpacked")
        answer = served.client.post("/v1/completions", json={"model": said["id"], "prompt": "a", "max_tokens": 12})
    instruction = "say no\n\nExample 1: Input: a Output: no\n\nExample 2: Input: b Output: no"
    assert said["instruction"] == instruction and answer.json()["choices"][0]["text"] == alone(model, instruction, "a")
    adapter, expected = TagiAdapter.from_pretrained(tmp_path / "unpacked"), model.generate_adapter(instruction)
    assert all(torch.equal(adapter.lora_b[path], b) for path, b in expected.lora_b.items())


def test_a_restart_finds_the_adapters(models, serving, tmp_path):
    asked = {"prompt": "a", "max_tokens": 4}
    with serving(models("t5"), tmp_path) as served:
        first = served.client.post("/v1/completions", json={**asked, "model": "tagi:say no"}).json()
    with serving(models("t5"), tmp_path) as served:
        served.service.disk._generate = None
        (found,) = served.client.get("/v1/adapters").json()["data"]
        for name in ("tagi:say no", found["id"]):
            again = served.client.post("/v1/completions", json={**asked, "model": name}).json()
            assert again["choices"] == first["choices"]


def test_a_bounded_cache_answers_more_instructions_than_it_holds(models, serving, alone, tmp_path):
    model = models("llama", "none")
    with serving(model, tmp_path, memory_bytes=1) as served:
        disk = served.service.disk
        disk.spared_seconds = 0
        for number in [0, 1, 2, 3, 0, 1]:
            asked = {"model": f"tagi:say {number}", "prompt": "a", "max_tokens": 12}
            answer = served.client.post("/v1/completions", json=asked).json()
            assert answer["choices"][0]["text"] == alone(model, f"say {number}", "a")
            disk.max_bytes = disk.max_bytes or 2 * disk.nbytes() + 50
            assert disk.nbytes() <= disk.max_bytes


def test_a_stop_answers_what_was_accepted(models, serving, tmp_path):
    with serving(models("t5"), tmp_path) as served:
        go = threading.Event()
        served.service.computer.submit(go.wait)
        asked = {"model": "tagi:say no", "prompt": "a", "max_tokens": 4}
        with ThreadPoolExecutor(9) as pool:
            answers = [pool.submit(httpx.post, f"{served.url}/v1/completions", json=asked, timeout=60)
                       for _ in range(8)]  # fmt: skip
            streamed = pool.submit(httpx.post, f"{served.url}/v1/completions", json={**asked, "stream": True})
            while len(served.server.server_state.tasks) < 9:
                time.sleep(0.005)
            served.server.should_exit = True
            time.sleep(0.3)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{served.url}/health")
            go.set()
        assert [answer.result().status_code for answer in answers] == [200] * 8
        assert streamed.result().text.endswith("data: [DONE]\n\n")
        served.thread.join(60)
        assert not served.thread.is_alive()


def test_a_client_that_goes_while_it_is_answered_frees_its_row(models, serving, tmp_path):
    with serving(models("t5"), tmp_path, new_tokens=4000) as served:
        asked = {"model": "tagi:say no", "prompt": "a", "max_tokens": 4000, "stream": True}
        rows = []
        run = served.service.batcher.run
        served.service.batcher.run = lambda some: rows.extend(some) or run(some)
        served.service.engine.ends = {kind: [] for kind in served.service.engine.ends}  # only its length ends it
        with served.client.stream("POST", "/v1/completions", json=asked) as answer:
            next(answer.iter_lines())
        while served.service.batcher.running:
            time.sleep(0.01)
        assert rows[0].cancelled and len(rows[0].written) < 4000
        answer = served.client.post("/v1/completions", json={**asked, "stream": False, "max_tokens": 3})
        assert answer.status_code == 200


def test_a_client_that_goes_while_it_waits_is_not_answered(models, serving, tmp_path):
    with serving(models("t5"), tmp_path, batch=1) as served:
        asked = {"model": "tagi:say no", "prompt": "a", "max_tokens": 4}
        assert served.client.post("/v1/completions", json=asked).status_code == 200
        go, written = threading.Event(), served.service.metrics.tokens.labels("written")
        served.service.computer.submit(go.wait)
        before = written._value.get()
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}/v1/completions", json=asked, timeout=1)
        time.sleep(0.2)
        go.set()
        while served.service.batcher.running or served.service.batcher.waiting:
            time.sleep(0.01)
        assert written._value.get() == before
        assert served.client.post("/v1/completions", json=asked).status_code == 200


def test_a_row_that_fails_does_not_take_others_with_it(models, alone):
    model = models("llama", "none")
    engine = Engine(model, Limits())
    adapter = model.generate_adapter("say no")
    rows = [engine.read_input(text) for text in ("red", "green", "blue")]
    for row in rows:
        row.adapter, row.name, row.max_new_tokens = adapter, "say no", 12
    rows[1].ids = [10**6]
    engine.run(rows)
    assert isinstance(rows[1].error, Exception) and rows[0].error is rows[2].error is None
    assert [rows[0].text, rows[2].text] == [alone(model, "say no", text) for text in ("red", "blue")]


def test_a_batch_has_rows_of_one_kind_and_of_like_length():
    def row(length, **fields):
        return Row([5] * length, **fields)

    first, like, long, bare, more = row(10), row(12), row(500), row(11), row(10, max_new_tokens=512)
    for one in (first, like, long, more):
        one.adapter = "an adapter"
    assert choose([first, long, bare, like, more], 8) == [first, like]
    assert choose([long, first, bare, like, more], 8) == [long] and choose([bare, first], 8) == [bare]
    assert choose([row(10) for _ in range(9)], 4).__len__() == 4


def test_draws_have_the_probabilities_of_the_temperature_and_only_likely_tokens():
    logits, generator = torch.tensor([0.0, 1.0, 2.0, -5.0]), torch.Generator().manual_seed(0)
    counts = torch.tensor([drawn(logits, 0.5, 1.0, generator) for _ in range(4000)]).bincount(minlength=4) / 4000
    assert torch.allclose(counts, (logits / 0.5).softmax(0), atol=0.03)
    # 0.665, 0.245, 0.09: the first two have 0.8 together, the first alone has not
    assert {drawn(logits, 1.0, 0.8, generator) for _ in range(200)} == {1, 2}
    assert {drawn(logits, 1e-6, 1.0, generator) for _ in range(20)} == {2}


def test_a_file_of_names_is_read_and_what_is_none_is_refused(tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text("nay: say no\naye: {instruction: say yes, demonstrations: [[a, b]]}\n")
    assert read_names(file) == {"nay": "say no", "aye": "say yes\n\nExample 1: Input: a Output: b"}
    for text, said in [
        ("'tagi:a': b", "'tagi:a' is no short name"), ("no: say no", "False is no short name"),
        ("a: {b: c}", "has the fields b"), ("a: ''", "a: the instruction is ''"),
        ("a: {instruction: b, demonstrations: c}", "demonstrations are"),
    ]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_names(file)


def test_metrics_count_what_was_done(models, serving, tmp_path):
    async def ask_all(url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = {"model": "tagi:say no", "prompt": "red", "max_tokens": 3}
            await asyncio.gather(*(client.post("/v1/completions", json=asked) for _ in range(5)))
            await client.post("/v1/completions", json={**asked, "max_tokens": 0})

    with serving(models("llama", "none"), tmp_path) as served:
        asyncio.run(ask_all(served.url))
        text = served.client.get("/metrics").text
    assert 'tagi_requests_total{path="/v1/completions",status="200"} 5.0' in text
    assert 'tagi_requests_total{path="/v1/completions",status="400"} 1.0' in text
    assert "tagi_batch_rows_sum 5.0" in text and 'tagi_adapters_total{source="made"} 1.0' in text
