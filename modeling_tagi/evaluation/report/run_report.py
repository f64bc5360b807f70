"""The report of one run or evaluation. To add a part is a function here and a line in `SECTIONS`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

from ...common.names import file_name
from ..references import in_order, shown_beside_own
from ..results import read_results
from ..scores import COLUMNS
from ..tables import columns_of
from .formats import (
    INTERVALS,
    STEPS,
    UNITS,
    duration,
    in_per_cent,
    in_points,
    mean_with_interval,
    number,
    plain,
    sentence,
    title_of,
    with_interval,
)
from .page import Plot, Section, Table
from .plots import bar_plot, grouped_bar_plots, line_plot
from .shared import (
    adapter_section,
    cost_section,
    leak_section,
    loss_plots,
    mean_line,
    read_json,
    read_lines,
    settings_table,
)


@dataclass(frozen=True)
class RunFolder:
    """Holds what a run's report is made of: its folder, and what `read_results` finds there."""

    folder: Path
    results: dict

    @property
    def splits(self) -> dict[str, dict]:
        """Returns the results of each split."""
        return self.results["splits"]

    @property
    def first(self) -> tuple[str, dict]:
        """Returns the split that summaries show, and its results."""
        return next(iter(self.splits.items()))

    def own(self, methods) -> Optional[str]:
        """Returns the label of what was trained or evaluated, if it is among the methods."""
        label = self.results.get("run", {}).get("label", "tagi")
        return label if label in methods else None


def run_report(folder: Path) -> tuple[str, str, list[Section]]:
    """Returns title, first sentence and sections for a run's folder, from what is in it."""
    run = RunFolder(folder, read_results(folder))
    return f"Run {folder.resolve().name}", _lead(run), [section(run) for section in SECTIONS]


def _lead(run: RunFolder) -> str:
    split, found = run.first
    own, columns = run.own(found["methods"]), columns_of(found)
    if own is None or not columns:
        return ""
    scores = found["methods"][own]
    value = with_interval(scores[columns[0]], scores.get(f"{columns[0]}_interval"))
    return f"{title_of(own)} on {plain(split)}, {in_per_cent(columns[0])}: {value}, over {_tasks(scores)} tasks."


def scores(run: RunFolder) -> Section:
    """Shows the scores of every method on every split, and the differences between methods."""
    section = Section("Scores", [f"Per cent, means over tasks with {INTERVALS}."])
    section.parts += map(sentence, run.results.get("notes") or ())
    for split, found in run.splits.items():
        if columns_of(found):
            section.parts += [_score_table(run, split, found), _score_plot(run, split, found)]
    section.parts += _difference_table(run)
    return section


def _score_table(run: RunFolder, split: str, found: dict) -> Table:
    columns, methods = columns_of(found), in_order(found["methods"])
    rows = [
        [title_of(name), *(with_interval(scores.get(c), scores.get(f"{c}_interval")) for c in columns)]
        for name in methods if (scores := found["methods"][name])
    ]
    if "rank_accuracy" in columns:
        rows += [[f"({name})", *(number(value) if "rank" in c else "–" for c in columns)]
                 for name, value in _floors(found).items()]  # fmt: skip
    most = max(map(_tasks, found["methods"].values()))
    groups = found.get("clusters", most)
    counted = f"{most} tasks" + (f" of {groups} groups" if groups != most else "")
    caption = f"{plain(split)} ({counted})" if most else plain(split)
    own = run.own(found["methods"])
    strong = [methods.index(own)] if own else []
    head = ["method", *map(UNITS.get, columns)]
    return Table(head, rows, caption=caption, strong=strong, beside=len(columns) <= 2)


def _score_plot(run: RunFolder, split: str, found: dict) -> Plot:
    """Plots the first score of each method, or where options were ranked the rank accuracy."""
    columns = columns_of(found)
    column = "rank_accuracy" if "rank_accuracy" in columns else columns[0]
    values = {title_of(name): (scores[column], scores.get(f"{column}_interval"))
              for name in in_order(found["methods"])
              if (scores := found["methods"][name]).get(column) is not None}  # fmt: skip
    if column == "rank_accuracy":
        values |= {f"({name})": (value, None) for name, value in _floors(found).items()}
    own = run.own(found["methods"])
    strong, caption = [title_of(own)] if own else [], f"{plain(split)}, 95 % intervals"
    return bar_plot(f"scores-{file_name(split)}", caption, values, UNITS[column], strong, values)


def _difference_table(run: RunFolder) -> list[Table]:
    present = {column for found in run.splits.values() for column in columns_of(found)}
    columns = [column for column in COLUMNS if column in present]
    rows = [
        [plain(split), " − ".join(map(title_of, pair.split(" - "))),
         *(mean_with_interval(scores.get(column), "+") for column in columns)]
        for split, found in run.splits.items() for pair, scores in (found.get("differences") or {}).items()
    ]  # fmt: skip
    head, caption = ["split", "difference", *map(in_points, columns)], "Differences between methods on the same tasks"
    return [Table(head, rows, text=2, caption=caption)] if rows else []


def _floors(found: dict) -> dict[str, float]:
    """Returns the scores that need no model."""
    return {name: found[name] for name in ("chance", "majority") if found.get(name) is not None}


def _tasks(scores: dict) -> int:
    """Returns how many tasks a method was scored on."""
    return len({*scores.get("per_task", ()), *scores.get("per_task_ranked", ())})


def by_category(run: RunFolder) -> Section:
    """Shows free answers by category, on the first split with several, and ranked ones by data set."""
    return Section("By category", [*_category_plots(run), *_data_set_tables(run)])


