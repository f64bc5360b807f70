"""What a case of a hostile folder is."""

from dataclasses import dataclass
from typing import Callable, Iterable, Optional


@dataclass(frozen=True)
class Case:
    """A folder that someone spoiled.

    Args:
        name: What is planted.
        plant: Spoils a place of `hostile_world`.
        door: Takes the place as a user would.
        words: A pattern that the refusal's one line has; `None` if the door opens, and nothing of the planted happens.
        slow: Whether only the long run has it.
    """

    name: str
    plant: Callable
    door: Callable
    words: Optional[str]
    slow: bool = False


def share(cases: Iterable[Case], every: int) -> list[Case]:
    """Returns cases of a grid, of which the default run has one in `every`."""
    return [Case(case.name, case.plant, case.door, case.words, slow=number % every > 0)
            for number, case in enumerate(cases)]  # fmt: skip
