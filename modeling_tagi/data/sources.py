"""The data sources by name: records in splits, text, and what each split may share with training."""

import inspect
import os
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from ..common.randomness import derived_seed
from .builtin import builtin_suite
from .builtin_text import builtin_text
from .p3 import read_p3, read_t0_eval
from .records import Splits
from .sampling import fewer_tasks
from .sni import read_sni
from .splits import check_splits, require_no_leaks
from .streams import RecordStream
from .tables import JSON_SUFFIXES, iter_table, read_tables
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
    streaming: bool = False,
    buffer: int = 64,
    train_tasks: Optional[int] = None,
    seed: int = 0,
) -> tuple[Splits, list[str], dict]:
    """Reads a source and checks that nothing leaks from training into what is to be new.

    Args:
        source: `builtin`, `p3`, `sni` or `tables`.
        path: Its folder; environment variables are filled in.
        text: A file or folder of plain text.
        t0_eval: A folder of T0 evaluation sets, added as splits.
        options: Further arguments of the reader.
        streaming: Whether the train split is read as a `RecordStream`; of `p3` and `tables` it can be.
        buffer: Records of each instruction that a stream keeps.
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
    readers = {"builtin": builtin_suite, "p3": read_p3, "sni": read_sni, "tables": _read_folder}
    if source not in readers:
        raise ValueError(f"data.source is {source!r}, but must be one of {', '.join(map(repr, readers))}")
    reader, options = readers[source], dict(options or {})
    known = [name for name in inspect.signature(reader).parameters if name not in ("folder", "stream")]
    for name in options:
        if name not in known:
            raise ValueError(f"data.options has {name!r}, but {source} takes {', '.join(known)}")
    if streaming:
        if source not in ("p3", "tables"):
            raise ValueError(
                f"data.streaming is on, but source {source!r} is read whole: set it to false, or use 'tables' or 'p3'"
            )
        kept_by = derived_seed(seed, "data", "kept records")
        reader = partial(reader, stream=partial(RecordStream, keep=buffer, seed=kept_by))
    if source == "builtin":
        splits = reader(**options)
        passages = builtin_text(options.get("seed", 0)) if text is None else read_text(_folder(text, "text"))
    else:
        splits = reader(_folder(path, "path"), **options)
        passages = read_text(_folder(text, "text")) if text is not None else []
    if t0_eval is not None:
        splits.update(read_t0_eval(_folder(t0_eval, "t0_eval")))
    if train_tasks is not None:
        fewer = fewer_tasks(splits["train"], train_tasks, derived_seed(seed, "data", "tasks"))
        kept = {record.task for record in fewer}
        splits["train"] = splits["train"].of_tasks(kept) if streaming else fewer
        for name in splits.keys() & _OF_TRAINED_TASKS:
            splits[name] = [record for record in splits[name] if record.task in kept]
    report = check_splits(splits, same_tasks={name: kinds for name, kinds in _MAY_SHARE.items() if name in splits})
    require_no_leaks(report)
    return splits, passages, report


def _folder(path: Optional[str], field: str) -> Path:
    if path is None:
        raise ValueError(f"data.{field} is not given; say where the data is by --data.{field} FOLDER")
    expanded = Path(os.path.expandvars(os.path.expanduser(path)))
    if "$" in str(expanded):
        raise FileNotFoundError(
            f"data.{field} is {path!r}, and that environment variable is not set; set it, or give --data.{field} "
            "FOLDER"
        )
    if not expanded.exists():
        raise FileNotFoundError(f"data.{field}: there is no {expanded}; give its place by --data.{field} FOLDER")
    return expanded


def _read_folder(
    folder: Path, columns: Optional[dict] = None, stream: Optional[Callable[..., RecordStream]] = None
) -> Splits:
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the folder that holds train.jsonl (or .parquet) and other splits")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.endswith((*JSON_SUFFIXES, ".parquet")) and not file.name.startswith("."):
            split = file.name.split(".")[0]
            if split in files:
                raise ValueError(f"{folder} has {files[split].name} and {file.name} for one split; remove one of them")
            files[split] = file
    if "train" not in files:
        raise FileNotFoundError(f"{folder} has no train.jsonl or train.parquet; a file for each split belongs there")
    if stream is None:
        return read_tables(files, columns)
    train = files.pop("train")
    if train.name.endswith((".json", ".json.gz")):
        raise ValueError(f"data.streaming is on, but {train} may be a list, which is read whole: write it as .jsonl")
    return {"train": stream([partial(iter_table, train, columns, streaming=True)]), **read_tables(files, columns)}
