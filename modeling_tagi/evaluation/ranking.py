"""Rank classification: the option with the highest log-likelihood wins."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from .modules.rank_classification.ranks import rank_scores


def rank_accuracy(
    groups: Iterable[tuple[str, Sequence[tuple[float, int]], int]],
    datasets: Optional[Mapping[str, str]] = None,
) -> dict:
    """Returns how often, in per cent, the option with the highest log-likelihood is right; the mean over tasks.

    Options that tie for the first place share it: the right one among two counts half.

    Args:
        groups: The task of each record, (log-likelihood, number of tokens) of each option, and the right option.
            In P3 a task is a template.
        datasets: The data set of each task, which is the `group` of its records.

    Returns:
        `sum` (options compared by log-likelihood, the paper's), `mean` (by log-likelihood per token), `n` records,
        and the same three for each task under `per_task`. If `datasets` is given, `per_dataset`: for each the number
        of `templates` and of records `n`, and under `sum` and `mean` the `median`, `q1`, `q3`, `iqr`, `min` and `max`
        over its tasks.

    Raises:
        ValueError: if there is no record, a right option that is not there, a score that is not a number, or a task
            without a data set.
    """
    groups = list(groups)
    tasks = [task for task, _, _ in groups]
    missing = sorted(set(tasks) - set(datasets)) if datasets is not None else []
    if missing:
        raise ValueError(f"datasets has no data set for the tasks {missing}; name one for every task that is ranked")
    found = rank_scores(
        [[float(total) for total, _ in options] for _, options, _ in groups],
        [[int(tokens) for _, tokens in options] for _, options, _ in groups],
        [right for _, _, right in groups],
        templates=tasks,
        datasets=None if datasets is None else [datasets[task] for task in tasks],
    )
    result = {**found["macro"], "n": found["n"], "per_task": found["per_template"]}
    if datasets is not None:
        result["per_dataset"] = found["per_dataset"]
    return result
