"""The report of a study: its methods over seeds, numbers of training tasks and categories, and its runs.

To add a part is a function here and a line in `SECTIONS`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Iterable, Iterator, Optional

from ...common.methods import METHODS, PROMPTED, TAGI, is_ablation
from ..references import shown_by_category
from ..results import read_results
from .formats import (
    INTERVALS,
    STEPS,
    UNITS,
    duration,
    in_per_cent,
    mean_with_interval,
    number,
    plain,
    sentence,
    title_of,
)
from .page import Plot, Section, Table
from .plots import Line, bar_plot, grouped_bar_plots, line_plot
from .run_report import score_plots
from .shared import adapter_section, cost_section, leak_section, mean_line, read_json, read_lines, settings_table

_SIMILARITIES = ("own", "others", "ratio", "generated", "tuned")


@dataclass(frozen=True)
class StudyFolder:
    """Holds what a study's report is made of: its folder, and its `summary.json`."""

    folder: Path
    summary: dict

    @property
    def split(self) -> str:
        """Returns the split that summaries show."""
        return self.summary["split"]

    @property
    def metric(self) -> str:
        """Returns the name of the score that summaries show, such as `exact_match`."""
        return self.summary["metric"]

    @cached_property
    def most_tasks(self) -> int:
        """Returns the largest number of training tasks."""
        return max(row["train_tasks"] for row in self.summary["rows"])

    @cached_property
    def cells(self) -> dict[tuple[str, int, int], Path]:
        """Returns the folders of the runs that are in the tables as trained, by method, seed and number of training
        tasks."""
        known = {(line["method"], line["seed"], line["train_tasks"])
                 for line in read_lines(self.folder / "by_split.jsonl") if line["kind"] == "trained"}  # fmt: skip
        found = {}
        for path, results in self.results():
            key = (path.name.rpartition("-seed")[0], results["run"]["seed"], results["run"]["train_tasks"])
            if key in known:
                found[key] = path
        return found

    def results(self) -> Iterator[tuple[Path, dict]]:
        """Yields the folder of each run, and its results if it has been evaluated."""
        for path in sorted((self.folder / "cells").glob("*")):
            results = read_results(path)
            if results is not None:
                yield path, results

    def rows(self, split: str, tasks: int) -> list[dict]:
        """Returns the summary's rows for a split and a number of training tasks."""
        return [row for row in self.summary["rows"] if (row["split"], row["train_tasks"]) == (split, tasks)]

    def main_rows(self) -> list[dict]:
        """Returns the rows on the split that summaries show, of most training tasks, that have its score."""
        return [row for row in self.rows(self.split, self.most_tasks) if self.metric in row]

    def of_tagi(self) -> list[Path]:
        """Returns the folders of TAGI's runs on the largest number of training tasks, in the order of their seeds."""
        found = sorted((seed, path) for (method, seed, tasks), path in self.cells.items()
                       if (method, tasks) == (TAGI, self.most_tasks))  # fmt: skip
        return [path for _, path in found]

    def methods(self) -> list[str]:
        """Returns the methods with runs on the largest number of training tasks."""
        return list(dict.fromkeys(method for method, _, tasks in self.cells if tasks == self.most_tasks))

    def of(self, method: str) -> list[Path]:
        """Returns the folders of a method's runs on the largest number of training tasks."""
        return [path for (name, _, tasks), path in self.cells.items() if (name, tasks) == (method, self.most_tasks)]


def study_report(folder: Path) -> tuple[str, str, list[Section]]:
    """Returns title, first sentence and sections for a study's folder, from what is in it and in its cells."""
    study = StudyFolder(folder, read_json(folder / "summary.json"))
    return f"Study {folder.resolve().name}", _lead(study), [section(study) for section in SECTIONS]


def _lead(study: StudyFolder) -> str:
    row = next((row for row in study.main_rows() if row["method"] == TAGI), None)
    if row is None:
        return ""
    found = row[study.metric]
    text = f"TAGI on {plain(study.split)}, {in_per_cent(study.metric)}: {mean_with_interval(found)}"
    difference = found.get(f"minus_{PROMPTED}")
    return text + (f"; {mean_with_interval(difference, '+')} points from the prompted model." if difference else ".")


def scores(study: StudyFolder) -> Section:
    """Shows the scores of every method on every split, means over seeds."""
    text = f"Per cent, means over tasks and seeds with {INTERVALS}; differences are on the same tasks."
    section = Section("Scores", [text, *_score_plot(study)])
    for split in dict.fromkeys(row["split"] for row in study.summary["rows"]):
        for tasks in sorted({row["train_tasks"] for row in study.summary["rows"]}, reverse=True):
            section.parts += _score_table(study, split, tasks)
    section.parts += map(sentence, study.summary.get("notes") or ())
    return section


