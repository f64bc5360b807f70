"""Reads a data source: records in splits, text, and what each split may share with training."""

from functools import partial
from typing import Optional

from ..common.seeds import derived_seed
from .mixture import of_part
from .p3 import read_t0_eval
from .places import folder_of
from .readers import READERS, reader_of
from .records import Splits
from .sampling import fewer_tasks
from .splits import check_splits, require_no_leaks
from .streams import RecordStream
from .text import read_text

# New instances of tasks that are trained on, and new wordings or templates for them.
_MAY_SHARE = {
    "new_wordings": ("task",),
    "seen_templates": ("task", "instruction"),
    "seen_tasks": ("task", "instruction"),
}
_OF_TRAINED_TASKS = {name for name, kinds in _MAY_SHARE.items() if "task" in kinds}


def read_source(
    source: str,
    path: Optional[str] = None,
    text: Optional[str] = None,
    t0_eval: Optional[str] = None,
    options: Optional[dict] = None,
    streaming: Optional[int] = None,
    train_tasks: Optional[int] = None,
    seed: int = 0,
) -> tuple[Splits, list[str], dict]:
    """Reads a source, and checks that no evaluation split shares with training what should be new.

    Args:
        source: A name of `READERS`, such as `builtin`, `p3`, `sni` or `tables`.
        path: Its folder; environment variables are filled in.
        text: A file or folder of plain text.
        t0_eval: A folder of T0 evaluation sets, added as splits.
        options: Further arguments of the reader.
        streaming: How many records of each instruction to keep while the train split is read as a `RecordStream`;
            `None` reads it whole.
        train_tasks: How many tasks of the train split are kept, see `fewer_tasks`; splits of trained tasks (new
            instances, new wordings) keep those of them. `None` is all.
        seed: The run's; the choice of tasks and a stream's choice of records are drawn by seeds derived from it.

    Returns:
        The records by split, the passages of text, and the report of the check.

    Raises:
        FileNotFoundError: if a folder is missing.
        LeakError: if an evaluation split shares with training what it should not.
        ValueError: for an unknown source or option, or for what a reader refuses.
    """
    reader, options = reader_of(source), check_source(source, options, streaming)
    read = reader.read
    if streaming is not None:
        kept_by = derived_seed(seed, "data", "kept records")
        read = partial(read, stream=partial(RecordStream, keep=streaming, seed=kept_by))
    splits = read(folder_of(path, "data.path"), **options) if reader.in_folder else read(**options)
    passages: list[str] = []
    if text is not None:
        passages = read_text(folder_of(text, "data.text"))
    elif reader.text is not None:
        passages = reader.text(options.get("seed", 0))
    if t0_eval is not None:
        splits.update(read_t0_eval(folder_of(t0_eval, "data.t0_eval")))
    if train_tasks is not None:
        fewer = fewer_tasks(splits["train"], train_tasks, derived_seed(seed, "data", "tasks"))
        kept = {record.task for record in fewer}
        splits["train"] = splits["train"].of_tasks(kept) if streaming is not None else fewer
        for name in [name for name in splits if of_part(name) in _OF_TRAINED_TASKS]:
            splits[name] = [record for record in splits[name] if record.task in kept]
    may_share = {name: _MAY_SHARE.get(of_part(name), ()) for name in splits if name != "train"}
    report = check_splits(splits, same_tasks=may_share)
    require_no_leaks(report)
    return splits, passages, report


def check_source(source: str, options: Optional[dict] = None, streaming: Optional[int] = None) -> dict:
    """Returns the reader's options, checked, without reading any data.

    Raises:
        ValueError: for an unknown source, option or value, or a source that cannot be streamed.
    """
    options = reader_of(source).checked(options, source)
    if streaming is not None and not reader_of(source).streams:
        able = " or ".join(repr(name) for name, reader in sorted(READERS.items(), reverse=True) if reader.streams)
        raise ValueError(
            f"data.streaming is on, but source {source!r} is read whole: set it to null, or use {able}"
        )
    return options


def check_places(source: str, path: Optional[str], text: Optional[str], t0_eval: Optional[str]):
    """Refuses files and folders that are not there, before longer work such as loading a language model.

    Raises:
        FileNotFoundError, ValueError: as `read_source`.
    """
    wanted = {"path": path} if reader_of(source).in_folder else {}
    wanted |= {name: place for name, place in (("text", text), ("t0_eval", t0_eval)) if place is not None}
    for name, place in wanted.items():
        folder_of(place, f"data.{name}")
