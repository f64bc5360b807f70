"""The report of one run: its scores, its training, its adapters, and how it was made."""

from pathlib import Path
from typing import Optional

from ...common.names import file_name
from ..references import in_order
from ..results import read_results
from ..scores import COLUMNS
from ..tables import columns_of
from .page import Plot, Section, Table
from .parts import (
    INTERVALS,
    STEPS,
    UNITS,
    adapter_section,
    cost_section,
    duration,
    leak_section,
    loss_plots,
    mean_line,
    number,
    read_json,
    read_lines,
    settings_table,
    title_of,
    with_interval,
)
from .plots import bar_plot, grouped_bar_plots, line_plot

_SHOWN_BY_FAMILY = ("start_prompted", "prompted", "oracle")  # beside what the run trained


def run_report(folder: Path) -> tuple[str, str, list[Section]]:
    """Title, first sentence and sections for a run's folder, from what is in it."""
    results = read_results(folder)
    sections = [
        _scores(results),
        *_families(results),
        *_examples(results),
        *_training(folder, results),
        *adapter_section(read_json(folder / "adapters.json")),
        *cost_section(read_json(folder / "costs.json")),
        *leak_section(results.get("leaks")),
        _origin(folder, results),
    ]
    return f"Run {folder.resolve().name}", _lead(results), sections


def _own(results: dict, methods) -> Optional[str]:
    """What the run trained, by its label, if it trained something."""
    label = results.get("run", {}).get("label", "tagi")
    return label if label in methods else None


def _tasks(scores: dict) -> int:
    return len({*scores.get("per_task", ()), *scores.get("per_task_ranked", ())})


def _lead(results: dict) -> str:
    split, found = next(iter(results["splits"].items()))
    own, columns = _own(results, found["methods"]), columns_of(found)
    if own is None or not columns:
        return ""
    scores = found["methods"][own]
    value = with_interval(scores[columns[0]], scores.get(f"{columns[0]}_interval"))
    unit = UNITS[columns[0]].replace("(%)", "in per cent")
    return f"{title_of(own)} on {split.replace('_', ' ')}, {unit}: {value}, over {_tasks(scores)} tasks."


def _scores(results: dict) -> Section:
    section = Section("Scores", [f"Per cent, means over tasks with {INTERVALS}."])
    section.parts += [f"{note[0].upper()}{note[1:]}." for note in results.get("notes") or ()]
    for split, found in results["splits"].items():
        columns, methods = columns_of(found), in_order(found["methods"])
        if not columns:
            continue
        title, own = split.replace("_", " "), _own(results, found["methods"])
        rows = [
            [title_of(name), *(with_interval(scores.get(c), scores.get(f"{c}_interval")) for c in columns)]
            for name in methods if (scores := found["methods"][name])
        ]
        floors = {name: found[name] for name in ("chance", "majority") if found.get(name) is not None}
        if "rank_accuracy" in columns:
            rows += [[f"({name})", *(number(value) if "rank" in c else "–" for c in columns)]
                     for name, value in floors.items()]  # fmt: skip
        most = max(map(_tasks, found["methods"].values()))
        groups = found.get("clusters", most)
        number_of = f"{most} tasks" + (f" of {groups} groups" if groups != most else "")
        caption = f"{title} ({number_of})" if most else title
        strong = [methods.index(own)] if own else []
        head = ["method", *map(UNITS.get, columns)]
        section.parts.append(Table(head, rows, caption=caption, strong=strong, beside=len(columns) <= 2))
        for column in columns[:1] if "rank_accuracy" not in columns else ("rank_accuracy",):
            values = {title_of(name): (scores[column], scores.get(f"{column}_interval"))
                      for name in methods if (scores := found["methods"][name]).get(column) is not None}  # fmt: skip
            values |= {f"({name})": (value, None) for name, value in floors.items() if column == "rank_accuracy"}
            strong, name = [title_of(own)] if own else [], f"scores-{file_name(split)}"
            section.parts.append(bar_plot(name, f"{title}, 95 % intervals", values, UNITS[column], strong, values))
    rows = [
        [split.replace("_", " "), " − ".join(title_of(name) for name in pair.split(" - ")),
         *(_difference(scores.get(column)) for column in COLUMNS if column in _all_columns(results))]
        for split, found in results["splits"].items() for pair, scores in (found.get("differences") or {}).items()
    ]  # fmt: skip
    if rows:
        head = ["split", "difference", *(UNITS[c].replace("(%)", "(points)") for c in _all_columns(results))]
        caption = "Differences between methods on the same tasks"
        section.parts.append(Table(head, rows, text=2, caption=caption))
    return section


def _all_columns(results: dict) -> list[str]:
    present = {column for found in results["splits"].values() for column in columns_of(found)}
    return [column for column in COLUMNS if column in present]


def _difference(value: Optional[dict]) -> str:
    return with_interval(value and value["mean"], value and (value["low"], value["high"]), "+")


