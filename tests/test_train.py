import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hub_stand_in import log_in
from safetensors.torch import load_file
from tiny import tiny_settings, write_tiny_data

ROOT = Path(__file__).parents[1]
STAGES = ["text", "instruction_tuning", "task_adapters", "pretraining", "finetuning", "evaluation"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny run from nothing; returns the file of its configuration."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder, unseen=["next"])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings("$TAGI_TINY")))
    return folder / "tiny.yaml"


def start(config, *arguments, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TAGI_TINY": str(config.parent), **variables}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), str(config), *map(str, arguments)],
        cwd=config.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


@pytest.fixture
def call(config, monkeypatch, capsys):
    """`call(*arguments)`: train.py in this process; returns its exit code, what it printed and its errors."""

    def called(*arguments):
        monkeypatch.setenv("TAGI_TINY", str(config.parent))
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        return ended.value.code or 0, *capsys.readouterr()

    return called


MISTAKES = {
    "an unknown field": (["--finetuning.step", "3"], "unknown field finetuning.step; did you mean finetuning.steps"),
    "an unknown alignment": (["--finetuning.alignment", "factor"], "alignment is 'factor', but must be one of"),
    "a data folder that is not there": (["--data.path", "nowhere"], "data.path: there is no nowhere"),
    "a variable that is not set": (["--data.path", "$TAGI_UNSET"], "that environment variable is not set"),
    "a reference that is none": (["--evaluation.references", "[orcale]"], "references has 'orcale', but knows 'no_"),
    "a reference's old name": (["--evaluation.references", "[prompted]"], "'prompted', which is called 'start_prompt"),
    "a reference without its bank": (
        ["--evaluation.references", "[nearest_adapter]", "--task_adapters.steps", "0", "--finetuning.alignment",
         "none", "--finetuning.distillation_weight", "0"], "'nearest_adapter', but there are no task adapters"),
    "an oracle that is not tuned": (["--evaluation.references", "[oracle]", "--evaluation.oracle.steps", "0"],
                                    "oracle.steps is 0, but the oracle has to be tuned: give at least 1"),
    "a split that is not there": (["--evaluation.splits", "[unseem]"], "'unseem', but the data has train, unseen"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_before_anything_is_written(config, name, call, tmp_path):
    arguments, message = MISTAKES[name]
    code, _, error = call(config, "--output_dir", tmp_path / "out", *arguments)
    (line,) = error.splitlines()
    assert code == 2 and line.startswith("train.py: ") and re.search(message, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "token, repository, why",
    [("hf_wrong", "user/one", "does not know the token"), (None, "user/one", "there is no token"),
     ("hf_x", "org/one", "may not do that there"), ("hf_x", "not a name", "is no name of a repository")],
)  # fmt: skip
def test_a_push_that_will_not_be_let_in_ends_the_run_before_it_begins(
    config, hub, monkeypatch, tmp_path, token, repository, why, call
):
    log_in(hub, monkeypatch, tmp_path, token)
    out = tmp_path / "out"
    code, _, error = call(config, "--output_dir", out, "--push_to_hub", repository)
    (line,) = error.splitlines()
    assert code == 2 and re.match(f"train.py: .*{why}", line) and "hf_wrong" not in line
    assert not out.exists() and not hub.repositories


def test_a_name_without_a_value_is_refused(call):
    code, _, error = call("--seed")
    assert code == 2
    assert error.splitlines() == [
        "train.py: '--seed' is no field with a value; fields are given as --field value (see train.py --help)"
    ]


def test_a_missing_config_fails_the_command_with_one_line(config, tmp_path):
    code, out, error = end(start(config.with_name("nowhere.yaml"), "--output_dir", tmp_path / "out"))
    assert code == 2 and out == ""
    (line,) = error.splitlines()
    assert re.fullmatch("train.py: there is no configuration .*nowhere.yaml; give .*: .*, quickstart, .*", line)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(config):
    folder = config.parent / "finished"
    code, out, error = end(start(config, "--output_dir", folder))
    assert code == 0, error
    return folder, out, error


def test_a_run_ends_with_every_methods_scores(finished):
    folder, out, _ = finished
    results = json.loads((folder / "results.json").read_text())
    for method in ("no_instruction", "start_prompted", "tagi", "wrong_instruction"):
        assert 0 <= results["splits"]["unseen"]["methods"][method]["exact_match"] <= 100
        assert results["splits"]["unseen"]["methods"][method]["n"] == 6
    assert list(results["seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in results["seconds"].values())
    assert results["leaks"]["leaks"] == 0
    assert (folder / "results.md").read_text().strip() in out


def test_a_run_says_which_stage_it_is_at(finished):
    folder, out, error = finished
    begun = [line for line in out.splitlines() if line.endswith(": starts")]
    assert begun == [f"[{n}/6] {name}: starts" for n, name in enumerate(STAGES, 1)]
    assert "{'loss'" not in out + error
    assert "[5/6] finetuning:" in error


def scores(folder):
    return json.loads((folder / "results.json").read_text())["splits"]["unseen"]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_the_same_command_again_trains_nothing_and_scores_the_same(config, finished, call):
    folder, _, _ = finished
    before, scored = weights(folder), scores(folder)
    code, out, error = call(config, "--output_dir", folder)
    assert code == 0, error
    for number, name in enumerate(STAGES[:-1], 1):
        assert f"[{number}/6] {name}: was done before" in out
    assert scores(folder) == scored
    assert all(torch.equal(x, before[name]) for name, x in weights(folder).items())


def test_other_settings_for_the_same_folder_are_refused(config, finished, call):
    folder, _, _ = finished
    kept = weights(folder)
    code, _, error = call(config, "--output_dir", folder, "--finetuning.learning_rate", "3e-4")
    assert code != 0
    assert "finetuning.learning_rate was 0.0001, is now 0.0003" in error and "Traceback" not in error
    assert all(torch.equal(x, kept[name]) for name, x in weights(folder).items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["instruction_tuning", "finetuning"])
def test_a_killed_run_ends_as_if_it_had_not_been(config, stage):
    stages = ("instruction_tuning", "finetuning")
    longer = [x for name in stages for x in (f"--{name}.steps", 60, f"--{name}.save_every", 7)]
    whole, cut = config.parent / f"whole-{stage}", config.parent / f"cut-{stage}"
    assert end(start(config, "--output_dir", whole, *longer))[0] == 0
    process = start(config, "--output_dir", cut, *longer)
    checkpoints = cut / "stages" / stage / "checkpoints" / "all"
    while not list(checkpoints.glob("checkpoint-*/complete")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
    assert not (cut / "stages" / stage / "done.json").exists()
    code, out, error = end(start(config, "--output_dir", cut, *longer))
    assert code == 0, error
    assert f"{stage}: goes on" in out
    before = weights(whole)
    assert all(torch.equal(x, before[name]) for name, x in weights(cut).items())
    logs = [(folder / "stages" / stage / "log.jsonl").read_text().splitlines() for folder in (whole, cut)]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) >= 50


def test_an_interrupt_is_one_line(config, monkeypatch, call, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_tagi.pipeline.run_experiment", interrupted)
    code, _, error = call(config, "--output_dir", tmp_path / "out")
    (line,) = error.strip().splitlines()
    assert code == 130 and "the same command goes on" in line


def test_help_names_every_field_with_its_default(call):
    _, shown, _ = call("--help")
    assert "--finetuning.distillation_weight 5.0" in shown and "without_fusion" in shown
