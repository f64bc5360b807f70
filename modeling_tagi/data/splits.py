"""Splits that stay apart: what evaluation shares with training, counted, refused or removed."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Optional, Union

from .records import Record, Splits
from .streams import everything, number_of

EXAMPLES = 3
# A split of seen tasks shares these with training by design; its instances must still be new.
SEEN_TASKS = ("task", "instruction")


class LeakError(ValueError):
    """Reports that an evaluation split holds what the model is trained on."""


def normalise_text(text: str) -> str:
    """Returns `text` in lower case, each run of white space as one blank: the form in which texts are compared."""
    return " ".join(text.lower().split())


def instance_texts(records: Iterable[Record]) -> set[str]:
    """Returns the normalised inputs of `records` and of their demonstrations, since a model sees those too."""
    texts = set()
    for record in records:
        texts.add(normalise_text(record.input))
        texts.update(normalise_text(text) for text, _ in record.demonstrations)
    return texts


def drop_instances(records: Iterable[Record], texts: set[str]) -> list[Record]:
    """Returns the records whose normalised input is not among `texts`, in their order."""
    return [record for record in records if normalise_text(record.input) not in texts]


def shared_instances(records: Iterable[Record], others: Iterable[Record]) -> set[str]:
    """Returns the normalised inputs of `others` that are among the `instance_texts` of all `records`."""
    asked, found = {normalise_text(record.input) for record in others}, set()
    for record in everything(records):
        found |= asked & instance_texts([record])
    return found


def drop_duplicates(records: Iterable[Record]) -> list[Record]:
    """Returns the records without repeats: the first of every set of equal ones, in their order."""
    return list(dict.fromkeys(records))


def cap_tasks(records: list[Record], limit: Optional[int], seed: int = 0) -> list[Record]:
    """Returns at most `limit` records of each task, drawn without replacement, in their order; `None` keeps all.

    A task's draw depends on its records and `seed` alone; a smaller limit keeps a part of a larger one's records.
    """
    if limit is None:
        return list(records)
    if limit < 0:
        raise ValueError(f"the limit of records per task is {limit}, but must be 0 or more, or None for no limit")
    positions = defaultdict(list)
    for position, record in enumerate(records):
        positions[record.task].append(position)
    kept = []
    for task, of_task in positions.items():
        random.Random(f"{seed}/{task}").shuffle(of_task)
        kept += of_task[:limit]
    return [records[position] for position in sorted(kept)]


def check_splits(
    splits: Splits, train: str = "train", same_tasks: Union[Iterable[str], Mapping[str, Iterable[str]]] = ()
) -> dict:
    """Counts what each evaluation split shares with the training split, all texts compared by `normalise_text`.

    Args:
        splits: Records by the split's name.
        train: Name of the training split; every other split is an evaluation split.
        same_tasks: What a split may share by design, as `{split: ("task", "instruction")}`, for new wordings of
            seen tasks `{split: ("task",)}`. A plain list of split names allows both. Instances are never allowed.

    Returns:
        A JSON-able report: `train` and, for each split under `splits`, the numbers of records, tasks and instructions;
        for the latter also `shared` (how many tasks, instructions and records' instances occur in training; an
        instance that is among its own record's demonstrations counts as well), `examples` of these, `may_share`, and
        `leaks`, the number of shared things that are not allowed. `leaks` at the top is their sum.

    Raises:
        ValueError: if there is no split `train`, or `same_tasks` names an unknown split or kind.
    """
    if not isinstance(same_tasks, Mapping):
        same_tasks = dict.fromkeys(same_tasks, SEEN_TASKS)
    if train not in splits:
        raise ValueError(f"there is no training split {train!r} among {sorted(splits)}; name it by train=")
    for name, kinds in same_tasks.items():
        if name == train or name not in splits:
            raise ValueError(
                f"same_tasks names {name!r}, but the evaluation splits are {sorted(set(splits) - {train})}; "
                "correct the name or leave it out"
            )
        if isinstance(kinds, str) or not set(kinds) <= set(SEEN_TASKS):
            raise ValueError(f"same_tasks[{name!r}] is {kinds!r}, but must be a list that holds none but {SEEN_TASKS}")
    evaluated = [record for name, records in splits.items() if name != train for record in records]
    seen = {**_texts(splits[train]), "instance": shared_instances(splits[train], evaluated)}
    report = {"train": {"name": train, **_sizes(splits[train])}, "splits": {}, "leaks": 0}
    for name, records in splits.items():
        if name == train:
            continue
        shared = {kind: [text for key, text in texts.items() if key in seen[kind]]
                  for kind, texts in _texts(records).items()}
        shared["instance"] = [record.input for record in records
                              if normalise_text(record.input) in seen["instance"] or _is_demonstrated(record)]
        may_share = tuple(same_tasks.get(name, ()))
        leaks = sum(len(texts) for kind, texts in shared.items() if kind not in may_share)
        report["splits"][name] = {
            **_sizes(records),
            "shared": {kind: len(texts) for kind, texts in shared.items()},
            "examples": {kind: [text[:200] for text in texts[:EXAMPLES]] for kind, texts in shared.items()},
            "may_share": list(may_share),
            "leaks": leaks,
        }
        report["leaks"] += leaks
    return report


def require_no_leaks(report: dict) -> None:
    """Refuses a report of `check_splits` that has leaks.

    Raises:
        LeakError: if there are any, with the number and an example of each kind in each split.
    """
    found = [
        f"{name}: {count} {kind}(s), such as {split['examples'][kind][0]!r}"
        for name, split in report["splits"].items()
        for kind, count in split["shared"].items()
        if count and kind not in split["may_share"]
    ]
    if found:
        raise LeakError(
            f"evaluation splits share with {report['train']['name']!r} what should be new - {'; '.join(found)}. "
            "Remove it from one side, or from the demonstrations of the very record. A split with new inputs of "
            "trained tasks is called seen_tasks, one with new wordings of them new_wordings: these may share tasks"
        )


def _is_demonstrated(record: Record) -> bool:
    """Tells whether the record's own input, and so its answer, is among its demonstrations."""
    own = normalise_text(record.input) if record.demonstrations else None
    return any(normalise_text(text) == own for text, _ in record.demonstrations)


def _texts(records: list[Record]) -> dict[str, dict[str, str]]:
    """Returns the tasks and instructions of `records` as written, by the form in which they are compared."""
    return {
        "task": {record.task: record.task for record in records},
        "instruction": {normalise_text(record.instruction): record.instruction for record in records},
    }


def _sizes(records: list[Record]) -> dict[str, int]:
    texts = _texts(records)
    return {"records": number_of(records), "tasks": len(texts["task"]), "instructions": len(texts["instruction"])}
