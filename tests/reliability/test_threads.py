"""Threads that share a model: each gets what it gets alone, and nothing is left behind.

    TAGI_CALLS=2000 pytest -n 0 tests/reliability/test_threads.py     # the whole; the default run takes a few of each
"""

import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

CALLS = int(os.environ.get("TAGI_CALLS", 12))  # of each thread
THREADS = 16
INSTRUCTIONS = ["say ab", "say the first word", "count the letters", "b or c"]
TEXTS = ["ab", "c d e", "abc abc", "e"]


@pytest.fixture
def model(make_model, tokenizer):
    made = make_model("t5", "cross_attention")
    made.tokenizer = tokenizer
    return made


@pytest.fixture
def often():
    """Has Python change threads as often as it can, so that each line may be the last before another's."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def calls(model, folder):
    """Returns functions of an adapter, an instruction, a text and a number that no two calls share."""
    ids = {text: torch.tensor([model.tokenizer(text)["input_ids"]]) for text in TEXTS}
    targets = torch.tensor([[5, 6, 1]])

    def logits(adapter, instruction, text, number):
        with torch.no_grad():
            return model(input_ids=ids[text], labels=targets, adapter=adapter).logits

    def with_gradients(adapter, instruction, text, number):
        return model(input_ids=ids[text], labels=targets, adapter=adapter).loss.detach()

    def bare(adapter, instruction, text, number):
        with torch.no_grad():
            return model.backbone(input_ids=ids[text], labels=targets).logits

    def tokens(adapter, instruction, text, number):
        return model.generate(ids[text], adapter=adapter, max_new_tokens=4, min_new_tokens=4, do_sample=False)

    def written(adapter, instruction, text, number):
        return next(iter(model.generate_adapter(instruction).lora_b.values()))

    def halved(adapter, instruction, text, number):
        return next(iter(adapter.to(torch.bfloat16).lora_b.values())).float()

    def answered(adapter, instruction, text, number):
        scores = model.function(instruction, ["ab", "c"]).scores(text)
        return torch.tensor(list(scores.values()))

    def saved(adapter, instruction, text, number):
        adapter.save_pretrained(folder / str(number))
        return next(iter(type(adapter).from_pretrained(folder / str(number)).lora_b.values()))

    def tuned(adapter, instruction, text, number):
        tuned = adapter.tune([(text, "ab")], steps=1, progress=False)
        return next(iter(tuned.lora_b.values())).detach()

    # tuning last: it alone takes the time of twenty others
    return [logits, with_gradients, bare, tokens, written, halved, answered, saved], tuned


def state(model):
    """Returns what a call could leave behind: modes, gradients, hooks and what is in force."""
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ], [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()]


def test_calls_of_many_threads_give_what_they_give_alone(model, often, tmp_path):
    common, tuned = calls(model, tmp_path)
    adapters = {text: model.generate_adapter(text) for text in INSTRUCTIONS}
    (tmp_path / "alone").mkdir()
    expected, before = {}, state(model)
    for call in (*common, tuned):
        for instruction in INSTRUCTIONS:
            for text in TEXTS:
                key = call.__name__, instruction, text
                expected[key] = call(adapters[instruction], instruction, text, f"alone/{len(expected)}")

    def work(thread):
        draw, wrong = random.Random(thread), []
        for number in range(CALLS):
            call = tuned if draw.random() < 0.02 else draw.choice(common)
            instruction, text = draw.choice(INSTRUCTIONS), draw.choice(TEXTS)
            found = call(adapters[instruction], instruction, text, f"{thread}-{number}")
            if not torch.allclose(found, expected[call.__name__, instruction, text], rtol=1e-5, atol=1e-6):
                wrong.append((call.__name__, instruction, text))
        return wrong

    with ThreadPoolExecutor(THREADS) as threads:
        wrong = [found for of_one in threads.map(work, range(THREADS)) for found in of_one]
    assert not wrong
    after = state(model)
    assert [one[:2] for one in after[0]] == [one[:2] for one in before[0]] and after[0] == before[0]
    assert [one[:2] for one in after[1]] == [one[:2] for one in before[1]]
    assert all(gradient is None for _, _, gradient in after[1])
