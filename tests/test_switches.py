import threading

import pytest
import torch
from torch import nn

from modeling_tagi.lora import evaluating, frozen, keeping_caches


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[2].eval()
    model[0].bias.requires_grad_(False)
    return model


def state(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("modes", [(evaluating, evaluating), (frozen, frozen), (evaluating, frozen)])
def test_a_mode_lasts_as_long_as_anyone_needs_it(model, modes, first):
    before, blocks = state(model), [mode(model) for mode in modes]
    for block in blocks:
        block.__enter__()
    blocks[first].__exit__(None, None, None)
    training, trained = state(model)
    assert not any(training) and any(trained) == (modes[1 - first] is evaluating)
    blocks[1 - first].__exit__(None, None, None)
    assert state(model) == before


@pytest.mark.parametrize("mode", [evaluating, frozen])
def test_an_error_inside_leaves_the_model_as_it_was(model, mode):
    before = state(model)
    with pytest.raises(KeyboardInterrupt), mode(model):
        raise KeyboardInterrupt
    assert state(model) == before
    with mode(model), mode(model):
        pass
    assert state(model) == before


@torch.no_grad()
def test_gradient_checkpointing_is_put_aside_as_long_as_any_call_without_gradients_lasts(make_model, random_ids):
    model = make_model("llama", "concat").train()
    adapter, ids = model.generate_adapter([5, 6, 7]), random_ids(2, 5)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    other, seen = keeping_caches(model.backbone), []
    other.__enter__()

    def end_the_other(*_):
        if not seen:
            other.__exit__(None, None, None)
        seen.append(model.is_gradient_checkpointing)

    model.backbone.base_model.layers[0].register_forward_hook(end_the_other)
    model.generate(ids, adapter=adapter, max_new_tokens=3)
    assert len(seen) == 3 and not any(seen) and model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    model.generate(ids, adapter=adapter, max_new_tokens=3)
    assert not model.is_gradient_checkpointing


def test_two_tunings_at_once_leave_no_gradient_and_are_each_as_alone(make_model, tokenizer):
    model = make_model("t5", backbone=None)
    model.tokenizer = tokenizer
    model.train().requires_grad_(True)
    adapters = [model.generate_adapter([5, 6, 7]), model.generate_adapter([8, 9])]
    records, steps = [[("abc", "d"), ("bcd", "e")], [("xyz", "w"), ("yz", "v")]], [3, 20]
    alone = [adapters[n].tune(records[n], steps=steps[n], progress=False) for n in (0, 1)]
    tuned = [None, None]

    def tune(n):
        tuned[n] = adapters[n].tune(records[n], steps=steps[n], progress=False)

    threads = [threading.Thread(target=tune, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    for one, expected in zip(tuned, alone):
        assert all(torch.allclose(b, expected.lora_b[path], atol=1e-5) for path, b in one.lora_b.items())


def test_what_an_interrupt_leaves_in_train_mode_is_put_back(make_model):
    model = make_model("t5", "none")
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        model.backbone.train()
        raise KeyboardInterrupt
    assert not any(module.training for module in model.modules())
