"""The summary of a study: means over seeds and tasks, their intervals, and differences between methods."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from ..common.methods import METHODS
from ..common.writing import write_text
from ..evaluation.statistics import DIFFERENCES, SCORES, Interval, mean_interval, paired_difference
from .cells import Cell
from .lines import METRICS, write_lines
from .settings import START, StudySettings
from .table import table


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


def summarise(by_split: Sequence[dict], by_task: Sequence[dict]) -> dict:
    """Returns means over tasks and seeds with 95 % intervals over the groups that the tasks come from, for each split,
    method and number of training tasks, and the paired differences to the prompted model, to its start and to TAGI.

    Lines of older studies may lack the group of their task; then every task is one of its own, and `notes` says so.
    """
    metrics = [metric for metric in METRICS if any(metric in line for line in by_split)]
    splits = list(dict.fromkeys(line["split"] for line in by_split))
    sizes = sorted({line["train_tasks"] for line in by_split}, reverse=True)
    kinds = {line["method"]: line["kind"] for line in reversed(by_split)}
    groups, notes = _groups(by_task)
    rows = []
    for split, size in [(split, size) for split in splits for size in sizes]:
        here = [line for line in by_task if line["split"] == split and line["train_tasks"] == size]
        for method in dict.fromkeys(line["method"] for line in here):
            place = {"split": split, "train_tasks": size, "method": method, "kind": kinds[method]}
            rows.append({**place, **_row(here, method, metrics, groups)})
    clusters = {split: {"tasks": len(tasks), "groups": len({groups[task] for task in tasks})} for split in splits
                if (tasks := {line["task"] for line in by_task if line["split"] == split})}  # fmt: skip
    return {"split": splits[0], "metric": metrics[0], "metrics": metrics, "rows": rows, "clusters": clusters,
            "notes": notes}  # fmt: skip


def _groups(by_task: Sequence[dict]) -> tuple[dict[str, str], list[str]]:
    """Returns the group of each task, and a note if the lines do not say it."""
    if all("group" in line for line in by_task):
        return {line["task"]: line["group"] for line in by_task}, []
    note = ("these results do not say which group a task comes from, so intervals are over tasks as if each were one "
            "of its own")  # fmt: skip
    return {line["task"]: line["task"] for line in by_task}, [note]


def _row(lines: Sequence[dict], method: str, metrics: Sequence[str], groups: dict[str, str]) -> dict[str, dict]:
    """Returns a method's means, intervals and differences by metric, from the lines of all methods in one place."""
    row = {}
    for metric in metrics:
        own = Scores.of(lines, method, metric)
        if own is None:
            continue
        interval = mean_interval(own.values, own.groups(groups), bounds=SCORES)
        by_seed = {str(seed): round(float(mean), 2) for seed, mean in zip(own.seeds, own.values.mean(1))}
        row[metric] = {**_rounded(interval), "seeds": by_seed}
        for other in (*(name for name, known in METHODS.items() if known.compared), START):
            theirs = Scores.of(lines, other, metric)
            if other != method and theirs is not None:
                row[metric][f"minus_{other}"] = own.minus(theirs, groups)
    return row


@dataclass(frozen=True)
class Scores:
    """Holds one method's scores by one metric.

    Args:
        seeds, tasks: What the rows and the columns are.
        values: `[seeds, tasks]`.
    """

    seeds: list[int]
    tasks: list[str]
    values: np.ndarray

    @classmethod
    def of(cls, lines: Sequence[dict], method: str, metric: str) -> Optional["Scores"]:
        """Returns the scores on the tasks that every seed has; `None` if there are none."""
        found = {(x["seed"], x["task"]): x[metric] for x in lines if x["method"] == method and metric in x}
        seeds, tasks = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
        tasks = [task for task in tasks if all((seed, task) in found for seed in seeds)]
        return cls(seeds, tasks, np.array([[found[s, t] for t in tasks] for s in seeds])) if tasks else None

    def groups(self, groups: dict[str, str]) -> list[str]:
        return [groups[task] for task in self.tasks]

    def minus(self, other: "Scores", groups: dict[str, str]) -> Optional[dict[str, float]]:
        """Returns the paired difference on the seeds that both have; `None` if there are none, or other tasks."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        if not seeds or self.tasks != other.tasks:
            return None
        ours, theirs = (x.values[[x.seeds.index(seed) for seed in seeds]] for x in (self, other))
        return _rounded(paired_difference(ours, theirs, self.groups(groups), bounds=DIFFERENCES))


def _rounded(interval: Interval) -> dict[str, float]:
    return {name: round(getattr(interval, name), 2) for name in ("mean", "low", "high")}