def _families(results: dict) -> list[Section]:
    """Free answers by category, on the first split with several, and ranked ones by data set."""
    parts: list = []
    free = _by_place(results, "per_category")
    for split, methods in free:
        categories = sorted({name for scores in methods.values() for name in scores})
        if len(categories) > 1:
            values = {
                title_of(method): [scores[name]["exact_match"] if name in scores else None for name in categories]
                for method in (_own(results, methods), *_SHOWN_BY_FAMILY) if (scores := methods.get(method))
            }
            caption = f"{split.replace('_', ' ')}: mean over the records of each category"
            parts += grouped_bar_plots("families", caption, categories, values, UNITS["exact_match"]) if values else []
            break
    for split, methods in _by_place(results, "per_dataset_ranked"):
        datasets = sorted({name for scores in methods.values() for name in scores})
        rows = []
        for dataset in datasets:
            found = [scores.get(dataset) for scores in methods.values()]
            cells = [with_interval(one and one["sum"]["median"], one and (one["sum"]["q1"], one["sum"]["q3"]))
                     for one in found]  # fmt: skip
            rows.append([dataset, str(next(one["templates"] for one in found if one)), *cells])
        caption = f"{split.replace('_', ' ')}: rank accuracy (%), median over templates [first, third quartile]"
        parts.append(Table(["data set", "templates", *map(title_of, methods)], rows, caption=caption))
    return [Section("By category", parts)] if parts else []


def _examples(results: dict) -> list[Section]:
    """What every method answered to some records of the first split."""
    split, found = next(iter(results["splits"].items()))
    examples = found.get("examples")
    if not examples:
        return []
    methods = in_order(examples[0]["outputs"])
    head = ["instruction", "input", "target", *map(title_of, methods)]
    rows = [
        [one["instruction"], one["input"], " or ".join(one["targets"]), *(one["outputs"][name] for name in methods)]
        for one in examples
    ]
    caption = f"{split.replace('_', ' ')}: {len(rows)} records, taken evenly over the tasks, whatever was answered"
    return [Section("Examples", [Table(head, rows, text=len(head), caption=caption, wrap=True)])]


def _by_place(results: dict, place: str) -> list[tuple[str, dict[str, dict]]]:
    """The splits that have such scores, and which methods have which."""
    found = []
    for split, scores in results["splits"].items():
        methods = {name: scores["methods"][name][place] for name in in_order(scores["methods"])
                   if scores["methods"][name].get(place)}  # fmt: skip
        found += [(split, methods)] if methods else []
    return found


def score_plots(scored: dict[str, list[list[dict]]], name: str, whose: str = "") -> list[Plot]:
    """Scores while finetuning, by method: for each the lines of `scores.jsonl` of its seeds."""
    every = [entry for logs in scored.values() for log in logs for entry in log]
    column = next((c for c in COLUMNS if any(entry.get(c) is not None for entry in every)), None)
    lines = {title_of(method): mean_line(logs, column) for method, logs in scored.items()} if column else {}
    lines = {method: line for method, line in lines.items() if line is not None and len(line.x) > 1}
    if not lines:
        return []
    split = every[0].get("split", "unseen").replace("_", " ")
    caption = f"Score on the split “{split}” while finetuning" + whose
    return [line_plot(name, caption, lines, STEPS, UNITS[column], from_zero=True)]


def _training(folder: Path, results: dict) -> list[Section]:
    own = _own(results, next(iter(results["splits"].values()))["methods"]) or "score"
    scores = read_lines(folder / "stages" / "finetuning" / "scores.jsonl")
    plots = score_plots({own: [scores]}, "score-over-steps") if scores else []
    stages = results.get("seconds") or {}
    plots += loss_plots(folder, stages)
    return [Section("Training", plots)] if plots else []


def _origin(folder: Path, results: dict) -> Section:
    run, section = dict(results.get("run") or {}), Section("How it was made")
    losses = run.pop("losses", None) or {}
    call = run.pop("seconds_of_this_call", None)
    facts = [[name.replace("_", " "), str(value)] for name, value in run.items() if value not in (None, "")]
    if results.get("baseline"):
        facts.append(["references made with", str(results["baseline"])])
    if call is not None:
        facts.append(["wall time of this call", duration(call)])
    if facts:
        section.parts.append(Table((), facts, text=2, wrap=True))
    seconds = {name: value for name, value in (results.get("seconds") or {}).items() if value is not None}
    if seconds:
        rows = [[name.replace("_", " "), duration(value), number(losses.get(name), 3)]
                for name, value in seconds.items()]  # fmt: skip
        rows.append(["all", duration(sum(seconds.values())), ""])
        head = ["stage", "wall time", "loss at the end (nats per token)"]
        section.parts.append(Table(head, rows, caption="Wall time over all calls", strong=[len(rows) - 1]))
    section.parts += settings_table(folder / "settings.yaml", "All settings")
    return section
