"""Runs that were cut off, begun again, or given what an earlier run has made."""

import json

import pytest
import torch
from toy_stages import STAGES, STEPS, TEXT, Killed, adapters, count_trained, go, logs, same

from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.data.records import Record
from modeling_tagi.training.run_state import RunState, start_model
from modeling_tagi.training.stages import base, run_stages
from modeling_tagi.training.tokenizer import read_tokenizer

AT_ONCE = 1  # so that a run can be cut off between two adapters


@pytest.fixture(scope="module")
def uninterrupted(make_run, records):
    run = make_run("uninterrupted")
    model, _ = go(run, records)
    return run, model.state_dict()


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(make_run, records, kill, monkeypatch, uninterrupted):
    whole, expected = uninterrupted
    run = make_run("cut")
    for stage, step in (("instruction_tuning", 5), ("task_adapters", 3), ("pretraining", 4), ("finetuning", 5)):
        kill(stage, step)
        with pytest.raises(Killed):
            go(run, records)
        assert (run.folder / "stages" / stage / "checkpoints").is_dir()
        assert run.stage(stage).facts is None
    monkeypatch.undo()
    model, _ = go(make_run("cut"), records)
    assert same(model.state_dict(), expected)
    assert same(adapters(run), adapters(whole))
    assert len(logs(run)) == 5 and logs(run) == logs(whole)
    for stage in STAGES:
        assert run.stage(stage).facts.get("loss") == whole.stage(stage).facts.get("loss")
    assert not list(run.folder.rglob("checkpoints"))


@pytest.mark.slow
def test_a_run_with_a_teacher_cache_that_was_cut_off_ends_as_if_it_had_not_been(make_run, records, kill, monkeypatch):
    sections = {
        "instruction_tuning": {"steps": 0}, "pretraining": {"steps": 0}, "task_adapters": {"steps": 2},
        "finetuning": {"teacher_cache": 4},
    }  # fmt: skip
    expected = go(make_run("whole cached", **sections), records)[0].state_dict()
    run = make_run("cut cached", **sections)
    kill("finetuning", 5)
    with pytest.raises(Killed):
        go(run, records)
    folder = run.folder / "stages" / "finetuning"
    next((folder / "teacher").iterdir()).unlink()
    monkeypatch.undo()
    assert same(go(run, records)[0].state_dict(), expected)
    assert not (folder / "teacher").exists() and run.stage("finetuning").facts is not None


def test_dropout_is_at_work_while_runs_are_compared(make_run, records, uninterrupted):
    model, _ = go(make_run("seeded", seed=1), records)
    assert not same(model.state_dict(), uninterrupted[1])


@pytest.mark.slow
def test_a_half_written_checkpoint_is_passed_over(make_run, records, kill, monkeypatch, uninterrupted):
    run = make_run("half")
    kill("instruction_tuning", 5)
    with pytest.raises(Killed):
        go(run, records)
    monkeypatch.undo()
    checkpoints = run.folder / "stages" / "instruction_tuning" / "checkpoints" / "all"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    (checkpoints / "checkpoint-4" / "complete").unlink()
    (checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(b"half a f")
    model, _ = go(run, records)
    assert same(model.state_dict(), uninterrupted[1])


def test_a_run_killed_before_its_first_checkpoint_starts_anew(make_run, records, kill, monkeypatch, uninterrupted):
    run = make_run("early")
    kill("instruction_tuning", 1)
    with pytest.raises(Killed):
        go(run, records)
    monkeypatch.undo()
    assert same(go(run, records)[0].state_dict(), uninterrupted[1])


def test_a_run_killed_between_training_and_saving_trains_no_further(make_run, records, monkeypatch, uninterrupted):
    run = make_run("late")

    def die(*args):
        raise Killed

    monkeypatch.setattr(base.GeneratorStage, "save_model", die)
    with pytest.raises(Killed):
        go(run, records)
    monkeypatch.undo()
    assert (run.folder / "stages" / "pretraining" / "checkpoints" / "all" / f"checkpoint-{STEPS}").is_dir()
    model, _ = go(run, records)
    assert same(model.state_dict(), uninterrupted[1])
    assert logs(run) == logs(uninterrupted[0])


def test_finished_stages_are_not_trained_again(make_run, records, monkeypatch, uninterrupted, capsys):
    trained = count_trained(monkeypatch)
    capsys.readouterr()
    model, bank = go(make_run("uninterrupted"), records)
    assert trained == []
    assert same(model.state_dict(), uninterrupted[1]) and bank.names == ["one", "two"]
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"[{n}/4] {name}: was done before" for n, name in enumerate(STAGES, 1)]


