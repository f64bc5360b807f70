"""P3, the prompted data sets of T0, with prompt templates told apart from instances; a task is one template."""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Optional, Union

from ..common.json_text import parse_json
from ..common.names import require_names
from .records import Record, Splits
from .splits import cap_tasks, drop_duplicates, drop_instances, normalise_text, shared_instances
from .streams import RecordStream
from .tables import field, read_json_rows

logger = logging.getLogger(__name__)


def read_p3(
    folder: Union[str, Path],
    held_out_templates: int = 1,
    max_per_template: Optional[int] = None,
    seed: int = 0,
    max_eval_per_task: Optional[int] = None,
    max_input_words: Optional[int] = None,
    max_target_words: Optional[int] = None,
    stream: Optional[Callable[..., RecordStream]] = None,
) -> Splits:
    """Returns P3 in five splits: "train", and four to evaluate on, by how far they are from training.

    "seen_templates" has new instances of the templates trained on, and "unseen_templates" the same instances through
    templates kept out of training; "valid_datasets" and "unseen_datasets" have data sets kept out of training. The
    instruction is the template's text; the group is the data set. The reader drops records whose template and instance
    could not be told apart, records that repeat another, evaluation records whose input is also in the training fold,
    and from the last three splits the records whose wording is trained on.

    Args:
        folder: Holds `splits.json` and `{train,valid,test}/<data set>.jsonl.gz`.
        held_out_templates: Templates kept out of each training data set that has at least 4; at least 2, unless 0,
            where it has 9 or more. A template whose wording another training template shares is never kept out.
        max_per_template: Most training records of a template; None for all.
        seed: Seeds the choice of templates and records.
        max_eval_per_task: Most records of a task in each evaluation split; None for all.
        max_input_words, max_target_words: Longest input and target of a record, in every split; longer ones are left
            out instead of cut, since the answer could be in what is cut off. None for all.
        stream: Makes a stream of the train split, instead of reading all of its records; repeated ones stay in it.

    Raises:
        FileNotFoundError: if `splits.json` or a file that it calls for is missing.
        ValueError: if a file cannot be read, a field is missing, or a data set is in two splits.
    """
    folder = Path(folder)
    if held_out_templates < 0:
        raise ValueError(f"held_out_templates is {held_out_templates}, but must be 0 or more")
    if stream is not None and max_per_template is not None:
        raise ValueError(
            "max_per_template draws from all records, and data.streaming reads them one by one: leave one of them out"
        )
    datasets = _datasets(folder / "splits.json")
    files = {part: [folder / part / f"{name}.jsonl.gz" for name in names] for part, names in datasets.items()}
    folds, read_folds = {}, partial(_folds, input_words=max_input_words, target_words=max_target_words)
    for part in ("valid", "test"):
        folds[part] = [record for file in files[part] for _, record in read_folds(file, (part,))]
    train, dev, kept_out = _train_and_dev(files["train"], read_folds, held_out_templates, seed, stream)
    evaluated = _new_to_training(train, {
        "seen_templates": [record for record in dev if record.task not in kept_out],
        "unseen_templates": [record for record in dev if record.task in kept_out],
        "valid_datasets": folds["valid"],
        "unseen_datasets": folds["test"],
    })  # fmt: skip
    splits = {name: cap_tasks(records, max_eval_per_task, seed) for name, records in evaluated.items()}
    return {"train": train if stream is not None else cap_tasks(train, max_per_template, seed), **splits}


def _train_and_dev(
    files: list[Path],
    read_folds: Callable[..., Iterator[tuple[str, Record]]],
    held_out_templates: int,
    seed: int,
    stream: Optional[Callable[..., RecordStream]],
) -> tuple[Union[list[Record], RecordStream], list[Record], set[str]]:
    """Reads the data sets that are trained on.

    Returns:
        The training records without those of templates kept out, the records of the fold "dev", and these templates.
    """
    read = (pair for file in files for pair in read_folds(file, ("train", "dev")))
    if stream is not None:
        dev: list[Record] = []
        kept_out = _choose_templates(_passing(read, "dev", dev), held_out_templates, seed)
        sources = [partial(_training_records, partial(read_folds, file), kept_out) for file in files]
        return stream(sources), dev, kept_out
    folds: dict[str, list[Record]] = {"train": [], "dev": []}
    for fold, record in read:
        folds[fold].append(record)
    kept_out = _choose_templates(folds["train"] + folds["dev"], held_out_templates, seed)
    train = drop_duplicates(record for record in folds["train"] if record.task not in kept_out)
    return train, folds["dev"], kept_out


def _new_to_training(train: Iterable[Record], splits: Splits) -> Splits:
    """Returns evaluation splits without repeated records, and without inputs and wordings that are trained on.

    All that may be trained on counts, so that `max_per_template` does not change what is evaluated.
    """
    evaluated = [record for records in splits.values() for record in records]
    seen, wordings = shared_instances(train, evaluated), {normalise_text(record.instruction) for record in train}
    kept = {}
    for name, records in splits.items():
        unique = drop_duplicates(records)
        new = drop_instances(unique, seen)
        logger.info("P3: left out %d repeated records of %s and %d whose input is in train",
                    len(records) - len(unique), name, len(unique) - len(new))
        if name != "seen_templates":  # a new data set may come with a wording that another one has in training
            new = [record for record in new if normalise_text(record.instruction) not in wordings]
        kept[name] = new
    return kept


