"""Rank classification: the option with the highest log-likelihood wins.

Source: Sanh et al., Multitask Prompted Training Enables Zero-Shot Task Generalization (T0), section 5.
"""

import math
from collections import defaultdict
from statistics import fmean
from typing import Optional, Sequence

import numpy as np

BY = ("sum", "mean")


def rank_scores(
    log_likelihoods: Sequence[Sequence[float]],
    token_counts: Sequence[Sequence[int]],
    references: Sequence[int],
    templates: Optional[Sequence[str]] = None,
    datasets: Optional[Sequence[str]] = None,
) -> dict:
    """Returns accuracies in per cent, options compared by log-likelihood (`sum`, T0's) and per token (`mean`).

    Options that tie for the first place share it: the right one among two counts half.

    Args:
        log_likelihoods: [records, options], in nats; records may differ in their number of options.
        token_counts: [records, options], over how many tokens each was summed.
        references: [records], the index of the right option.
        templates: [records], the name of each record's template; no two data sets share one.
        datasets: [records], the data set of each record's template.

    Returns:
        `sum`, `mean` and `n`, over records. With templates, `per_template` (the same three for each) and `macro`
        (means over templates). With data sets too, `per_dataset`: for each the number of records `n` and of
        `templates`, and under `sum` and `mean` the `median` over its templates, the quartiles `q1` and `q3`, their
        distance `iqr` (T0's measure of robustness to wording), `min` and `max`.

    Raises:
        ValueError: if there is no record, the arguments do not match, a right option is not there, a score is not a
            number, or a template is in two data sets.
    """
    columns = {"token_counts": token_counts, "references": references, "templates": templates, "datasets": datasets}
    for name, column in columns.items():
        if column is not None and len(column) != len(log_likelihoods):
            raise ValueError(
                f"{len(log_likelihoods)} records came with {len(column)} {name}; give one for each, in the same order"
            )
    if not len(log_likelihoods):
        raise ValueError("there are no records to rank; give at least one")
    if datasets is not None and templates is None:
        raise ValueError("datasets came without templates, over which a data set's median is taken; give both")
    values = []
    for number, (sums, tokens, right) in enumerate(zip(log_likelihoods, token_counts, references)):
        record = f"record {number}" if templates is None else f"record {number} of {templates[number]!r}"
        _require_options(record, sums, tokens, right)
        values.append((_share(sums, right), _share([total / count for total, count in zip(sums, tokens)], right)))
    result = _means(values)
    if templates is not None:
        grouped = defaultdict(list)
        for template, value in zip(templates, values):
            grouped[template].append(value)
        per_template = {template: _means(group) for template, group in grouped.items()}
        result["macro"] = {by: fmean(scores[by] for scores in per_template.values()) for by in BY}
        result["per_template"] = per_template
        if datasets is not None:
            result["per_dataset"] = _per_dataset(per_template, _dataset_of(templates, datasets))
    return result


def _require_options(record: str, sums: Sequence[float], tokens: Sequence[int], right: int) -> None:
    if len(sums) != len(tokens):
        raise ValueError(f"{record} has {len(sums)} log-likelihoods and {len(tokens)} token counts; give one for each")
    if not 0 <= right < len(sums):
        raise ValueError(f"{record} has {len(sums)} options, so its right one cannot be {right}")
    if any(total is None or math.isnan(total) or not count or count < 1 for total, count in zip(sums, tokens)):
        raise ValueError(
            f"{record} has the options (log-likelihood, tokens) {list(zip(sums, tokens))}, but each must be a number "
            "with at least one token; look for NaN in the model's logits and for options of no tokens"
        )


def _share(scores: Sequence[float], right: int) -> float:
    """Returns 1 for the right option alone in the first place, and a fraction of it among ties."""
    best = max(scores)
    return (scores[right] == best) / list(scores).count(best)


def _means(values: Sequence[tuple[float, float]]) -> dict:
    by_sum, by_mean = zip(*values)
    return {"sum": 100 * fmean(by_sum), "mean": 100 * fmean(by_mean), "n": len(values)}


def _dataset_of(templates: Sequence[str], datasets: Sequence[str]) -> dict[str, str]:
    owner: dict[str, str] = {}
    for template, dataset in zip(templates, datasets):
        if owner.setdefault(template, dataset) != dataset:
            raise ValueError(
                f"the template {template!r} is in the data sets {owner[template]!r} and {dataset!r}; give each its "
                f"own name, such as {f'{dataset}/{template}'!r}"
            )
    return owner


def _per_dataset(per_template: dict[str, dict], dataset_of: dict[str, str]) -> dict[str, dict]:
    grouped = defaultdict(list)
    for template, scores in per_template.items():
        grouped[dataset_of[template]].append(scores)
    return {
        dataset: {
            **{by: _spread([template[by] for template in members]) for by in BY},
            "templates": len(members),
            "n": sum(template["n"] for template in members),
        }
        for dataset, members in grouped.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles, their distance, least and most; quartiles are interpolated (numpy's `linear`)."""
    least, q1, median, q3, most = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"median": median, "q1": q1, "q3": q3, "iqr": q3 - q1, "min": least, "max": most}
