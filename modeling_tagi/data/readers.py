"""The readers of data by name; the rest of the package knows a reader only by its entry here.

To add one, write a function that returns `Splits`, and add a line to `READERS`.
"""

import difflib
import inspect
import typing
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Optional

from ..common.typed import typed
from .builtin import builtin_suite
from .builtin_text import builtin_text
from .mixture import check_parts, read_mixture
from .p3 import read_p3
from .records import Splits
from .sni import read_sni
from .tables import read_folder, read_tables
from .text_functions import text_functions

_NO_OPTIONS = ("folder", "stream")


@dataclass(frozen=True)
class Reader:
    """Describes a reader of data: its function, its options and what comes with the data.

    Args:
        read: Returns the records by split. Its arguments are its options, each with its type, but for two: `folder`
            receives the folder that `data.path` names; with `stream`, the function can return its train split as a
            `RecordStream`, which it makes by `stream(sources)`.
        description: What the data is, for a model card.
        least: The smallest value of options that are numbers.
        text: Returns the passages that come with the data, for a seed; `None` if there are none.
        others: Whether the data belongs to others, so that their terms apply.
        check: Refuses options whose values do not go together, before anything is read.
        splits_of: Reads evaluation splits alone, from a file for each by name; `None` if its files are no splits.
    """

    read: Callable[..., Splits]
    description: str
    least: Mapping[str, int] = field(default_factory=dict)
    text: Optional[Callable[[int], list[str]]] = None
    others: bool = True
    check: Optional[Callable[..., None]] = None
    splits_of: Optional[Callable[..., Splits]] = None

    @property
    def in_folder(self) -> bool:
        return "folder" in inspect.signature(self.read).parameters

    @property
    def streams(self) -> bool:
        return "stream" in inspect.signature(self.read).parameters

    @property
    def options(self) -> dict[str, Any]:
        """Returns the type of each option by its name."""
        hints = typing.get_type_hints(self.read)
        return {name: hints.get(name, object) for name in inspect.signature(self.read).parameters
                if name not in _NO_OPTIONS}  # fmt: skip

    def checked(self, options: Optional[Mapping[str, Any]], name: str, where: str = "data.options") -> dict[str, Any]:
        """Returns the options for the reader called `name`, checked and converted to their types.

        Raises:
            ValueError: for an option that it does not know, or a value that is not allowed.
        """
        known, made = self.options, {}
        for option, value in (options or {}).items():
            if option not in known:
                close = difflib.get_close_matches(str(option), known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"{where} has {option!r}, but {name} takes {', '.join(known) or 'none'}{hint}")
            made[option] = value = typed(value, known[option], f"{where}.{option}")
            least = self.least.get(option)
            if least is not None and value is not None and value < least:
                raise ValueError(f"{where}.{option} is {value}, but must be {least} or more")
        if self.check is not None:
            self.check(**made)
        return made


def _read_mixture(parts: dict) -> Splits:
    return read_mixture(parts, READERS)


def _check_mixture(parts: Optional[dict] = None):
    check_parts(parts or {}, READERS)


DEFAULT = "tables"  # what a folder or a file is read by where no reader is named
READERS: dict[str, Reader] = {
    "builtin": Reader(
        builtin_suite, "a suite of instruction tasks that the package makes itself",
        least={"train_instances": 1, "eval_instances": 1}, text=builtin_text, others=False,
    ),
    "p3": Reader(
        read_p3, "P3, the prompted data sets that T0 was trained on",
        least={"held_out_templates": 0, "max_per_template": 1, "max_eval_per_task": 1, "max_input_words": 1,
               "max_target_words": 1},
    ),
    "sni": Reader(
        read_sni, "Super-NaturalInstructions",
        least={"max_train_instances": 1, "max_eval_instances": 1, "positive_examples": 0, "seen_instances": 0},
    ),
    DEFAULT: Reader(read_folder, "a collection of its own", splits_of=read_tables),
    "text_functions": Reader(
        text_functions, "text functions that the package makes from passages of English",
        least={"train_instances": 1, "eval_instances": 1, "wordings": 1},
    ),
    "mixture": Reader(_read_mixture, "a mixture of several sources", check=_check_mixture),
}  # fmt: skip


def reader_of(source: Any) -> Reader:
    """Returns the reader of that name.

    Raises:
        ValueError: if there is none.
    """
    if source not in READERS:
        raise ValueError(f"data.source is {source!r}, but must be one of {', '.join(map(repr, READERS))}")
    return READERS[source]
