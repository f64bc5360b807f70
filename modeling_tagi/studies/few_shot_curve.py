"""The few-shot curve: tuning from the generated adapter against tuning from nothing, by the number of examples.

A checkpoint a seed. Each task is tuned on the first n of its examples, drawn by the seed, and scored on others; all
tasks are tuned side by side over one frozen backbone. Learning rate and steps are chosen for each start and number of
examples with the first checkpoint on the `dev` split, never on the one that is shown.
"""

import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import torch

from ..adapter import TagiAdapter
from ..common.console import circumstances, progress_bar, quiet_libraries
from ..common.writing import write_text
from ..data.records import Record
from ..data.sources import read_source
from ..evaluation.metrics import score
from ..evaluation.predict import Answering
from ..evaluation.statistics import DIFFERENCES, SCORES, mean_interval, paired_difference
from ..modeling_tagi import TagiModel
from ..tokens import Tokens

SIZES = (1, 2, 4, 8, 16, 32, 64)
SCORED = 40  # records of each task
BATCH_SIZE = 4  # examples of each task in a step
GRID = [(rate, steps) for steps in (20, 80) for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)]
CHOSEN_AT = (1, 4, 16, 64)  # numbers of examples; those between take what was chosen for the next smaller
# What tuning starts from.
STARTS = {
    "generated": "the generated adapter",
    "memory": "the instruction memory alone, which fusion attends to, and an update of zero",
    "zero": "nothing: an update of zero, and no instruction",
}


@dataclass
class Task:
    """One task's examples to tune on, in the order of their use, and records to score."""

    instruction: Record
    examples: list[Record]
    scored: list[Record]


def tasks_of(records: Sequence[Record], most: int, seed: int) -> list[Task]:
    """Of each task, records to score and `most` others to tune on, drawn by `seed`; the wording goes by the seed.

    Raises:
        ValueError: if a task has too few records.
    """
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.task].append(record)
    tasks = []
    for name, of_task in by_task.items():
        if len(of_task) < SCORED + most:
            raise ValueError(f"task {name!r} has {len(of_task)} records, but the curve takes {SCORED} + {most}")
        wordings = list({(r.instruction, r.demonstrations): r for r in of_task}.values())
        pool = of_task[SCORED:]
        random.Random(f"{seed} {name}").shuffle(pool)
        tasks.append(Task(wordings[seed % len(wordings)], pool[:most], of_task[:SCORED]))
    return tasks


@dataclass
class Curve:
    """One checkpoint's side of the experiment.

    Args:
        model: The checkpoint's.
        seed: Of the draws.
        lengths: Tokens kept of an input and of a target.
    """

    model: TagiModel
    seed: int
    lengths: tuple[int, int]

    def start(self, name: str, tasks: Sequence[Task]) -> TagiAdapter:
        """What is tuned, for each task."""
        fresh = self.model.fresh_adapter(len(tasks), self.seed)
        if name == "zero":
            return fresh
        made = self.model.generate_adapter(
            [task.instruction.instruction for task in tasks], [task.instruction.demonstrations for task in tasks]
        )
        return made if name == "generated" else replace(fresh, memory=made.memory)

    def scores(
        self, name: str, tasks: Sequence[Task], examples: int, rate: float = 0.0, steps: int = 0
    ) -> dict[str, dict[str, float]]:
        """By task: exact match and ROUGE-L of records that were not tuned on."""
        adapter = self.start(name, tasks)
        if examples:
            adapter = adapter.tune(
                [task.examples[:examples] for task in tasks], steps, learning_rate=rate, batch_size=BATCH_SIZE,
                max_input_length=self.lengths[0], max_target_length=self.lengths[1], seed=self.seed, progress=False,
            )  # fmt: skip
        row = {task.instruction.task: number for number, task in enumerate(tasks)}
        records = [record for task in tasks for record in task.scored]
        tokens = Tokens.of(self.model.tokenizer, self.model.config, *self.lengths)
        answering = Answering(self.model, tokens, "input", 512, adapters=adapter, row_of=lambda r: row[r.task])
        return score(answering.generate(records), records)["per_task"]


