"""Exact match and ROUGE-L of answers with several references.

Source: `eval/automatic/evaluation.py` of allenai/natural-instructions, its default (English) track.
"""

import string
from collections import defaultdict
from functools import lru_cache
from statistics import fmean
from typing import Optional, Sequence

from rouge_score.rouge_scorer import RougeScorer

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Returns `text` in lower case, without ASCII punctuation, each run of white space one blank; articles stay."""
    return " ".join(text.lower().translate(_DROP_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 if the normalised prediction equals a normalised reference, else 0.0."""
    _require_references(references)
    return float(normalise_answer(prediction) in {normalise_answer(reference) for reference in references})


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Returns the F-measure, 0 to 1, of the longest common subsequence of stemmed words, the best of `references`."""
    _require_references(references)
    return max(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure for reference in references)


def answer_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tasks: Optional[Sequence[str]] = None,
    categories: Optional[Sequence[str]] = None,
) -> dict:
    """Returns scores in per cent; the published script rounds the same to four places.

    Args:
        predictions: One text for each instance.
        references: The accepted answers of each instance, at least one; the best counts.
        tasks: The name of each instance's task.
        categories: The name of the category of each instance's task.

    Returns:
        `exact_match` and `rouge_l`, means over the `n` instances as in the script. With tasks, `per_task` (the same
        three for each, over its instances) and `macro` (means over the tasks). With categories, `per_category`.

    Raises:
        ValueError: if there is nothing to score, or the arguments differ in length.
    """
    for name, column in (("references", references), ("tasks", tasks), ("categories", categories)):
        if column is not None and len(column) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions came with {len(column)} {name}; give one for each, in the same order"
            )
    if not len(predictions):
        raise ValueError("there are no predictions to score; give at least one")
    values = [(exact_match(text, known), rouge_l(text, known)) for text, known in zip(predictions, references)]
    result = _means(values)
    if tasks is not None:
        per_task = _by_name(tasks, values)
        result["macro"] = {by: fmean(scores[by] for scores in per_task.values()) for by in ("exact_match", "rouge_l")}
        result["per_task"] = per_task
    if categories is not None:
        result["per_category"] = _by_name(categories, values)
    return result


def _by_name(names: Sequence[str], values: Sequence[tuple[float, float]]) -> dict[str, dict]:
    grouped = defaultdict(list)
    for name, value in zip(names, values):
        grouped[name].append(value)
    return {name: _means(group) for name, group in grouped.items()}


def _means(values: Sequence[tuple[float, float]]) -> dict:
    return {
        "exact_match": 100 * fmean(match for match, _ in values),
        "rouge_l": 100 * fmean(rouge for _, rouge in values),
        "n": len(values),
    }


def _require_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise ValueError(f"references is {references!r}, but must be a list of at least one text")


@lru_cache(maxsize=1)
def _rouge_scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
