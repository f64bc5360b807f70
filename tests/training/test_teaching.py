"""What the teacher adds to a step: distillation, alignment, and tasks that have no teacher."""

import pytest
import torch
from toy_trainer import ALL_TERMS, FAMILIES, GROUPS, batch_of, changed, weights

from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import TaskBatchSampler
from modeling_tagi.training import losses
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.teacher import Teacher, frozen_copy


@pytest.mark.parametrize("objective", [
    Objective(prediction_weight=0, distillation_weight=2.0, alignment="none"),
    Objective(prediction_weight=0, distillation_weight=0, alignment="factors", alignment_weight=1.0),
    Objective(distillation_weight=2.0, alignment="delta", alignment_weight=0.5),
], ids=["L_kl", "L_ins", "all"])  # fmt: skip
def test_batches_whose_tasks_have_no_teacher_leave_a_step_what_it_is(
    make_model, make_trainer, make_bank, records, objective
):
    one = [n for n, r in enumerate(records) if r.task == "both"]  # its group has an adapter
    other = [n for n, r in enumerate(records) if r.task == "first"]  # and this one none
    after, logged = [], []
    for batches in ([one + other], [one, other]):
        model = make_model(trained=True)
        model.set_trainable("all")
        teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
        trainer = make_trainer(model, batches, "t5", objective, teacher, bank={"two": 1}, optim="sgd",
                               gradient_accumulation_steps=len(batches))  # fmt: skip
        trainer.train()
        after.append(weights(model))
        logged.append({name: x for name, x in trainer.state.log_history[0].items() if name.startswith("loss")})
    start = weights(make_model(trained=True))
    for key in start:
        step = float((after[0][key] - start[key]).abs().max())
        assert torch.allclose(after[0][key], after[1][key], rtol=0, atol=1e-6 + 1e-4 * step), key
    assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=2e-5)


def test_distillation_without_adapters_still_tells_of_the_instruction(make_model, make_trainer, make_bank, records):
    # A fresh generator and a bank with B = 0 change nothing: what differs is the prompt and the student's fusion.
    model = make_model(fusion="none")
    bank = make_bank(model)
    for b in bank.lora_b.values():
        b.zero_()
    trainer = make_trainer(model, [[0]], objective=ALL_TERMS, teacher=Teacher(model.backbone, bank))
    model.train()
    trainer.compute_loss(model, batch_of(trainer, records[:4]))
    assert trainer._terms["distillation"][0] > 1e-3


@pytest.mark.parametrize("bf16, dtype", [(False, torch.float32), (True, torch.bfloat16)])
def test_a_teacher_answers_in_its_own_precision(make_model, make_trainer, make_bank, records, bf16, dtype):
    model = make_model()
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model), bf16)
    found = []
    teacher.head.register_forward_hook(lambda module, args, output: found.append(output.dtype))
    trainer = make_trainer(model, [[0]], objective=ALL_TERMS, teacher=teacher)
    model.train()
    trainer.compute_loss(model, batch_of(trainer, records[:4])).backward()
    assert found == [dtype]


def test_a_teacher_reads_prompt_and_task_adapter(make_model, make_trainer, make_bank, make_tokens, records):
    model, tokens = make_model(trained=True), make_tokens()
    bank = make_bank(model)
    teacher = Teacher(model.backbone, bank)
    batch = RecordCollator(tokens, bank_index=GROUPS)(records[:4])
    inputs = {n.removeprefix("teacher_"): x for n, x in batch.items() if n.startswith("teacher_") and n[8:] != "index"}
    logits = teacher.logits(inputs, teacher.adapters(batch["teacher_index"]), batch["task_index"])
    model.eval()
    for row, record in enumerate(records[:4]):
        alone = RecordCollator(tokens, "prompt")([record])
        with torch.no_grad():
            expected = model(**alone, adapter=bank[GROUPS[record.group]]).logits[0]
        assert torch.allclose(logits[row, : len(expected)], expected, atol=1e-5)
    without = {path: torch.zeros_like(b) for path, b in bank.lora_b.items()}
    bare = Teacher(model.backbone, type(bank)(bank.lora_a, without, bank.lora_alpha))
    other = bare.logits(inputs, bare.adapters(batch["teacher_index"]), batch["task_index"])
    assert not torch.allclose(logits, other, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [False, True], ids=["", "an adapter changes the head"])
def test_a_teachers_answers_are_its_logits_for_the_targets_of_some_rows(
    make_model, make_bank, make_tokens, records, family, head
):
    targets = {"target_modules": ["lm_head", {"t5": "q", "llama": "q_proj"}[family]]} if head else {}
    model = make_model(family, fusion="none", **targets)
    teacher = Teacher(model.backbone, make_bank(model))
    batch = RecordCollator(make_tokens(family), bank_index=GROUPS)(records[:6])
    inputs = {name: batch[f"teacher_{name}"] for name in ("input_ids", "attention_mask", "labels")}
    rows = torch.tensor([True, False, True, True, False, True])
    answers = teacher.answers(inputs, batch["teacher_index"], batch["task_index"], rows)
    logits = teacher.logits(inputs, teacher.adapters(batch["teacher_index"]), batch["task_index"])
    expected = losses.target_logits(logits[rows], inputs["labels"][rows], family == "t5")
    assert len(answers) == (inputs["labels"][rows] != -100).sum() and torch.allclose(answers, expected, atol=1e-6)
    assert not teacher.head._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_on_the_students_frozen_backbone_gives_it_no_gradient(
    make_model, make_trainer, make_bank, records, family
):
    model = make_model(family, dropout=0.2, trained=True)
    model.set_trainable("generator")
    bank = make_bank(model)
    for factor in (*bank.lora_a.values(), *bank.lora_b.values()):
        factor.requires_grad_()
    teacher = Teacher(model.backbone, bank)
    trainer = make_trainer(model, [[0]], family, Objective(prediction_weight=0), teacher)
    model.train()
    trainer.compute_loss(model, batch_of(trainer, records[:8])).backward()
    assert all(x.grad is None for x in (*model.backbone.parameters(), *bank.lora_a.values(), *bank.lora_b.values()))
    assert sum(x.grad.abs().sum() for x in model.hypernetwork.parameters()) > 0
    assert all(module.training for module in model.modules())


