import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modeling_tagi.common.errors import explained
from modeling_tagi.common.folder_lock import alone_in
from modeling_tagi.pipeline import run_experiment
from modeling_tagi.training.run import Run
from modeling_tagi.training.settings import RunSettings
from modeling_tagi.training.stages import STAGES

HOLDER = (
    "import pathlib, sys, time; from modeling_tagi.common.folder_lock import alone_in\n"
    "with alone_in(pathlib.Path(sys.argv[1]), '.run.lock'): print('held', flush=True); time.sleep(100)"
)


def start_holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_command_is_refused_until_the_first_ends_however_it_does(tmp_path):
    settings = RunSettings(output_dir=str(tmp_path / "run"))
    process = start_holder(tmp_path / "run")
    with pytest.raises(ValueError, match="another process is at work in .*run; wait, or choose another"):
        run_experiment(settings)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with alone_in(tmp_path / "run", ".run.lock"):
        pass


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(KeyError), alone_in(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), alone_in(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
        raise KeyError
    assert (tmp_path / "a" / "b" / "kept").is_file()
    (tmp_path / "mine").mkdir()
    with alone_in(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_run_keeps_its_lock_and_takes_its_own_folder_again(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path / "run", ".run.lock"):
            Run(RunSettings(output_dir=str(tmp_path / "run")), ["text"], STAGES)


@pytest.mark.parametrize("name", ["file", "file/below", ""])
def test_a_place_that_is_no_folder_is_refused_at_once(name, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is a file; give a folder|which is no folder|is '', which names none"):
        run_experiment(RunSettings(output_dir=name and str(tmp_path / name)))
    assert (tmp_path / "file").read_text() == "kept"


@pytest.fixture
def small_disk():
    """A file system of 64 KiB, where that can be made."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
                                           capture_output=True).returncode:  # fmt: skip
        folder.rmdir()
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def test_a_disk_that_is_full_or_read_only_is_told_in_one_message_and_what_was_there_stays(small_disk):
    settings = RunSettings(output_dir=str(small_disk / "run"))
    Run(settings, ["text"], STAGES)
    before = (small_disk / "run" / "settings.yaml").read_text()
    with pytest.raises(OSError) as full:
        (small_disk / "filler").write_bytes(b"x" * 100_000)
    assert "the disk is full; free some space" in explained(full.value)[0]
    with pytest.raises(OSError) as full:
        Run(settings, ["text"], STAGES).stage("text").start()
    assert "the disk is full; free some space" in explained(full.value)[0]
    assert (small_disk / "run" / "settings.yaml").read_text() == before
    (small_disk / "filler").unlink()
    Run(settings, ["text"], STAGES).stage("text").start()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for place in (small_disk / "run", small_disk / "other"):
        with pytest.raises(OSError) as refused:
            run_experiment(RunSettings(output_dir=str(place)))
        assert "the file system is read-only; choose a folder on another" in explained(refused.value)[0]
