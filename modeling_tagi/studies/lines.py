"""The lines of a study: what each cell scored, a line for each method and split, and for each of its tasks."""

import json
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

from ..common.writing import write_text
from ..evaluation.references import REFERENCES
from ..evaluation.results import read_results
from .cells import Cell
from .settings import START, TAGI_REFERENCES, StudySettings

METRICS = ("exact_match", "rouge_l", "rank_accuracy", "rank_accuracy_mean")
_FREE = METRICS[:2]  # those of answers that are written freely; the others are of ranked options


def results_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / cell.name / "results.json"


def write_lines(study: StudySettings, done: Sequence[Cell]) -> tuple[list[dict], list[dict], dict]:
    """Writes `results.jsonl`, `by_split.jsonl` and `by_task.jsonl` of the cells done.

    Returns:
        The lines by split, those by task, and what else the last cell's results hold, with all splits' `floors`.
    """
    folder = Path(study.output_dir)
    every = {cell.name: read_results(results_file(folder, cell).parent) for cell in done}
    by_split, by_task, floors, notes = [], [], {}, {}
    for cell in done:
        results = every[cell.name]
        notes.update(dict.fromkeys(results.get("notes", ())))
        for split, found in results["splits"].items():
            floors[split] = {name: found[name] for name in ("chance", "majority") if found[name] is not None}
        of_start = _training_seconds(every[cell.after]) if cell.after in every else 0.0
        for line, tasks in _lines(cell, results, of_start):
            by_split.append(line)
            by_task += tasks
    first = by_split[0]["split"]
    _write_json_lines(folder / "results.jsonl", [line for line in by_split if line["split"] == first])
    _write_json_lines(folder / "by_split.jsonl", by_split)
    _write_json_lines(folder / "by_task.jsonl", by_task)
    notes = [*notes, *_left_out(study, by_split, " ".join(notes))]
    return by_split, by_task, {"floors": floors, "run": results["run"], "notes": notes}


def _left_out(study: StudySettings, by_split: Sequence[dict], said: str) -> list[str]:
    """Returns which references of the study no run has scored, and why; without those of which `said` tells it."""
    scored = {line["method"] for line in by_split}
    return [f"no {name}, since {_why_left_out(name)}"
            for name in study.references if name not in scored and f"no {name}, since" not in said]  # fmt: skip


def _why_left_out(reference: str) -> str:
    if reference in TAGI_REFERENCES:
        return "the study has no method that is TAGI"
    if REFERENCES[reference].needs_bank:
        return "no start has task adapters"
    return "it could not be tuned on any split" if REFERENCES[reference].tunes else "no run has scored it"


def _training_seconds(results: dict) -> float:
    """Returns the seconds of all stages but the evaluation."""
    return round(sum(seconds or 0.0 for name, seconds in results["seconds"].items() if name != "evaluation"), 1)


def _lines(cell: Cell, results: dict, seconds_of_start: float) -> Iterator[tuple[dict, list[dict]]]:
    """Yields for each method that a cell scored, on each split, its line of `by_split.jsonl` and those of
    `by_task.jsonl`."""
    own = START if cell.after is None else cell.method  # what the cell's results call the model that it trained
    for split, scores in results["splits"].items():
        for name, found in scores["methods"].items():
            trained = name == own
            place = {
                "method": cell.method if trained else name,
                "seed": cell.seed,
                "train_tasks": results["run"]["train_tasks"],
                "split": split,
            }
            line = {
                **place,
                "kind": "trained" if trained else "reference",
                **{metric: found[metric] for metric in METRICS if found.get(metric) is not None},
                "n": found["n"] + found.get("n_ranked", 0),
                "seconds": _training_seconds(results) if trained else 0.0,
                "seconds_of_start": seconds_of_start if trained else 0.0,
            }
            yield line, _task_lines(place, found, results.get("tasks", {}))


def _task_lines(place: dict[str, Any], found: dict, tasks: dict[str, dict]) -> list[dict]:
    """Returns a line for each task of one method's scores on one split."""
    lines = []
    for task in dict.fromkeys([*found.get("per_task", ()), *found.get("per_task_ranked", ())]):
        free, ranked = (found.get(key, {}).get(task, {}) for key in ("per_task", "per_task_ranked"))
        values = {metric: free[metric] for metric in _FREE if metric in free}
        if ranked:
            values |= {"rank_accuracy": ranked["sum"], "rank_accuracy_mean": ranked["mean"]}
        group: Optional[str] = tasks.get(task, {}).get("group")
        lines.append({**place, "task": task, **({"group": group} if group is not None else {}), **values})
    return lines


def _write_json_lines(path: Path, lines: Sequence[dict]):
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