def test_tasks_without_an_adapter_are_left_out_of_distillation_and_alignment(
    make_model, make_trainer, make_bank, records
):
    model = make_model(trained=True)
    model.train()
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    terms = []
    known = [r for r in records if r.group == "two"]
    for bank, chosen in (({"two": 1}, records), (GROUPS, known)):
        trainer = make_trainer(model, [[0]], objective=ALL_TERMS, teacher=teacher, bank=bank)
        trainer.compute_loss(model, batch_of(trainer, chosen))
        terms.append({name: float(total) for name, (total, _) in trainer._terms.items()})
    assert terms[0]["distillation"] == pytest.approx(terms[1]["distillation"], rel=1e-5)
    assert terms[0]["alignment"] == pytest.approx(terms[1]["alignment"], rel=1e-5)
    assert terms[0]["prediction"] != pytest.approx(terms[1]["prediction"], rel=1e-3)


def test_a_batch_without_any_adapter_is_trained_on_its_labels(make_model, make_trainer, make_bank, records):
    model = make_model()
    model.train()
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    trainer = make_trainer(model, [[0]], objective=ALL_TERMS, teacher=teacher, bank={"another": 0})
    loss, outputs = trainer.compute_loss(model, batch_of(trainer, records[:4]), return_outputs=True)
    assert loss.item() == outputs.loss.item() and set(trainer._terms) == {"prediction"}


def test_a_missing_teacher_is_refused(make_model, make_trainer):
    with pytest.raises(ValueError, match="there is no teacher; give one, or set distillation_weight=0"):
        make_trainer(make_model(), [[0]], objective=ALL_TERMS)


def test_batches_that_do_not_name_their_teachers_are_refused(make_model, make_trainer, make_bank, records):
    model = make_model()
    trainer = make_trainer(model, [[0]], objective=ALL_TERMS, teacher=Teacher(model.backbone, make_bank(model)))
    trainer.data_collator.bank_index = None
    with pytest.raises(ValueError, match="no teacher_index; give the data collator a bank_index"):
        trainer.compute_loss(model.train(), batch_of(trainer, records[:4]))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_teacher_reads_is_no_input_of_generation(make_model, make_trainer, make_bank, records, family):
    model = make_model(family, trained=True)
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    trainer = make_trainer(model, [[0]], family, ALL_TERMS, teacher, predict_with_generate=True,
                           generation_max_length=5)  # fmt: skip
    if family == "llama":
        with pytest.raises(ValueError, match="in a causal model's training batch the input holds the answer"):
            trainer.predict(records[:4])
        return
    found = trainer.predict(records[:4])
    assert found.predictions.shape[0] == 4 and found.metrics["test_loss"] > 0


def test_a_trained_backbones_teacher_stays_what_it_was(make_model, make_trainer, make_bank, records):
    model = make_model()
    model.set_trainable("all")
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    before = weights(teacher.backbone)
    batches = TaskBatchSampler(records, 3, 2, steps=2)
    make_trainer(model, batches, objective=ALL_TERMS, teacher=teacher, max_steps=2).train()
    assert not changed(before, weights(teacher.backbone))
    assert changed(before, weights(model.backbone))


def test_distillation_and_alignment_fall_to_nothing_over_their_steps(make_model, make_trainer, make_bank, records):
    model = make_model(trained=True)
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    objective = Objective(distillation_weight=2.0, distillation_steps=4, alignment="delta", alignment_weight=0.5,
                          alignment_steps=2)  # fmt: skip
    trainer = make_trainer(model, [[0]], objective=objective, teacher=teacher)
    trainer.current_gradient_accumulation_steps = 1
    model.train()

    def loss_at(step):
        trainer.state.global_step = step
        trainer._terms.clear()
        loss = trainer.compute_loss(model, batch_of(trainer, records[:4])).item()
        return loss, {name: total.item() for name, (total, _) in trainer._terms.items()}

    whole, terms = loss_at(0)
    assert whole == pytest.approx(terms["prediction"] + 2.0 * terms["distillation"] + 0.5 * terms["alignment"])
    half, _ = loss_at(1)  # 3/4 of the one, 1/2 of the other
    assert half == pytest.approx(terms["prediction"] + 1.5 * terms["distillation"] + 0.25 * terms["alignment"])
    later, left = loss_at(3)
    assert later == pytest.approx(terms["prediction"] + 0.5 * terms["distillation"]) and "alignment" not in left
    teacher.backbone = None  # not run any more
    assert loss_at(4)[0] == pytest.approx(terms["prediction"])
