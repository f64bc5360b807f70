import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from modeling_tagi.evaluation.report.write import write_report
from modeling_tagi.studies.cell_folder import require_as_begun as refuse_other_settings
from modeling_tagi.studies.cells import cells
from modeling_tagi.studies.settings import load_study
from modeling_tagi.studies.study import run_study
from modeling_tagi.studies.summary import write_tables

FIELDS = {"methods": ["prompted", "tagi"], "workers": 2, "references": ["no_instruction", "wrong_instruction"]}


@pytest.fixture(scope="module")
def study_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "small.yaml"
    path.write_text(yaml.safe_dump({"config": str(config), **FIELDS}))
    return path


def lines(path):
    """Without what a clock says."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in found]


@pytest.fixture(scope="module")
def broken(study_file, tmp_path_factory):
    """A study whose run of tagi cannot write: its folder, what it said, and its lines by then."""
    folder = tmp_path_factory.mktemp("study") / "out"
    (folder / "cells" / "tagi-seed0").mkdir(parents=True)
    (folder / "cells" / "tagi-seed0" / "stages").write_text("a file where a folder is to be")
    with pytest.raises(ChildProcessError) as failed:
        run_study(load_study(study_file, {"output_dir": str(folder)}))
    (folder / "cells" / "tagi-seed0" / "stages").unlink()
    return folder, str(failed.value), lines(folder / "results.jsonl")


@pytest.fixture(scope="module")
def done(broken, study_file):
    """The folder of the study, called again when nothing was in the way any more."""
    return run_study(load_study(study_file, {"output_dir": str(broken[0])}), "tagi study small.yaml")


@pytest.fixture
def changed(done, tmp_path):
    """The same folder, which one test changes: its runs name each other by its path."""
    shutil.copytree(done, tmp_path / "kept")
    yield done
    shutil.rmtree(done)
    shutil.move(tmp_path / "kept", done)


def test_a_run_that_fails_is_named_and_the_others_are_finished(broken):
    _, said, found = broken
    assert re.match("1 of 3 runs failed: tagi-seed0; see .*/log.txt, which ends with .*stages", said)
    assert {x["method"] for x in found} == {"no_instruction", "start_prompted", "prompted"}


def test_a_line_for_each_method_and_reference(done):
    found = lines(done / "results.jsonl")
    assert [(x["method"], x["kind"], x["seed"], x["train_tasks"], x["split"]) for x in found] == [
        ("no_instruction", "reference", 0, 3, "unseen"), ("start_prompted", "trained", 0, 3, "unseen"),
        ("prompted", "trained", 0, 3, "unseen"), ("tagi", "trained", 0, 3, "unseen"),
        ("wrong_instruction", "reference", 0, 3, "unseen"),
    ]  # fmt: skip
    for line in found:
        tasks = [x for x in lines(done / "by_task.jsonl") if x["method"] == line["method"]]
        assert sum(x["exact_match"] for x in tasks) / len(tasks) == pytest.approx(line["exact_match"], abs=0.01)


def test_the_summary_has_intervals_and_differences(done):
    summary = json.loads((done / "summary.json").read_text())
    rows = {row["method"]: row["rouge_l"] for row in summary["rows"]}
    assert rows["tagi"]["low"] <= rows["tagi"]["mean"] <= rows["tagi"]["high"]
    expected = rows["tagi"]["mean"] - rows["prompted"]["mean"]
    assert rows["tagi"]["minus_prompted"]["mean"] == pytest.approx(expected, abs=0.02)
    assert "tagi study small.yaml" in (done / "report" / "index.html").read_text()
    assert "0 (of 1) |" in (done / "table.md").read_text()


def test_what_could_not_be_scored_is_told_beside_the_scores(done, study_file, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    references = [*FIELDS["references"], "oracle", "nearest_adapter"]
    study = load_study(study_file, {"output_dir": str(tmp_path / "out"), "references": references})
    file = tmp_path / "out" / "cells" / "start_prompted-seed0" / "results.json"
    note = "unseen: no oracle, since task 'next' has 1 distinct input"
    file.write_text(json.dumps({**json.loads(file.read_text()), "notes": [note]}))
    write_tables(study, cells(study))
    write_report(tmp_path / "out")
    told = [note, "no nearest_adapter, since no start has task adapters"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["notes"] == told
    assert all(f"* {one}" in (tmp_path / "out" / "table.md").read_text() for one in told)
    assert "No nearest_adapter, since" in (tmp_path / "out" / "report" / "report.md").read_text().replace("\\", "")


def test_what_is_done_is_not_run_again(done, study_file, monkeypatch):
    before = lines(done / "results.jsonl")
    monkeypatch.setattr(subprocess, "Popen", None)  # no run can be started
    run_study(load_study(study_file, {"output_dir": str(done)}))
    assert lines(done / "results.jsonl") == before


@pytest.mark.slow
def test_runs_scored_in_another_way_are_scored_anew_and_not_trained_again(changed, study_file):
    done = [path for path in changed.glob("cells/*/stages/*/done.json") if path.parent.name != "evaluation"]
    trained = {path: path.read_text() for path in done}
    scored = {path: path.read_text() for path in changed.glob("cells/*/results.json")}
    references = [*FIELDS["references"], "random_words"]  # which the run of tagi answers
    run_study(load_study(study_file, {"output_dir": str(changed), "references": references}))
    methods = ["no_instruction", "start_prompted", "prompted", "tagi", "wrong_instruction", "random_words"]
    assert [x["method"] for x in lines(changed / "results.jsonl")] == methods
    assert [path.parent.name for path, text in scored.items() if path.read_text() != text] == ["tagi-seed0"]
    assert len(trained) > 4 and all(path.read_text() == text for path, text in trained.items())


def test_other_settings_in_the_same_folder_are_refused(done, study_file):
    study = load_study(study_file, {"output_dir": str(done), "overrides": {"finetuning.steps": 5}})
    with pytest.raises(ValueError, match="-seed0 was begun with other settings .finetuning.steps was 6, is now 5"):
        run_study(study)


def test_runs_whose_data_have_changed_are_not_passed_over(changed, study_file, config, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **fields: started.append(command) or 1 / 0)
    file = config.parent / "data" / "train.jsonl"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ZeroDivisionError):
        run_study(load_study(study_file, {"output_dir": str(changed)}))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [Path(command[-1]).parent.name for command in started] == ["start_prompted-seed0"]


@pytest.mark.parametrize("left", ["stages/finetuning/done.json", "results.json"])
def test_a_cell_that_has_saved_nothing_may_be_given_other_settings(study_file, tmp_path, left):
    def cells_with(rate):
        fields = {"output_dir": str(tmp_path), "overrides": {"finetuning.learning_rate": rate}}
        return cells(load_study(study_file, fields))

    place = tmp_path / "cells" / "tagi-seed0"
    place.mkdir(parents=True)
    wrong = next(cell for cell in cells_with(0.5) if cell.name == "tagi-seed0")
    (place / "cell.yaml").write_text(yaml.safe_dump(dataclasses.asdict(wrong.settings)))
    refuse_other_settings(cells_with(0.1), tmp_path)
    (place / left).parent.mkdir(parents=True, exist_ok=True)
    (place / left).write_text("{}")
    with pytest.raises(ValueError, match="finetuning.learning_rate was 0.5, is now 0.1"):
        refuse_other_settings(cells_with(0.1), tmp_path)


def test_two_studies_do_not_work_in_one_folder(study_file, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another process is at work"):
        run_study(load_study(study_file, {"output_dir": str(tmp_path)}))


@pytest.mark.slow
def test_a_study_killed_at_ten_moments_gives_the_same_table(config, tmp_path):
    fields = {**FIELDS, "config": str(config), "methods": ["prompted", "hint", "tagi"], "seeds": [0, 1, 2, 3]}
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-m", "modeling_tagi.commands.main"]
    command += ["study", str(tmp_path / "larger.yaml"), "--output_dir"]
    assert subprocess.run([*command, str(tmp_path / "whole")], capture_output=True).returncode == 0
    cut, rng, kills = str(tmp_path / "cut"), random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen([*command, cut], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(5, 11))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert subprocess.run([*command, cut], capture_output=True).returncode == 0
    assert kills >= 5
    for name in ("results.jsonl", "by_split.jsonl", "by_task.jsonl"):
        found, expected = (lines(tmp_path / folder / name) for folder in ("cut", "whole"))
        assert found == expected and len(found) >= 16
