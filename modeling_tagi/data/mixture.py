"""A mixture: several sources in one run, each with its share of what is drawn for training."""

import dataclasses
from typing import Any, Mapping

from ..common.typed import typed
from .places import folder_of
from .records import Record, Splits
from .splits import drop_instances, instance_texts, normalise_text

_OWN = ("source", "weight", "path")  # fields of a part that are no options of its reader
WHERE = "data.options.parts"


def of_part(split: str) -> str:
    """Returns the name that a split of a mixture has in its own source: what stands behind the part's name."""
    return split.rpartition("/")[2]


def check_parts(parts: Mapping[str, Any], readers: Mapping[str, Any]):
    """Refuses parts that cannot be read, before anything is; whether their folders are there is not looked at.

    Args:
        parts: Name -> its fields; see `read_mixture`.
        readers: The readers by name.

    Raises:
        ValueError: for a part that is no reader's, an unknown option, or a weight that is not above 0.
    """
    if not parts:
        raise ValueError(f"{WHERE} is empty, but a mixture has at least one part, such as {{builtin: {{weight: 1}}}}")
    for name, fields in parts.items():
        _part(name, fields, readers)


def read_mixture(parts: Mapping[str, Any], readers: Mapping[str, Any]) -> Splits:
    """Returns the train splits of several sources as one, and their evaluation splits side by side.

    Names of tasks, groups and evaluation splits begin with the part's, such as `p3/unseen_datasets`. Records of
    training that an evaluation split of another part has too, by their instance or their instruction, are left out
    of training.

    Args:
        parts: By a name of one's own: `source` (a reader; by default the name), `weight` (how often a task of this
            part is drawn, relative to the other parts together; 1 by default), `path` (for readers of a folder), and
            the reader's options.
        readers: The readers by name.

    Raises:
        FileNotFoundError: if the folder of a part is not there; before anything is read.
    """
    train, splits = [], {}
    found = {name: _part(name, fields, readers) for name, fields in parts.items()}
    folders = {
        name: folder_of(path, f"{WHERE}.{name}.path") for name, (reader, _, path, _) in found.items()
        if reader.in_folder
    }  # fmt: skip
    for name, (reader, weight, _, options) in found.items():
        read = reader.read(folders[name], **options) if name in folders else reader.read(**options)
        for split, records in read.items():
            named = [_named(name, record) for record in records]
            if split == "train":
                tasks = len({record.task for record in named})
                train += [dataclasses.replace(record, weight=weight / tasks) for record in named]
            else:
                splits[f"{name}/{split}"] = named
    return {"train": _apart(train, splits), **splits}


def _part(name: str, fields: Any, readers: Mapping[str, Any]):
    """Returns a part's reader, weight, path and options, all checked but the path."""
    where = f"{WHERE}.{name}"
    if not isinstance(name, str) or "/" in name or not isinstance(fields, dict):
        raise ValueError(f"{where} is {fields!r:.200}, but must hold fields such as weight, under a name without '/'")
    source = fields.get("source", name)
    if source not in readers or source == "mixture":
        known = ", ".join(repr(one) for one in readers if one != "mixture")
        raise ValueError(f"{where}.source is {source!r}, but must be one of {known}")
    reader, weight = readers[source], typed(fields.get("weight", 1.0), float, f"{where}.weight")
    if not 0 < weight < float("inf"):
        raise ValueError(f"{where}.weight is {weight!r}, but must be a number above 0; leave the part out instead")
    given = {option: value for option, value in fields.items() if option not in _OWN}
    return reader, weight, fields.get("path"), reader.checked(given, source, where)


def _named(part: str, record: Record) -> Record:
    return dataclasses.replace(record, task=f"{part}/{record.task}", group=f"{part}/{record.group}")


def _apart(train: list[Record], splits: Splits) -> list[Record]:
    """Returns the records of training without those that share an instance or, with another part's evaluation, an
    instruction; new instances of a part's own tasks share their instructions by design."""
    evaluated = [record for records in splits.values() for record in records]
    instances = instance_texts(evaluated)
    others: dict[str, set[str]] = {}  # instruction -> parts that are evaluated on it
    for record in evaluated:
        others.setdefault(normalise_text(record.instruction), set()).add(_part_of(record))
    kept = drop_instances(train, instances)
    return [r for r in kept if not others.get(normalise_text(r.instruction), set()) - {_part_of(r)}]


def _part_of(record: Record) -> str:
    return record.task.partition("/")[0]
