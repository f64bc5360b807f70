"""The one handler of all commands: what the user reads, and the exit code."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from modeling_tagi.commands.main import main
from modeling_tagi.commands.table import COMMANDS
from modeling_tagi.common.errors import run_command
from modeling_tagi.hub import HubError

ROOT = Path(__file__).parents[1]
FULL = "the disk is full; free some space, or choose another folder"
MENDED = {
    "a value": (ValueError("r is 0,\nbut must be 1"), "r is 0, but must be 1"),
    "a name": (FileNotFoundError("there is no folder x"), "there is no folder x"),
    "the Hub": (HubError("cannot push to a/b: there is no token"), "cannot push to a/b: there is no token"),
    "a package": (ImportError("peft is missing; pip install peft"), "peft is missing; pip install peft"),
    "a full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/y"), f"x/y: {FULL}"),
    "a full disk, to safetensors": (SafetensorError("I/O error: No space left on device (os error 28)"), FULL),
    "a full disk, to tokenizers": (Exception("No space left on device (os error 28)"), FULL),
    "a full disk, to torch": (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 2"), FULL),
    "a read-only disk": (OSError(errno.EROFS, os.strerror(errno.EROFS), "x"), "x: the file system is read-only; "),
    "a read-only disk, to safetensors": (SafetensorError("Read-only file system (os error 30)"), "is read-only; "),
    "a file above": (NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "x/y"), "x/y: a part of that path"),
    "a file there": (FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), "x"), "x: there is a file of that name"),
    "no permission": (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x"), "x: the permission is"),
    "damaged weights": (SafetensorError("header too small"), "a file of weights is damaged (header too small)"),
    "damaged JSON": (json.JSONDecodeError("Expecting value", "", 0), "a file is not JSON (Expecting value"),
    "not UTF-8": (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid byte"), "a text is not UTF-8 ("),
    "a lone surrogate": (UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates"), "a text cannot be written"),
    "memory": (MemoryError(), "there is not enough memory; use a smaller model"),
    "memory, to torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory;"),
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory."), "there is not enough memory; use a smaller"),
}


@pytest.fixture(autouse=True)
def interruptible():
    """Has Ctrl-C at work, which a shell leaves out for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def failing(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize("name", MENDED)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(name, capsys):
    error, said = MENDED[name]
    assert run_command("tagi run", failing(error)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tagi run: ") and said in line


def test_what_a_library_made_of_a_full_disk_is_still_a_full_disk(capsys):
    def call():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/y")
        except OSError as error:
            raise RuntimeError("it did not work") from error

    assert run_command("tagi", call) == 2
    assert capsys.readouterr().err == f"tagi: x/y: {FULL}\n"


def test_a_bug_is_one_line_and_exit_code_1_and_its_traceback_can_be_had(capsys, monkeypatch):
    monkeypatch.delenv("TAGI_TRACEBACK", raising=False)
    assert run_command("tagi run", failing(KeyError("x"))) == 1
    assert capsys.readouterr().err == (
        "tagi run: an error of the program's own, KeyError: 'x'; TAGI_TRACEBACK=1 shows where\n"
    )
    monkeypatch.setenv("TAGI_TRACEBACK", "1")
    assert run_command("tagi run", failing(KeyError("x"))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "tagi run: an error of the program's own, KeyError: 'x'"


def test_an_interrupt_is_one_line_and_the_shells_exit_code(capsys):
    assert run_command("tagi run", failing(KeyboardInterrupt()), "stopped") == 130
    assert capsys.readouterr().err.strip() == "tagi run: stopped"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_arguments_that_are_not_utf_8_are_refused(capsys):
    assert main(["run", "model", "caf\udce9", "one"]) == 2
    assert capsys.readouterr().err == "tagi: argument 3 is not UTF-8: b'caf\\xe9'; convert it\n"
    assert main(["run", "model", "\ud800", "one"]) == 2
    assert "argument 3 is not UTF-8: '\\ud800'" in capsys.readouterr().err


BAD = {
    "generate": ["nowhere/at/all", "say", "--output_dir", "out"],
    "run": ["nowhere/at/all", "say", "one"],
    "train": ["smoke", "--finetuning.step", "3"],
    "evaluate": ["nowhere/at/all", "--data", "none"],
    "compare": ["nowhere/at/all", "nowhere/at/all"],
    "demo": ["nowhere/at/all"],
    "serve": ["nowhere/at/all", "--adapters", "adapters"],
    "export": ["nowhere/at/all", "out.gguf"],
    "release": ["nowhere/at/all", "out"],
    "push": ["nowhere", "me/mine"],
    "study": ["nowhere"],
    "plan": ["nowhere"],
    "vllm": ["nowhere/at/all"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_meets_bad_input_with_one_line_and_exit_code_2(command, tmp_path, monkeypatch, capsys):
    if command == "demo":
        pytest.importorskip("gradio", reason="the page is not installed: pip install 'tagi[demo]'")
    monkeypatch.chdir(tmp_path)
    assert main([command, *BAD[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tagi {command}: ")
    assert not list(tmp_path.iterdir())


def started(*command, **options):
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [["train.py", "smoke", "--output_dir"],
     ["-m", "modeling_tagi.commands.main", "generate", "a/b/c", "say", "--output_dir"]],
    ids=["train.py", "tagi"],
)  # fmt: skip
def test_an_interrupt_while_torch_is_imported_is_one_line(command, tmp_path):
    process = started(*command, str(tmp_path / "out"))
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text() and process.poll() is None:  # the import of torch has begun
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    (line,) = error.strip().splitlines()
    assert ": interrupted" in line and not (tmp_path / "out").exists()


def test_help_versions_and_wrong_arguments_do_not_import_torch(tmp_path):
    code = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from modeling_tagi.commands.main import main, train
from modeling_tagi.commands.table import COMMANDS
from modeling_tagi.studies.few_shot import main as few_shot

calls = [(main, ["--version"]), (main, ["--help"]), (main, []), (main, ["fly"]), (main, ["run", "model"])]
calls += [(main, [name, "--help"]) for name in COMMANDS]
calls += [(train, ["--help"]), (train, ["--seed"]), (train, ["nowhere"]), (train, ["smoke", "--sed", "1"])]
calls += [(few_shot, ["--help"]), (few_shot, [])]
for call, arguments in calls:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            code = call(arguments)
        except SystemExit as ended:
            code = ended.code
    assert code == (0 if arguments[-1:] in (["--help"], ["--version"]) else 2), (arguments, code, said.getvalue())
    assert said.getvalue() and "torch" not in sys.modules, arguments
"""
    done = started("-c", code)
    _, error = done.communicate(timeout=60)
    assert done.returncode == 0, error


def test_commands_say_what_they_do_before_torch_is_imported(tmp_path):
    code = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from modeling_tagi.commands.main import main

class Terminal(io.StringIO):
    def isatty(self):
        return True

class NoTorch:
    def find_spec(self, name, *rest):
        if name in ("torch", "transformers"):
            raise KeyboardInterrupt

sys.meta_path.insert(0, NoTorch())
model, data = sys.argv[1], sys.argv[2]
for arguments in (
    ["generate", model, "say", "--output_dir", "made"], ["run", model, "say", "one"],
    ["run", model, "--adapter", model, "one"], ["train", "smoke"], ["evaluate", model, "--data", data],
    ["compare", model, model], ["push", model, "me/mine"], ["study", "studies/builtin"], ["plan", "smoke"],
):
    said = Terminal()
    with redirect_stdout(said), redirect_stderr(said):
        code = main(arguments)
    first, *_, last = said.getvalue().splitlines()
    assert code == 130 and "interrupted" in last and "interrupted" not in first, (arguments, code, said.getvalue())
"""
    done = started("-c", code, str(tmp_path), str(tmp_path))
    _, error = done.communicate(timeout=60)
    assert done.returncode == 0, error