def chosen_settings(curve: Curve, tasks: Sequence[Task], starts: Sequence[str], sizes: Sequence[int], bar) -> dict:
    """For each (start, number of examples) the best of `GRID` by the mean over tasks."""
    chosen = {}
    for start in starts:
        best: dict = {}
        for size in sizes:
            if size in CHOSEN_AT or not best:
                found = []
                for rate, steps in GRID:
                    found.append((mean_of(curve.scores(start, tasks, size, rate, steps)), -rate, steps))
                    bar.update()
                exact_match, rate, steps = max(found)
                best = {"learning_rate": -rate, "steps": steps, "dev_exact_match": round(exact_match, 2)}
            chosen[start, size] = best
    return chosen


def mean_of(per_task: dict[str, dict[str, float]], metric: str = "exact_match") -> float:
    return sum(scores[metric] for scores in per_task.values()) / len(per_task)


def run(
    curves: Sequence[Curve],
    splits: dict[str, list[Record]],
    shown: str = "unseen",
    sizes: Sequence[int] = SIZES,
    progress: bool = True,
) -> list[dict]:
    """The whole curve, a line for each start, number of examples and seed, and then one over the seeds.

    Args:
        curves: One for each seed.
        splits: Has `dev`, to choose on, and the one that is shown.
    """
    starts = [name for name in STARTS if name != "memory" or curves[0].model.config.fusion != "none"]
    tasks = [tasks_of(splits[shown], max(sizes), curve.seed) for curve in curves]
    lines: list[dict] = []
    chosen_at = len([size for number, size in enumerate(sizes) if not number or size in CHOSEN_AT])
    total = len(starts) * (chosen_at * len(GRID) + (len(sizes) + 1) * len(curves))
    with progress_bar(total=total, desc="few-shot", disable=not progress) as bar:
        dev = tasks_of(splits["dev"], max(sizes), curves[0].seed)
        chosen = chosen_settings(curves[0], dev, starts, sizes, bar)
        by_task: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
        for start, size in [(start, size) for start in starts for size in (0, *sizes)]:
            setting = chosen.get((start, size), {})
            for curve, of_seed in zip(curves, tasks):
                began = time.monotonic()
                rate, steps = setting.get("learning_rate", 0.0), setting.get("steps", 0)
                found = curve.scores(start, of_seed, size, rate, steps)
                by_task[start, size].append([scores["exact_match"] for scores in found.values()])
                lines.append({
                    "start": start, "examples": size, "seed": curve.seed, "split": shown, "tasks": len(found),
                    "exact_match": round(mean_of(found), 2), "rouge_l": round(mean_of(found, "rouge_l"), 2),
                    **setting, "seconds": round(time.monotonic() - began, 1),
                })  # fmt: skip
                bar.update()
    groups = [task.instruction.group for task in tasks[0]]
    for (start, size), values in by_task.items():
        mean, low, high = mean_interval(values, groups, bounds=SCORES)
        gain, gain_low, gain_high = paired_difference(by_task["generated", size], values, groups, bounds=DIFFERENCES)
        lines.append({
            "start": start, "examples": size, "seed": None, "split": shown, "tasks": len(values[0]),
            "exact_match": round(mean, 2), "low": round(low, 2), "high": round(high, 2),
            "generated_minus_this": [round(x, 2) for x in (gain, gain_low, gain_high)],
            **chosen.get((start, size), {}),
        })  # fmt: skip
    return lines


