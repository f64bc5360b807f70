"""A family of text functions, and the wordings of their instructions."""

import random
from dataclasses import dataclass, field
from typing import Callable, Optional, Sequence

from .texts import Texts

# What stands around a wording, from terse to chatty.
_AROUND = (
    "{0}",
    "{0}",
    "{0} Reply with the answer only.",
    "Task: {0}",
    "You will get a text. {0}",
    "Please help me with this: {0}",
    "{0} Write nothing else.",
    "I have a long column of texts and want the same thing done to each of them. {0} No explanation is needed, just "
    "the result.",
    "Hi! Could you do something for me? {0} Thanks a lot.",
    "Instruction: {0} Output format: just the result, on one line.",
    "Imagine you are a small function in a program that gets a text and returns a text. {0}",
)  # fmt: skip
_NONE = (
    'If there is none, write "none".',
    'Write "none" if there is nothing to return.',
    'Answer "none" when nothing fits.',
)
NONE = "none"


@dataclass(frozen=True)
class Function:
    """Holds a family of tasks, which differ in their arguments alone.

    Args:
        name: The family's.
        make: Draws an instance from the random stream, the texts and the arguments: its input and its right output,
            or `None` if what was drawn does not fit. With options the last argument is a pair of labels, and it
            returns an input and whether the first label is right.
        wordings: Sentences that say what to do, one a line, with the arguments as `{0}`, `{1}`; the last is kept for
            new wordings.
        arguments: The tuples of arguments to choose from.
        none: Whether the output may be "none", of which instructions then tell.
        decides: Whether the last argument is a pair of labels, one of which is the output.
    """

    name: str
    make: Callable
    wordings: str
    arguments: Sequence[tuple] = field(default=((),))
    none: bool = False
    decides: bool = False

    def lines(self) -> list[str]:
        return [line.strip() for line in self.wordings.strip().splitlines()]

    def instruction(self, arguments: tuple, rng: random.Random, new: bool = False) -> str:
        """Returns a wording drawn from those for training, or a `new` one."""
        lines = self.lines()
        chosen = lines[-1] if new else rng.choice(lines[:-1])
        flat = [*arguments[:-1], *arguments[-1]] if self.decides else list(arguments)
        text = chosen.format(*flat)
        if self.none:
            text = f"{text} {rng.choice(_NONE)}"
        return rng.choice(_AROUND).format(text)

    def instance(
        self, rng: random.Random, texts: Texts, arguments: tuple
    ) -> Optional[tuple[str, str, Optional[tuple[str, str]]]]:
        """Returns an input, its output and, for a decision, the options; `None` if the texts give none, such as no
        sentence with the word that is asked for. Decisions are balanced by a coin."""
        if not self.decides:
            for _ in range(500):
                found = self.make(rng, texts, *arguments)
                if found is not None and found[0].strip():
                    return found[0], found[1].strip() or NONE, None
        else:
            *others, labels = arguments
            wanted = rng.random() < 0.5
            for _ in range(2000):
                found = self.make(rng, texts, *others)
                if found is not None and found[1] == wanted:
                    return found[0], labels[0] if wanted else labels[1], labels
        return None
