import json
import warnings

import pytest
from transformers.utils import logging

from modeling_tagi.common.console import quiet_libraries
from modeling_tagi.common.writing import replacing, write_text
from modeling_tagi.training.run import Run
from modeling_tagi.training.settings import RunSettings
from modeling_tagi.training.stages import STAGES


def make(tmp_path, **fields):
    return RunSettings(output_dir=str(tmp_path / "run"), **fields)


def do(run, name, **before):
    stage = run.stage(name, **before)
    stage.start()
    stage.finish()


def test_a_run_is_taken_up_with_the_same_settings(tmp_path):
    Run(make(tmp_path), ["text"], STAGES)
    settings = make(tmp_path)
    settings.evaluation.batch_size = 7  # does not change what is trained
    assert Run(settings, ["text"], STAGES).stage("text").facts is None


def test_other_settings_than_a_stage_was_begun_with_are_refused_by_name(tmp_path):
    run = Run(make(tmp_path), ["finetuning"], STAGES)
    do(run, "finetuning")
    settings = make(tmp_path)
    settings.finetuning.temperature = 2.0
    with pytest.raises(ValueError) as refused:
        Run(settings, ["finetuning"], STAGES)
    assert "stage finetuning was begun with them (finetuning.temperature was 3.0, is now 2.0); " in str(refused.value)
    assert f"or delete {tmp_path}/run/stages/finetuning to train" in str(refused.value)
    settings.tagi = {"r": 4}
    with pytest.raises(ValueError, match="temperature was 3.0, is now 2.0; tagi.r was None, is now 4"):
        Run(settings, ["finetuning"], STAGES)
    for number, name in enumerate(("seed", "bf16", "gradient_checkpointing", "max_input_length", "max_target_length")):
        setattr(settings, name, 99 + number)
    with pytest.raises(ValueError, match="; 2 more differ"):
        Run(settings, ["finetuning"], STAGES)


def test_what_no_stage_has_begun_with_may_change(tmp_path):
    run = Run(make(tmp_path), ["text", "finetuning"], STAGES)
    do(run, "text")
    run.stage("finetuning").start()  # and fails before it has saved anything
    settings = make(tmp_path)
    settings.finetuning.temperature = 2.0
    again = Run(settings, ["text", "finetuning"], STAGES)
    again.stage("finetuning").start()
    assert again.stage("finetuning").made_of()["settings"]["finetuning.temperature"] == 2.0
    (again.folder / "stages" / "finetuning" / "checkpoints" / "all" / "checkpoint-2").mkdir(parents=True)
    Run(make(tmp_path), ["text", "finetuning"], STAGES)  # half a checkpoint is none
    (again.folder / "stages" / "finetuning" / "checkpoints" / "all" / "checkpoint-2" / "complete").touch()
    with pytest.raises(ValueError, match="temperature was 2.0, is now 3.0"):
        Run(make(tmp_path), ["text", "finetuning"], STAGES)


def test_a_run_of_before_stages_said_what_they_were_made_of_is_held_to_its_settings(tmp_path):
    stage = Run(make(tmp_path), ["text"], STAGES).stage("text")
    stage.start()
    stage.finish()
    (stage.folder / "made_of.json").unlink()
    Run(make(tmp_path), ["text"], STAGES, [], [])
    settings = make(tmp_path)
    settings.text.learning_rate = 1.0
    with pytest.raises(ValueError, match="text.learning_rate was 0.001, is now 1.0"):
        Run(settings, ["text"], STAGES)
    (tmp_path / "run" / "settings.yaml").write_text("seed: [")
    with pytest.raises(ValueError, match="run/settings.yaml is damaged or not complete .*; delete it"):
        Run(settings, ["text"], STAGES)


def test_a_stage_done_with_something_else_than_is_there_now_is_refused(tmp_path):
    before = tmp_path / "run" / "stages" / "instruction_tuning" / "backbone"
    run = Run(make(tmp_path), ["pretraining", "finetuning"], STAGES)
    before.mkdir(parents=True)
    (before / "config.json").write_text("1")
    for name in ("pretraining", "finetuning"):
        do(run, name, backbone=before)
    assert run.stage("pretraining", backbone=before).facts is not None
    (before / "README.md").write_text("a card, which nothing is trained on")
    assert run.stage("pretraining", backbone=before).facts is not None
    (before / "config.json").write_text("2")
    with pytest.raises(ValueError, match="pretraining was trained with another backbone .*pretraining and .*finetuni"):
        run.stage("pretraining", backbone=before)


def test_a_stage_says_where_it_stands(tmp_path, capsys):
    run = Run(make(tmp_path), ["text", "instruction_tuning", "evaluation"], STAGES)
    stage = run.stage("instruction_tuning")
    assert stage.facts is None
    stage.start()
    stage.finish(loss=1.5)
    assert capsys.readouterr().out.splitlines() == [
        "[2/3] instruction_tuning: starts", "[2/3] instruction_tuning: done in 0 s, loss 1.50"
    ]  # fmt: skip
    assert run.stage("instruction_tuning").facts["loss"] == 1.5 and run.stage("text").facts is None
    run.stage("instruction_tuning").skip()
    assert capsys.readouterr().out == "[2/3] instruction_tuning: was done before\n"


def test_the_clock_goes_on_in_the_next_attempt(tmp_path, capsys):
    stage = Run(make(tmp_path), ["text"], STAGES).stage("text")
    stage.start()
    (stage.folder / "seconds.json").write_text("100.0")
    again = Run(make(tmp_path), ["text"], STAGES).stage("text")
    again.start()
    assert again.tick() >= 100
    again.finish()
    assert again.facts["seconds"] >= 100
    assert "goes on" in capsys.readouterr().out


def test_finishing_removes_the_checkpoints(tmp_path, capsys):
    stage = Run(make(tmp_path), ["text"], STAGES).stage("text")
    stage.start()
    (stage.folder / "checkpoints" / "all" / "checkpoint-3").mkdir(parents=True)
    stage.finish()
    assert sorted(p.name for p in stage.folder.iterdir()) == ["done.json", "made_of.json", "seconds.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with replacing(target) as beside:
        (beside / "a").write_text("1")
    with pytest.raises(KeyError), replacing(target) as beside:
        (beside / "b").write_text("2")
        raise KeyError
    assert [p.name for p in target.iterdir()] == ["a"]
    with replacing(target) as beside:
        (beside / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "a.json", json.dumps([1]))
    write_text(tmp_path / "a.json", json.dumps([2]))
    assert json.loads((tmp_path / "a.json").read_text()) == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_libraries_can_be_made_quiet():
    shown = logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("one day", FutureWarning)
            quiet_libraries()
            warnings.warn("one day", FutureWarning)
            warnings.warn("today", UserWarning)
        assert [w.category for w in caught] == [FutureWarning, UserWarning]
        assert not logging.is_progress_bar_enabled()
    finally:
        if shown:
            logging.enable_progress_bar()


def test_a_run_folder_of_before_a_stage_was_renamed_is_refused_with_its_new_name(tmp_path):
    settings = make(tmp_path)
    (tmp_path / "run" / "stages" / "prompted").mkdir(parents=True)
    (tmp_path / "run" / "settings.yaml").write_text("prompted.steps: 3\n")
    with pytest.raises(ValueError, match="an earlier version, whose stage prompted is called instruction_tuning now"):
        Run(settings, ["text"], STAGES)
