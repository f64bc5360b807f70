"""Text functions: small tasks that people want functions for, made from the user's own passages of English.

Extracting, formatting, selecting, counting, comparing, replacing, sorting, deciding, and two of these at once; right
outputs are exact, since the program that makes an instance computes them. To add a family, write a `Function` in one
of the files.
"""

import random
from pathlib import Path
from typing import Union

from ...common.seeds import derived_seed
from ..records import Record, Splits
from ..splits import drop_instances, instance_texts
from ..text import read_text
from . import change, compose, count, decide, extract, formats, select
from .function import Function
from .texts import Texts

FUNCTIONS: dict[str, Function] = {
    function.name: function
    for module in (select, extract, formats, count, change, decide, compose)
    for function in module.FUNCTIONS
}
UNSEEN_SHARE, DEV_SHARE = 0.15, 0.08  # of a family's arguments, if it has so many
NEW_FAMILIES, DEV_FAMILIES = 14, 5
FEWEST_SENTENCES = 200


def text_functions(
    folder: Union[str, Path],
    seed: int = 0,
    train_instances: int = 40,
    eval_instances: int = 6,
    wordings: int = 6,
) -> Splits:
    """Returns the records of seven splits, "train" and six by how far they are from training.

    "seen_tasks" has new instances of trained tasks in trained wordings, "new_wordings" has other wordings of them;
    "dev" and "unseen" have arguments kept out of families that are trained, "dev_families" and "new_families" whole
    families that are not. No sentence of an evaluation split is in training. A task is a family with arguments, its
    group is the family.

    Args:
        folder: A file or folder of text, as `data.text`: what inputs are made of.
        seed: Seeds all choices.
        train_instances: Instances of each trained task.
        eval_instances: Instances of each task in an evaluation split.
        wordings: Instructions of each trained task.

    Raises:
        FileNotFoundError, ValueError: for a text that cannot be read, or has too few plain sentences.
    """
    passages = read_text(folder)
    random.Random(derived_seed(seed, "text functions", "passages")).shuffle(passages)
    kept_out = len(passages) // 5
    known, new = Texts.of(passages[kept_out:]), Texts.of(passages[:kept_out])
    new = Texts([sentence for sentence in new.sentences if sentence not in set(known.sentences)], new.words)
    if min(len(known.sentences), len(new.sentences)) < FEWEST_SENTENCES:
        raise ValueError(
            f"{folder} has {len(known.sentences)} plain sentences of 4 to 16 words to train on and "
            f"{len(new.sentences)} to evaluate on, but text functions need {FEWEST_SENTENCES} of each; give more "
            "English prose"
        )
    splits: Splits = {}
    for split, tasks in _tasks(seed).items():
        trained = split == "train"
        texts, number = (known, train_instances) if trained else (new, eval_instances)
        splits[split] = [
            record
            for function, arguments in tasks
            for record in _records(seed, split, function, arguments, texts, number, wordings)
        ]
    seen = instance_texts(splits["train"])
    return {name: records if name == "train" else drop_instances(records, seen) for name, records in splits.items()}


def _tasks(seed: int) -> dict[str, list[tuple[Function, tuple]]]:
    """Returns the tasks of each split."""
    rng = random.Random(derived_seed(seed, "text functions", "tasks"))
    names = rng.sample(list(FUNCTIONS), NEW_FAMILIES + DEV_FAMILIES)
    new, dev = set(names[:NEW_FAMILIES]), set(names[NEW_FAMILIES:])
    tasks = {name: [] for name in ("train", "dev", "unseen", "dev_families", "new_families", "new_wordings")}
    for name, function in FUNCTIONS.items():
        arguments = rng.sample(list(function.arguments), len(function.arguments))
        if name in new | dev:
            tasks["new_families" if name in new else "dev_families"] += [(function, one) for one in arguments[:6]]
            continue
        unseen = round(UNSEEN_SHARE * len(arguments))
        held_out = unseen + round(DEV_SHARE * len(arguments))
        tasks["unseen"] += [(function, one) for one in arguments[:unseen]]
        tasks["dev"] += [(function, one) for one in arguments[unseen:held_out]]
        tasks["train"] += [(function, one) for one in arguments[held_out:]]
        tasks["new_wordings"].append((function, arguments[held_out]))
    tasks["seen_tasks"] = rng.sample(tasks["train"], len(tasks["train"]) // 8)
    return tasks


def _records(seed, split, function, arguments, texts, number, wordings) -> list[Record]:
    flat = [x for part in arguments for x in (part if isinstance(part, tuple) else (part,))]
    name = "-".join([function.name, *map(str, flat)])
    drawn = random.Random(derived_seed(seed, "text functions", split, name))
    said = random.Random(derived_seed(seed, "text functions", "wordings", name))
    instructions = [function.instruction(arguments, said) for _ in range(wordings)]  # the same for seen tasks
    if split == "new_wordings":
        instructions = [function.instruction(arguments, drawn, new=True) for _ in range(2)]
    records = {}
    for instance in range(number):
        found = function.instance(drawn, texts, arguments)
        if found is None:  # a task that cannot be made from these texts
            return []
        text, target, options = found
        instruction = instructions[instance % len(instructions)]
        records[instruction, text] = Record(name, instruction, text, (target,), function.name, options=options)
    return list(records.values())
