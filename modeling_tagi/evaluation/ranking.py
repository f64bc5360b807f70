"""Rank classification: the option with the highest log-likelihood wins."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Optional

from torch import Tensor
from torch.nn import functional as F

from .modules.rank_classification.ranks import rank_scores


def option_log_likelihood(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log-likelihood of the labels, in fp32 whatever the dtype of the logits.

    Args:
        logits: [batch, seq, vocab], at each place the prediction of the label at the same place: a causal model's
            are to be shifted by the caller. Or [tokens, vocab], those of the labels that are not -100, row by row.
        labels: [batch, seq], -100 where nothing is predicted.

    Returns:
        Sum over the labels [batch], in nats, and their number [batch].

    Raises:
        ValueError: if the shapes do not match, or a row has no labels, whose sum of 0 would beat every other.
    """
    tokens = (labels != -100).sum(dim=-1)  # [batch], for labels of two dimensions
    if labels.dim() != 2 or logits.shape[:-1] not in (labels.shape, (int(tokens.sum()),)):
        raise ValueError(
            f"logits are {list(logits.shape)} and labels {list(labels.shape)}, but must be [batch, seq, vocab] (or "
            "[tokens, vocab]) and [batch, seq]"
        )
    if (tokens == 0).any():
        rows = (tokens == 0).nonzero().flatten().tolist()
        raise ValueError(f"rows {rows} of labels are -100 throughout; each option needs at least one token")
    if logits.dim() == 2:
        of_tokens = F.cross_entropy(logits.float(), labels[labels != -100], reduction="none")
        losses = of_tokens.new_zeros(labels.shape).masked_scatter(labels != -100, of_tokens)
        return -losses.sum(dim=1), tokens
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return -losses.view_as(labels).sum(dim=1), tokens


def rank_accuracy(
    groups: Iterable[tuple[str, Sequence[tuple[float, int]], int]],
    datasets: Optional[Mapping[str, str]] = None,
) -> dict:
    """Returns how often, in per cent, the option with the highest log-likelihood is right; the mean over tasks.

    Options that tie for the first place share it: the right one among two counts half.

    Args:
        groups: For each record its task, for each option (log-likelihood, number of tokens), and the right option.
            In P3 a task is a template.
        datasets: For each task the data set it belongs to, the `group` of its records.

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
