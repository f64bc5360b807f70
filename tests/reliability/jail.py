"""Calls in a child process that is watched: what it runs, reads, writes, connects to and allocates."""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable

MEMORY = 1 << 30  # that a call may take on top of what there is; more fails
SECONDS = 20  # of CPU, after which a call counts as one that hangs
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
_CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
_OPENED, _MADE, _MOVED = 0x20, 0x100, 0xC0  # inotify's events that are watched


@dataclass
class Outcome:
    """What a call did.

    Args:
        error: The name of the class of what it raised; `None` if it returned.
        message: Its text, or that of what it returned.
        ran: Files whose code ran, and processes that were started.
        touched: Files of the watched folder that were opened, made or moved.
        written: Files elsewhere that were opened for writing.
        connected: Where it tried to connect to.
        allocated: Bytes that its address space grew by at most.
    """

    error: str | None = None
    message: str = ""
    ran: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    allocated: int = 0


def jailed(call: Callable, own: Path, watched: Path, log: Path) -> Outcome:
    """Returns what a call did, in a child of this process.

    Args:
        call: Returns something, or raises.
        own: The folder that it may write to, and whose code must not run.
        watched: A folder that it has no business in.
        log: A file for the child's report.
    """
    watch = _Watch(watched)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            _call(call, own, log)
        finally:
            os._exit(70)
    began, status = time.monotonic(), None
    while status is None:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = code if done else None
        if status is None and time.monotonic() - began > 10 * SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    outcome = Outcome(**json.loads(log.read_text())) if code == 0 else Outcome("Ended", f"exit code {code}")
    outcome.touched = watch.seen()
    return outcome


def _call(call: Callable, own: Path, log: Path):
    import torch

    torch.set_num_threads(1)  # the threads of the parent are not here
    outcome, report = Outcome(), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    output = os.open(log.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdin = open(os.devnull)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    before = _address_space("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY, before + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))
    sys.addaudithook(_hearing(outcome, own))
    try:
        outcome.message = str(call())[:2000]
    except BaseException as error:
        outcome.error, outcome.message = type(error).__name__, str(error)[:4000]
    outcome.allocated = _address_space("VmPeak") - before
    os.write(report, json.dumps(asdict(outcome)).encode())
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)


def _hearing(outcome: Outcome, own: Path) -> Callable:
    allowed = (str(own), "/dev/null", "/proc/self/")

    def hear(event: str, arguments: tuple):
        if event == "open":
            path, _, flags = arguments
            path = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
            if path and flags & _WRITES and not os.path.realpath(path).startswith(allowed):
                outcome.written.append(path)
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if file.startswith(str(own)):
                outcome.ran.append(file)
        elif event in _STARTS:
            outcome.ran.append(f"{event} {arguments}"[:200])
        elif event in _CONNECTS:
            outcome.connected.append(f"{event} {arguments[-1]}"[:200])

    return hear


def _address_space(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class _Watch:
    """Sees, by inotify, what any program opens or makes in a folder and the folders in it."""

    def __init__(self, folder: Path):
        libc = ctypes.CDLL(None, use_errno=True)
        self.file = libc.inotify_init1(os.O_NONBLOCK)
        self.names = {}
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            number = libc.inotify_add_watch(self.file, os.fsencode(place), _OPENED | _MADE | _MOVED)
            if number < 0:
                raise OSError(ctypes.get_errno(), f"{place} cannot be watched")
            self.names[number] = place.name

    def seen(self) -> list[str]:
        found = []
        while True:
            try:
                events = os.read(self.file, 1 << 16)
            except BlockingIOError:
                os.close(self.file)
                return sorted(set(found))
            while events:
                number, _, _, length = struct.unpack_from("iIII", events)
                name = events[16: 16 + length].rstrip(b"\0").decode()
                found.append(f"{self.names.get(number, '?')}/{name}")
                events = events[16 + length:]
