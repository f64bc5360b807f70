from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from toy_trainer import ALL_TERMS, FAMILIES, PREDICTION, changed, weights
from transformers.trainer_callback import PrinterCallback

from modeling_tagi.common.randomness import unchanged_randomness
from modeling_tagi.data.collate import RecordCollator
from modeling_tagi.data.sampling import Drawn, StreamBatchSampler, TaskBatchSampler
from modeling_tagi.data.streams import RecordStream
from modeling_tagi.training import losses
from modeling_tagi.training.finite import NotFinite
from modeling_tagi.training.losses import LOSSES
from modeling_tagi.training.objective import Objective
from modeling_tagi.training.teacher import Teacher, frozen_copy
from modeling_tagi.training.trainer import TagiTrainer


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


def test_an_objective_that_falls_over_no_steps_does_not_last():
    assert not Objective(prediction_weight=0, distillation_steps=0, alignment="none").lasts(100)
    assert not Objective(prediction_weight=0, distillation_weight=0, alignment_steps=0).lasts(100)
    assert Objective(prediction_weight=0, distillation_steps=100, alignment="none").lasts(100)


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
