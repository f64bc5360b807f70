"""A request that cannot be done is answered with a 4xx and one message, and the server goes on."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

GOOD = {"model": "tagi:say no", "prompt": "red green", "max_tokens": 4}
CHAT = {"model": "tagi:say no", "messages": [{"role": "user", "content": "red"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def served(models, serving, tmp_path_factory):
    with serving(models("gpt2"), tmp_path_factory.mktemp("adapters"), input_tokens=90, waiting=8) as served:
        yield served


def refusal(answer, status=400):
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]
    assert set(said) == {"message", "type", "param", "code"} and "\n" not in said["message"]
    return said["message"]


@pytest.mark.parametrize("fields, said", [
    ({"model": None}, "model: Input should be a valid string"),
    ({"model": "tagi:"}, "the instruction is '', but must be a text that is not empty"),
    ({"model": "tagi:" + "say no " * 300}, "tokens, but 1 to"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt: give a text that is not empty"),
    ({"prompt": [1, 2]}, "prompt"),
    ({"prompt": "a" * 100}, "the input has"),
    ({"prompt": "\ud800"}, "a lone surrogate"),
    ({"prompt": ["a"] * 9}, "the request asks for 9 answers, but 8 may wait"),
    ({"prompt": ["a"] * 5, "n": 2}, "the request asks for 10 answers"),
    ({"prompt": "a" * 80, "max_tokens": 60}, "but this backbone has positions for 128 in all"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": 513}, "max_tokens is 513, but may be 512"),
    ({"max_tokens": 2**80}, "max_tokens"),
    ({"max_tokens": "4"}, "max_tokens: Input should be a valid integer"),
    ({"temperature": float("nan")}, "temperature: Input should be"),
    ({"temperature": -1}, "temperature: Input should be greater than or equal to 0"),
    ({"top_p": 0}, "top_p: Input should be greater than 0"),
    ({"stop": ["a"] * 5}, "stop: give up to four texts"),
    ({"stop": ""}, "stop: give up to four texts"),
    ({"seed": 2**70}, "seed"),
    ({"logprobs": 3}, "logprobs: this server does not do that; leave it out, or give False"),
    ({"echo": True, "best_of": 2}, "best_of: this server does not do that; leave it out, or give 1 (1 more field is"),
    ({"\ud800": 1}, "the body cannot be read"),
    ({"stop": "\ud800"}, "stop"),
    ({"user": "\ud800", "n": 0}, "n: Input should be greater"),
    ({"colour": "red"}, "colour: there is no such field; leave it out"),
])  # fmt: skip
def test_a_field_that_cannot_be_done_is_named(fields, said, served):
    answer = served.client.post("/v1/completions", content=json.dumps({**GOOD, **fields}), headers=JSON)
    assert said in refusal(answer)


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("fields, said", [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "a"}, *CHAT["messages"]]}, "the messages are of system, user, but"),
    ({"messages": CHAT["messages"] * 2, "model": "backbone"}, "this backbone answers one message, the user's"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role: Input should be"),
    ({"tools": [{"type": "function"}]}, "tools: this server does not do that"),
    ({"response_format": {"type": "json_object"}}, "response_format: this server does not do that"),
])  # fmt: skip
def test_messages_that_cannot_be_answered_are_refused(fields, said, served):
    assert said in refusal(served.client.post("/v1/chat/completions", json={**CHAT, **fields}))


NO_OBJECT = [b"", b"{", b"[]", b"3", b"[" * 100_000, b"\xff\xfe", b"null", b'{"model": 1e999}']


@pytest.mark.parametrize("content", NO_OBJECT)
def test_a_body_that_is_no_json_object_is_refused(content, served):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/adapters"):
        refusal(served.client.post(path, content=content, headers=JSON))
    refusal(served.client.post("/v1/completions", content=json.dumps(GOOD), headers={"Content-Type": "text/plain"}))


def test_a_body_that_is_too_large_is_refused_also_if_it_does_not_say_so(served):
    assert "larger than 1048576 bytes" in refusal(served.client.post("/v1/completions", content=b"x" * 2**21), 413)
    pieces = (b" " * 2**16 for _ in range(64))
    assert "larger than" in refusal(served.client.post("/v1/completions", content=pieces, headers=JSON), 413)
    assert served.client.post("/v1/completions", json=GOOD).status_code == 200


@pytest.mark.parametrize("method, path, status, said", [
    ("GET", "/v1/nothing", 404, "there is no /v1/nothing; /docs lists"),
    ("GET", "/v1/completions", 405, "does not take GET"),
    ("GET", "/v1/adapters/" + "0" * 64, 404, "there is no adapter '000"),
    ("GET", "/v1/adapters/..%2f..%2fetc", 404, "there is no"),
    ("GET", "/v1/adapters/" + "0" * 64 + "/download", 404, "there is no adapter"),
    ("GET", "/v1/models/nothing", 404, "there is no model 'nothing'; give 'tagi:<instruction>'"),
])  # fmt: skip
def test_what_is_not_there_is_a_404(method, path, status, said, served):
    assert said in refusal(served.client.request(method, path), status)


def test_an_instruction_that_cannot_be_read_makes_no_adapter(served):
    for instruction in ("", "  ", "\ud800", "say no " * 300):
        content = json.dumps({"instruction": instruction})
        refusal(served.client.post("/v1/adapters", content=content, headers=JSON))
    refusal(served.client.post("/v1/adapters", json={"instruction": "a", "demonstrations": [["one"]]}))
    assert not [path for path in served.service.disk.folder.rglob("*.json") if "say no say" in path.read_text()]


def held(served):
    """Keeps the thread that computes from computing, until the event that is returned is set."""
    go = threading.Event()
    served.service.computer.submit(go.wait)
    return go


def test_a_full_queue_is_a_429_that_says_when_to_come_again(models, serving, tmp_path):
    with serving(models("t5"), tmp_path, waiting=8, batch=2) as served:
        assert served.client.post("/v1/completions", json=GOOD).status_code == 200
        go, until = held(served), time.monotonic() + 30
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(served.client.post, "/v1/completions", json=GOOD) for _ in range(16)]
            while sum(one.done() for one in asked) < 6 and time.monotonic() < until:
                time.sleep(0.01)  # eight wait, at most two are with the thread, the others are turned away
            go.set()
        answers = [one.result() for one in asked]
        accepted = sum(answer.status_code == 200 for answer in answers)
        assert 8 <= accepted <= 10 and {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert "8 answers wait already, and 8 may; try again in" in refusal(answer, 429)
                assert int(answer.headers["Retry-After"]) >= 1
        assert served.client.post("/v1/completions", json=GOOD).status_code == 200


def test_without_the_key_only_the_state_is_told(models, serving, tmp_path, caplog):
    with serving(models("t5"), tmp_path, key="a secret key") as served:
        def ask(**headers):
            return served.client.post("/v1/completions", json=GOOD, headers=headers)

        assert "there is no key" in refusal(ask(), 401)
        for given in ("Bearer another", "Basic a secret key", "Bearer a secret key2", "Bearer \xe9"):
            assert "the key is not this server's" in refusal(ask(Authorization=given.encode("latin-1")), 401)
        assert ask(Authorization="Bearer a secret key").status_code == 200
        refusal(served.client.get("/v1/models"), 401)
        open_pages = [served.client.get(path) for path in ("/health", "/metrics", "/openapi.json", "/docs")]
    assert [page.status_code for page in open_pages] == [200] * 4
    assert not any("secret" in text for text in (caplog.text, *(page.text for page in open_pages)))
