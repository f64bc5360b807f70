import copy
import pickle
import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from modeling_tagi import TagiAdapter
from modeling_tagi.instruction_cache import InstructionCache

ONE, TWO, THREE = [5, 6, 7], [8, 9, 10, 11, 12], [13, 14]


@pytest.fixture(params=["t5", "llama"])
def model(request, make_model):
    return keeping(make_model(request.param))


def keeping(model):
    model.instruction_cache.max_bytes = 2**28
    return model


@pytest.fixture
def read(model):
    """Numbers of instructions that the encoder was given, call by call."""
    calls = []
    encoder = model.backbone.get_encoder() if model.config.is_encoder_decoder else model.backbone.base_model
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return calls


def tensors(adapter):
    found = {**{f"a {k}": v for k, v in adapter.lora_a.items()}, **{f"b {k}": v for k, v in adapter.lora_b.items()}}
    return {**found, **(adapter.memory.tensors() if adapter.memory is not None else {})}


def same(one, two):
    return all(torch.equal(x, tensors(two)[name]) for name, x in tensors(one).items())


def test_nothing_is_kept_unless_it_is_asked_for(make_model):
    model = make_model("t5")
    model.generate_adapter(ONE)
    assert model.instruction_cache.max_bytes == 0 and len(model.instruction_cache) == 0


def test_the_same_instruction_is_read_once_and_gives_the_same_bytes(model, read):
    first, second = model.generate_adapter(ONE), model.generate_adapter(torch.tensor(ONE))
    assert read == [1] and same(first, second) and first.provenance == second.provenance
    assert model.generate_adapter(TWO).provenance != first.provenance and read == [1, 1]


def test_only_what_is_new_is_read_and_each_but_once(model, read):
    model.generate_adapter(ONE)
    several = model.generate_adapter([TWO, ONE, THREE, TWO])
    assert read == [1, 2]
    again = model.generate_adapter([TWO, ONE, THREE, TWO])
    assert read == [1, 2] and same(several, again)
    model.instruction_cache.clear()
    assert len(model.instruction_cache) == 0  # and none is held in memory
    for tokens, part in zip([TWO, ONE, THREE, TWO], several):
        alone = model.generate_adapter(tokens)
        for name, x in tensors(alone).items():
            torch.testing.assert_close(tensors(part)[name], x, rtol=1e-4, atol=1e-5)


def test_a_text_is_known_with_its_demonstrations(make_model, tokenizer):
    model = keeping(make_model("t5"))
    model.tokenizer = tokenizer
    bare = model.generate_adapter("say ab")
    shown = model.generate_adapter("say ab", demonstrations=[("a", "b")])
    assert len(model.instruction_cache) == 2 and not same(bare.without_memory(), shown.without_memory())
    assert same(model.generate_adapter("say ab", demonstrations=[("a", "b")]), shown)
    assert model.generate_adapter("say ab").provenance[0]["instruction"] == "say ab"


def test_who_changes_an_adapter_changes_no_other(model):
    first = model.generate_adapter(ONE)
    expected = copy.deepcopy(tensors(first))
    for adapter in (first, model.generate_adapter(ONE)):
        for x in tensors(adapter).values():
            x.zero_()
        adapter.lora_a.clear()
    assert all(torch.equal(x, expected[name]) for name, x in tensors(model.generate_adapter(ONE)).items())


def step(model):
    optimizer = torch.optim.AdamW(model.hypernetwork.parameters(), lr=1e-2)
    for parameter in model.hypernetwork.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def through_data(model):
    for parameter in model.hypernetwork.parameters():
        parameter.data.mul_(1.01)  # which torch does not count


def there_and_back(model):
    model.backbone.to(torch.bfloat16)
    model.backbone.to(torch.float32)


def loaded(model):
    model.load_state_dict({name: x * 1.1 for name, x in model.state_dict().items()})


def exchanged(model):
    path = next(iter(model.hypernetwork.shared_a))
    model.hypernetwork.shared_a[path] = torch.nn.Parameter(torch.zeros_like(model.hypernetwork.shared_a[path]))


def one_number(model):
    with torch.no_grad():
        next(iter(model.hypernetwork.shared_factors().values()))[1, 2] += 1


def trained_embeddings(model):
    weight = model.get_input_embeddings().weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1e-1, fused=True).step()  # whose writes torch does not count


def hooked(model):
    layer = model.backbone.encoder.block[0] if model.config.is_encoder_decoder else model.backbone.model.layers[0]
    layer.register_forward_hook(lambda module, args, x: (2 * x[0], *x[1:]) if isinstance(x, tuple) else 2 * x)


def peft_injected(model):
    targets = ["q"] if model.config.is_encoder_decoder else ["q_proj"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), model.backbone)


def peft_layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def peft_scaled(model):
    for layer in peft_layers(model):
        layer.set_scale("default", 9)


def peft_off(model):
    for layer in peft_layers(model):
        layer.enable_adapters(False)


def other_alpha(model):
    model.config.lora_alpha = 16


def other_fusion(model):
    model.config.fusion = "none"


WEIGHTS = [step, through_data, there_and_back, loaded, exchanged, one_number, trained_embeddings]
CHANGES = [*WEIGHTS, hooked, peft_injected, peft_scaled, peft_off]
CONFIGS = [other_alpha, other_fusion]


