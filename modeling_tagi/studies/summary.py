"""The tables of a study, from the results of its cells."""

import json
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from ..common.writing import write_text
from ..evaluation.results import read_results
from ..evaluation.statistics import DIFFERENCES, SCORES, mean_interval, paired_difference
from .settings import START, TAGI_REFERENCES, Cell, StudySettings

METRICS = ("exact_match", "rouge_l", "rank_accuracy", "rank_accuracy_mean")


def results_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / cell.name / "results.json"


def write_lines(study: StudySettings, done: Sequence[Cell]) -> tuple[list[dict], list[dict], dict]:
    """Writes `results.jsonl`, `by_split.jsonl` and `by_task.jsonl` of the cells done.

    Returns:
        The lines by split, those by task, and what else the last cell's results hold, with all splits' `floors`.
    """
    folder = Path(study.output_dir)
    by_split, by_task, floors, notes = [], [], {}, {}
    for cell in done:
        results = read_results(results_file(folder, cell).parent)
        notes.update(dict.fromkeys(results.get("notes", ())))
        for split, found in results["splits"].items():
            floors[split] = {name: found[name] for name in ("chance", "majority") if found[name] is not None}
        start = next((other for other in done if other.name == cell.after), None)
        before = _training_seconds(read_results(results_file(folder, start).parent)) if start else 0.0
        for line, tasks in _lines(cell, results, before):
            by_split.append(line)
            by_task += tasks
    first = by_split[0]["split"]
    _write_json_lines(folder / "results.jsonl", [line for line in by_split if line["split"] == first])
    _write_json_lines(folder / "by_split.jsonl", by_split)
    _write_json_lines(folder / "by_task.jsonl", by_task)
    notes = [*notes, *_left_out(study, by_split, " ".join(notes))]
    return by_split, by_task, {"floors": floors, "run": results["run"], "notes": notes}


def _left_out(study: StudySettings, by_split: Sequence[dict], said: str) -> list[str]:
    """What references of the study no run has a score of, and why, but for those of which that is said already."""
    scored = {line["method"] for line in by_split}
    why = {"nearest_adapter": "no start has task adapters", "oracle": "it could not be tuned on any split"}
    why |= dict.fromkeys(TAGI_REFERENCES, "the study has no method that is TAGI")
    return [f"no {name}, since {why.get(name, 'no run has scored it')}"
            for name in study.references if name not in scored and f"no {name}, since" not in said]  # fmt: skip


def write_tables(study: StudySettings, done: Sequence[Cell], command: str = ""):
    """Writes the lines of the cells done, `summary.json` and `table.md`."""
    folder = Path(study.output_dir)
    by_split, by_task, rest = write_lines(study, done)
    summary = summarise(by_split, by_task)
    summary.update(
        floors=rest["floors"],
        notes=[*summary["notes"], *rest["notes"]],
        command=command,
        versions={name: rest["run"][name] for name in ("python", "torch", "transformers", "peft")},
        seconds=round(sum(line["seconds"] for line in by_split if line["split"] == summary["split"]), 1),
        workers=study.workers,
        threads=study.threads,
    )
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_text(folder / "table.md", table(summary) + "\n")


def _training_seconds(results: dict) -> float:
    """Of all stages but the evaluation."""
    return round(sum(seconds or 0.0 for name, seconds in results["seconds"].items() if name != "evaluation"), 1)


