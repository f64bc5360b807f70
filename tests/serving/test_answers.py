"""Answers of a running server are those of `model.generate` alone with the request's own adapter."""

import asyncio

import httpx
import openai
import pytest

FAMILIES = [("t5", "cross_attention"), ("llama", "none"), ("llama", "concat"), ("gpt2", "cross_attention")]
INSTRUCTIONS = [f"say the {word}" for word in ("first", "last", "second", "third", "next", "fourth", "fifth", "sixth")]
INPUTS = ["red green blue", "one two three four five six seven", "a", "cat dog", "apple pear plum, red"]


def body(instruction, prompt, **fields):
    return {"model": f"tagi:{instruction}", "prompt": prompt, "max_tokens": 12, **fields}


@pytest.mark.parametrize("family, fusion", FAMILIES)
def test_sixteen_clients_with_eight_adapters_get_each_its_own_answer(family, fusion, models, serving, alone, tmp_path):
    model = models(family, fusion)
    asked = [(INSTRUCTIONS[n % 8], INPUTS[(n // 8 + n) % 5]) for n in range(48)]
    asked += [(None, text) for text in INPUTS]
    expected = {one: alone(model, *one) for one in set(asked)}
    assert len({expected[one] for one in set(asked)}) > 20  # the adapters do tell apart

    async def ask(client, limit, instruction, text):
        async with limit:
            name = "backbone" if instruction is None else f"tagi:{instruction}"
            answer = await client.post("/v1/completions", json=body("", text, model=name))
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["text"]

    async def ask_all(url):
        limit = asyncio.Semaphore(16)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(ask(client, limit, *one) for one in asked))

    with serving(model, tmp_path) as served:
        answers = asyncio.run(ask_all(served.url))
        rows = served.service.metrics.registry.get_sample_value("tagi_batch_rows_sum")
        batches = served.service.metrics.registry.get_sample_value("tagi_batch_rows_count")
        made = served.service.metrics.registry.get_sample_value("tagi_adapters_total", {"source": "made"})
    assert answers == [expected[one] for one in asked]
    assert rows == len(asked) and batches < len(asked) / 2 and made == 8


def test_sixty_four_first_requests_compute_an_adapter_once(models, serving, tmp_path):
    async def ask_all(url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            answers = [client.post("/v1/adapters", json={"instruction": f"say {n % 2}"}) for n in range(64)]
            return await asyncio.gather(*answers)

    with serving(models("t5"), tmp_path) as served:
        made, disk = [], served.service.disk
        generate = disk._generate
        disk._generate = lambda text: made.append(text) or generate(text)
        answers = asyncio.run(ask_all(served.url))
    assert sorted(made) == ["say 0", "say 1"] and {answer.status_code for answer in answers} == {201}
    assert {answer.json()["id"] for answer in answers} == {disk.id_of("say 0"), disk.id_of("say 1")}


@pytest.mark.parametrize("family, fusion", FAMILIES[:2])
def test_the_client_of_openai_reads_whole_and_streamed_answers(family, fusion, models, serving, alone, tmp_path):
    model = models(family, fusion)
    expected = alone(model, "say no", "red green")
    with serving(model, tmp_path, names={"no": "say no"}) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        for name in ("tagi:say no", "no", served.service.disk.id_of("say no")):
            whole = client.completions.create(model=name, prompt="red green", max_tokens=12)
            assert (whole.choices[0].text, whole.model, whole.object) == (expected, name, "text_completion")
            message = [{"role": "user", "content": "red green"}]
            chat = client.chat.completions.create(model=name, messages=message, max_tokens=12)
            assert (chat.choices[0].message.content, chat.object) == (expected, "chat.completion")
            pieces = list(client.completions.create(model=name, prompt="red green", max_tokens=12, stream=True))
            assert "".join(piece.choices[0].text for piece in pieces) == expected
            assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
            streamed = list(client.chat.completions.create(
                model=name, messages=message, max_tokens=12, stream=True, stream_options={"include_usage": True}
            ))  # fmt: skip
            assert "".join(piece.choices[0].delta.content or "" for piece in streamed[:-1]) == expected
            assert streamed[0].choices[0].delta.role == "assistant" and streamed[-1].usage == chat.usage
        assert whole.usage.prompt_tokens == model.encode_inputs("red green")["input_ids"].shape[1]
        several = client.completions.create(model="no", prompt=INPUTS, n=2, max_tokens=12)
        assert [one.text for one in several.choices] == [alone(model, "say no", text) for text in INPUTS for _ in "ab"]
        assert {one.id for one in client.models.list()} >= {"no", "backbone", served.service.disk.id_of("say no")}
        assert client.models.retrieve("no").instruction == "say no"


def test_lengths_and_ends_are_those_of_each_request(models, serving, alone, tmp_path):
    model = models("llama", "none")
    whole = alone(model, "say no", "red green", 12)
    with serving(model, tmp_path) as served:
        def ask(**fields):
            answer = served.client.post("/v1/completions", json=body("say no", "red green", **fields)).json()
            return answer["choices"][0]["text"], answer["choices"][0]["finish_reason"], answer["usage"]

        text, finished, usage = ask(max_tokens=5)
        assert text == alone(model, "say no", "red green", 5) and finished == "length"
        assert usage["completion_tokens"] == 5
        stop = whole[4:6]
        assert ask(stop=stop)[:2] == ask(stop=["?????", stop])[:2] == (whole[: whole.index(stop)], "stop")


def test_a_streamed_answer_never_shows_what_ends_it(models, serving, alone, tmp_path):
    model = models("llama", "none")
    whole = alone(model, "say no", "red green", 12)
    stop = whole[4:7]
    with serving(model, tmp_path) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        pieces = client.completions.create(
            model="tagi:say no", prompt="red green", max_tokens=12, stop=stop, stream=True
        )
        assert "".join(piece.choices[0].text for piece in pieces) == whole[: whole.index(stop)]


def test_a_seed_gives_the_same_draws_in_any_batch(models, serving, tmp_path):
    model = models("t5")

    async def ask(client, seed, **fields):
        answer = await client.post("/v1/completions", json=body("say no", "red green", seed=seed, **fields))
        return answer.json()["choices"][0]["text"]

    async def ask_all(url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            alone = [await ask(client, seed, temperature=1.0, top_p=0.9) for seed in range(6)]
            others = [ask(client, 9, temperature=0.0) for _ in range(4)]
            drawn = [ask(client, seed, temperature=1.0, top_p=0.9) for seed in range(6)]
            return alone, await asyncio.gather(*drawn, *others)

    with serving(model, tmp_path) as served:
        alone, again = asyncio.run(ask_all(served.url))
    assert alone == again[:6] and len(set(alone)) > 1 and len(set(again[6:])) == 1
