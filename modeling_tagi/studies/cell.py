"""One run of a study in a process of its own, which must not outlive the study: `python -m … CELL.yaml`.

The study holds the other end of standard input. It is closed when the study ends, however that may be.
"""

import os
import sys
import threading
from pathlib import Path

from filelock import FileLock

from ..common.errors import run_command


def main(path: str) -> int:
    threading.Thread(target=_end_with_the_study, daemon=True).start()
    return run_command(Path(path).parent.name, lambda: _run(path))


def _run(path: str) -> int:
    from ..pipeline import run_experiment
    from ..training.settings import load_settings

    settings = load_settings(path)
    with FileLock(Path(path).with_name(".lock")):  # of a study that was killed a moment ago
        run_experiment(settings, f"train.py {path}")
    return 0


def _end_with_the_study():
    while os.read(0, 1024):  # not sys.stdin, whose lock a thread must not hold when the process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
