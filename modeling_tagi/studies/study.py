"""`tagi study`: runs all cells of a study side by side, each in a process of its own; an interrupted study resumes."""

import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Sequence

import yaml
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..common.console import progress_bar
from ..common.writing import write_text
from ..evaluation.report.write import write_report
from ..hub import require_folder_for
from ..planning.checks import check_cells
from .cell_folder import LOG_FILE, is_done, last_line, require_as_begun, start
from .cells import Cell, cells
from .lines import write_lines
from .settings import StudySettings
from .summary import write_tables

STUDY_FILE = "study.yaml"
_SECONDS_BETWEEN_LOOKS = 0.2


def run_study(study: StudySettings, command: str = "") -> Path:
    """Runs the cells that are not done yet, and writes the tables anew after each of them.

    Args:
        study: What to run.
        command: The command that the user called, for the report.

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
    require_as_begun(todo, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            if not all(is_done(cell, folder) for cell in todo):
                check_cells(todo)
            write_text(folder / STUDY_FILE, yaml.safe_dump(dataclasses.asdict(study), sort_keys=False))
            failed = _run_cells(study, todo, folder)
            done = [cell for cell in todo if cell.name not in failed]
            if done:
                write_tables(study, done, command)
                write_report(folder)
            if failed:
                first = folder / "cells" / failed[0] / LOG_FILE
                raise ChildProcessError(
                    f"{len(failed)} of {len(todo)} runs failed: {', '.join(failed)}; see {first}, which ends "
                    f"with {last_line(first)!r}; call the study again to go on"
                )
    except Timeout:
        raise ValueError(f"another process is at work in {folder}; wait, or choose another output_dir") from None
    return folder


def _run_cells(study: StudySettings, todo: Sequence[Cell], folder: Path) -> list[str]:
    """Runs the cells and returns the names of those that failed (or wait for one that did)."""
    work = _Work(study, todo, folder)
    with progress_bar(total=len(todo), initial=len(work.done), desc="study", unit="run") as bar:
        try:
            while work.waiting or work.running:
                work.start_what_can()
                bar.set_postfix_str(", ".join(work.running), refresh=False)
                bar.update(0)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                bar.update(work.take_what_ended())
        finally:
            for process in work.running.values():
                process.kill()
    return work.failed


class _Work:
    """Keeps the cells of a study in order: at most `workers` run at once, each after the start that it needs.

    Attributes:
        waiting: The cells that were not started.
        running: The processes by the name of their cell.
        done, failed: Names.
    """

    def __init__(self, study: StudySettings, todo: Sequence[Cell], folder: Path):
        self.study, self.todo, self.folder = study, todo, folder
        self.done = {cell.name for cell in todo if is_done(cell, folder)}
        self.waiting = [cell for cell in todo if cell.name not in self.done]
        self.running: dict[str, subprocess.Popen] = {}
        self.failed: list[str] = []

    def start_what_can(self):
        """Starts cells whose start is done, and gives up those whose start has failed."""
        for cell in list(self.waiting):
            if cell.after in self.failed:
                self.failed.append(cell.name)
                self.waiting.remove(cell)
            elif len(self.running) < self.study.workers and (cell.after is None or cell.after in self.done):
                self.running[cell.name] = start(cell, self.folder, self.study.threads)
                self.waiting.remove(cell)

    def take_what_ended(self) -> int:
        """Notes which processes have ended, and returns how many of them are done."""
        before = len(self.done)
        for name, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            if process.returncode == 0:
                self.done.add(name)
                write_lines(self.study, [cell for cell in self.todo if cell.name in self.done])
            else:
                self.failed.append(name)
                tqdm.write(f"study: {name} failed; see {self.folder / 'cells' / name / LOG_FILE}")
        return len(self.done) - before
