import json
import warnings

import pytest
from transformers.utils import logging

from modeling_tagi.training.run import Run, quiet_libraries, replacing, write_text
from modeling_tagi.training.settings import RunSettings


def make(tmp_path, **fields):
    return RunSettings(output_dir=str(tmp_path / "run"), **fields)


def test_a_run_is_taken_up_with_the_same_settings(tmp_path):
    Run(make(tmp_path), ["text"])
    settings = make(tmp_path)
    settings.evaluation.batch_size = 7  # does not change what is trained
    assert Run(settings, ["text"]).stage("text").facts is None


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path):
    Run(make(tmp_path), ["text"])
    settings = make(tmp_path)
    settings.finetuning.temperature = 2.0
    with pytest.raises(ValueError, match=r"\(finetuning.temperature was 3.0, is now 2.0\); choose another"):
        Run(settings, ["text"])
    settings.tagi = {"r": 4}
    with pytest.raises(ValueError, match="temperature was 3.0, is now 2.0; tagi.r was None, is now 4"):
        Run(settings, ["text"])
    for number, name in enumerate(("seed", "train_tasks", "max_input_length", "max_target_length")):
        setattr(settings, name, 99 + number)
    with pytest.raises(ValueError, match="; 1 more differ"):
        Run(settings, ["text"])


def test_a_stage_says_where_it_stands(tmp_path, capsys):
    run = Run(make(tmp_path), ["text", "prompted", "evaluation"])
    stage = run.stage("prompted")
    assert stage.facts is None
    stage.start()
    stage.finish(loss=1.5)
    assert capsys.readouterr().out.splitlines() == ["[2/3] prompted: starts", "[2/3] prompted: done in 0 s"]
    assert run.stage("prompted").facts["loss"] == 1.5 and run.stage("text").facts is None
    run.stage("prompted").skip()
    assert capsys.readouterr().out == "[2/3] prompted: was done before\n"


def test_the_clock_goes_on_in_the_next_attempt(tmp_path, capsys):
    stage = Run(make(tmp_path), ["text"]).stage("text")
    stage.start()
    (stage.folder / "seconds.json").write_text("100.0")
    again = Run(make(tmp_path), ["text"]).stage("text")
    again.start()
    assert again.tick() >= 100
    again.finish()
    assert again.facts["seconds"] >= 100
    assert "goes on" in capsys.readouterr().out


def test_finishing_removes_the_checkpoints(tmp_path, capsys):
    stage = Run(make(tmp_path), ["text"]).stage("text")
    stage.start()
    (stage.folder / "checkpoints" / "all" / "checkpoint-3").mkdir(parents=True)
    stage.finish()
    assert sorted(p.name for p in stage.folder.iterdir()) == ["done.json", "seconds.json"]


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
