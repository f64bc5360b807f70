"""Exact match and ROUGE-L as Super-NaturalInstructions counts them, and the floors to compare with."""

import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Optional

from ..data.records import Record

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """`text` in lower case, without ASCII punctuation, each run of white space one blank; articles stay."""
    return " ".join(text.lower().translate(_DROP_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals a normalised reference, else 0.0."""
    _require_references(references)
    return float(normalise_answer(prediction) in {normalise_answer(reference) for reference in references})


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure, 0 to 1, of the longest common subsequence of stemmed words; the best over `references`.

    Source: `eval/automatic/evaluation.py` of allenai/natural-instructions.
    """
    _require_references(references)
    return max(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure for reference in references)


def score(predictions: Sequence[str], records: Sequence[Record]) -> dict:
    """Mean over tasks of the tasks' means, in per cent.

    Returns:
        `exact_match`, `rouge_l`, `n` (the number of records), and the same three for each task under `per_task`.

    Raises:
        ValueError: if there is nothing to score, or not one prediction for each record.
    """
    if len(predictions) != len(records):
        raise ValueError(f"{len(predictions)} predictions came for {len(records)} records; give one for each in order")
    if not records:
        raise ValueError("there are no records to score; give at least one")
    by_task = defaultdict(list)
    for prediction, record in zip(predictions, records):
        by_task[record.task].append((exact_match(prediction, record.targets), rouge_l(prediction, record.targets)))
    per_task = {
        task: {"exact_match": 100 * fmean(em for em, _ in values), "rouge_l": 100 * fmean(rl for _, rl in values),
               "n": len(values)}
        for task, values in by_task.items()
    }
    return {
        **{name: fmean(values[name] for values in per_task.values()) for name in ("exact_match", "rouge_l")},
        "n": len(records),
        "per_task": per_task,
    }


def chance_and_majority(records: Sequence[Record]) -> dict[str, Optional[float]]:
    """Accuracies, in per cent and as means over tasks, that need no model; records without options are passed over.

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


def _require_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"references is {references!r}, but must be a list of at least one text")


@lru_cache(maxsize=1)
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
