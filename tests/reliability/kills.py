"""Kills commands at random points, calls them again, and compares what they leave with an uninterrupted call.

    python tests/reliability/kills.py [--points N] [--seed S] [--only TEXT …]

A point is the n-th change of a file by a command (or up to 30 ms behind it), where it gets SIGKILL; every fourth time
the second call is killed too. The exit code is 1 if anything was found.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Optional

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (2, 1)] + [str(Path(__file__).parents[1] / "bad_input")]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="kills in all; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the files of a finding are copied")
    parser.add_argument("--only", nargs="+", metavar="TEXT", default=[], help="cases with one of these in their name")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kills-")).resolve()
    os.environ.update(
        HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HOME=str(folder / "hf"), OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    try:
        return _run(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(options, folder: Path) -> int:
    from everything import import_everything
    from hub_stand_in import hub_stand_in, log_in
    from kill_cases import Cases
    from pytest import MonkeyPatch

    import_everything()
    with hub_stand_in() as hub, MonkeyPatch.context() as patch:
        log_in(hub, patch, folder)
        cases = Cases(folder / "cases", hub)
        wanted = {name: case for name, case in cases.all() if not options.only or any(x in name for x in options.only)}
        return _kill_all(wanted, options, folder)


def _kill_all(cases: dict, options, folder: Path) -> int:
    rng, began, found, counts = random.Random(options.seed), time.monotonic(), [], Counter()
    whole = {}
    order = rng.choices(list(cases), [case.share for case in cases.values()], k=options.points)
    order[: len(cases)] = list(cases)[: options.points]  # each at least once
    for number, name in enumerate(order, 1):
        case = cases[name]
        if name not in whole:
            whole[name] = _uninterrupted(name, case, folder, options.keep)
        said, points = _one(case, *whole[name], rng, folder)
        counts[name] += points
        if said:
            found.append(f"{name}: {said}")
            if options.keep:
                shutil.copytree(case.folder, options.keep / f"{number}")
        print(f"{number}/{options.points}, {time.monotonic() - began:.0f} s: {name}: {said or 'as if never killed'}",
              flush=True)  # fmt: skip
    print(f"\n{sum(counts.values())} kills in {time.monotonic() - began:.0f} s, {len(found)} findings: "
          + ", ".join(f"{name} {count}" for name, count in counts.items()))  # fmt: skip
    return int(bool(found))


def _fresh(case):
    shutil.rmtree(case.folder, ignore_errors=True)
    case.folder.mkdir(parents=True)
    case.begin()


def _uninterrupted(name: str, case, folder: Path, keep: Optional[Path]) -> tuple[int, float, dict]:
    """Returns how often a command changes a file, its seconds, and what it leaves."""
    from killed import ended

    _fresh(case)
    outcome, changes = ended(case.act, case.folder, folder / "log")
    if keep:
        shutil.copytree(case.folder, keep / name)
    if outcome.code:
        raise RuntimeError(f"{name} ended with {outcome.code}: {outcome.err[-3000:]}")
    return changes, outcome.seconds, case.ends()


def _one(case, changes: int, seconds: float, whole: dict, rng: random.Random, folder: Path) -> tuple[str, int]:
    """Kills a command once or twice and calls it again; returns what was wrong, and how often it was killed."""
    from killed import an_hour_later, differences, ended, killed, some_delay

    _fresh(case)
    kills, where = rng.choice((1, 1, 1, 2)), []
    for _ in range(kills):
        at, late, alone = rng.randint(1, changes or 1), some_delay(rng), rng.random() < 0.5
        if changes == 0:  # it changes nothing here, but on the Hub
            at, late = 0, rng.random() * seconds
        where.append(f"{at} of {changes}" + (f" and {late * 1000:.0f} ms" if late is not None else ""))
        killed(case.act, case.folder, folder / "log", at, late, alone)
        an_hour_later(case.folder)
        try:
            wrong = case.holds()
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            return f"killed at {', '.join(where)}: {wrong}", len(where)
    outcome, _ = ended(case.act, case.folder, folder / "log")
    if outcome.code:
        return f"killed at {', '.join(where)}: called again it ended with {outcome.code}: {outcome.err[-600:]}", kills
    wrong = differences(case.ends(), whole)
    return (f"killed at {', '.join(where)}: {wrong}" if wrong else ""), kills


if __name__ == "__main__":
    sys.exit(main())
