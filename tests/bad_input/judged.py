"""What became of a case, in one word: good, or what is wrong with it."""

import os
import re
from pathlib import Path
from typing import Optional

from case import Case, Either, Fine, Outcome, Place, Refused

GOOD = "good"
_PREFIX = re.compile(r"^(train\.py|tagi( \w+)?|costs|few_shot|python|[\w.]*python -m [\w.]+): ")
_BAR = re.compile(r"\d+%\||[\d?]+(it|s|run|record|examples)/| examples/s|^\s*$")
_LONGEST = 1500  # characters of a message


def tree(folder: Path) -> dict[str, tuple]:
    """Everything below a folder by its path: kind, size and time of change; folders, that they are there."""
    found: dict[str, tuple] = {}
    waiting = [str(folder)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found[entry.path] = ("folder",)
                waiting.append(entry.path)
            else:
                stat = entry.stat(follow_symlinks=False)
                found[entry.path] = ("file", stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def verdict(case: Case, place: Place, outcome: Outcome, before: dict, after: dict) -> tuple[str, str]:
    """The verdict on a case and what happened, in a line.

    Args:
        before, after: The trees of the case's folder and of what all share, before the call and after it.
    """
    said = message(outcome.err)
    happened = f"rc {outcome.code}: {said if outcome.code and said else last_line(outcome)}"
    expects = case.expects
    if isinstance(expects, Either):
        expects = expects.fine if outcome.code == 0 else expects.refused
    writes = [str(place.here / name) for name in case.writes]
    for check in (_ended, _contained, _expected):
        found = check(case, expects, place, outcome, before, after, writes)
        if found:
            return found[0], f"{happened} [{found[1]}]" if found[1] else happened
    return GOOD, happened


def message(err: str) -> str:
    """The command's own message, from its name to the end; empty if there is none."""
    lines = _lines(err)
    starts = [number for number, line in enumerate(lines) if _PREFIX.match(line)]
    return " ".join(lines[starts[0]:]) if starts else ""


def last_line(outcome: Outcome) -> str:
    """What it said last: of its output where it ended well, else of its errors."""
    first, second = (outcome.out, outcome.err) if outcome.code == 0 else (outcome.err, outcome.out)
    return (_lines(first) or _lines(second) or [""])[-1]


def _lines(err: str) -> list[str]:
    lines = [part.strip() for line in err.splitlines() for part in line.split("\r")]
    return [line for line in lines if not _BAR.search(line)]


def _ended(case, expects, place, outcome, before, after, writes) -> Optional[tuple[str, str]]:
    if outcome.timed_out:
        return "hang", f"{outcome.seconds:.0f} s"
    if outcome.code == -9:
        return "memory", "killed"
    if re.search(r"Traceback \(most recent call last\)|an error of the program's own", outcome.err + outcome.out):
        return "traceback", ""
    return None


def _contained(case, expects, place, outcome, before, after, writes) -> Optional[tuple[str, str]]:
    """Whether something changed that was not to."""

    def ours(path: str) -> bool:
        return any(path == place or path.startswith(place + "/") for place in writes)

    gone = [path for path in before if path not in after]
    new = [path for path in after if path not in before]
    changed = [path for path in before if path in after and before[path] != after[path]]
    for path in gone + changed:
        if not ours(path) or isinstance(expects, Refused) and not expects.late:
            return "lost", path
        if isinstance(expects, Fine) and not expects.replaces:
            return "lost", path
    outside = [path for path in new if not ours(path)]
    if outside:
        return "outside", outside[0]
    if isinstance(expects, Refused) and not expects.late:
        if outcome.code and (any("/stages/" in path for path in new) or ": starts" in outcome.out):
            return "late", ""
        if new and outcome.code:
            return "left behind", new[0]
    return None


def _expected(case, expects, place, outcome, before, after, writes) -> Optional[tuple[str, str]]:
    if isinstance(expects, Fine):
        if outcome.code:
            return "refused", "this input is fine"
        wrong = expects.check and expects.check(place, outcome)
        return ("silently wrong", wrong) if wrong else None
    if outcome.code == 0:
        return "silently wrong", ""
    code = expects.code or (2 if case.where == "shell" else 1)
    if outcome.code != code:
        return "wrong code", f"not {code}"
    said, lines = message(outcome.err), _lines(outcome.err)
    if not said or len(said) > _LONGEST:
        return "unclear", "no message" if not said else f"{len(said)} characters"
    missing = [pattern for pattern in expects.words if not re.search(place.filled(pattern), said)]
    if missing:
        return "unclear", f"does not say {missing[0]}"
    if sum(bool(_PREFIX.match(line)) for line in lines) > 1:
        return "unclear", "several messages"
    if not expects.late and not said.startswith("python: ") and not _PREFIX.match(lines[0]):
        return "noisy", lines[0][:80]
    return None
