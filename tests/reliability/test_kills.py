"""A share of the kills; `python tests/reliability/kills.py` kills commands at 200 points."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.common.writing import replacing, write_text
from modeling_tagi.hub import filling
from modeling_tagi.training.run import Stage
from modeling_tagi.training.stage_training import plot_losses

HERE = Path(__file__).parent


def test_commands_that_were_killed_end_as_if_they_never_had_been(tmp_path):
    command = [sys.executable, str(HERE / "kills.py"), "--points", "12", "--only", "bank", "adapter", "cache", "push"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "12/12" in done.stdout and not list(tmp_path.glob("kills-*"))


def test_a_bank_goes_on_where_a_kill_left_the_empty_folder_of_its_first_adapter(tmp_path):
    for name in ("first", ".first-abcdefgh", ".second-abcdefgh"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".first-abcdefgh", (0, 0))
    AdapterBank(tmp_path).add(["first"], TagiAdapter({"q": torch.ones(1, 2, 3)}, {"q": torch.ones(1, 4, 2)}, 4.0))
    assert AdapterBank(tmp_path).names == ["first"]
    assert not (tmp_path / ".first-abcdefgh").exists()
    assert (tmp_path / ".second-abcdefgh").is_dir()  # it may be at work


def test_checkpoints_go_although_the_run_was_killed_when_it_had_finished_their_stage(tmp_path):
    stage = Stage("text", tmp_path, 1, 1)
    stage.start()
    stage.finish()
    (tmp_path / "checkpoints" / "all").mkdir(parents=True)
    stage.skip()
    assert not (tmp_path / "checkpoints").exists()


def test_a_file_that_a_killed_process_left_goes_after_an_hour(tmp_path):
    for name in (".costs.json.12", ".costs.json.13", ".costs.json.of-a-user"):
        (tmp_path / name).touch()
    for name in (".costs.json.12", ".costs.json.of-a-user"):
        os.utime(tmp_path / name, (0, 0))
    write_text(tmp_path / "costs.json", "{}")
    assert sorted(os.listdir(tmp_path)) == [".costs.json.13", ".costs.json.of-a-user", "costs.json"]


def test_a_resumed_run_plots_its_losses_alike(tmp_path):
    history = [{"loss": 2.0, "step": 1, "loss_pred": 1.5, "loss_kl": 0.5}, {"loss": 1.0, "step": 2, "loss_kl": 0.4}]
    read_back = [dict(sorted(entry.items())) for entry in history]  # as the Trainer's state holds them
    for name, entries in (("whole", history), ("resumed", read_back)):
        plot_losses(entries, tmp_path / f"{name}.png", "a stage")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "resumed.png").read_bytes()


def test_a_replaced_folder_takes_what_was_saved_beside_it_along(tmp_path):
    killed = tmp_path / ".model-abcdefgh"
    with replacing(tmp_path / "model") as beside:
        with filling(beside, "last") as inside:
            (inside / "last").touch()
            shutil.copytree(beside.parent, killed)
    assert killed.is_dir()
    with replacing(tmp_path / "model"):
        pass
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_not_taken_for_what_was_left_of_another_whose_name_begins_alike(tmp_path):
    for name in (".model-2-abcdefgh", ".model-2-abcdefgh-old"):  # of `model-2`, which is being replaced
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    with replacing(tmp_path / "model") as beside:
        (beside / "mine").touch()
    assert os.listdir(tmp_path / "model") == ["mine"]
    assert (tmp_path / ".model-2-abcdefgh" / "weights").is_file()
    assert (tmp_path / ".model-2-abcdefgh-old" / "weights").is_file()
