"""Super-NaturalInstructions: a folder with tasks/ and splits/ as in allenai/natural-instructions."""

import logging
import random
from pathlib import Path
from typing import Any, Iterable, Union

from ..common.json_text import not_utf8, parse_json
from ..common.names import require_names
from .records import Record, Splits
from .splits import cap_tasks, drop_instances, instance_texts, normalise_text

logger = logging.getLogger(__name__)

LANGUAGES = ("Input_language", "Output_language", "Instruction_language")


def read_sni(
    folder: Union[str, Path],
    split_file_dir: str = "splits/default",
    max_train_instances: int = 100,  # the paper's, as is the next
    max_eval_instances: int = 100,
    positive_examples: int = 0,
    seen_instances: int = 30,
    seed: int = 0,
    first_eval_instances: bool = False,
) -> Splits:
    """Returns the English tasks: "train", "seen_tasks" (further instances of those) and "unseen" (other tasks).

    The instruction is the first definition, the group the first category; there are no options. An instance is left
    out if it has no output, repeats another of its task, or is among the task's positive examples. An evaluation
    instance is also left out if a training task has its input (for "seen_tasks": if an instance trained on has it).

    Args:
        folder: Holds `tasks/<task>.json`.
        split_file_dir: Folder of `train_tasks.txt` and `test_tasks.txt` within `folder`, a task a line.
        max_train_instances: Most instances of a task in "train".
        max_eval_instances: Most instances of a task in "unseen".
        positive_examples: Demonstrations of each record, the first of the task's (2 in the paper's Def + 2 Pos).
        seen_instances: Most instances of a task in "seen_tasks", disjoint from its training instances.
        seed: Seeds the shuffle by which instances are drawn; a smaller limit keeps a part of a larger one's instances.
        first_eval_instances: Whether "unseen" has the first instances of each task, as SNI's script has, instead of
            drawn ones.

    Raises:
        FileNotFoundError: if a list of tasks or a task of it is missing.
        ValueError: if a task has not the SNI schema, is in both lists, or a list has no English task.
    """
    folder = Path(folder)
    limits = {
        "max_train_instances": max_train_instances,
        "max_eval_instances": max_eval_instances,
        "positive_examples": positive_examples,
        "seen_instances": seen_instances,
    }
    for name, value in limits.items():
        if value < 0:
            raise ValueError(f"{name} is {value}, but must be 0 or more")
    tasks = _read_tasks(folder / "tasks", folder / split_file_dir, positive_examples)
    train, seen = [], []
    for records in tasks["train"]:
        random.Random(f"{seed}/{records[0].task}").shuffle(records)
        train += records[:max_train_instances]
        # From the end, so that the same instances are evaluated whatever the number trained on.
        seen += records[max(max_train_instances, len(records) - seen_instances):]
    seen_new = drop_instances(seen, instance_texts(train))
    test = [record for records in tasks["test"] for record in records]
    test_new = drop_instances(test, instance_texts(record for records in tasks["train"] for record in records))
    logger.info("SNI: left out %d instances of seen_tasks and %d of unseen whose input a training task has",
                len(seen) - len(seen_new), len(test) - len(test_new))
    if first_eval_instances:
        unseen = _first_of_each(test_new, max_eval_instances)
    else:
        unseen = cap_tasks(test_new, max_eval_instances, seed)
    return {"train": train, "seen_tasks": seen_new, "unseen": unseen}


def _read_tasks(folder: Path, lists: Path, positive_examples: int) -> dict[str, list[list[Record]]]:
    """Reads the records of each English task that has some, of "train" and of "test"."""
    files = {split: lists / f"{split}_tasks.txt" for split in ("train", "test")}
    names = {split: _task_names(file) for split, file in files.items()}
    both = sorted(set(names["train"]) & set(names["test"]))
    if both:
        raise ValueError(f"{lists}: {both} are in train_tasks and test_tasks; keep each in one")
    tasks = {}
    for split, file in files.items():
        read = (_read_task(folder / f"{name}.json", positive_examples) for name in names[split])
        tasks[split] = [records for records in read if records]
        if not tasks[split]:
            raise ValueError(f"{file} names no English task with instances")
    return tasks


def _first_of_each(records: Iterable[Record], most: int) -> list[Record]:
    """Returns the first records of each task."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    return [record for of_task in by_task.values() for record in of_task[:most]]


def _task_names(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; it must name the tasks of the split, one a line")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    require_names(filter(None, names), path)
    return list(dict.fromkeys(name for name in names if name))


def _read_task(path: Path, positive_examples: int) -> list[Record]:
    """Reads the records of one task in the file's order; none if the task is not English."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file, though a list of tasks names it; add it or take the name out")
    try:
        task = parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); replace the file") from None
    try:
        if any(task.get(field, ["English"]) != ["English"] for field in LANGUAGES):
            logger.info("SNI: left out %s, which is not in English only", path.stem)
            return []
        definition, group = _first(task["Definition"]).strip(), _first(task["Categories"])
        examples = [(example["input"], _first(example["output"])) for example in task["Positive Examples"]]
        met = {normalise_text(text) for text, _ in examples}
        records = []
        for instance in task["Instances"]:
            outputs = [instance["output"]] if isinstance(instance["output"], str) else instance["output"]
            outputs = [output for output in outputs if output.strip()]
            text = normalise_text(instance["input"])
            if not outputs or not text or text in met:
                continue
            met.add(text)
            records.append(
                Record(path.stem, definition, instance["input"], outputs, group, examples[:positive_examples])
            )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has not the schema of SNI ({type(error).__name__}: {error}); it must be an object with the lists "
            "Definition, Categories, Positive Examples and Instances (input, output)"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    left_out = len(task["Instances"]) - len(records)
    if left_out:
        logger.info("SNI: left out %d empty or repeated instances of %s", left_out, path.stem)
    return records


def _first(value: Any) -> str:
    """Returns `value` itself if it is a text, else its first entry: SNI has both forms."""
    return value if isinstance(value, str) else value[0]
