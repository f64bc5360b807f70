"""Losses from logits of the targets alone, and what a step need not compute."""

import pytest
import torch
from toy_trainer import ALL_TERMS, FAMILIES, PREDICTION, batch_of

from modeling_tagi.training import losses, step_outputs
from modeling_tagi.training.losses import LOSSES, update_norm
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.teacher import Teacher, frozen_copy


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_further_loss_is_a_function_in_a_table_and_its_weight(
    make_model, make_trainer, records, monkeypatch, accumulation
):
    monkeypatch.setitem(LOSSES, "constant", lambda outputs, inputs: outputs["loss"] * 0 + len(inputs["labels"]))
    model = make_model(trained=True).train()
    objective = Objective(distillation_weight=0, alignment="none", losses={"constant": 3.0, "update_norm": 0.5})
    trainer = make_trainer(model, [[0]], objective=objective)
    trainer.current_gradient_accumulation_steps = accumulation
    batch = batch_of(trainer, records[:4])
    outputs = model(**{k: x for k, x in batch.items() if not k.startswith("teacher")})
    norm = update_norm(outputs, batch)
    # the mean over modules and tasks of ‖scaling · B A‖²
    a, b = outputs["adapter"].lora_a, outputs["adapter"].lora_b
    deltas = [outputs["adapter"].scaling * b[path] @ a[path] for path in a]
    torch.testing.assert_close(norm, torch.stack([x.square().sum((-1, -2)) for x in deltas]).mean())
    tokens = (batch["labels"] != -100).sum()
    for num_items, parts in ((None, 1), (tokens, accumulation)):
        found = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
        torch.testing.assert_close(found, outputs["loss"] + (3.0 * 4 + 0.5 * norm) / parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_further_loss_can_read_the_logits_of_targets(make_model, make_trainer, records, monkeypatch, family):
    def cross_entropy(outputs, inputs):
        return torch.nn.functional.cross_entropy(*losses.predicted(outputs, inputs))

    monkeypatch.setitem(LOSSES, "again", cross_entropy)
    model = make_model(family, trained=True).train()
    trainer = make_trainer(
        model, [[0]], family, Objective(distillation_weight=0, alignment="none", losses={"again": 1.0})
    )
    batch = batch_of(trainer, records[:4])
    expected = model(**{k: x for k, x in batch.items() if not k.startswith("teacher")})["loss"]
    torch.testing.assert_close(trainer.compute_loss(model, batch), 2 * expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fusion", ["cross_attention", "none"])
@pytest.mark.parametrize("num_items", [None, 37])
def test_the_head_reads_targets_alone_and_all_is_as_with_whole_logits(
    make_model, make_trainer, make_bank, records, monkeypatch, family, fusion, num_items
):
    model = make_model(family, trained=True, fusion=fusion).train()
    model.set_trainable("all")
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    trainer = make_trainer(model, [[0]], family, objective=ALL_TERMS, teacher=teacher)
    batch = batch_of(trainer, records[:8])
    found = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(trainer, "_head", lambda: None)
        model.zero_grad()
        loss, outputs = trainer.compute_loss(model, batch, True, num_items and torch.tensor(num_items))
        loss.backward()
        found.append((loss, {name: x.grad for name, x in model.named_parameters() if x.grad is not None}))
        assert outputs.logits.ndim == 2
        found[-1] = (*found[-1], outputs.logits)
    assert found[0][1].keys() == found[1][1].keys()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fusion", ["cross_attention", "none"])
def test_rows_of_like_length_together_are_the_same_step(
    make_model, make_trainer, make_bank, records, monkeypatch, family, fusion
):
    model = make_model(family, trained=True, fusion=fusion).train()
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    trainer = make_trainer(model, [[0]], family, objective=ALL_TERMS, teacher=teacher)
    batch = batch_of(trainer, [records[place] for place in (0, 5, 2, 7, 1, 3)])
    monkeypatch.setattr(step_outputs, "alike_in_length", lambda lengths, on_cpu: [[1, 4], [0, 2, 5], [3]])
    found = []
    for trainer.rows_by_length in (False, True):
        model.zero_grad()
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        loss.backward()
        found.append((loss, outputs.logits, {n: x.grad for n, x in model.named_parameters() if x.grad is not None}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_an_instruction_of_a_frozen_backbone_is_read_once(make_model, make_trainer, records, monkeypatch):
    read = []
    for dropout, fusion, scope in ((0.0, "none", "generator"), (0.1, "none", "generator"),
                                   (0.0, "cross_attention", "generator"), (0.0, "none", "all")):  # fmt: skip
        model = make_model("llama", dropout, trained=True, fusion=fusion).train()
        model.set_trainable(scope)
        trainer = make_trainer(model, [[0]], "llama", PREDICTION)
        calls, encode = [], model._read
        monkeypatch.setattr(model, "_read", lambda *args: calls.append(1) or encode(*args))
        batch = batch_of(trainer, records[:8])
        losses_of = [trainer.compute_loss(model, batch) for _ in range(3)]
        read.append(len(calls))
        if not dropout:
            expected = model(**batch).loss
            assert all(torch.allclose(loss, expected, atol=1e-5) for loss in losses_of)
        assert losses_of[0].requires_grad
    assert read == [1, 3, 3, 3]


def test_a_head_that_adapters_change_reads_every_position(make_model, make_trainer, records):
    model = make_model("llama", fusion="none", target_modules=["q_proj", "lm_head"]).train()
    trainer = make_trainer(model, [[0]], "llama", PREDICTION)
    loss, outputs = trainer.compute_loss(model, batch_of(trainer, records[:8]), return_outputs=True)
    batch = batch_of(trainer, records[:8])
    whole = model(**{name: x for name, x in batch.items() if not name.startswith("teacher")})
    assert torch.equal(outputs.logits, losses.target_logits(whole.logits, batch["labels"], False))
    assert loss == outputs.loss == whole.loss


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_backbone_has_its_own_loss(make_model, make_trainer, records, family):
    model = make_model(family).backbone.train()
    trainer = make_trainer(model, [[0]], family, PREDICTION)
    trainer.data_collator.reads = "prompt"
    batch = batch_of(trainer, records[:8])
    expected = model(**batch).loss
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected)


def test_the_losses_of_the_trainer_are_those_of_the_functions(make_model, make_trainer, make_bank, records):
    model = make_model(trained=True)
    model.train()
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    objective = Objective(prediction_weight=0.5, distillation_weight=2.0, temperature=2.0, alignment="factors")
    trainer = make_trainer(model, [[0]], objective=objective, teacher=teacher)
    batch = batch_of(trainer, records[:8])
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    logits = teacher.logits(
        {n: batch[f"teacher_{n}"] for n in ("input_ids", "attention_mask", "labels")},
        teacher.adapters(batch["teacher_index"]), batch["task_index"],
    )  # fmt: skip
    target = batch["labels"] != -100
    kl = losses.distillation_loss(outputs.logits, logits[target], 2.0)
    bank = teacher.adapters(batch["teacher_index"])
    ours = outputs.adapter
    aligned = losses.alignment_factors(ours.lora_a, ours.lora_b, 2.0, bank.lora_a, bank.lora_b, 2.0)
    expected = 0.5 * outputs.loss + 2.0 * kl + torch.sigmoid(aligned) * aligned
    assert kl > 0 and aligned > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
