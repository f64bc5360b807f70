"""The time that a plan says is that of steps tried on this machine, with what comes around them."""

import pytest

from modeling_tagi.planning import timing, trial
from modeling_tagi.planning.plan import plan_run
from modeling_tagi.planning.printed import shown
from modeling_tagi.planning.trial import StageTime, Trial
from modeling_tagi.training.settings import load_settings

STAGES = ("text", "instruction_tuning", "task_adapters", "pretraining", "finetuning")


def seconds(plan):
    return {row["name"]: row["seconds"] for row in plan["stages"]}


def test_steps_of_every_stage_are_tried_and_leave_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen, tried = [], timing.timed_trial

    def spy(*args):
        seen.append(tried(*args))
        return seen[0]

    monkeypatch.setattr(timing, "timed_trial", spy)
    overrides = {"evaluation.references": "[start_prompted, no_instruction, oracle]",
                 "finetuning.distillation_steps": "4", "finetuning.alignment_steps": "1"}  # fmt: skip
    plan = plan_run(load_settings(config, overrides), startup=2.5)
    [found] = seen
    assert set(found.stages) == set(STAGES) and all(time.step > 0 for time in found.stages.values())
    assert found.own > 0 and found.start > 0 and found.oracle > 0
    assert plan["time"]["start"] > 2.5 and plan["time"]["evaluation"] > found.oracle
    assert plan["total"]["seconds"] == pytest.approx(sum(seconds(plan).values()) + sum(plan["time"].values()))
    assert "tried on" in shown(plan) and "evaluation, report" in shown(plan)
    assert not list(tmp_path.iterdir())


def test_a_plans_seconds_are_those_of_its_steps_and_of_what_is_done_once(config, monkeypatch):
    times = {name: StageTime(once=10.0, step=1.0) for name in STAGES}
    monkeypatch.setattr(timing, "timed_trial", lambda *args: Trial(times, own=0.5, start=0.25, oracle=2.0))
    overrides = {"task_adapters.at_once": "2", "evaluation.every": "2",
                 "evaluation.references": "[start_prompted, wrong_instruction, oracle]"}  # fmt: skip
    plan = plan_run(load_settings(config, overrides))
    found = seconds(plan)
    assert (found["text"], found["instruction_tuning"], found["pretraining"]) == (12, 13, 12)
    # three adapters, two and then one at once: 3 steps each, of which the second group's are half as long
    assert found["task_adapters"] == 2 * 10 + 6 * 3 / 4
    assert found["finetuning"] == 10 + 6 + 3 * 12 * 0.5  # 12 records are scored after steps 2, 4 and 6
    # own and wrong instruction, the start and the oracle's answers; two halves of 2 steps of its tuning; the report
    assert plan["time"]["evaluation"] == 12 * (2 * 0.5 + 2 * 0.25) + 2 * 2 * 2.0 + 3.0


def test_finetuning_is_tried_with_and_without_what_its_teacher_does(config):
    settings = load_settings(config, {"finetuning.distillation_steps": "4", "finetuning.alignment_steps": "1"})
    short = trial._short(settings, "somewhere", 5)
    assert short.finetuning.steps == 3 * trial.STEPS  # with both, without alignment, with neither
    assert short.finetuning.alignment_steps == trial.STEPS
    assert short.finetuning.distillation_steps == 2 * trial.STEPS
    whole = trial._short(load_settings(config), "somewhere", 5)
    assert (whole.finetuning.steps, whole.finetuning.distillation_steps) == (trial.STEPS, None)


def test_the_seconds_of_phases_count_by_their_lengths(config, tmp_path):
    none = {f"{name}.steps": "0" for name in ("text", "instruction_tuning", "task_adapters", "pretraining")}
    settings = load_settings(config, {**none, "task_adapters.given": "bank", "finetuning.distillation_steps": "4",
                                      "finetuning.alignment_steps": "1"})  # fmt: skip
    short = trial._short(settings, str(tmp_path), 5)
    place = tmp_path / "run" / "stages" / "finetuning"
    place.mkdir(parents=True)
    (place / "done.json").write_text('{"seconds": 100.0}')
    lasted = [second for second in (3, 2, 1) for _ in range(trial.STEPS)]
    ends = [float(sum(lasted[: n + 1])) for n in range(len(lasted))]
    found = trial._stage_times(settings, short, ends)["finetuning"]
    assert found == StageTime(once=100.0 - 6 * trial.STEPS, step=(1 * 3 + 3 * 2 + 2 * 1) / 6)


def test_what_would_take_long_to_try_is_not_tried(config, monkeypatch):
    monkeypatch.setattr(timing, "measured_flops_per_second", lambda dtype: 1.0)
    plan = plan_run(load_settings(config))
    assert plan["time"] is None and any("no steps were tried here" in note for note in plan["notes"])
