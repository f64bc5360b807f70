"""The report of a study: methods over seeds, numbers of training tasks and categories, and the runs behind them."""

from pathlib import Path
from statistics import fmean
from typing import Optional, Sequence

from ..results import read_results
from .page import Section, Table
from .parts import (
    INTERVALS,
    STEPS,
    UNITS,
    adapter_section,
    cost_section,
    duration,
    leak_section,
    mean_line,
    number,
    read_json,
    read_lines,
    settings_table,
    title_of,
    with_interval,
)
from .plots import Line, bar_plot, grouped_bar_plots, line_plot
from .run_report import score_plots

_SHOWN_BY_FAMILY = ("tagi", "prompted", "start_prompted", "hint", "hypertuning")  # the first three there are
_ABLATIONS = "without_"
_SIMILARITIES = ("own", "others", "ratio", "generated", "tuned")


def study_report(folder: Path) -> tuple[str, str, list[Section]]:
    """Title, first sentence and sections for a study's folder, from what is in it and in its cells."""
    summary = read_json(folder / "summary.json")
    cells = _cells(folder)
    at_most = max(row["train_tasks"] for row in summary["rows"])
    of_tagi = sorted((seed, tasks, path) for (method, seed, tasks), path in cells.items() if method == "tagi")
    of_tagi = [path for _, tasks, path in of_tagi if tasks == at_most]
    checked = [results.get("leaks") for path in cells.values() if (results := read_results(path))]
    sections = [
        *_scores(summary, at_most),
        *_sizes(summary),
        *_families(folder, summary, at_most),
        *_training(cells, at_most),
        *_adapters(cells, of_tagi, at_most),
        *cost_section(_first(path / "costs.json" for path in of_tagi)),
        *leak_section(next(filter(None, checked), None)),
        _origin(folder, summary, cells),
    ]
    return f"Study {folder.resolve().name}", _lead(summary, at_most), sections


def _cells(folder: Path) -> dict[tuple[str, int, int], Path]:
    """The folders of the runs that are in the tables as trained, by method, seed and number of training tasks."""
    known = {(line["method"], line["seed"], line["train_tasks"])
             for line in read_lines(folder / "by_split.jsonl") if line["kind"] == "trained"}  # fmt: skip
    found = {}
    for path in sorted((folder / "cells").glob("*")):
        results = read_results(path)
        if results is None:
            continue
        run, method = results["run"], path.name.rpartition("-seed")[0]
        key = (method, run["seed"], run["train_tasks"])
        if key in known:
            found[key] = path
    return found


def _first(paths) -> Optional[dict]:
    return next((found for path in paths if (found := read_json(path))), None)


def _rows(summary: dict, split: str, size: int, metric: str) -> list[dict]:
    return [row for row in summary["rows"] if (row["split"], row["train_tasks"]) == (split, size) and metric in row]


def _interval(value: Optional[dict], sign: str = "") -> str:
    return with_interval(value and value["mean"], value and (value["low"], value["high"]), sign)


def _lead(summary: dict, size: int) -> str:
    metric = summary["metric"]
    row = next((row for row in _rows(summary, summary["split"], size, metric) if row["method"] == "tagi"), None)
    if row is None:
        return ""
    unit = UNITS[metric].replace("(%)", "in per cent")
    text = f"TAGI on {summary['split'].replace('_', ' ')}, {unit}: {_interval(row[metric])}"
    difference = row[metric].get("minus_prompted")
    return text + (f"; {_interval(difference, '+')} points from the prompted model." if difference else ".")


def _scores(summary: dict, at_most: int) -> list[Section]:
    main, metric = summary["split"], summary["metric"]
    text = f"Per cent, means over tasks and seeds with {INTERVALS}; differences are on the same tasks."
    section = Section("Scores", [text])
    rows = _rows(summary, main, at_most, metric)
    values = {title_of(row["method"]): (row[metric]["mean"], (row[metric]["low"], row[metric]["high"]))
              for row in rows}  # fmt: skip
    grey = [title_of(row["method"]) for row in rows if row["kind"] != "trained"]
    caption = f"{main.replace('_', ' ')}, {at_most} training tasks, 95 % intervals; grey: references"
    if values:
        section.parts.append(bar_plot("scores", caption, values, UNITS[metric], [title_of("tagi")], grey))
    for split in dict.fromkeys(row["split"] for row in summary["rows"]):
        for size in sorted({row["train_tasks"] for row in summary["rows"]}, reverse=True):
            is_main = (split, size) == (main, at_most)
            section.parts += _score_table(summary, split, size, "" if is_main else "shut")
    section.parts += [f"{note[0].upper()}{note[1:]}." for note in summary.get("notes") or ()]
    return [section]


