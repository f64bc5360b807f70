"""The built-in suite: instruction tasks about lists of words from a small world of 64 nouns.

Everything is generated, so a hypernetwork for a tiny T5 can be trained and tested without a download. A task is a
family with its arguments ("nth_word:third"), an instance is a list of 5 to 8 nouns. Some (family, argument) pairs
are held out; their words are arguments of other tasks in training.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Callable

from . import builtin_english, builtin_families
from .builtin_english import english_instruction
from .builtin_families import FAMILIES, NOUNS, plain_instruction
from .records import Record, Splits

UNSEEN_SHARE, DEV_SHARE = 0.16, 0.07
NEW_WORDINGS_PER_FAMILY = 3


@dataclass(frozen=True)
class Style:
    """Holds a way to write the suite's instructions and lists.

    Args:
        instruction: Returns an instruction, from the family's name, the task's arguments and the wording's number.
        train, new: The numbers of the wordings that are trained on, and of those kept for "new_wordings".
        between: What stands between the words of a list.
    """

    instruction: Callable[[str, tuple[str, ...], int], str]
    train: range
    new: range
    between: str


PLAIN = Style(plain_instruction, builtin_families.TRAIN_WORDINGS, builtin_families.NEW_WORDINGS, " ")
STYLES = {
    "plain": PLAIN,
    "english": Style(english_instruction, builtin_english.TRAIN_WORDINGS, builtin_english.NEW_WORDINGS, ", "),
}


def _draw(rng, include=(), exclude=(), evaluation=False):
    """Returns a list of five to eight words.

    A checksum of the list decides whether it belongs to evaluation or to training, so the two never share an input,
    whichever tasks draw it.
    """
    rest = [noun for noun in NOUNS if noun not in include and noun not in exclude]
    while True:
        words = [*include, *rng.sample(rest, rng.randint(5, 8) - len(include))]
        rng.shuffle(words)
        if (zlib.crc32(" ".join(words).encode()) % 4 == 0) == evaluation:
            return words


def _records(seed, split, name, arguments, instances, style):
    """Returns the records of one task in one split."""
    family, task = FAMILIES[name], f"{name}:{','.join(arguments)}"
    rng = random.Random(f"{seed} {task} {split}")
    options = family.options(*arguments) if family.options else None
    wordings = style.new if split == "new_wordings" else style.train
    turn, records, used = max(4, len(wordings)), [], set()
    while len(records) < instances:
        i = len(records)
        words = _draw(rng, *family.plan(rng, *arguments), evaluation=split != "train")
        text, target = " ".join(words), family.answer(words, *arguments)
        # i // turn keeps the answer from correlating with the wording.
        if target is None or text in used or (options and target != options[(i + i // turn) % 2]):
            continue
        used.add(text)
        instruction = style.instruction(name, arguments, wordings[i % len(wordings)])
        text, target = text.replace(" ", style.between), target.replace(" ", style.between)
        records.append(Record(task, instruction, text, (target,), group=name, options=options))
    return records


def _words(tasks, wordings):
    """Returns the words that occur in the tasks' plain instructions."""
    return {
        word
        for name, arguments in tasks
        for wording in wordings
        for word in plain_instruction(name, arguments, wording).split()
    }


def _assign(seed):
    """Returns the tasks of each split as (family, arguments); redraws until every evaluated word is also trained."""
    for attempt in range(1000):
        tasks = {"train": [], "dev": [], "unseen": [], "new_wordings": []}
        for name, family in FAMILIES.items():
            chosen = random.Random(f"{seed} {name} {attempt}").sample(family.arguments, family.tasks)
            unseen = max(1, round(UNSEEN_SHARE * family.tasks))
            held_out = unseen + max(1, round(DEV_SHARE * family.tasks))
            tasks["unseen"] += [(name, arguments) for arguments in chosen[:unseen]]
            tasks["dev"] += [(name, arguments) for arguments in chosen[unseen:held_out]]
            tasks["train"] += [(name, arguments) for arguments in chosen[held_out:]]
            tasks["new_wordings"] += [(name, arguments) for arguments in chosen[held_out:][:NEW_WORDINGS_PER_FAMILY]]
        evaluated = _words(tasks["dev"] + tasks["unseen"], PLAIN.train)
        if evaluated | _words(tasks["new_wordings"], PLAIN.new) <= _words(tasks["train"], PLAIN.train):
            return tasks
    raise RuntimeError("a wording of the built-in suite has a word that no trained wording has")


def builtin_suite(
    seed: int = 0, train_instances: int = 40, eval_instances: int = 10, wordings: str = "plain"
) -> Splits:
    """Returns the records of the splits "train", "dev", "unseen" and "new_wordings".

    "dev" and "unseen" hold tasks that are not trained on; "new_wordings" holds trained tasks in wordings that are not
    trained on. No input of "train" occurs in another split.

    Args:
        seed: Seeds which tasks are held out, and the lists.
        train_instances: Records of a task in "train".
        eval_instances: Records of a task in each other split.
        wordings: "plain" (few words, lower case, for a vocabulary that is learnt from the suite) or "english" (as
            people write, for a language model that has read much text), a key of `STYLES`. The tasks are the same.

    Raises:
        ValueError: for other wordings.
    """
    if wordings not in STYLES:
        raise ValueError(
            f"the built-in suite has no wordings {wordings!r}; give wordings as one of {', '.join(STYLES)}"
        )
    style = STYLES[wordings]
    return {
        split: [
            record
            for name, arguments in tasks
            for record in _records(
                seed, split, name, arguments, train_instances if split == "train" else eval_instances, style
            )
        ]
        for split, tasks in _assign(seed).items()
    }
