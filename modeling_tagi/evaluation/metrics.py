"""Answers scored as Super-NaturalInstructions does, and the floors to compare with."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Optional

from ..data.records import Record
from .modules.sni_answers.scores import answer_scores, exact_match, normalise_answer, rouge_l

__all__ = ["chance_and_majority", "exact_match", "normalise_answer", "rouge_l", "score"]


def score(predictions: Sequence[str], records: Sequence[Record]) -> dict:
    """Returns the mean over tasks of the tasks' means, in per cent.

    Returns:
        `exact_match`, `rouge_l`, `n` (the number of records), and the same three for each task under `per_task` and
        for each group under `per_category`. A group's are means over its records, as in SNI's script; so are the two
        under `over_records`, of all records.

    Raises:
        ValueError: if there is nothing to score, or not one prediction for each record.
    """
    if len(predictions) != len(records):
        raise ValueError(f"{len(predictions)} predictions came for {len(records)} records; give one for each in order")
    if not records:
        raise ValueError("there are no records to score; give at least one")
    tasks, groups = [record.task for record in records], [record.group for record in records]
    found = answer_scores(predictions, [record.targets for record in records], tasks, groups)
    over_records = {name: found[name] for name in ("exact_match", "rouge_l")}
    rest = {name: found[name] for name in ("n", "per_task", "per_category")}
    return {**found["macro"], "over_records": over_records, **rest}


def chance_and_majority(records: Sequence[Record]) -> dict[str, Optional[float]]:
    """Returns accuracies that need no model, in per cent and as means over tasks; only records with options count.

    Returns:
        `chance`, of a random option; `majority`, of always giving the most frequent target of the task in `records`;
        `n`, the number of records with options. Both are None if there are none.
    """
    by_task = defaultdict(list)
    for record in records:
        if record.options is not None:
            by_task[record.task].append(record)
    if not by_task:
        return {"chance": None, "majority": None, "n": 0}
    tasks = by_task.values()
    return {
        "chance": 100 * fmean(fmean(1 / len(record.options) for record in task) for task in tasks),
        "majority": 100 * fmean(max(Counter(r.targets[0] for r in task).values()) / len(task) for task in tasks),
        "n": sum(map(len, tasks)),
    }