def read_t0_eval(folder: Union[str, Path], max_eval_per_task: Optional[int] = None, seed: int = 0) -> Splits:
    """Returns a split `t0_<name>` for each `<name>.jsonl.gz` in `folder`: official validation records, with options.

    Args:
        folder: Holds files such as `rte.jsonl.gz`, each instance through every template.
        max_eval_per_task: Most records of a template; None for all.
        seed: Seeds the draw of these.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file cannot be read, a field is missing or a record has no options to rank.
    """
    paths = sorted(Path(folder).glob("*.jsonl.gz"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no file that ends in .jsonl.gz; give the folder with rte.jsonl.gz")
    splits = {}
    for path in paths:
        records = drop_duplicates(record for split, record in _read(path, "split") if split == "validation")
        unranked = sum(record.options is None for record in records)
        if unranked:
            raise ValueError(f"{path}: {unranked} validation records have no options to rank; add them to the file")
        splits[f"t0_{path.name.removesuffix('.jsonl.gz')}"] = cap_tasks(records, max_eval_per_task, seed)
    return splits


def _datasets(path: Path) -> dict[str, list[str]]:
    """Reads the names of the data sets of train, valid and test; each belongs to one of these."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; it must list the data sets of train, valid and test")
    try:
        lists = parse_json(path.read_text(encoding="utf-8"))
        datasets = {part: list(lists[part]) for part in ("train", "valid", "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be used ({type(error).__name__}: {error}); it must be a JSON object with the lists train, "
            "valid and test"
        ) from None
    names = sum(datasets.values(), [])
    require_names(map(str, names), path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} lists {twice} more than once; a data set belongs to one split")
    return datasets


def _folds(
    path: Path, allowed: tuple[str, ...], input_words: Optional[int], target_words: Optional[int]
) -> Iterator[tuple[str, Record]]:
    """Yields each record of a file that is short enough with its fold, which must be one of `allowed`."""
    longer = 0
    for fold, record in _read(path, "fold"):
        if fold not in allowed:
            raise ValueError(
                f"{path}: a record has the fold {fold!r}, but must have {' or '.join(allowed)}; correct the file"
            )
        if _has_more_words(record.input, input_words) or _has_more_words(record.targets[0], target_words):
            longer += 1
            continue
        yield fold, record
    if longer:
        logger.info("P3: left out %d records of %s that are longer than asked for", longer, path.name)


def _has_more_words(text: str, most: Optional[int]) -> bool:
    return most is not None and len(text.split()) > most


def _training_records(folds: Callable[..., Iterator[tuple[str, Record]]], kept_out: set[str]) -> Iterator[Record]:
    for fold, record in folds(("train", "dev")):
        if fold == "train" and record.task not in kept_out:
            yield record


def _passing(read: Iterable[tuple[str, Record]], fold: str, kept: list[Record]) -> Iterator[Record]:
    """Yields every record, and appends those of `fold` to `kept` as they pass."""
    for own, record in read:
        if own == fold:
            kept.append(record)
        yield record


def _read(path: Path, split_field: str) -> Iterator[tuple[str, Record]]:
    """Yields each record whose template and instance could be told apart, with the value of its `split_field`."""
    unaligned = 0
    for where, row in read_json_rows(path):
        if not field(row, "aligned", where):
            unaligned += 1
            continue
        values = [field(row, name, where) for name in ("task", "instruction", "input", "target", "dataset")]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{where}: task, instruction, input, target, dataset are {values!r}, but must be texts")
        task, instruction, text, target, dataset = values
        try:
            # some templates offer one answer twice, between which no model could choose
            options = list(dict.fromkeys(row.get("options") or ())) or None
            record = Record(task, instruction, text, (target,), dataset, options=options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        yield field(row, split_field, where), record
    if unaligned:
        logger.info("P3: left out %d records of %s that have no instruction of their own", unaligned, path.name)


def _choose_templates(records: Iterable[Record], count: int, seed: int) -> set[str]:
    """Returns the names of the templates to keep out of training; see `read_p3`."""
    templates, wordings = defaultdict(dict), defaultdict(set)
    for record in records:
        templates[record.group][record.task] = None
        wordings[normalise_text(record.instruction)].add(record.task)
    shared = {task for tasks in wordings.values() if len(tasks) > 1 for task in tasks}
    chosen = set()
    for dataset, tasks in templates.items():
        wanted = 0 if len(tasks) < 4 else max(count, 2) if count and len(tasks) >= 9 else count
        own = [task for task in tasks if task not in shared]
        chosen.update(random.Random(f"{seed}/{dataset}").sample(own, min(wanted, len(own), len(tasks) - 1)))
    return chosen