def _score_table(summary: dict, split: str, size: int, shut: str) -> list[Table]:
    rows = [row for row in summary["rows"] if (row["split"], row["train_tasks"]) == (split, size)]
    metrics = [metric for metric in summary["metrics"] if any(metric in row for row in rows)]
    if not metrics:
        return []
    scores = [row.get(metrics[0]) or {} for row in rows]
    others = [other for other in ("prompted", "tagi") if any(f"minus_{other}" in main for main in scores)]
    minus = [f"− {title_of(other)} (points)" for other in others]
    head = ["method", *map(UNITS.get, metrics), *minus, "by seed (%)"]
    body = []
    for row, main in zip(rows, scores):
        seeds = ", ".join(number(value) for value in main.get("seeds", {}).values())
        body.append([title_of(row["method"]), *(_interval(row.get(metric)) for metric in metrics),
                     *(_interval(main.get(f"minus_{other}"), "+") for other in others), seeds])  # fmt: skip
    seeds = dict.fromkeys(seed for main in scores for seed in main.get("seeds", ()))
    caption = f"{split.replace('_', ' ')}, {size} training tasks, seeds {', '.join(seeds)}"
    strong = [place for place, row in enumerate(rows) if row["method"] == "tagi"]
    return [Table(head, body, caption="" if shut else caption, strong=strong, folded=caption if shut else "")]


def _sizes(summary: dict) -> list[Section]:
    """Scores on the first split by the number of training tasks, of the methods that were trained on several."""
    split, metric = summary["split"], summary["metric"]
    lines = {}
    for method in dict.fromkeys(row["method"] for row in summary["rows"] if row["kind"] == "trained"):
        rows = sorted((row for row in summary["rows"]
                       if row["method"] == method and row["split"] == split and metric in row),
                      key=lambda row: row["train_tasks"])  # fmt: skip
        if len(rows) > 1:
            values = [row[metric] for row in rows]
            lines[title_of(method)] = Line([row["train_tasks"] for row in rows], *(
                [value[name] for value in values] for name in ("mean", "low", "high")
            ), bars=True)  # fmt: skip
    if not lines:
        return []
    caption = f"{split.replace('_', ' ')}: score by the number of tasks trained on, 95 % intervals"
    plot = line_plot("score-by-tasks", caption, lines, "training tasks", UNITS[metric])
    return [Section("Number of training tasks", [plot])]


def _families(folder: Path, summary: dict, at_most: int) -> list[Section]:
    split, metric = summary["split"], summary["metric"]
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    for line in read_lines(folder / "by_task.jsonl"):
        if (line["split"], line["train_tasks"]) == (split, at_most) and line.get(metric) is not None:
            tasks = scores.setdefault(line["method"], {}).setdefault(line["group"], {})
            tasks.setdefault(line["task"], []).append(line[metric])
    means = {method: {group: fmean(fmean(seeds) for seeds in tasks.values()) for group, tasks in groups.items()}
             for method, groups in scores.items()}  # fmt: skip
    groups = sorted({group for found in means.values() for group in found})
    shown = [method for method in _SHOWN_BY_FAMILY if method in means][:3]
    if len(groups) < 2 or not shown:
        return []
    caption = f"{split.replace('_', ' ')}, {at_most} training tasks: mean over the tasks of each category and seeds"
    values = {title_of(method): [means[method].get(group) for group in groups] for method in shown}
    count = {group: len({task for found in scores.values() for task in found.get(group, ())}) for group in groups}
    rows = [[group, str(count[group]), *(number(means[method].get(group)) for method in means)] for group in groups]
    table = Table(["category", "tasks", *map(title_of, means)], rows, folded=f"All methods, {UNITS[metric]}")
    return [Section("By category", [*grouped_bar_plots("families", caption, groups, values, UNITS[metric]), table])]