def test_adapters_tuned_before_the_kill_are_not_tuned_again(make_run, records, kill, monkeypatch, uninterrupted):
    run = make_run("adapters")
    kill("task_adapters", 3, part=2)
    with pytest.raises(Killed):
        go(run, records)
    monkeypatch.undo()
    assert AdapterBank(run.folder / "task_adapters").names == ["one"]
    file = run.folder / "task_adapters" / "one" / "adapter_model.safetensors"
    written = file.stat().st_mtime_ns
    trained = count_trained(monkeypatch)
    go(run, records)
    assert [item for item in trained if item[0] in STAGES[:2]] == [("task_adapters", "two")]
    assert file.stat().st_mtime_ns == written
    assert same(adapters(run), adapters(uninterrupted[0]))
    loss = run.stage("task_adapters").facts["loss"]
    assert loss is not None and loss == uninterrupted[0].stage("task_adapters").facts["loss"]


def test_each_stage_logs_what_it_minimises(make_run, uninterrupted):
    run, _ = uninterrupted
    lines = (run.folder / "stages" / "finetuning" / "log.jsonl").read_text().splitlines()
    assert {"loss", "loss_prediction", "loss_distillation", "loss_alignment"} <= json.loads(lines[-1]).keys()
    assert [len(losses) for losses in logs(run).values()] == [STEPS] * 5


@pytest.mark.slow
def test_the_log_between_two_checkpoints_survives_a_kill(make_run, records, kill, monkeypatch):
    sections = {name: {"steps": 0} for name in ("pretraining", "finetuning")}
    sections["task_adapters"] = {"steps": 0}
    # logs at every second step, and with every checkpoint
    sections["instruction_tuning"] = {"steps": 104, "save_every": 5}
    whole = make_run("whole", **sections)
    go(whole, records)
    kill("instruction_tuning", 58)
    with pytest.raises(Killed):
        go(make_run("cut between", **sections), records)
    monkeypatch.undo()
    run = make_run("cut between", **sections)
    go(run, records)
    assert logs(run) == logs(whole) and len(logs(whole)["stages/instruction_tuning/log.jsonl"]) == 52 + 10
    assert run.stage("instruction_tuning").facts["loss"] == whole.stage("instruction_tuning").facts["loss"]


def test_the_checkpoint_says_whether_its_backbone_was_trained(make_run, records, uninterrupted):
    run, _ = uninterrupted
    for stage in ("pretraining", "finetuning"):
        config = json.loads((run.folder / "stages" / stage / "model" / "config.json").read_text())
        assert config["backbone_trained"] is True
    frozen = make_run(
        "frozen", finetuning={"train": "generator", "steps": 2}, pretraining={"steps": 2},
        instruction_tuning={"steps": 0}, task_adapters={"steps": 1},
    )  # fmt: skip
    model, _ = go(frozen, records)
    start = start_model(frozen, frozen.settings.backbone.name, None)
    assert model.config.backbone_trained is False
    assert same(model.backbone.state_dict(), start.backbone.state_dict())
    assert not same(model.hypernetwork.state_dict(), start.hypernetwork.state_dict())


def test_a_bank_of_an_earlier_run_can_be_used(make_run, records, uninterrupted, monkeypatch):
    trained = count_trained(monkeypatch)
    source = str(uninterrupted[0].folder / "task_adapters")
    run = make_run("second", task_adapters={"given": source}, pretraining={"steps": 0}, finetuning={"steps": 1})
    _, bank = go(run, records)
    assert str(bank.folder) == source and [name for name, _ in trained] == ["instruction_tuning", "finetuning"]


def test_a_bank_for_other_tasks_is_refused(make_run, records, uninterrupted):
    source = str(uninterrupted[0].folder / "task_adapters")
    taught = {"name": str(uninterrupted[0].folder / "stages" / "instruction_tuning" / "backbone")}
    run = make_run("other", backbone=taught, task_adapters={"given": source}, pretraining={"steps": 0},
                   instruction_tuning={"steps": 0})  # fmt: skip
    others = [Record(r.task + "2", r.instruction, r.input, r.targets, r.group + "2") for r in records]
    with pytest.raises(ValueError, match="the bank's adapters are for one, two, …; none of them is a task or group"):
        go(run, others)


def test_scores_are_taken_while_training_and_change_nothing(make_run, records, kill, uninterrupted):
    _, expected = uninterrupted
    run = make_run("scored", evaluation={"every": 2})

    def scores(model):
        torch.rand(3)
        return {"exact_match": 1.0, "training": model.training}

    def whole():
        state = RunState(run, read_tokenizer(run.settings, records, TEXT), records, TEXT)
        state.scores = scores
        run_stages(state)
        return state.model

    steps = run.settings.finetuning.steps
    kill("finetuning", steps - 1)
    with pytest.raises(Killed):
        whole()
    kill("finetuning", steps + 1)
    assert same(whole().state_dict(), expected)
    lines = [json.loads(line) for line in (run.folder / "stages/finetuning/scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({*range(2, steps + 1, 2), steps})
    assert not any(line["training"] for line in lines)
