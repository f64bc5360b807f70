"""Records to score a checkpoint on, from any data that can be read."""

from pathlib import Path
from typing import Optional

from ..data.p3 import read_t0_eval
from ..data.readers import reader_of
from ..data.records import Record, Splits
from ..data.sources import read_source
from ..data.tables import JSON_SUFFIXES
from ..training.settings import RunSettings


def read_splits(settings: RunSettings) -> tuple[Splits, list[Record], Optional[dict]]:
    """Reads the splits to be scored, the train split (or no records), and the report of the leak check (`None` without
    a train split).

    A file of records is a split of its name, and so is every file in a folder; none of them must be for training.

    Raises:
        FileNotFoundError, ValueError: as `read_source`.
    """
    data = settings.data
    reader = reader_of(data.source)
    if reader.splits_of is not None:
        files = _files(Path(data.path)) if data.path is not None else {}
        if "train" not in files:
            splits = reader.splits_of(files, **reader.checked(data.options, data.source, "--options"))
            if data.t0_eval is not None:
                splits.update(read_t0_eval(data.t0_eval))
            return splits, [], None
    splits, _, leaks = read_source(data.source, data.path, None, data.t0_eval, data.options)
    train = splits.pop("train")
    return splits, train, leaks


def _files(path: Path) -> dict[str, Path]:
    """Returns the file of each split: the one that is named, or all in a folder."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; give a file or folder of records by --data")
    listed = sorted(path.iterdir()) if path.is_dir() else [path]
    files: dict[str, Path] = {}
    for file in listed:
        if path.is_dir() and (not file.name.endswith((*JSON_SUFFIXES, ".parquet")) or file.name.startswith(".")):
            continue
        split = file.name.split(".")[0]
        if path.is_file() and split == "train":
            split = "evaluation"  # it is to be scored, or it would not have been named
        if split in files:
            raise ValueError(f"{path} has {files[split].name} and {file.name} for one split; remove one of them")
        files[split] = file
    if not files:
        raise FileNotFoundError(f"{path} holds no file that ends in {', '.join(JSON_SUFFIXES)} or .parquet")
    return files
