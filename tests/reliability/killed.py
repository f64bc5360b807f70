"""Commands that are killed where they change a file: before the n-th such call, or a moment behind it."""

import hashlib
import json
import os
import random
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Optional

sys.path.insert(0, str(Path(__file__).parents[1] / "bad_input"))

from forked import Child, Outcome, start  # noqa: E402

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_LOCKS = re.compile(r"(^|/)\.?[\w.-]*(\.lock|\.lock-\w\w)$|(^|/)\.lock-\w\w$")
_CLOCKS = re.compile(r"^(seconds|seconds_of_\w+|date|time|\w+_runtime|\w+_per_second)$")


def ended(call: Callable[[], None], folder: Path, log: Path) -> tuple[Outcome, int]:
    """Runs a call to its end; returns what it did, and how often it changed a file in `folder`."""
    reading, writing = os.pipe()
    child = start(_counted(call, folder, writing), ["tagi"], log.parent, log)
    os.close(writing)
    counted, outcome = b"", child.wait()
    while select.select([reading], [], [], 0)[0] and (got := os.read(reading, 65536)):
        counted += got
    os.close(reading)
    return outcome, int(counted.decode() or 0)


def killed(call: Callable[[], None], folder: Path, log: Path, at: int, late: Optional[float], alone: bool) -> bool:
    """Kills a call before its `at`-th change in `folder`, or `late` seconds behind that; says whether it got there.

    Args:
        at: 0 for the beginning of the call.
        alone: Whether its own children are left to themselves.
    """
    reading, writing = os.pipe()
    child = start(_told(call, folder, writing, at, stop=late is None), ["tagi"], log.parent, log)
    os.close(writing)
    reached = os.read(reading, 1) == b"x"  # or the end of the file, where it has ended before
    if reached:
        time.sleep(late or 0)
        _kill(child, alone)
    child.wait()
    os.close(reading)
    return reached


def _kill(child: Child, alone: bool):
    try:
        (os.kill if alone else os.killpg)(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended meanwhile
        pass


def _hear(folder: Path, changed: Callable[[], None]):
    """Calls `changed` before each change of a file in `folder` that this process makes through Python."""
    inside, process = str(folder), os.getpid()

    def hook(event: str, args: tuple):
        if event == "open":
            place, mode, flags = args
            if isinstance(place, int) or not (flags or 0) & _WRITING:
                return
        elif event in _CHANGES:
            place = args[0]
        else:
            return
        place = os.fsdecode(place) if isinstance(place, (bytes, str, os.PathLike)) else ""
        if os.getpid() == process and (place.startswith(inside) or not place.startswith("/")):
            changed()

    sys.addaudithook(hook)


def _told(call: Callable[[], None], folder: Path, pipe: int, at: int, stop: bool) -> Callable[[], None]:
    def program():
        seen = 0

        def changed():
            nonlocal seen
            seen += 1
            if seen == at:
                os.write(pipe, b"x")
                if stop:
                    time.sleep(3600)

        if at == 0:
            os.write(pipe, b"x")
        else:
            _hear(folder, changed)
        call()

    return program


def _counted(call: Callable[[], None], folder: Path, pipe: int) -> Callable[[], None]:
    def program():
        seen = 0

        def changed():
            nonlocal seen
            seen += 1

        _hear(folder, changed)
        try:
            call()
        finally:
            os.write(pipe, str(seen).encode())

    return program


def some_delay(rng: random.Random) -> Optional[float]:
    """Half of the time exactly before a change, else up to 30 ms behind it, in the middle of what is written."""
    return None if rng.random() < 0.5 else rng.random() ** 2 * 0.03


def contents(folder: Path) -> dict[str, str]:
    """Returns a hash of each file of a folder, hidden ones among them; locks and what a clock says are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not any(path.iterdir()):
            found[name + "/"] = "an empty folder"
        elif path.is_file() and not _LOCKS.search(name):
            found[name] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "seconds.json":
        return b""
    if path.suffix == ".json":
        return json.dumps(_without_clocks(json.loads(content))).encode()
    if path.suffix == ".jsonl":
        return json.dumps([_without_clocks(json.loads(line)) for line in content.splitlines()]).encode()
    if path.suffix == ".safetensors":  # whose metadata are in no order
        length = int.from_bytes(content[:8], "little")
        return json.dumps(json.loads(content[8: 8 + length]), sort_keys=True).encode() + content[8 + length:]
    if path.suffix in (".html", ".md"):  # times in tables, and lengths of bars of them
        return re.sub(rb"sha256 \w+|[\d.,:]+", b"0", content)
    return content


def _without_clocks(value):
    if isinstance(value, dict):
        return {name: _without_clocks(x) for name, x in value.items() if not _CLOCKS.match(name)}
    return [_without_clocks(x) for x in value] if isinstance(value, list) else value


def an_hour_later(folder: Path):
    """Makes temporary files and folders an hour old, after which they count as those of killed processes."""
    for path in folder.rglob(".*"):
        if not _LOCKS.search(path.name):
            os.utime(path, (time.time() - 7200,) * 2)


def differences(made: dict[str, str], whole: dict[str, str]) -> str:
    """Says which files differ, are missing or are left over; an empty text if none do."""
    said = [
        *(f"{name} is left over" for name in made.keys() - whole.keys()),
        *(f"{name} is missing" for name in whole.keys() - made.keys()),
        *(f"{name} differs" for name in made.keys() & whole.keys() if made[name] != whole[name]),
    ]
    return "; ".join(sorted(said)[:6]) + (f"; {len(said) - 6} more" if len(said) > 6 else "")
