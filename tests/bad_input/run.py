"""Runs every case of bad input and says what became of it.

    python tests/bad_input/run.py [--share] [--only TEXT …] [--again FILE.md] [--output FILE.md]

Each case is judged: it is refused in one message that says what is wrong, before any work and with nothing changed;
or it is fine, and so is its result. The exit code is 1 if any is neither.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import mounts
from share import SHARE
from tables import merged, rows_of, shortened, table

# Of every command: no network, no token, one thread.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", "OMP_NUM_THREADS": "1",
               "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", default=[], help="cases with one of these in their name")
    parser.add_argument("--exact", nargs="+", metavar="NAME", default=[], help="cases of these names")
    parser.add_argument("--share", action="store_true", help="those that the default test run takes")
    parser.add_argument("--where", choices=("shell", "python"), help="those alone")
    parser.add_argument("--again", type=Path, metavar="FILE.md",
                        help="those that were not good there; the others keep their rows")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="where to write the table")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where it happens, and what is shared stays")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell leaves Ctrl-C out in the background
    if not mounts.enter():
        print("file systems cannot be mounted here: the cases that need one are left out", file=sys.stderr)
    folder = (options.keep or Path(tempfile.mkdtemp(prefix="bad-input-"))).resolve()
    os.environ.update(ENVIRONMENT, HF_HOME=str(folder / "cache"))  # before anything reads it
    sys.path.insert(0, str(Path(__file__).parents[2]))

    from everything import CASES, import_everything, judge
    from world import World

    import_everything()
    wanted = [case for case in CASES if options.where in (None, case.where)]
    if options.share:
        wanted = [case for case in wanted if (case.where, case.name) in SHARE]
    if options.only:
        wanted = [case for case in wanted if any(text in case.name for text in options.only)]
    if options.exact:
        wanted = [case for case in wanted if case.name in options.exact]
    if options.again:
        bad = {(where, name) for where, name, _, verdict in rows_of(options.again) if verdict != "good"}
        wanted = [case for case in wanted if (case.where, case.name) in bad]
    world, began, rows = World(folder / "world").make(), time.monotonic(), []
    try:
        for case in wanted:
            if case.needs_mounts and not mounts.possible():
                continue
            found, happened, seconds = judge(case, world, folder)
            rows.append((case.where, case.name, shortened(happened, folder), found))
            print(f"{found:14} {seconds:5.1f} s  {case.where} | {case.name} | {rows[-1][2][:300]}", flush=True)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if options.again:
        rows = merged(rows_of(options.again), rows)
    counts = Counter(found for _, _, _, found in rows)
    print(f"\n{len(rows)} cases in {time.monotonic() - began:.0f} s: "
          + ", ".join(f"{count} {name}" for name, count in counts.most_common()))  # fmt: skip
    if options.output:
        options.output.write_text(table(rows, counts))
    return int(any(name != "good" for name in counts))


if __name__ == "__main__":
    sys.exit(main())