def table(lines: Sequence[dict]) -> str:
    """Returns the table of means over seeds with their intervals, a row for each number of examples."""
    means = {(line["start"], line["examples"]): line for line in lines if line["seed"] is None}
    starts, sizes = (list(dict.fromkeys(key[place] for key in means)) for place in (0, 1))

    def cell(start: str, size: int) -> str:
        line = means[start, size]
        return f"{line['exact_match']:.1f} [{line['low']:.1f}, {line['high']:.1f}]"

    def gain(start: str, size: int) -> str:
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*means[start, size]["generated_minus_this"])

    others = [start for start in starts if start != "generated"]
    head = ["examples", *starts, *(f"generated − {n}" for n in others)]
    rows = [head, ["---:"] * len(head)]
    for size in sizes:
        rows.append([str(size), *(cell(s, size) for s in starts), *(gain(s, size) for s in others)])
    settings = [["start", "examples", "learning rate", "steps", "exact match on dev"], ["---", *["---:"] * 4]]
    for (start, size), line in means.items():
        if size:
            values = f"{line['learning_rate']:g}", str(line["steps"]), f"{line['dev_exact_match']:.1f}"
            settings.append([start, str(size), *values])
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in (rows, settings))


def plot(lines: Sequence[dict], path: Path):
    """The curves with their intervals."""
    from matplotlib.figure import Figure  # takes a second to import

    from ..evaluation.report.plots import PALETTE

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    means = [line for line in lines if line["seed"] is None]
    sizes = sorted({line["examples"] for line in means})
    places = {size: place for place, size in enumerate(sizes)}
    for colour, start in zip(PALETTE, dict.fromkeys(line["start"] for line in means)):
        of_start = [line for line in means if line["start"] == start]
        x = [places[line["examples"]] for line in of_start]
        axes.plot(x, [line["exact_match"] for line in of_start], "o-", color=colour, label=STARTS[start], markersize=4)
        low, high = ([line[name] for line in of_start] for name in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="examples of the task", ylabel="exact match on other examples (%)", ylim=(0, 100))
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.grid(color="#e6e9ee")
    figure.legend(loc="outside lower left", title="tuning starts from", alignment="left", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def write_curve(
    checkpoints: Sequence[str],
    output: str,
    data: str = "builtin",
    split: str = "unseen",
    sizes: Sequence[int] = SIZES,
    lengths: tuple[int, int] = (64, 16),
    command: str = "",
) -> str:
    """Tunes, scores and writes the curve of checkpoints (one for each seed) to files; returns its table.

    Args:
        checkpoints: Trained generators.
        output: The files without their ending: .jsonl, .md and .png.
        data: `builtin`, or a folder of tables, with dev and the shown split.
        split: The one that is shown.
        sizes: Numbers of examples.
        lengths: Tokens kept of an input and of a target.
        command: What was called, for the page.
    """
    quiet_libraries()
    began = time.monotonic()
    if data == "builtin":
        # as many to train on as in the quickstart, so that the check for leaks sees what was trained on
        made = {"train_instances": 200, "eval_instances": SCORED + max(sizes)}
        splits = read_source("builtin", options=made)[0]
    else:
        splits = read_source("tables", data)[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    curves = [
        Curve(TagiModel.from_pretrained(name).eval().to(device), seed, lengths)
        for seed, name in enumerate(checkpoints)
    ]
    lines = run(curves, splits, split, sizes)
    seconds = time.monotonic() - began
    place = Path(output)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place.with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    facts = circumstances("", 0)
    made = table(lines)
    text = [
        "# Few-shot tuning, from the generated adapter and from nothing",
        f"```bash\n{command}\n```",
        __doc__.split("\n\n")[1].strip(),
        "\n".join(f"* {name}: {what}" for name, what in STARTS.items()),
        f"Exact match in per cent on {lines[0]['tasks']} tasks of `{split}`, {SCORED} records each; means "
        f"over {len(curves)} seeds with 95 % intervals over the groups that the tasks come from.",
        made,
        f"![the curve]({place.with_suffix('.png').name})",
        f"{seconds / 60:.0f} minutes on {facts['threads']} thread(s) of {facts['device']}; torch {facts['torch']}, "
        f"transformers {facts['transformers']}.",
    ]
    write_text(place.with_suffix(".md"), "\n\n".join(text) + "\n")
    plot(lines, place.with_suffix(".png"))
    return made