def _category_plots(run: RunFolder) -> list[Plot]:
    for split, methods in _by_place(run, "per_category"):
        categories = sorted({name for scores in methods.values() for name in scores})
        if len(categories) > 1:
            values = {
                title_of(method): [scores[name]["exact_match"] if name in scores else None for name in categories]
                for method in (run.own(methods), *shown_beside_own()) if (scores := methods.get(method))
            }
            caption = f"{plain(split)}: mean over the records of each category"
            return grouped_bar_plots("families", caption, categories, values, UNITS["exact_match"]) if values else []
    return []


def _data_set_tables(run: RunFolder) -> list[Table]:
    tables = []
    for split, methods in _by_place(run, "per_dataset_ranked"):
        rows = []
        for dataset in sorted({name for scores in methods.values() for name in scores}):
            found = [scores.get(dataset) for scores in methods.values()]
            cells = [with_interval(one and one["sum"]["median"], one and (one["sum"]["q1"], one["sum"]["q3"]))
                     for one in found]  # fmt: skip
            rows.append([dataset, str(next(one["templates"] for one in found if one)), *cells])
        caption = f"{plain(split)}: rank accuracy (%), median over templates [first, third quartile]"
        tables.append(Table(["data set", "templates", *map(title_of, methods)], rows, caption=caption))
    return tables


def _by_place(run: RunFolder, place: str) -> list[tuple[str, dict[str, dict]]]:
    """Returns the splits that have such scores, and which methods have which."""
    found = []
    for split, scored in run.splits.items():
        methods = {name: scored["methods"][name][place] for name in in_order(scored["methods"])
                   if scored["methods"][name].get(place)}  # fmt: skip
        found += [(split, methods)] if methods else []
    return found


def examples(run: RunFolder) -> Section:
    """Shows what every method answered to some records of the first split."""
    section, (split, found) = Section("Examples"), run.first
    shown = found.get("examples")
    if not shown:
        return section
    methods = in_order(shown[0]["outputs"])
    head = ["instruction", "input", "target", *map(title_of, methods)]
    rows = [
        [one["instruction"], one["input"], " or ".join(one["targets"]), *(one["outputs"][name] for name in methods)]
        for one in shown
    ]
    caption = f"{plain(split)}: {len(rows)} records, taken evenly over the tasks, whatever was answered"
    section.parts.append(Table(head, rows, text=len(head), caption=caption, wrap=True))
    return section


def training(run: RunFolder) -> Section:
    """Shows scores while finetuning, and the losses of all stages."""
    own = run.own(run.first[1]["methods"]) or "score"
    lines = read_lines(run.folder / "stages" / "finetuning" / "scores.jsonl")
    plots = score_plots({own: [lines]}, "score-over-steps") if lines else []
    return Section("Training", [*plots, *loss_plots(run.folder, run.results.get("seconds") or {})])


def score_plots(scored: dict[str, list[list[dict]]], name: str, whose: str = "") -> list[Plot]:
    """Plots scores while finetuning.

    Args:
        scored: The lines of `scores.jsonl` of each seed, by method.
        name: The name of the plot's file.
        whose: What the caption ends with.
    """
    every = [entry for logs in scored.values() for log in logs for entry in log]
    column = next((c for c in COLUMNS if any(entry.get(c) is not None for entry in every)), None)
    lines = {title_of(method): mean_line(logs, column) for method, logs in scored.items()} if column else {}
    lines = {method: line for method, line in lines.items() if line is not None and len(line.x) > 1}
    if not lines:
        return []
    caption = f"Score on the split “{plain(every[0].get('split', 'unseen'))}” while finetuning" + whose
    return [line_plot(name, caption, lines, STEPS, UNITS[column], from_zero=True)]


def adapters(run: RunFolder) -> Section:
    """Shows the map of generated adapters."""
    return adapter_section(read_json(run.folder / "adapters.json"))


def cost(run: RunFolder) -> Section:
    """Shows what a task costs by each method."""
    return cost_section(read_json(run.folder / "costs.json"))


def leaks(run: RunFolder) -> Section:
    """Shows what evaluation shares with training."""
    return leak_section(run.results.get("leaks"))


def origin(run: RunFolder) -> Section:
    """Shows the command, the versions, the time and the settings that it was made with."""
    parts: list[Union[str, Table, Plot]] = [*_facts(run), *_stage_table(run)]
    return Section("How it was made", [*parts, *settings_table(run.folder / "settings.yaml", "All settings")])


def _facts(run: RunFolder) -> list[Table]:
    about = dict(run.results.get("run") or {})
    about.pop("losses", None)
    call = about.pop("seconds_of_this_call", None)
    facts = [[plain(name), str(value)] for name, value in about.items() if value not in (None, "")]
    if run.results.get("baseline"):
        facts.append(["references made with", str(run.results["baseline"])])
    if call is not None:
        facts.append(["wall time of this call", duration(call)])
    return [Table((), facts, text=2, wrap=True)] if facts else []


def _stage_table(run: RunFolder) -> list[Table]:
    losses = (run.results.get("run") or {}).get("losses") or {}
    seconds = {name: value for name, value in (run.results.get("seconds") or {}).items() if value is not None}
    if not seconds:
        return []
    rows = [[plain(name), duration(value), number(losses.get(name), 3)] for name, value in seconds.items()]
    rows.append(["all", duration(sum(seconds.values())), ""])
    head = ["stage", "wall time", "loss at the end (nats per token)"]
    return [Table(head, rows, caption="Wall time over all calls", strong=[len(rows) - 1])]


SECTIONS = [
    scores,
    by_category,
    examples,
    training,
    adapters,
    cost,
    leaks,
    origin,
]
