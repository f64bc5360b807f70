from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_callback import PrinterCallback

from modeling_tagi.common.randomness import unchanged_randomness
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import Drawn, StreamBatchSampler, TaskBatchSampler
from modeling_tagi.data.streams import RecordStream
from modeling_tagi.training import losses, step_outputs
from modeling_tagi.training.finite import NotFinite
from modeling_tagi.training.losses import LOSSES, update_norm
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.teacher import Teacher, frozen_copy
from modeling_tagi.training.trainer import TagiTrainer

FAMILIES = ("t5", "llama")
PREDICTION = Objective(distillation_weight=0, alignment="none")
ALL_TERMS = Objective(distillation_weight=2.0, alignment="delta", alignment_weight=0.5)
GROUPS = {"one": 0, "two": 1}


@pytest.fixture
def make_trainer(records, make_tokens, training_arguments):
    def make(model, batches, family="t5", objective=None, teacher=None, bank=GROUPS, eval_dataset=None,
             **arguments):  # fmt: skip
        collator = RecordCollator(make_tokens(family), bank_index=bank if teacher is not None else None)
        trainer = TagiTrainer(
            model=model,
            args=training_arguments(**arguments),
            train_dataset=Drawn(records),
            eval_dataset=eval_dataset,
            data_collator=collator,
            batch_sampler=batches,
            objective=objective,
            teacher=teacher,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


def weights(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def batch_of(trainer, records):
    return trainer.data_collator(records)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alignment", ["factors", "delta"])
def test_four_batches_a_step_are_one_batch_of_four_times_the_size(
    make_model, make_trainer, make_bank, family, alignment
):
    objective = Objective(distillation_weight=2.0, alignment=alignment)
    # 24 records, tasks side by side: quarters of 4, 4, 8 and 8 records, each with every task (L_ins is per batch).
    quarters = [list(range(0, 4)), list(range(4, 8)), list(range(8, 16)), list(range(16, 24))]
    after = {}
    for name, batches in (("one", [list(range(24))]), ("four", quarters)):
        model = make_model(family, trained=True)
        model.set_trainable("all")
        start = weights(model)
        teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
        trainer = make_trainer(
            model, batches, family, objective, teacher, optim="sgd", gradient_accumulation_steps=len(batches)
        )
        trainer.train()
        after[name] = weights(model)
        assert len(changed(start, after[name])) > 10
    for key in start:
        step = (after["one"][key] - start[key]).abs().max()
        assert torch.allclose(after["one"][key], after["four"][key], rtol=0, atol=1e-6 + 1e-4 * float(step)), key


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


def test_logs_hold_each_term(make_model, make_trainer, make_bank):
    for accumulation in (1, 3):
        model = make_model(trained=True)
        batches = [list(range(4 * n, 4 * n + 4)) for n in range(2 * accumulation)]
        trainer = make_trainer(
            model, batches, objective=ALL_TERMS, teacher=Teacher(frozen_copy(model.backbone), make_bank(model)),
            max_steps=2, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logs) == 2
        for entry in logs:
            assert entry["loss_distillation"] > 0.01 and entry["loss_alignment"] > 0.01
            total = entry["loss_prediction"] + 2 * entry["loss_distillation"] + 0.5 * entry["loss_alignment"]
            assert entry["loss"] == pytest.approx(total, abs=2e-4)


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


@pytest.mark.parametrize("fields, message", [
    ({"alignment": "factor"}, f"'factor', but must be one of {', '.join(map(repr, losses.ALIGNMENTS))}"),
    ({"alignment_weight": "sigmod"}, "'sigmod', but must be a number"),
    ({"temperature": -1.0}, "temperature is -1.0, but must be above 0"),
    ({"losses": {"norm": 1.0}}, f"losses has 'norm', but knows {', '.join(map(repr, LOSSES))}"),
    ({"losses": {"update_norm": -1}}, "losses.update_norm is -1, but must be a number from 0 to 1000"),
])
def test_an_objective_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        Objective(**fields)


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


def test_an_objective_that_falls_over_no_steps_does_not_last():
    assert not Objective(prediction_weight=0, distillation_steps=0, alignment="none").lasts(100)
    assert not Objective(prediction_weight=0, distillation_weight=0, alignment_steps=0).lasts(100)
    assert Objective(prediction_weight=0, distillation_steps=100, alignment="none").lasts(100)


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


@pytest.mark.parametrize("arguments, why", [
    ({"learning_rate": float("inf")}, "step 1: the weight .* is no longer finite"),
    ({"learning_rate": 1e30}, "step 2: the loss is (nan|inf) .loss_prediction (nan|inf)"),
    ({"weight_decay": 1e9, "max_steps": 20}, "step .*: the (weight|loss) .*"),
], ids=["infinite rate", "high rate", "weight decay"])  # fmt: skip
def test_training_stops_at_what_is_not_finite_and_saves_nothing_of_it(
    make_model, make_trainer, tmp_path, arguments, why
):
    model = make_model(trained=True)
    model.set_trainable("all")
    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "max_grad_norm": 1.0,
              "optim": "adamw_torch", "output_dir": str(tmp_path / "out"), **arguments}  # fmt: skip
    trainer = make_trainer(model, [list(range(8))] * 20, "t5", PREDICTION, **fields)
    with pytest.raises(NotFinite, match=why):
        trainer.train()
    for file in (tmp_path / "out").glob("checkpoint-*/model.safetensors"):
        assert all(x.isfinite().all() for x in load_file(file).values()), file


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_reports_the_prediction_loss(make_model, make_trainer, make_bank, records, family):
    model = make_model(family, dropout=0.3, trained=True)
    objective = Objective(prediction_weight=0.1, distillation_weight=2.0, alignment="delta")
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    trainer = make_trainer(
        model, [[0]], family, objective, teacher, eval_dataset=records, per_device_eval_batch_size=24
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        batch = RecordCollator(trainer.data_collator.tokens)(records)
        expected = model.eval()(**batch).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def train_with_dropout(make_model, make_trainer, make_bank, records, **arguments):
    model = make_model(dropout=0.3)
    model.set_trainable("all")
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    batches = TaskBatchSampler(records, 3, 2, steps=6)
    trainer = make_trainer(
        model, batches, objective=ALL_TERMS, teacher=teacher, eval_dataset=records[:7], max_steps=6, **arguments
    )
    trainer.train()
    return trainer, weights(model)


def test_evaluation_leaves_training_as_it_would_have_been(make_model, make_trainer, make_bank, records):
    shared = make_model, make_trainer, make_bank, records
    plain, without = train_with_dropout(*shared)
    evaluating, with_evaluation = train_with_dropout(
        *shared, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=3
    )
    _, other_seed = train_with_dropout(*shared, seed=7)
    evaluations = [entry for entry in evaluating.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 6 and len({entry["eval_loss"] for entry in evaluations}) == 6
    assert not changed(without, with_evaluation)
    assert [e["loss"] for e in plain.state.log_history if "loss" in e] == [
        e["loss"] for e in evaluating.state.log_history if "loss" in e
    ]
    assert changed(without, other_seed)  # dropout was at work


def test_randomness_is_given_back_after_an_error():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(KeyError), unchanged_randomness():
        torch.rand(5)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_backbone_is_the_same_after_training(make_model, make_trainer, make_bank, records, family):
    model = make_model(family)
    model.set_trainable("generator")
    before = weights(model)
    batches = TaskBatchSampler(records, 3, 2, steps=4)
    trainer = make_trainer(
        model, batches, family, ALL_TERMS, Teacher(model.backbone, make_bank(model)), max_steps=4, weight_decay=0.1
    )
    trainer.train()
    moved = changed(before, weights(model))
    assert moved and not [name for name in moved if name.startswith("backbone.")]
    assert {name.split(".")[0] for name in moved} == {"hypernetwork", "fusion"}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_embeddings_can_be_trained_with_the_generator(make_model, make_trainer, records, family):
    model = make_model(family)
    model.set_trainable("generator_and_norms")
    before = weights(model)
    batches = TaskBatchSampler(records, 3, 2, steps=3)
    make_trainer(model, batches, family, PREDICTION, max_steps=3, weight_decay=0.1).train()
    # without second names of one tensor: a T5's lm_head is its embedding
    moved = changed(before, weights(model)) & {f"backbone.{name}" for name, _ in model.backbone.named_parameters()}
    embedding = {"t5": "shared", "llama": "embed_tokens"}[family]
    assert any("norm" in name for name in moved) and any(embedding in name for name in moved)
    allowed = ("norm", embedding, "relative_attention_bias")
    assert not [name for name in moved if not any(kind in name for kind in allowed)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_task_can_be_overfitted(make_model, make_trainer, records, family):
    model = make_model(family)
    model.set_trainable("all")
    trainer = make_trainer(model, [list(range(8))] * 100, family, PREDICTION, max_steps=100, learning_rate=2e-2)
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[0] > 3 and history[-1] < 0.3


def test_a_trained_backbones_teacher_stays_what_it_was(make_model, make_trainer, make_bank, records):
    model = make_model()
    model.set_trainable("all")
    teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
    before = weights(teacher.backbone)
    batches = TaskBatchSampler(records, 3, 2, steps=2)
    make_trainer(model, batches, objective=ALL_TERMS, teacher=teacher, max_steps=2).train()
    assert not changed(before, weights(teacher.backbone))
    assert changed(before, weights(model.backbone))


def test_gradient_checkpointing_changes_nothing_but_memory(make_model, make_trainer, make_bank, records):
    after = []
    for checkpointing in (False, True):
        model = make_model(trained=True)
        model.set_trainable("all")
        teacher = Teacher(frozen_copy(model.backbone), make_bank(model))
        make_trainer(
            model, [list(range(8))], objective=ALL_TERMS, teacher=teacher, gradient_checkpointing=checkpointing,
            optim="sgd",
        ).train()  # fmt: skip
        after.append(weights(model))
    assert all(torch.allclose(after[0][name], after[1][name], atol=1e-6) for name in after[0])


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


def test_training_on_a_stream_that_was_cut_off_ends_as_if_it_had_not_been(
    make_model, make_tokens, records, training_arguments, tmp_path
):
    def trained(folder, resume=None):
        model = make_model(trained=True)
        model.set_trainable("generator")
        args = training_arguments(
            output_dir=str(tmp_path / folder), max_steps=12, save_strategy="steps", save_steps=5
        )
        trainer = TagiTrainer(
            model=model, args=args, train_dataset=Drawn(), data_collator=RecordCollator(make_tokens()),
            batch_sampler=StreamBatchSampler(RecordStream([lambda: iter(records)], keep=2), 2, 2, steps=12),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        return weights(model)

    whole = trained("whole")
    cut_off = trained("cut", str(tmp_path / "whole" / "checkpoint-5"))
    assert not changed(whole, cut_off)
    drawn = list(StreamBatchSampler(RecordStream([lambda: iter(records)], keep=2), 2, 2, steps=12))
    assert len({record for batch in drawn[5:] for record in batch}) > 8  # more than are kept


def test_a_resumed_run_does_not_call_tied_weights_missing(make_model, make_trainer, monkeypatch):
    model = make_model()
    trainer, said = make_trainer(model, [[0]]), []
    monkeypatch.setattr("transformers.trainer.logger.warning", said.append)
    state = model.state_dict()
    tied = [name for name in state if name.endswith("coder.embed_tokens.weight")]
    assert len(tied) == 2
    kept = {name: x for name, x in state.items() if name not in tied}
    trainer._issue_warnings_after_load(model.load_state_dict(kept, strict=False))
    assert not said
    lost = next(name for name in kept if name.endswith("wo.weight"))
    kept.pop(lost)
    trainer._issue_warnings_after_load(model.load_state_dict(kept, strict=False))
    (line,) = said
    assert lost in line and "embed_tokens" not in line


def test_a_checkpoint_that_the_disk_has_no_room_for_is_named(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("transformers.Seq2SeqTrainer._save_checkpoint", full)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=0))
    trainer = object.__new__(TagiTrainer)
    trainer.args = SimpleNamespace(output_dir=str(tmp_path))
    with pytest.raises(OSError) as caught:
        trainer._save_checkpoint(None, None)
    assert caught.value.filename == str(tmp_path)