def look_alike(one, two):
    return one.lora_alpha == two.lora_alpha and tensors(one).keys() == tensors(two).keys() and same(one, two)


@pytest.mark.parametrize("change", [*CHANGES, *CONFIGS])
def test_a_changed_model_writes_other_adapters(make_model, change):
    model = make_model("llama" if change in (peft_scaled, peft_off) else "t5")
    if change in (peft_scaled, peft_off):
        peft_injected(model)
    before = model.generate_adapter(ONE)
    change(model)
    assert not look_alike(model.generate_adapter(ONE), before)


@pytest.mark.parametrize("change", [*CHANGES, *CONFIGS])
def test_who_keeps_adapters_clears_them_after_a_change(make_model, change):
    model = keeping(make_model("t5"))
    before = model.generate_adapter(ONE)
    change(model)
    if change not in CONFIGS:  # those of the config that matter are seen
        model.instruction_cache.clear()
    after = model.generate_adapter(ONE)
    model.instruction_cache.max_bytes = 0
    assert look_alike(model.generate_adapter(ONE), after)
    assert look_alike(before, after) == (change in (peft_scaled, peft_off))  # of layers that t5 does not have here


def test_no_weight_is_looked_at(model, read, monkeypatch):
    model.generate_adapter(ONE)

    def refuse(*args, **kwargs):
        raise AssertionError("all weights were gone through")

    monkeypatch.setattr(model, "buffers", refuse)
    model.instruction_cache.adapters(model, [tuple(ONE)], refuse)
    assert read == [1]


def test_training_mode_and_gradients_change_nothing(model, read):
    first = model.generate_adapter(ONE)
    model.train().requires_grad_(False)
    assert same(model.generate_adapter(ONE), first) and read == [1] and model.training


def test_autocast_is_another_computation(model, read):
    first = model.generate_adapter(ONE)
    with torch.autocast("cpu", torch.bfloat16):
        second = model.generate_adapter(ONE)
    assert len(read) == 2 and not same(first, second)
    assert same(model.generate_adapter(ONE), first)


def test_it_can_be_switched_off(model, read):
    model.instruction_cache.max_bytes = 0
    assert same(model.generate_adapter(ONE), model.generate_adapter(ONE))
    assert read == [1, 1] and len(model.instruction_cache) == 0


def test_it_keeps_what_was_used_last_within_its_size(model, read):
    size = sum(x.numel() * x.element_size() for x in tensors(model.generate_adapter(ONE)).values())
    model.instruction_cache = InstructionCache(int(2.5 * size))
    others = [[20, 21, 22], [23, 24, 25]]
    for tokens in (ONE, others[0], ONE, others[1]):  # the last drives out others[0]
        model.generate_adapter(tokens)
    del read[:]
    model.generate_adapter(ONE), model.generate_adapter(others[1])
    assert read == [] and len(model.instruction_cache) == 2
    model.generate_adapter(others[0])
    assert read == [1]


def test_of_many_at_once_the_last_that_fit_are_kept(model, read):
    size = model.generate_adapter(TWO).nbytes
    model.instruction_cache.clear()
    rows = [[number] * 5 for number in range(5, 11)]
    model.instruction_cache.max_bytes = int(3.5 * size)
    several = model.generate_adapter(rows)
    assert len(model.instruction_cache) == 3
    calls = len(read)
    for row, one in zip(rows[3:], list(several)[3:]):
        assert same(model.generate_adapter(row), one)
    assert len(read) == calls
    model.generate_adapter(rows[2])
    assert len(read) == calls + 1
    model.instruction_cache.max_bytes = size // 2
    model.generate_adapter([13, 14, 15, 16, 17])
    assert len(model.instruction_cache) == 0


def test_copies_of_a_model_have_a_cache_of_their_own(model):
    model.instruction_cache.max_bytes = 12345678
    model.generate_adapter(ONE)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.instruction_cache))):
        cache = getattr(other, "instruction_cache", other)
        assert len(cache) == 0 and cache.max_bytes == 12345678
    assert len(model.instruction_cache) == 1


def test_what_was_read_without_autograd_serves_those_who_tune(model):
    with torch.inference_mode():
        model.generate_adapter(ONE)
    adapter = model.generate_adapter(ONE)
    assert not any(x.is_inference() for x in tensors(adapter).values())


def test_what_was_being_read_when_all_was_forgotten_is_not_kept(model, monkeypatch):
    read_rows = model.adapter_from_rows
    monkeypatch.setattr(model, "adapter_from_rows", lambda rows: (read_rows(rows), model.instruction_cache.clear())[0])
    model.generate_adapter(ONE)
    assert len(model.instruction_cache) == 0


def test_threads_get_what_they_asked_for(make_model):
    model = make_model("t5")
    wanted = [[n, n + 1, n + 2] for n in range(3, 15)]
    expected = [model.generate_adapter(tokens) for tokens in wanted]
    model.instruction_cache = InstructionCache(40_000)  # a few
    wrong = []

    def ask(start):
        for turn in range(24):
            number = (start + 5 * turn) % len(wanted)
            got = model.generate_adapter(wanted[number])
            if not isinstance(got, TagiAdapter) or not same(got, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
