"""Rank classification: the option with the highest log-likelihood wins."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from torch import Tensor
from torch.nn import functional as F


def option_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of the labels, in fp32 whatever the type of the logits.

    Args:
        logits: [batch, seq, vocab], at each place the prediction of the label at the same place: a causal model's
            are to be shifted by the caller.
        labels: [batch, seq], -100 where nothing is predicted.

    Returns:
        Sum over the labels [batch], in nats, and their number [batch].

    Raises:
        ValueError: if the shapes do not match, or a row has no labels, whose sum of 0 would beat every other.
    """
    if logits.shape[:-1] != labels.shape or labels.dim() != 2:
        raise ValueError(
            f"logits are {list(logits.shape)} and labels {list(labels.shape)}, but must be [batch, seq, vocab] and "
            "[batch, seq]"
        )
    tokens = (labels != -100).sum(dim=1)  # [batch]
    if (tokens == 0).any():
        rows = (tokens == 0).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} of labels are -100 throughout; each option needs at least one token")
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return -losses.view_as(labels).sum(dim=1), tokens


def rank_accuracy(groups: Iterable[tuple[str, Sequence[tuple[float, int]], int]]) -> dict:
    """Accuracy, in per cent, of giving the option with the highest log-likelihood; mean over tasks of their means.

    Options that tie for the first place share it: the right one among two counts half.

    Args:
        groups: For each record its task, for each option (log-likelihood, number of tokens), and the right option.

    Returns:
        `sum` (options compared by log-likelihood, the paper's), `mean` (by log-likelihood per token), `n` records,
        and the same three for each task under `per_task`.

    Raises:
        ValueError: if there is no record, a right option that is not there, or a score that is not a number.
    """
    by_task = defaultdict(list)
    for task, options, right in groups:
        if not 0 <= right < len(options):
            raise ValueError(f"a record of {task!r} has {len(options)} options, so its right one cannot be {right}")
        if any(math.isnan(total) or tokens < 1 for total, tokens in options):
            raise ValueError(
                f"a record of {task!r} has the options (log-likelihood, tokens) {list(options)}, but each must be a "
                "number with at least one token; look for NaN in the model's logits and for options of no tokens"
            )
        sums, means = [float(total) for total, _ in options], [float(total) / int(tokens) for total, tokens in options]
        by_task[task].append((_share(sums, right), _share(means, right)))
    if not by_task:
        raise ValueError("there are no records to rank; give at least one")
    per_task = {
        task: {"sum": 100 * fmean(x for x, _ in values), "mean": 100 * fmean(x for _, x in values), "n": len(values)}
        for task, values in by_task.items()
    }
    return {
        **{name: fmean(values[name] for values in per_task.values()) for name in ("sum", "mean")},
        "n": sum(values["n"] for values in per_task.values()),
        "per_task": per_task,
    }


def _share(scores: list[float], right: int) -> float:
    """What the right option gets of the first place."""
    best = max(scores)
    return (scores[right] == best) / scores.count(best)
