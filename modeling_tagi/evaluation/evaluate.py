"""Methods against splits: the scores of a run, and the tables that show them."""

from typing import Optional, Sequence

from ..data.records import Record
from .metrics import chance_and_majority, score
from .predict import Answering
from .ranking import rank_accuracy

METHODS = ("no_instruction", "prompted", "tagi", "wrong_instruction")


def evaluate_split(methods: dict[str, Answering], records: Sequence[Record], rank: bool, label: str = "") -> dict:
    """Scores of every method on one split, in per cent, as means over tasks.

    Args:
        methods: How each method answers.
        records: Of the split.
        rank: Whether records with options are scored by rank classification instead of by what is generated.
        label: Shown beside the progress bar.

    Returns:
        For each method `exact_match` and `rouge_l` over the `n` records answered freely (`None` if there are none),
        and under rank classification `rank_accuracy` (options compared by log-likelihood) and `rank_accuracy_mean`
        (by log-likelihood per token) over `n_ranked` records. Beside the methods: `chance` and `majority` of the
        records with options.
    """
    ranked = [record for record in records if rank and record.options is not None]
    free = [record for record in records if not (rank and record.options is not None)]
    results: dict = {}
    for name, answering in methods.items():
        scores: dict = {"exact_match": None, "rouge_l": None, "n": len(free)}
        if free:
            found = score(answering.generate(free, f"{label}, {name}"), free)
            scores.update({key: round(found[key], 2) for key in ("exact_match", "rouge_l")})
            scores["per_task"] = found["per_task"]
        if ranked:
            found = rank_accuracy(answering.rank(ranked, f"{label}, {name}, options"))
            scores.update(rank_accuracy=round(found["sum"], 2), rank_accuracy_mean=round(found["mean"], 2))
            scores.update(n_ranked=len(ranked), per_task_ranked=found["per_task"])
        results[name] = scores
    results.update({key: value for key, value in chance_and_majority(records).items() if key != "n"})
    return results


def spread(records: Sequence[Record], limit: Optional[int]) -> list[Record]:
    """At most `limit` records, as many of each task as of any other where there are enough."""
    if limit is None or len(records) <= limit:
        return list(records)
    by_task: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        by_task.setdefault(record.task, []).append(number)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < limit:
        layer = [numbers[turn] for numbers in by_task.values() if turn < len(numbers)]
        chosen += layer[: limit - len(chosen)]
        turn += 1
    return [records[number] for number in sorted(chosen)]


def table(results: dict, splits: Sequence[str]) -> str:
    """A Markdown table of the methods' scores on each split."""
    columns = ("exact_match", "rouge_l", "rank_accuracy", "rank_accuracy_mean")
    present = [c for c in columns if any(_value(results[s].get(m), c) for s in splits for m in METHODS)]
    lines = ["| split | method | " + " | ".join(c.replace("_", " ") for c in present) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(present))
    for split in splits:
        for method in METHODS:
            if method in results[split]:
                cells = [_value(results[split][method], column) or "–" for column in present]
                lines.append(f"| {split} | {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
        if results[split].get("chance") is not None and "rank_accuracy" in present:
            for name in ("chance", "majority"):
                cells = [f"{results[split][name]:.1f}" if "rank" in column else "–" for column in present]
                lines.append(f"| {split} | *{name}* | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _value(scores: Optional[dict], column: str) -> Optional[str]:
    value = (scores or {}).get(column)
    return None if value is None else f"{value:.1f}"
