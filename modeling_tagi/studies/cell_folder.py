"""A cell's folder: its settings and data as they were when it was last started, and whether it is done."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Sequence

import yaml

from ..common.errors import TRACEBACK
from ..common.writing import write_text
from ..training.run import FREE_FIELDS, flat, has_begun
from ..training.stages import STAGES
from .cells import Cell
from .lines import results_file

CELL_FILE = "cell.yaml"
DATA_FILE = "data.json"
LOG_FILE = "log.txt"


def require_as_begun(cells: Sequence[Cell], folder: Path):
    """Refuses, before any work, cells that were begun with other settings.

    Raises:
        ValueError: naming the cell's folder and what was set.
    """
    for cell in cells:
        file = folder / "cells" / cell.name / CELL_FILE
        begun = results_file(folder, cell).is_file() or any(has_begun(file.parent, stage) for stage in STAGES)
        if begun and file.is_file():
            before, now = flat(yaml.safe_load(file.read_text())), flat(_plain(cell))
            changed = [name for name in {**before, **now}
                       if before.get(name) != now.get(name) and name.split(".")[0] not in FREE_FIELDS]  # fmt: skip
            if changed:
                raise ValueError(
                    f"{file.parent} was begun with other settings ({changed[0]} was {before.get(changed[0])!r}, is "
                    f"now {now.get(changed[0])!r}); choose another output_dir, or delete that folder"
                )


def is_done(cell: Cell, folder: Path) -> bool:
    """Returns whether the run is trained, and scored as the study now says."""
    place = folder / "cells" / cell.name
    if not (results_file(folder, cell).is_file() and (place / "report" / "index.html").is_file()):
        return False
    data = place / DATA_FILE  # which a study of an earlier version has not written
    if data.is_file() and json.loads(data.read_text()) != _data_files(cell):
        return False  # the run itself tells whether what they hold is the same
    return yaml.safe_load((place / CELL_FILE).read_text())["evaluation"] == _plain(cell)["evaluation"]


def start(cell: Cell, folder: Path, threads: int) -> subprocess.Popen:
    """Starts a run in a process of its own, which ends when this one does."""
    place = folder / "cells" / cell.name
    place.mkdir(parents=True, exist_ok=True)
    results_file(folder, cell).unlink(missing_ok=True)  # scored in another way, or cut off
    write_text(place / CELL_FILE, yaml.safe_dump(_plain(cell), sort_keys=False))
    write_text(place / DATA_FILE, json.dumps(_data_files(cell)) + "\n")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), TRACEBACK: "1"}  # to its log
    command = [sys.executable, "-m", "modeling_tagi.studies.cell", str(place / CELL_FILE)]
    with open(place / LOG_FILE, "ab") as log:
        return subprocess.Popen(  # nosec B603 # this package, by a list of arguments
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )


def last_line(log: Path) -> str:
    """Returns the last line of a log that says something; nothing if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _data_files(cell: Cell) -> list[list]:
    """Returns the path, size and time of change of every file that a cell's data are read from."""
    data = cell.settings.data
    named = [place for place in (data.path, data.text, data.t0_eval) if place is not None]
    places = [Path(os.path.expandvars(os.path.expanduser(place))) for place in named]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _plain(cell: Cell) -> dict:
    return dataclasses.asdict(cell.settings)
