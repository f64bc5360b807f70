"""The time that a plan says is that of steps tried on this machine, with what comes around them."""

import pytest

from modeling_tagi.experiments import plan as planning
from modeling_tagi.experiments.plan import plan_run, shown
from modeling_tagi.experiments.trial import StageTime, Trial
from modeling_tagi.training.settings import load_settings

STAGES = ("text", "prompted", "task_adapters", "pretraining", "finetuning")


def seconds(plan):
    return {row["name"]: row["seconds"] for row in plan["stages"]}


def test_steps_of_every_stage_are_tried_and_leave_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen, tried = [], planning.timed_trial

    def spy(*args):
        seen.append(tried(*args))
        return seen[0]

    monkeypatch.setattr(planning, "timed_trial", spy)
    references = "[prompted, no_instruction, oracle]"
    plan = plan_run(load_settings(config, {"evaluation.references": references}), startup=2.5)
    [trial] = seen
    assert set(trial.stages) == set(STAGES) and all(time.step > 0 for time in trial.stages.values())
    assert trial.own > 0 and trial.start > 0 and trial.oracle > 0
    assert plan["time"]["start"] > 2.5 and plan["time"]["evaluation"] > trial.oracle
    assert plan["total"]["seconds"] == pytest.approx(sum(seconds(plan).values()) + sum(plan["time"].values()))
    assert "tried on" in shown(plan) and "evaluation, report" in shown(plan)
    assert not list(tmp_path.iterdir())


def test_a_plans_seconds_are_those_of_its_steps_and_of_what_is_done_once(config, monkeypatch):
    times = {name: StageTime(once=10.0, step=1.0) for name in STAGES}
    monkeypatch.setattr(planning, "timed_trial", lambda *args: Trial(times, own=0.5, start=0.25, oracle=2.0))
    overrides = {"task_adapters.at_once": "2", "evaluation.every": "2", "finetuning.distillation_steps": "3",
                 "evaluation.references": "[prompted, wrong_instruction, oracle]"}  # fmt: skip
    plan = plan_run(load_settings(config, overrides))
    found = seconds(plan)
    assert (found["text"], found["prompted"], found["pretraining"]) == (12, 13, 12)
    # three adapters, two and then one at once: 3 steps each, of which the second group's are half as long
    assert found["task_adapters"] == 2 * 10 + 6 * 3 / 4
    # 6 steps, the teacher in the first 3 of them alone; 12 records are scored after steps 2, 4 and 6
    without = 10 + 3 * 12 * 0.5
    assert without + 3 < found["finetuning"] < without + 6
    # own and wrong instruction, the start and the oracle's answers; two halves of 2 steps of its tuning; the report
    assert plan["time"]["evaluation"] == 12 * (2 * 0.5 + 2 * 0.25) + 2 * 2 * 2.0 + 3.0


def test_what_would_take_long_to_try_is_not_tried(config, monkeypatch):
    monkeypatch.setattr(planning, "measured_flops_per_second", lambda dtype: 1.0)
    plan = plan_run(load_settings(config))
    assert plan["time"] is None and any("no steps were tried here" in note for note in plan["notes"])
