"""The same answers in every way to run a model: checkpointed, autocast, compiled, copied, in threads."""

import copy

import pytest
import torch
from toy_batches import FUSIONS, batch_for, both_kinds, equal_adapters, every_fusion, labels_for


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@both_kinds
@every_fusion
@pytest.mark.parametrize("scope", ["generator", "all"])
def test_checkpointed_gradients_equal_those_without(make_model, random_ids, family, fusion, scope):
    model = make_model(family, fusion).train()
    model.set_trainable(scope)
    batch = {
        "input_ids": random_ids(3, 6), "attention_mask": torch.ones(3, 6, dtype=torch.long),
        "labels": labels_for(model, random_ids, rows=3), "instruction_input_ids": random_ids(2, 5, seed=4),
        "task_index": torch.tensor([1, 0, 1]),
    }  # fmt: skip
    calls = []
    path = "decoder.block.0.layer.1.EncDecAttention.q" if family == "t5" else "model.layers.0.self_attn.q_proj"
    model.backbone.get_submodule(path).register_forward_hook(lambda *_: calls.append(None))
    loss, expected = gradients(model, batch)
    called = len(calls)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed_loss, checkpointed = gradients(model, batch)
    assert len(calls) > 2 * called  # recomputed
    torch.testing.assert_close(checkpointed_loss, loss, rtol=0, atol=1e-6)
    assert checkpointed.keys() == expected.keys() and any(name.startswith("hypernetwork") for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_reentrant_checkpointing_is_refused(make_model):
    with pytest.raises(ValueError, match=r"use_reentrant=True.*\{'use_reentrant': False\}"):
        make_model("t5").gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


@both_kinds
@every_fusion
def test_autocast_is_finite_and_close(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    batch = {"input_ids": random_ids(2, 6), "labels": labels_for(model, random_ids)}
    batch["instruction_input_ids"] = random_ids(2, 5, seed=4)
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
        made_outside = model(batch["input_ids"], labels=batch["labels"], adapter=expected.adapter)
    output.loss.backward()
    for loss in (output.loss, made_outside.loss):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected.loss, rtol=0.05, atol=0)
    assert all(p.grad.isfinite().all() for p in model.hypernetwork.parameters())


@both_kinds
@every_fusion
def test_the_whole_model_runs_in_bfloat16(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    batch = {"input_ids": random_ids(2, 6), "labels": labels_for(model, random_ids)}
    expected = model(**batch, instruction_input_ids=random_ids(2, 5, seed=4)).loss
    half = copy.deepcopy(model).to(torch.bfloat16)
    output = half(**batch, instruction_input_ids=random_ids(2, 5, seed=4))
    assert output.logits.dtype == torch.bfloat16 and output.adapter.lora_b.popitem()[1].dtype == torch.bfloat16
    torch.testing.assert_close(output.loss, expected, rtol=0.1, atol=0)
    adapter = half.generate_adapter(random_ids(2, 5, seed=4))
    assert half.generate(batch["input_ids"], adapter=adapter, max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize(
    "family, fusion, backend",
    [
        ("llama", "cross_attention", "eager"),
        *(pytest.param("t5", fusion, "eager", marks=pytest.mark.slow) for fusion in FUSIONS),
        *(pytest.param("llama", fusion, "eager", marks=pytest.mark.slow) for fusion in FUSIONS[:2]),
        pytest.param("t5", "cross_attention", "inductor", marks=pytest.mark.slow),
        pytest.param("llama", "cross_attention", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(make_model, random_ids, family, fusion, backend):
    torch._dynamo.reset()
    model = make_model(family, fusion)
    adapter, batch = model.generate_adapter(random_ids(2, 5, seed=4)), batch_for(model, random_ids)
    with torch.no_grad():
        expected = model(**batch, adapter=adapter).logits
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(**batch, adapter=adapter).logits, expected, rtol=0, atol=1e-5)
        other = model.generate_adapter(random_ids(2, 5, seed=5))
        expected_of_other = model(**batch, adapter=other).logits
        torch.testing.assert_close(compiled(**batch, adapter=other).logits, expected_of_other, rtol=0, atol=1e-5)
    assert (expected - expected_of_other).abs().max() > 1e-3


@pytest.mark.slow
def test_a_compiled_backbone_sees_each_adapter_in_force(make_model, random_ids):
    from modeling_tagi.lora import Application, applied

    torch._dynamo.reset()
    model, ids = make_model("llama", "none"), random_ids(2, 5)
    compiled = torch.compile(model.backbone, backend="eager")
    adapters = [model.generate_adapter(random_ids(1, 5, seed)) for seed in (1, 2)]
    with torch.no_grad():
        for adapter in (adapters[0], None, adapters[1], adapters[0]):
            application = Application.of(adapter, model.backbone) if adapter is not None else None
            with applied(application):
                torch.testing.assert_close(
                    compiled(ids).logits, model(ids, adapter=adapter).logits, rtol=0, atol=1e-5
                )


@both_kinds
@every_fusion
def test_a_copy_is_independent(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    adapter, batch = model.generate_adapter(random_ids(2, 5, seed=4)), batch_for(model, random_ids)
    expected = model(**batch, adapter=adapter).logits
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(**batch, adapter=adapter).logits, expected)
    equal_adapters(copied.generate_adapter(random_ids(2, 5, seed=4)), adapter)


def test_two_threads_with_two_adapters_get_their_own_answers(make_model, random_ids):
    import threading

    model = make_model("llama")
    batch = batch_for(model, random_ids)
    adapters = [model.generate_adapter(random_ids(1, 5, seed)) for seed in (1, 2)]
    expected = [model(**batch, adapter=adapter).logits.detach() for adapter in adapters]
    barrier, wrong = threading.Barrier(2), []

    def work(number):
        try:
            for _ in range(20):
                barrier.wait(timeout=60)
                if not torch.equal(model(**batch, adapter=adapters[number]).logits, expected[number]):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not torch.equal(*expected)