def _lines(cell: Cell, results: dict, seconds_of_start: float):
    """For each method that a cell scored, on each split: its line of `by_split.jsonl`, those of `by_task.jsonl`."""
    names = {START: cell.method} if cell.after is None else {cell.method: cell.method}
    for split, scores in results["splits"].items():
        for name, found in scores["methods"].items():
            trained = name in names
            place = {
                "method": names.get(name, name),
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
            tasks = []
            for task in dict.fromkeys([*found.get("per_task", ()), *found.get("per_task_ranked", ())]):
                free, ranked = (found.get(key, {}).get(task, {}) for key in ("per_task", "per_task_ranked"))
                values = {metric: free[metric] for metric in METRICS[:2] if metric in free}
                if ranked:
                    values |= {"rank_accuracy": ranked["sum"], "rank_accuracy_mean": ranked["mean"]}
                group = {name: x for name, x in results.get("tasks", {}).get(task, {}).items() if name == "group"}
                tasks.append({**place, "task": task, **group, **values})
            yield line, tasks


def summarise(by_split: Sequence[dict], by_task: Sequence[dict]) -> dict:
    """Returns means over tasks and seeds with 95 % intervals over the groups that the tasks come from, for each split,
    method and number of training tasks, and the paired differences to the prompted model, to its start and to TAGI.

    Lines of older studies may lack the group of their task; then every task is one of its own, and `notes` says so.
    """
    metrics = [metric for metric in METRICS if any(metric in line for line in by_split)]
    splits = list(dict.fromkeys(line["split"] for line in by_split))
    sizes = sorted({line["train_tasks"] for line in by_split}, reverse=True)
    rows, notes = [], []
    grouped = all("group" in line for line in by_task)
    if not grouped:
        notes.append("these results do not say which group a task comes from, so intervals are over tasks as if each "
                     "were one of its own")  # fmt: skip
    groups = {line["task"]: line["group"] if grouped else line["task"] for line in by_task}
    for split in splits:
        for size in sizes:
            here = [line for line in by_task if line["split"] == split and line["train_tasks"] == size]
            methods = dict.fromkeys(line["method"] for line in here)
            for method in methods:
                row = {"split": split, "train_tasks": size, "method": method}
                row["kind"] = next(x["kind"] for x in by_split if x["method"] == method)
                for metric in metrics:
                    values = _matrix(here, method, metric)
                    if values is None:
                        continue
                    interval = mean_interval(values[2], [groups[task] for task in values[1]], bounds=SCORES)
                    seeds = {str(seed): round(float(mean), 2) for seed, mean in zip(values[0], values[2].mean(1))}
                    row[metric] = {"mean": round(interval.mean, 2), "low": round(interval.low, 2),
                                   "high": round(interval.high, 2), "seeds": seeds}  # fmt: skip
                    for other in ("prompted", "tagi", START):
                        theirs = _matrix(here, other, metric)
                        if other != method and theirs is not None:
                            row[metric][f"minus_{other}"] = _difference(values, theirs, groups)
                rows.append(row)
    clusters = {split: {"tasks": len(tasks), "groups": len({groups[task] for task in tasks})} for split in splits
                if (tasks := {line["task"] for line in by_task if line["split"] == split})}  # fmt: skip
    return {"split": splits[0], "metric": metrics[0], "metrics": metrics, "rows": rows, "clusters": clusters,
            "notes": notes}  # fmt: skip


def _matrix(lines: Sequence[dict], method: str, metric: str) -> Optional[tuple[list, list, np.ndarray]]:
    """Seeds, tasks, and the scores `[seeds, tasks]`; None if there are none."""
    found = {(x["seed"], x["task"]): x[metric] for x in lines if x["method"] == method and metric in x}
    seeds, tasks = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    tasks = [task for task in tasks if all((seed, task) in found for seed in seeds)]
    return (seeds, tasks, np.array([[found[s, t] for t in tasks] for s in seeds])) if tasks else None


def _difference(ours, theirs, groups: dict[str, str]) -> Optional[dict]:
    """On the seeds that both have."""
    seeds = [seed for seed in ours[0] if seed in theirs[0]]
    if not seeds or ours[1] != theirs[1]:
        return None
    a, b = (values[2][[values[0].index(seed) for seed in seeds]] for values in (ours, theirs))
    interval = paired_difference(a, b, [groups[task] for task in ours[1]], bounds=DIFFERENCES)
    return {name: round(getattr(interval, name), 2) for name in ("mean", "low", "high")}


def table(summary: dict) -> str:
    """Markdown: for each split and number of training tasks the methods, with intervals and differences."""
    metrics, lines = summary["metrics"], []
    for split in dict.fromkeys(row["split"] for row in summary["rows"]):
        for size in dict.fromkeys(row["train_tasks"] for row in summary["rows"]):
            rows = [row for row in summary["rows"] if row["split"] == split and row["train_tasks"] == size]
            if not rows:
                continue
            lines += [f"### {split.replace('_', ' ')}, {size} training tasks", ""]
            main = next((m for m in ("rank_accuracy", *metrics) if any(m in row for row in rows)), metrics[0])
            heads = [metric.replace("_", " ") for metric in metrics]
            name = main.replace("_", " ")
            heads += [f"{name}, lowest and highest seed", f"{name} − prompted's"]
            lines.append("| method | " + " | ".join(heads) + " |")
            lines.append("| --- |" + " ---: |" * len(heads))
            for row in rows:
                cells = [_interval(row.get(metric)) for metric in metrics]
                seeds = list((row.get(main) or {"seeds": {}})["seeds"].values())
                cells.append(f"{min(seeds):.1f}, {max(seeds):.1f} (of {len(seeds)})" if seeds else "–")
                cells.append(_interval((row.get(main) or {}).get("minus_prompted"), sign=True))
                lines.append(f"| {row['method'].replace('_', ' ')} | " + " | ".join(cells) + " |")
            ranked = any("rank" in metric for metric in metrics)
            for name, value in summary["floors"].get(split, {}).items() if ranked else ():
                cells = [f"{value:.1f}" if "rank" in metric else "–" for metric in metrics]
                lines.append(f"| *{name}* | " + " | ".join(cells) + " | – | – |")
            lines.append("")
    groups = [f"{split.replace('_', ' ')}: {found['tasks']} tasks of {found['groups']} groups"
              for split, found in (summary.get("clusters") or {}).items()]  # fmt: skip
    lines.append(f"In brackets: 95 % intervals over the groups that the tasks come from ({'; '.join(groups)}).")
    lines += ["", *(f"* {note}" for note in summary.get("notes", ()))]
    return "\n".join(lines).rstrip()


def _interval(value: Optional[dict], sign: bool = False) -> str:
    if value is None:
        return "–"
    mean, low, high = (f"{value[name]:{'+' if sign else ''}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _write_json_lines(path: Path, lines: Sequence[dict]):
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
