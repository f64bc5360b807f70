"""Scores of methods on one split: means over tasks with intervals, and differences between methods."""

import warnings
from typing import Sequence

from ..data.records import Record
from .metrics import chance_and_majority, score
from .predict import Answering
from .ranking import rank_accuracy
from .results import best_option, chosen_examples, example
from .statistics import DIFFERENCES, SCORES, mean_interval, paired_difference_by_task

_PER_TASK = {  # where the score of each task is
    "exact_match": ("per_task", "exact_match"), "rouge_l": ("per_task", "rouge_l"),
    "rank_accuracy": ("per_task_ranked", "sum"), "rank_accuracy_mean": ("per_task_ranked", "mean"),
}  # fmt: skip
COLUMNS = tuple(_PER_TASK)


def evaluate_split(
    methods: dict[str, Answering],
    records: Sequence[Record],
    rank: bool,
    label: str = "",
    pairs: Sequence[tuple[str, str]] = (),
) -> dict:
    """Returns the scores of every method on one split, in per cent, as means over tasks, with 95 % intervals.

    The intervals are over the groups that the tasks come from (`mean_interval`); a task without a group is one of its
    own.

    Args:
        methods: How each method answers.
        records: The split's records.
        rank: Whether records with options are scored by rank classification instead of by what is generated.
        label: Shown beside the progress bar.
        pairs: Methods whose difference is taken, the second from the first.

    Returns:
        `methods`: for each `exact_match` and `rouge_l` over the `n` records answered freely (`None` if there are
        none), and under rank classification `rank_accuracy` (options compared by log-likelihood) and
        `rank_accuracy_mean` (by log-likelihood per token) over `n_ranked` records; each with its `…_interval`. Beside
        them `over_records` (means over all records, as SNI's script has), `per_task` and `per_category`,
        `per_task_ranked` and `per_dataset_ranked`. `differences`: as `differences`. `clusters`: the number of groups.
        `chance` and `majority` of the records with options; `examples`, some records with every method's answer.
        Means and intervals are rounded to two places, scores of single tasks are not.
    """
    ranked = [record for record in records if rank and record.options is not None]
    free = [record for record in records if not (rank and record.options is not None)]
    outputs: dict[int, dict[str, str]] = {number: {} for number in chosen_examples(free or ranked)}
    groups, scores = groups_of(records), {}
    for name, answering in methods.items():
        scores[name], answers = _scored(answering, free, ranked, f"{label}, {name}")
        for number in outputs:
            outputs[number][name] = answers[number]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "there is one task")  # the results have a note of it
        for own in scores.values():
            _add_means(own, groups)
        differing = differences(scores, pairs, groups)
    floors = chance_and_majority(records)
    return {
        "methods": scores,
        "differences": differing,
        "examples": [example((free or ranked)[number], given) for number, given in outputs.items()],
        "clusters": len(set(groups.values())),
        **{name: None if floors[name] is None else round(floors[name], 2) for name in ("chance", "majority")},
    }


def differences(scores: dict[str, dict], pairs: Sequence[tuple[str, str]], groups: dict[str, str]) -> dict:
    """Returns the differences of pairs of methods over the tasks paired, by "<first> - <second>" and score: `mean`,
    `low` and `high`.

    Args:
        scores: The scores of each method, as `evaluate_split` has them.
        pairs: The second is taken from the first.
        groups: That each task comes from.
    """
    found = {}
    for first, second in pairs:
        found[f"{first} - {second}"] = own = {}
        for column in COLUMNS:
            ours, theirs = (_by_task(scores[name], column) for name in (first, second))
            if ours:
                interval = paired_difference_by_task(ours, theirs, groups, bounds=DIFFERENCES)
                own[column] = {x: round(getattr(interval, x), 2) for x in ("mean", "low", "high")}
    return found


def groups_of(records: Sequence[Record]) -> dict[str, str]:
    """Returns the group of each task."""
    groups: dict[str, str] = {}
    for record in records:
        groups.setdefault(record.task, record.group)
    return groups


def _scored(
    answering: Answering, free: Sequence[Record], ranked: Sequence[Record], progress: str
) -> tuple[dict, list[str]]:
    """Returns a method's scores without their means over tasks, and its answers to `free`, or if that is empty to
    `ranked`."""
    scores: dict = {"exact_match": None, "rouge_l": None, "n": len(free)}
    answers: list = []
    if free:
        answers = answering.generate(free, progress)
        found = score(answers, free)
        scores.update(over_records=_rounded(found["over_records"]), per_task=found["per_task"])
        scores.update(per_category=_rounded(found["per_category"]))
    if ranked:
        likelihoods = answering.rank(ranked, f"{progress}, options")
        found = rank_accuracy(likelihoods, groups_of(ranked))
        scores.update(n_ranked=len(ranked), per_task_ranked=found["per_task"])
        scores.update(per_dataset_ranked=_rounded(found["per_dataset"]))
        if not free:
            answers = [best_option(record, options) for record, (_, options, _) in zip(ranked, likelihoods)]
    return scores, answers


def _add_means(scores: dict, groups: dict[str, str]):
    """Adds the means over tasks and their intervals."""
    for column in COLUMNS:
        if _PER_TASK[column][0] in scores:
            by_task = _by_task(scores, column)
            interval = mean_interval([*by_task.values()], [groups[task] for task in by_task], bounds=SCORES)
            scores[column] = round(interval.mean, 2)
            scores[f"{column}_interval"] = [round(interval.low, 2), round(interval.high, 2)]


def _by_task(scores: dict, column: str) -> dict[str, float]:
    place, key = _PER_TASK[column]
    return {task: values[key] for task, values in scores.get(place, {}).items()}


def _rounded(values):
    """Returns nested scores, each rounded to two places."""
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    return round(values, 2) if isinstance(values, float) else values
