"""The few-shot curve: tuning from the generated adapter against tuning from nothing, by the number of examples."""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Iterator, Sequence

from ..adapter import TagiAdapter
from ..common.console import progress_bar
from ..data.records import Record
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
# What tuning starts from, and what pages call it.
STARTS = {
    "generated": "the generated adapter",
    "memory": "the instruction memory alone, which fusion attends to, and an update of zero",
    "zero": "nothing: an update of zero, and no instruction",
}


@dataclass
class Task:
    """Holds one task's examples to tune on, in the order of their use, and records to score."""

    instruction: Record
    examples: list[Record]
    scored: list[Record]


def tasks_of(records: Sequence[Record], most: int, seed: int) -> list[Task]:
    """Returns each task with records to score and `most` others to tune on; the seed draws them and picks the wording.

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
    """Tunes and scores one checkpoint's adapters.

    Args:
        model: The checkpoint's.
        seed: Seeds the draws.
        lengths: Tokens kept of an input and of a target.
    """

    model: TagiModel
    seed: int
    lengths: tuple[int, int]

    def start(self, name: str, tasks: Sequence[Task]) -> TagiAdapter:
        """Returns what is tuned, for each task: see `STARTS`."""
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
        """Returns exact match and ROUGE-L of records that were not tuned on, by task."""
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


# The learning rate, steps and `dev_exact_match` of each start and number of examples; nothing for no examples.
Chosen = dict[tuple[str, int], dict[str, float]]


def chosen_settings(curve: Curve, tasks: Sequence[Task], starts: Sequence[str], sizes: Sequence[int], bar) -> Chosen:
    """Returns the best of `GRID` for each start and number of examples, by the mean over tasks."""
    chosen: Chosen = {}
    for start in starts:
        best: dict[str, float] = {}
        chosen[start, 0] = {}
        for size in sizes:
            if size in CHOSEN_AT or not best:
                best = _best(curve, tasks, start, size, bar)
            chosen[start, size] = best
    return chosen


def _best(curve: Curve, tasks: Sequence[Task], start: str, size: int, bar) -> dict[str, float]:
    found = []
    for rate, steps in GRID:
        found.append((mean_of(curve.scores(start, tasks, size, rate, steps)), -rate, steps))
        bar.update()
    exact_match, rate, steps = max(found)  # of equally good ones that with the lowest rate
    return {"learning_rate": -rate, "steps": steps, "dev_exact_match": round(exact_match, 2)}


def mean_of(per_task: dict[str, dict[str, float]], metric: str = "exact_match") -> float:
    """Returns the mean over tasks."""
    return sum(scores[metric] for scores in per_task.values()) / len(per_task)


def run(
    curves: Sequence[Curve],
    splits: dict[str, list[Record]],
    shown: str = "unseen",
    sizes: Sequence[int] = SIZES,
    progress: bool = True,
) -> list[dict]:
    """Returns the whole curve: a line for each start, number of examples and seed, and then one over the seeds.

    Args:
        curves: One for each seed.
        splits: Has `dev`, to choose on, and the one that is shown.
        shown: Its name.
        sizes: Numbers of examples.
        progress: Whether a bar is shown.
    """
    starts = [name for name in STARTS if name != "memory" or curves[0].model.config.fusion != "none"]
    tasks = [tasks_of(splits[shown], max(sizes), curve.seed) for curve in curves]
    chosen_at = len([size for number, size in enumerate(sizes) if not number or size in CHOSEN_AT])
    total = len(starts) * (chosen_at * len(GRID) + (len(sizes) + 1) * len(curves))
    points = [(start, size) for start in starts for size in (0, *sizes)]
    with progress_bar(total=total, desc="few-shot", disable=not progress) as bar:
        dev = tasks_of(splits["dev"], max(sizes), curves[0].seed)
        chosen = chosen_settings(curves[0], dev, starts, sizes, bar)
        by_task: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
        lines: list[dict] = []
        for start, size in points:
            for curve, of_seed in zip(curves, tasks):
                line, scores = _of_seed(curve, of_seed, start, size, shown, chosen[start, size])
                by_task[start, size].append(scores)
                lines.append(line)
                bar.update()
    groups = [task.instruction.group for task in tasks[0]]
    return [*lines, *_over_seeds(by_task, groups, shown, chosen)]


def _of_seed(
    curve: Curve, tasks: Sequence[Task], start: str, size: int, shown: str, setting: dict[str, float]
) -> tuple[dict, list[float]]:
    """Returns the line of one seed, and its exact match task by task."""
    began = time.monotonic()
    found = curve.scores(start, tasks, size, setting.get("learning_rate", 0.0), setting.get("steps", 0))
    line = {
        "start": start, "examples": size, "seed": curve.seed, "split": shown, "tasks": len(found),
        "exact_match": round(mean_of(found), 2), "rouge_l": round(mean_of(found, "rouge_l"), 2),
        **setting, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    return line, [scores["exact_match"] for scores in found.values()]


def _over_seeds(
    by_task: dict[tuple[str, int], list[list[float]]], groups: Sequence[str], shown: str, chosen: Chosen
) -> Iterator[dict]:
    """Yields the lines of means over seeds, with intervals over the groups that the tasks come from."""
    for (start, size), values in by_task.items():
        mean, low, high = mean_interval(values, groups, bounds=SCORES)
        gain, gain_low, gain_high = paired_difference(by_task["generated", size], values, groups, bounds=DIFFERENCES)
        yield {
            "start": start, "examples": size, "seed": None, "split": shown, "tasks": len(values[0]),
            "exact_match": round(mean, 2), "low": round(low, 2), "high": round(high, 2),
            "generated_minus_this": [round(x, 2) for x in (gain, gain_low, gain_high)],
            **chosen[start, size],
        }  # fmt: skip
