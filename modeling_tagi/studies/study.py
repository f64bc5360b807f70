"""`tagi study`: all cells of a study, side by side, each in a process of its own; taken up again where it was left."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence

import yaml
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..common.console import progress_bar
from ..common.errors import TRACEBACK
from ..common.writing import write_text
from ..evaluation.report.write import write_report
from ..hub import require_folder_for
from ..planning.checks import check_cells
from ..training.run import FREE_FIELDS, flat, has_begun
from ..training.stage_keys import STAGES
from .settings import Cell, StudySettings, cells
from .summary import results_file, write_lines, write_tables

CELL_FILE = "cell.yaml"
DATA_FILE = "data.json"
STUDY_FILE = "study.yaml"


def run_study(study: StudySettings, command: str = "") -> Path:
    """Runs what is not done yet, and writes the tables anew after each cell.

    Args:
        study: What to run.
        command: What was called, for the report.

    Returns:
        The study's folder: `results.jsonl` (a line for each method, seed and number of tasks), `by_split.jsonl`,
        `by_task.jsonl`, `summary.json`, `table.md`, `report/`, and a run's folder for each cell in `cells/`.

    Raises:
        ValueError: if the folder holds cells with other settings or something else, or another process is at work in
            it.
        ChildProcessError: if a cell failed; the others are finished first.
    """
    folder = require_folder_for("study", study.output_dir)
    todo = cells(study)
    _check(todo, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            if not all(_is_done(cell, folder) for cell in todo):
                check_cells(todo)
            write_text(folder / STUDY_FILE, yaml.safe_dump(dataclasses.asdict(study), sort_keys=False))
            failed = _run_cells(study, todo, folder)
            done = [cell for cell in todo if cell.name not in failed]
            if done:
                write_tables(study, done, command)
                write_report(folder)
            if failed:
                first = folder / "cells" / failed[0] / "log.txt"
                raise ChildProcessError(
                    f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}; see {first}, which ends "
                    f"with {_last_line(first)!r}; call the study again to go on"
                )
    except Timeout:
        raise ValueError(f"another process is at work in {folder}; wait, or choose another output_dir") from None
    return folder


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _check(todo: Sequence[Cell], folder: Path):
    """Refuses cells that were begun with other settings, before any work; of others nothing would be lost."""
    for cell in todo:
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


def _is_done(cell: Cell, folder: Path) -> bool:
    """Whether the run is trained, and scored as the study now says."""
    place = folder / "cells" / cell.name
    if not (results_file(folder, cell).is_file() and (place / "report" / "index.html").is_file()):
        return False
    data = place / DATA_FILE  # which a study of an earlier version has not written
    if data.is_file() and json.loads(data.read_text()) != _data_files(cell):
        return False  # the run itself tells whether what they hold is the same
    return yaml.safe_load((place / CELL_FILE).read_text())["evaluation"] == _plain(cell)["evaluation"]


def _data_files(cell: Cell) -> list[list]:
    """Path, size and time of change of every file that a cell's data are read from."""
    data = cell.settings.data
    named = [place for place in (data.path, data.text, data.t0_eval) if place is not None]
    places = [Path(os.path.expandvars(os.path.expanduser(place))) for place in named]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _plain(cell: Cell) -> dict:
    return dataclasses.asdict(cell.settings)


def _run_cells(study: StudySettings, todo: Sequence[Cell], folder: Path) -> list[str]:
    """Runs the cells, at most `workers` at once; the names of those that failed (or wait for one that did)."""
    done = {cell.name for cell in todo if _is_done(cell, folder)}
    waiting = [cell for cell in todo if cell.name not in done]
    running: dict[str, subprocess.Popen] = {}
    failed: list[str] = []
    bar = progress_bar(total=len(todo), initial=len(done), desc="study", unit="run")
    try:
        while waiting or running:
            for cell in list(waiting):
                if cell.after in failed:
                    failed.append(cell.name)
                    waiting.remove(cell)
                elif len(running) < study.workers and (cell.after is None or cell.after in done):
                    running[cell.name] = _start(cell, folder, study.threads)
                    waiting.remove(cell)
            bar.set_postfix_str(", ".join(running), refresh=False)
            bar.update(0)
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode == 0:
                    done.add(name)
                    bar.update()
                    write_lines(study, [cell for cell in todo if cell.name in done])
                else:
                    failed.append(name)
                    tqdm.write(f"study: {name} failed; see {folder / 'cells' / name / 'log.txt'}")
    finally:
        bar.close()
        for process in running.values():
            process.kill()
    return failed


def _start(cell: Cell, folder: Path, threads: int) -> subprocess.Popen:
    """A run in a process of its own, which ends when this one does."""
    place = folder / "cells" / cell.name
    place.mkdir(parents=True, exist_ok=True)
    results_file(folder, cell).unlink(missing_ok=True)  # scored in another way, or cut off
    write_text(place / CELL_FILE, yaml.safe_dump(_plain(cell), sort_keys=False))
    write_text(place / DATA_FILE, json.dumps(_data_files(cell)) + "\n")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), TRACEBACK: "1"}  # to its log
    command = [sys.executable, "-m", "modeling_tagi.studies.cell", str(place / CELL_FILE)]
    with open(place / "log.txt", "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