def _training(cells: dict, at_most: int) -> list[Section]:
    """Loss and score over the steps, means over seeds: TAGI beside other methods, then beside its ablations."""
    methods = list(dict.fromkeys(method for method, _, tasks in cells if tasks == at_most))
    methods.sort(key=lambda method: (method != "tagi", method != "prompted", method))
    kinds = {
        "methods": [method for method in methods if not method.startswith(_ABLATIONS)],
        "ablations": [method for method in methods if method == "tagi" or method.startswith(_ABLATIONS)],
    }
    parts: list = []
    for kind, names in kinds.items():
        if not names or (kind == "ablations" and names == ["tagi"]):
            continue
        whose = ": ablations" if kind == "ablations" else ""
        logs = {method: _logs(cells, method, at_most, "scores.jsonl") for method in names}
        logs = {method: found for method, found in logs.items() if found}
        parts += score_plots(logs, f"score-over-steps-{kind}", whose)
        losses = {}
        for method in names:
            found = _logs(cells, method, at_most, "log.jsonl")
            if found:
                both = all("loss_prediction" in entry for log in found for entry in log)
                losses[title_of(method)] = mean_line(found, "loss_prediction" if both else "loss")
        losses = {method: line for method, line in losses.items() if line is not None}
        if losses:
            caption = f"Loss of prediction on training batches while finetuning{whose}"
            parts.append(line_plot(f"loss-over-steps-{kind}", caption, losses, STEPS, "loss (nats per token)",
                                   from_zero=True))  # fmt: skip
    if not parts:
        return []
    return [Section("Training", ["Means over seeds, with a band from the least to the most.", *parts])]


def _logs(cells: dict, method: str, tasks: int, name: str) -> list[list[dict]]:
    logs = [read_lines(path / "stages" / "finetuning" / name) for key, path in cells.items()
            if (key[0], key[2]) == (method, tasks)]  # fmt: skip
    return [log for log in logs if log]


def _adapters(cells: dict, of_tagi: Sequence[Path], at_most: int) -> list[Section]:
    """TAGI's map of one seed, and for every method that makes adapters how near they are to tuned ones."""
    sections = adapter_section(_first(path / "adapters.json" for path in of_tagi), " of TAGI (one seed)")
    rows = []
    for method in dict.fromkeys(method for method, _, tasks in cells if tasks == at_most):
        paths = [path for key, path in cells.items() if (key[0], key[2]) == (method, at_most)]
        found = [read_json(path / "adapters.json") for path in paths]
        found = [one["similarity"] for one in found if one and one.get("similarity")]
        if found:
            means = [_mean(one.get(name) for one in found) for name in _SIMILARITIES]
            rows.append([title_of(method), str(len(found)), *(number(value, 3) for value in means)])
    if rows:
        head = ["method", "seeds", "own", "others", "own / others", "generated", "tuned"]
        caption = "Mean cosine of ΔW by method: to own and others' tuned adapters; among generated; among tuned"
        section = sections[0] if sections else Section("Generated adapters")
        section.parts.append(Table(head, rows, caption=caption))
        return [section]
    return sections


def _mean(values) -> Optional[float]:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _origin(folder: Path, summary: dict, cells: dict) -> Section:
    facts = [["command", summary["command"]]] if summary.get("command") else []
    facts += [[name, str(value)] for name, value in (summary.get("versions") or {}).items()]
    counts = {"workers": "runs side by side", "threads": "threads of each"}
    facts += [[name, str(summary[key])] for key, name in counts.items() if key in summary]
    if summary.get("seconds") is not None:
        facts.append(["wall time of all runs, added up", duration(summary["seconds"])])
    section = Section("How it was made", [Table((), facts, text=2, wrap=True)] if facts else [])
    rows = []
    for path in sorted((folder / "cells").glob("*")):
        results = read_results(path)
        if results is not None:
            run, seconds = results["run"], results.get("seconds") or {}
            rows.append([path.name, run.get("command") or "–", str(run.get("seed", "–")),
                         str(run.get("train_tasks", "–")), duration(sum(filter(None, seconds.values())))])  # fmt: skip
    if rows:
        head = ["run", "command", "seed", "training tasks", "wall time"]
        section.parts.append(Table(head, rows, text=2, folded="The runs: commands, seeds and wall times"))
    section.parts += settings_table(folder / "study.yaml", "The study's settings")
    return section
