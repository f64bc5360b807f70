"""Commands in children of a process that has imported everything: a start costs milliseconds instead of seconds."""

import io
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

ROOT = Path(__file__).parents[2]
SECONDS = 120  # of CPU, after which a command counts as one that hangs
WALL_SECONDS = 600  # on a machine that others use too
MEMORY = 6 << 30  # that a command may take on top of what importing takes


@dataclass
class Outcome:
    """What a command did: its exit code (negative: the signal that ended it), and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float
    timed_out: bool = False


class Child:
    """A command under way.

    Args:
        pid: Its process.
        out, err: Files of what it writes.
    """

    def __init__(self, pid: int, out: Path, err: Path, process: Optional[subprocess.Popen] = None):
        self.pid, self.out, self.err, self.process = pid, out, err, process
        self.began = time.monotonic()
        self._ended: Optional[int] = None

    @property
    def code(self) -> Optional[int]:
        """Returns the exit code, negative for a signal, or `None` while the process runs."""
        if self._ended is None:
            if self.process is not None:
                self._ended = self.process.poll()
            else:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._ended = os.waitstatus_to_exitcode(status) if pid else None
        return self._ended

    def shown(self) -> str:
        """What it has written to standard output so far."""
        return self.out.read_text(encoding="utf-8", errors="replace") if self.out.is_file() else ""

    def send(self, number: int):
        """Sends a signal, to a command that has not ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = WALL_SECONDS) -> Outcome:
        """Waits for its end, and ends it after `seconds`."""
        timed_out = False
        while self.code is None:
            if time.monotonic() - self.began > seconds:
                timed_out = True
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        code = self.code
        err = self.err.read_text(encoding="utf-8", errors="replace")
        timed_out = timed_out or code == -signal.SIGXCPU
        return Outcome(code, self.shown(), err, time.monotonic() - self.began, timed_out)


def start(
    call: Callable[[], None],
    arguments: Sequence[str],
    cwd: Path,
    log: Path,
    stdin: bytes = b"",
    variables: Optional[dict] = None,
    stdout: Optional[int] = None,
) -> Child:
    """Starts a command in a child of this process.

    Args:
        call: What is called there; `tagi` or `train` below.
        arguments: `sys.argv`, the program's name among them.
        cwd: Where it runs.
        log: Where what it writes goes, with `.out` and `.err`.
        stdin: What it reads.
        variables: Of the environment; `None` takes one out.
        stdout: A file descriptor instead of a file, such as a pipe's.
    """
    out, err, given = log.with_name(log.name + ".out"), log.with_name(log.name + ".err"), log.with_name(
        log.name + ".in"
    )  # fmt: skip
    given.write_bytes(stdin)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, out, err)
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _limit()
        for name, value in (variables or {}).items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        os.chdir(cwd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, descriptor in enumerate((
            os.open(given, os.O_RDONLY), os.open(out, flags) if stdout is None else stdout, os.open(err, flags)
        )):  # fmt: skip
            os.dup2(descriptor, number)
        # as in the C locale, where bytes that are not UTF-8 come through
        sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), "utf-8", "surrogateescape")
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), "utf-8", "surrogateescape")
        unbuffered = open(2, "wb", buffering=0, closefd=False)
        sys.stderr = io.TextIOWrapper(unbuffered, "utf-8", "backslashreplace", write_through=True)
        sys.argv = list(arguments)
        code = _exit_code(call)
    finally:
        os._exit(code)


def start_process(
    command: Sequence[str], cwd: Path, log: Path, stdin: bytes = b"", variables: Optional[dict] = None
) -> Child:
    """Starts a command in a process of its own, where its own start matters."""
    environment = {**os.environ, **(variables or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    out, err = log.with_name(log.name + ".out"), log.with_name(log.name + ".err")
    with open(out, "wb") as to_out, open(err, "wb") as to_err:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=to_out, stderr=to_err,
            start_new_session=True,
        )  # fmt: skip
    process.stdin.write(stdin)
    process.stdin.close()
    return Child(process.pid, out, err, process)


def tagi():
    """The command `tagi`, as its entry point calls it."""
    from modeling_tagi.commands.main import main

    sys.exit(main())


def train():
    """The command `python train.py`."""
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def module(name: str) -> Callable[[], None]:
    """The command `python -m name`."""

    def program():
        sys.modules.pop(name, None)
        runpy.run_module(name, run_name="__main__")

    return program


def _exit_code(call: Callable[[], None]) -> int:
    """What the interpreter would make of the end of a program."""
    code = 0
    try:
        call()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        code = code or 0
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored in: {error}", file=sys.stderr)
        code = code or 120
    return code


def _limit():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