def _score_plot(study: StudyFolder) -> list[Plot]:
    rows, metric = study.main_rows(), study.metric
    if not rows:
        return []
    values = {title_of(row["method"]): (row[metric]["mean"], (row[metric]["low"], row[metric]["high"]))
              for row in rows}  # fmt: skip
    grey = [title_of(row["method"]) for row in rows if row["kind"] != "trained"]
    caption = f"{plain(study.split)}, {study.most_tasks} training tasks, 95 % intervals; grey: references"
    return [bar_plot("scores", caption, values, UNITS[metric], [title_of(TAGI)], grey)]


def _score_table(study: StudyFolder, split: str, tasks: int) -> list[Table]:
    """Returns a table of all methods; it is shut unless it is the one that summaries show."""
    rows = study.rows(split, tasks)
    metrics = [metric for metric in study.summary["metrics"] if any(metric in row for row in rows)]
    if not metrics:
        return []
    scores = [row.get(metrics[0]) or {} for row in rows]
    others = [name for name, method in METHODS.items()
              if method.compared and any(f"minus_{name}" in main for main in scores)]  # fmt: skip
    minus = [f"− {title_of(other)} (points)" for other in others]
    head = ["method", *map(UNITS.get, metrics), *minus, "by seed (%)"]
    body = []
    for row, main in zip(rows, scores):
        seeds = ", ".join(number(value) for value in main.get("seeds", {}).values())
        body.append([title_of(row["method"]), *(mean_with_interval(row.get(metric)) for metric in metrics),
                     *(mean_with_interval(main.get(f"minus_{other}"), "+") for other in others), seeds])  # fmt: skip
    seeds = dict.fromkeys(seed for main in scores for seed in main.get("seeds", ()))
    caption = f"{plain(split)}, {tasks} training tasks, seeds {', '.join(seeds)}"
    strong = [place for place, row in enumerate(rows) if row["method"] == TAGI]
    shown = {"caption": caption} if (split, tasks) == (study.split, study.most_tasks) else {"folded": caption}
    return [Table(head, body, strong=strong, **shown)]


def by_number_of_tasks(study: StudyFolder) -> Section:
    """Shows scores by the number of training tasks, of the methods that were trained on several numbers."""
    section, metric, lines = Section("Number of training tasks"), study.metric, {}
    for method in dict.fromkeys(row["method"] for row in study.summary["rows"] if row["kind"] == "trained"):
        rows = sorted((row for row in study.summary["rows"]
                       if row["method"] == method and row["split"] == study.split and metric in row),
                      key=lambda row: row["train_tasks"])  # fmt: skip
        if len(rows) > 1:
            mean, low, high = ([row[metric][name] for row in rows] for name in ("mean", "low", "high"))
            lines[title_of(method)] = Line([row["train_tasks"] for row in rows], mean, low, high, bars=True)
    if lines:
        caption = f"{plain(study.split)}: score by the number of tasks trained on, 95 % intervals"
        section.parts.append(line_plot("score-by-tasks", caption, lines, "training tasks", UNITS[metric]))
    return section


def by_category(study: StudyFolder) -> Section:
    """Shows scores by category, on the split that summaries show."""
    section = Section("By category")
    scores = _scores_by_category(study)
    means = {method: {group: fmean(fmean(seeds) for seeds in tasks.values()) for group, tasks in groups.items()}
             for method, groups in scores.items()}  # fmt: skip
    groups = sorted({group for found in means.values() for group in found})
    shown = [method for method in shown_by_category() if method in means][:3]
    if len(groups) < 2 or not shown:
        return section
    unit = UNITS[study.metric]
    caption = (f"{plain(study.split)}, {study.most_tasks} training tasks: mean over the tasks of each category and "
               "seeds")  # fmt: skip
    values = {title_of(method): [means[method].get(group) for group in groups] for method in shown}
    section.parts += grouped_bar_plots("families", caption, groups, values, unit)
    count = {group: len({task for found in scores.values() for task in found.get(group, ())}) for group in groups}
    rows = [[group, str(count[group]), *(number(means[method].get(group)) for method in means)] for group in groups]
    section.parts.append(Table(["category", "tasks", *map(title_of, means)], rows, folded=f"All methods, {unit}"))
    return section


