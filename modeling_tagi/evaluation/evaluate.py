"""Scores of a model beside its references, on every split."""

from typing import Optional, Sequence

from ..banks.adapter_bank import AdapterBank
from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..modeling_tagi import TagiModel
from ..tokens import Tokens
from ..training.setting_fields import EvaluationSettings, RunSettings
from .backbones import load_backbone
from .predict import Answering
from .references import REFERENCES, Compared, LeftOut, Reference, in_order
from .scores import evaluate_split


def evaluate_model(
    settings: RunSettings,
    model: TagiModel,
    tokens: Tokens,
    start: tuple[str, Optional[str]],
    splits: dict[str, list[Record]],
    train: Sequence[Record],
    bank: Optional[AdapterBank] = None,
) -> dict:
    """Returns the scores of what a run has trained, if it trained something, and of its references, on every split.

    Args:
        settings: The run's settings.
        model: What it ended with.
        tokens: How texts become tokens.
        start: Name or folder, and revision, of the backbone that it started from.
        splits: What is scored; see `spread`.
        train: What was trained on.
        bank: Its task adapters.

    Returns:
        As `score_methods`.
    """
    backbone = load_backbone(*start)
    own, batch_size = None, settings.evaluation.batch_size
    if settings.finetuning.steps or settings.pretraining.steps:
        own = Answering(model.to(backbone.device), tokens, settings.finetuning.reads, batch_size)
    prompted = Answering(backbone, tokens, "prompt", batch_size)
    return score_methods(
        own, prompted, splits, settings.evaluation, model.config, train, bank, settings.seed, settings.label
    )


def score_methods(
    own: Optional[Answering],
    start: Answering,
    splits: dict[str, list[Record]],
    settings: EvaluationSettings,
    config: TagiConfig,
    train: Sequence[Record] = (),
    bank: Optional[AdapterBank] = None,
    seed: int = 0,
    label: str = "tagi",
) -> dict:
    """Returns the scores of a model and of its references on every split.

    Args:
        own: What is evaluated; without it there are only references that need no trained model.
        start: The prompted backbone that it is compared with.
        splits: What is scored.
        settings: Which references, and how.
        config: The rank, scale and target modules of the oracle's adapters.
        train: The records that the bank's adapters were tuned on, and a source of wrong instructions.
        bank: Task adapters of the start's backbone, for `nearest_adapter`.
        seed: Seeds the wrong instructions, the random words and the oracle.
        label: What the model is called.

    Returns:
        `splits` (see `evaluate_split`), `tasks` (the `group` and the first `split` of each) and `notes`, sentences on
        what was left out.

    Raises:
        ValueError: if `nearest_adapter` is wanted without a bank.
    """
    evaluated = [record for records in splits.values() for record in records]
    compared = Compared(own, start, evaluated, train, bank, config, settings.oracle, seed)
    references = _references(settings.references, compared)
    results: dict = {"splits": {}, "tasks": {}, "notes": []}
    for split, records in splits.items():
        methods = {} if own is None else {label: own}
        for name, reference in references.items():
            try:
                methods[name] = reference.answering(records, f"{split}, {name}")
            except LeftOut as why:
                results["notes"].append(f"{split}: no {name}, since {why}")
        ordered = {name: methods[name] for name in in_order(methods)}
        pairs = [(label, name) for name in ordered if own is not None and name != label]
        found = evaluate_split(ordered, records, settings.rank_options, split, pairs)
        results["splits"][split] = found
        for record in records:
            results["tasks"].setdefault(record.task, {"group": record.group, "split": split})
        results["notes"] += _notes_on_intervals(split, records, found["clusters"])
    return results


def spread(records: Sequence[Record], limit: Optional[int]) -> list[Record]:
    """Returns at most `limit` records, as many of each task as of any other where there are enough."""
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


def _references(names: Sequence[str], compared: Compared) -> dict[str, Reference]:
    """Returns the references of these names but those that ask a trained model, where none reads an instruction."""
    reads_instructions = compared.own is not None and compared.own.reads != "input"
    made = {}
    for name in names:
        kind = REFERENCES[name]
        if kind.needs_bank and compared.bank is None:
            raise ValueError(
                f"evaluation.references has {name!r}, but there are no task adapters; give task_adapters.steps or "
                "task_adapters.given, or leave it out"
            )
        if reads_instructions or not kind.asks_trained:
            made[name] = kind(compared)
    return made


def _notes_on_intervals(split: str, records: Sequence[Record], groups: int) -> list[str]:
    """Returns what must be known of intervals over a single task or a single group."""
    if len({record.task for record in records}) == 1:
        return [f"{split}: one task alone, so intervals over tasks have no width"]
    if groups == 1:
        return [
            f"{split}: all tasks are of the group {records[0].group!r}, so intervals are over its tasks and say "
            "nothing of other groups"
        ]
    return []
