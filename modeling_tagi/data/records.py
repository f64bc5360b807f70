"""The one record shape that every data source is read into."""

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Optional

from ..common.json_text import is_unicode


@dataclass(frozen=True, slots=True)
class Record:
    """Holds one example of one task.

    Args:
        task: Name of the task. Records of one task may carry different wordings of its instruction.
        instruction: What to do, in natural language. Never contains the instance.
        input: The instance.
        targets: Accepted outputs, at least one. Training uses the first, metrics take the best.
        group: What a task adapter may be shared over (SNI: category, P3: data set). Defaults to the task.
        demonstrations: Worked examples that belong to the instruction, as (input, output) pairs.
        options: Candidate outputs for rank classification; holds the first target.
        weight: How often its task is drawn for training, relative to other tasks.

    Raises:
        ValueError: if a text is empty or has a lone surrogate, there is no target, the first target is not among the
            options, or one option is there twice.
    """

    task: str
    instruction: str
    input: str
    targets: tuple[str, ...]
    group: str = ""
    demonstrations: tuple[tuple[str, str], ...] = ()
    options: Optional[tuple[str, ...]] = None
    weight: float = 1.0

    def __post_init__(self):
        for name in ("task", "instruction", "input"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f"record of task {self.task!r}: {name} is {value!r}, but must be a text that is not empty"
                )
        if isinstance(self.targets, str):
            raise ValueError(f"record of task {self.task!r}: targets is a text; give a list, [{self.targets!r}]")
        _set = object.__setattr__
        _set(self, "targets", tuple(self.targets or ()))
        _set(self, "group", self.group or self.task)
        _set(self, "demonstrations", tuple((str(i), str(o)) for i, o in self.demonstrations or ()))
        _set(self, "options", tuple(self.options) if self.options else None)
        if not self.targets or not all(isinstance(t, str) and t.strip() for t in self.targets):
            raise ValueError(
                f"record of task {self.task!r} with input {self.input[:60]!r}: targets is {list(self.targets)!r}, "
                "but must hold at least one text, none of them empty"
            )
        if self.options is not None and self.targets[0] not in self.options:
            raise ValueError(
                f"record of task {self.task!r} with input {self.input[:60]!r}: the target {self.targets[0]!r} "
                f"is not among the options {list(self.options)!r}"
            )
        if self.options is not None and len(set(self.options)) < len(self.options):
            twice = next(option for option in self.options if self.options.count(option) > 1)
            raise ValueError(
                f"record of task {self.task!r} with input {self.input[:60]!r}: the option {twice!r} is there twice; "
                "take one of them out"
            )
        for text in self._texts():
            if not is_unicode(text):
                raise ValueError(
                    f"record of task {self.task!r}: the text {text[:60]!r} has a lone surrogate, which is half a "
                    "character and no Unicode; mend or remove it"
                )

    def _texts(self):
        yield from (self.task, self.group, self.instruction, self.input, *self.targets)
        yield from (text for pair in self.demonstrations for text in pair)
        yield from self.options or ()


_everything = attrgetter(*(field.name for field in fields(Record) if field.name != "weight"))


def record_bytes(record: Record) -> bytes:
    """Returns all fields of a record as bytes to hash; two different records give different bytes."""
    weight = "" if record.weight == 1 else f" {record.weight!r}"  # records were hashed before there was one
    return f"{_everything(record)!r}{weight}".encode("utf-8", "surrogatepass")


# What every reader returns: the records of each split, by the split's name. Only "train" is ever trained on.
Splits = dict[str, list[Record]]