def _scores_by_category(study: StudyFolder) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Returns the scores of each seed, by method, category and task."""
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for line in read_lines(study.folder / "by_task.jsonl"):
        here = (line["split"], line["train_tasks"]) == (study.split, study.most_tasks)
        if here and line.get(study.metric) is not None:
            tasks = scores.setdefault(line["method"], {}).setdefault(line["group"], {})
            tasks.setdefault(line["task"], []).append(line[study.metric])
    return scores


def training(study: StudyFolder) -> Section:
    """Shows loss and score over the steps, means over seeds: TAGI beside other methods, then beside its ablations."""
    methods = sorted(study.methods(), key=lambda method: (method != TAGI, method != PROMPTED, method))
    kinds = {
        "methods": [method for method in methods if not is_ablation(method)],
        "ablations": [method for method in methods if method == TAGI or is_ablation(method)],
    }
    section = Section("Training")
    for kind, names in kinds.items():
        if names and (kind == "methods" or names != [TAGI]):
            whose = ": ablations" if kind == "ablations" else ""
            logs = {method: found for method in names if (found := _logs(study, method, "scores.jsonl"))}
            section.parts += [*score_plots(logs, f"score-over-steps-{kind}", whose), *_loss_plot(study, kind, names)]
    if section.parts:
        section.parts.insert(0, "Means over seeds, with a band from the least to the most.")
    return section


def _loss_plot(study: StudyFolder, kind: str, methods: Iterable[str]) -> list[Plot]:
    losses = {}
    for method in methods:
        found = _logs(study, method, "log.jsonl")
        if found:
            both = all("loss_prediction" in entry for log in found for entry in log)
            losses[title_of(method)] = mean_line(found, "loss_prediction" if both else "loss")
    losses = {method: line for method, line in losses.items() if line is not None}
    if not losses:
        return []
    whose = ": ablations" if kind == "ablations" else ""
    caption = f"Loss of prediction on training batches while finetuning{whose}"
    unit = "loss (nats per token)"
    return [line_plot(f"loss-over-steps-{kind}", caption, losses, STEPS, unit, from_zero=True)]


def _logs(study: StudyFolder, method: str, name: str) -> list[list[dict]]:
    """Returns a log of the finetuning of each seed that has it."""
    logs = [read_lines(path / "stages" / "finetuning" / name) for path in study.of(method)]
    return [log for log in logs if log]


def adapters(study: StudyFolder) -> Section:
    """Shows TAGI's map of one seed, and for every method that makes adapters how near they are to tuned ones."""
    section = adapter_section(_first(path / "adapters.json" for path in study.of_tagi()), " of TAGI (one seed)")
    rows = []
    for method in study.methods():
        found = [read_json(path / "adapters.json") for path in study.of(method)]
        found = [one["similarity"] for one in found if one and one.get("similarity")]
        if found:
            means = [_mean(one.get(name) for one in found) for name in _SIMILARITIES]
            rows.append([title_of(method), str(len(found)), *(number(value, 3) for value in means)])
    if rows:
        head = ["method", "seeds", "own", "others", "own / others", "generated", "tuned"]
        caption = "Mean cosine of ΔW by method: to own and others' tuned adapters; among generated; among tuned"
        section.parts.append(Table(head, rows, caption=caption))
    return section


def _mean(values: Iterable[Optional[float]]) -> Optional[float]:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def cost(study: StudyFolder) -> Section:
    """Shows what a task costs by each method."""
    return cost_section(_first(path / "costs.json" for path in study.of_tagi()))


def _first(paths: Iterable[Path]) -> Optional[dict]:
    """Returns what the first of the files holds that is there and not empty."""
    return next((found for path in paths if (found := read_json(path))), None)


def leaks(study: StudyFolder) -> Section:
    """Shows what evaluation shares with training, of the first run that was checked."""
    checked = (read_results(path).get("leaks") for path in study.cells.values())
    return leak_section(next(filter(None, checked), None))


def origin(study: StudyFolder) -> Section:
    """Shows the commands, the versions, the times and the settings that the study was made with."""
    parts = [*_facts(study), *_runs(study), *settings_table(study.folder / "study.yaml", "The study's settings")]
    return Section("How it was made", parts)


def _facts(study: StudyFolder) -> list[Table]:
    summary = study.summary
    facts = [["command", summary["command"]]] if summary.get("command") else []
    facts += [[name, str(value)] for name, value in (summary.get("versions") or {}).items()]
    counts = {"workers": "runs side by side", "threads": "threads of each"}
    facts += [[name, str(summary[key])] for key, name in counts.items() if key in summary]
    if summary.get("seconds") is not None:
        facts.append(["wall time of all runs, added up", duration(summary["seconds"])])
    return [Table((), facts, text=2, wrap=True)] if facts else []


def _runs(study: StudyFolder) -> list[Table]:
    rows = []
    for path, results in study.results():
        run, seconds = results["run"], results.get("seconds") or {}
        rows.append([path.name, run.get("command") or "–", str(run.get("seed", "–")),
                     str(run.get("train_tasks", "–")), duration(sum(filter(None, seconds.values())))])  # fmt: skip
    head = ["run", "command", "seed", "training tasks", "wall time"]
    return [Table(head, rows, text=2, folded="The runs: commands, seeds and wall times")] if rows else []


SECTIONS = [
    scores,
    by_number_of_tasks,
    by_category,
    training,
    adapters,
    cost,
    leaks,
    origin,
]
