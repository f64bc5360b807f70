"""Instructions to put in the place of a task's own: another task's, or random words."""

import random
from collections import defaultdict
from typing import Sequence

from ..common.seeds import derived_seed
from ..data.records import Record
from ..tokens import instruction_text


def wrong_instructions(records: Sequence[Record], seed: int = 0) -> dict[str, str]:
    """Returns for each task the instruction of another, from another group where there is one, drawn by `seed`.

    Give the records of all splits: in a split of its own, a data set has no other group. A task is left out if no
    other has an instruction that is not also its own.
    """
    first: dict[str, Record] = {}
    own = defaultdict(set)
    for record in records:
        first.setdefault(record.task, record)
        own[record.task].add(record.instruction)
    tasks, rng, wrong = sorted(first), random.Random(seed), {}
    for task in tasks:
        others = [first[other] for other in tasks if first[other].instruction not in own[task]]
        others = [other for other in others if other.group != first[task].group] or others
        if others:
            other = rng.choice(others)
            wrong[task] = instruction_text(other.instruction, other.demonstrations)
    return wrong


def random_word_instructions(records: Sequence[Record], seed: int = 0) -> dict[str, str]:
    """Returns for each task as many words as its instruction has, drawn by `seed` from the words of the other tasks.

    None of them is a word of the task's own; it is left out if no other task has such a word.
    """
    own: dict[str, set[str]] = {}
    lengths: dict[str, int] = {}
    for record in records:
        own.setdefault(record.task, set()).update(record.instruction.split())
        lengths.setdefault(record.task, len(instruction_text(record.instruction, record.demonstrations).split()))
    vocabulary = sorted(set().union(*own.values()))
    drawn = {}
    for task in sorted(own):
        plain = {word.lower() for word in own[task]}
        foreign = [word for word in vocabulary if word.lower() not in plain]
        if foreign:
            # by the task's name, so that a task has the same words whatever else is evaluated beside it
            drawn[task] = " ".join(random.Random(derived_seed(seed, task)).choices(foreign, k=lengths[task]))
    return drawn
