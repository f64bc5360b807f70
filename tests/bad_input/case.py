"""What a case of bad input is: how its input is made, what is called, and what is to become of it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

from forked import Child, Outcome, start, start_process, tagi, train

__all__ = [
    "Case", "Child", "Either", "Fine", "Outcome", "Place", "Refused", "tagi", "train", "tagi_case", "train_case",
]  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """Ends in one message, and changes nothing.

    Args:
        words: Patterns that the message must hold: what is wrong, and where.
        code: Its exit code; `None` is 2 from the shell, for what the user can mend.
        late: Whether it can be known only when work is under way, such as a disk that is full.
    """

    words: tuple[str, ...]
    code: Optional[int] = None
    late: bool = False


@dataclass(frozen=True)
class Fine:
    """Ends well.

    Args:
        check: Says what is wrong with the result; `None` if nothing is.
        replaces: Whether what lay in the output folder may be replaced.
    """

    check: Optional[Callable[["Place", Outcome], Optional[str]]] = None
    replaces: bool = False


@dataclass(frozen=True)
class Either:
    """Is refused, or ends well: both are right."""

    refused: Refused
    fine: Fine = Fine()


Expected = Union[Refused, Fine, Either]


class Place:
    """Where one case happens: a folder of its own, below others that it must leave alone.

    Args:
        world: What all cases share.
        root: The case's folder, which is watched.
        logs: Where what commands write goes.
    """

    def __init__(self, world, root: Path, logs: Path):
        self.world, self.root, self.logs = world, root, logs
        self.here = root / "outer" / "here"
        self.here.mkdir(parents=True)
        self.out = self.here / "out"
        self._calls = 0

    def filled(self, text: str) -> str:
        """`text` with the places that it names, such as `<here>` or `<model>`."""
        if not isinstance(text, str):
            return text
        names = {"here": self.here, "out": self.out, **self.world.places()}
        return re.sub(r"<(\w+)>", lambda found: str(names.get(found[1], found[0])), text)

    def start(self, program: Callable, *arguments, process: Sequence[str] = (), **options) -> Child:
        """Starts a command in the case's folder; with `process`, as a process of its own, which that begins with."""
        arguments = [self.filled(text) for text in arguments]
        log, self._calls = self.logs / f"{self.root.name}-{self._calls}", self._calls + 1
        if process:
            return start_process([*process, *arguments], self.here, log, **options)
        name = {"train": "train.py", "tagi": "tagi"}.get(program.__name__, "module")
        return start(program, [name, *arguments], self.here, log, **options)

    def call(self, program: Callable, *arguments, **options) -> Outcome:
        """Runs a command to its end."""
        return self.start(program, *arguments, **options).wait()

    def train(self, *fields, out: str = "<out>", **options) -> Outcome:
        """Runs the tiny run with these fields."""
        return self.call(train, "<config>", "--output_dir", out, *fields, **options)


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        name: What the input is.
        act: Runs what is judged; earlier calls of the same case are its own business.
        expects: What is to become of it.
        make: Makes the input; what it leaves must still be there afterwards.
        writes: Where output may go, below the case's folder.
        needs_mounts: Whether it needs a file system of its own.
        where: `shell` or `python`.
    """

    name: str
    act: Callable[[Place], Outcome]
    expects: Expected
    make: Optional[Callable[[Place], None]] = None
    writes: tuple[str, ...] = ("out",)
    needs_mounts: bool = False
    where: str = "shell"
    tags: frozenset = field(default_factory=frozenset)


def tagi_case(name: str, arguments: Sequence[str], expects: Expected, make=None, writes=("out",), **options) -> Case:
    """A case of `tagi` with these arguments."""
    return Case(name, lambda place: place.call(tagi, *arguments, **options), expects, make, tuple(writes))


def train_case(name: str, fields: Sequence[str], expects: Expected, make=None, writes=("out",), **options) -> Case:
    """A case of the tiny run with these fields, or of the configuration that comes first among them."""
    fields = list(fields)
    config = "<config>" if not fields or fields[0].startswith("--") else fields.pop(0)
    out = [] if "--output_dir" in fields else ["--output_dir", "<out>"]
    return Case(
        name, lambda place: place.call(train, config, *out, *fields, **options), expects, make, tuple(writes)
    )  # fmt: skip
