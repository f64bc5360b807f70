"""Records in files of rows: JSON lines, JSON and parquet."""

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

from ..common.json_text import not_utf8, parse_json
from .records import Record, Splits
from .streams import RecordStream

REQUIRED = ("task", "instruction", "input", "targets")
OPTIONAL = ("group", "demonstrations", "options")
JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def read_json_rows(path: Union[str, Path]) -> Iterator[tuple[str, dict]]:
    """Yields the objects of a file of JSON lines, or of one JSON list, each with its place (`"<path>, line 3"`).

    A file whose name ends in `.gz` is decompressed; blank lines are skipped. Lines are read one by one, a list whole.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be decoded, or something in it is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a file that ends in one of {JSON_SUFFIXES}")
    for where, row in _json_rows(path):
        if not isinstance(row, dict):
            raise ValueError(f"{where} is a {type(row).__name__}, but must be a JSON object with named fields")
        yield where, row


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
    """Returns `row[name]`, which must be there.

    Raises:
        ValueError: if it is absent or None, naming `where`.
    """
    value = row.get(name)
    if value is None:
        raise ValueError(f"{where}: there is no field {name!r} among {_filled(row)}; add it")
    return value


def read_table(path: Union[str, Path], columns: Optional[Mapping[str, str]] = None) -> list[Record]:
    """Reads the records of one file; see `iter_table`.

    Raises:
        FileNotFoundError, ValueError: as `iter_table`, and for a file without rows.
    """
    records = list(iter_table(path, columns))
    if not records:
        raise ValueError(f"{path} has no rows; give a file with at least one record")
    return records


def iter_table(
    path: Union[str, Path], columns: Optional[Mapping[str, str]] = None, streaming: bool = False
) -> Iterator[Record]:
    """Yields the records of one .jsonl, .json (both also with .gz) or .parquet file, a record a row.

    Args:
        path: The file. Its columns are the fields of `Record`: task, instruction, input and targets (a text or a list
            of texts), and if present group, demonstrations (a list of [input, output]) and options.
        columns: The file's column for a field of another name, as `{"targets": "answer"}`.
        streaming: Whether parquet is read piece by piece; JSON lines always are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or a row lacks a field or holds something else in it.
    """
    path, columns = Path(path), dict(columns or {})
    unknown = sorted(set(columns) - {*REQUIRED, *OPTIONAL})
    if unknown:
        raise ValueError(f"columns maps {unknown}, but must map some of {[*REQUIRED, *OPTIONAL]} to the file's names")
    if path.name.endswith(JSON_SUFFIXES):
        rows = read_json_rows(path)
    elif path.suffix == ".parquet":
        rows = _parquet_rows(path, streaming)
    else:
        raise ValueError(f"{path} is of an unknown kind; its name must end in {', '.join(JSON_SUFFIXES)} or .parquet")
    return (_record(row, columns, where) for where, row in rows)


def read_tables(paths: Mapping[str, Union[str, Path]], columns: Optional[Mapping[str, str]] = None) -> Splits:
    """Reads splits from one file each, as `{"train": path, "unseen": path}`; see `read_table`."""
    return {name: read_table(path, columns) for name, path in paths.items()}


def read_folder(
    folder: Path,
    columns: Optional[Mapping[str, str]] = None,
    stream: Optional[Callable[..., RecordStream]] = None,
) -> Splits:
    """Reads splits from the files of a folder, each named after its split; see `iter_table`.

    Args:
        folder: Holds train.jsonl (or another of those kinds), and a file for each other split.
        columns: As for `iter_table`.
        stream: Makes a stream of the train split, instead of reading all of its records.

    Raises:
        FileNotFoundError: if there is no file for the train split.
        ValueError: as `iter_table`; if a split has two files, or none can be streamed.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise ValueError(f"{folder} is {what}; give the folder that holds train.jsonl (or .parquet) and other splits")
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


def write_table(records: Iterable[Record], path: Union[str, Path]) -> None:
    """Writes `records` as JSON lines that `read_table` gives back; an interrupted write leaves `path` as it was.

    Raises:
        ValueError: if `path` does not end in .jsonl.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ValueError(f"{path} would hold JSON lines; let its name end in .jsonl")
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            for record in records:
                row = {name: getattr(record, name) for name in (*REQUIRED, *OPTIONAL)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        # mkstemp makes a private file; give it the permissions of any other new one.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        # newline: a line feed alone ends a line, not the other line separators that a text may contain
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            if _is_list(file):
                try:
                    rows = parse_json(file.read())
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path}, line {error.lineno}: the list is no JSON ({error.msg}); mend it"
                    ) from None
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
                yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
            else:
                yield from _json_lines(path, file)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); it must be UTF-8, gzipped if it ends in .gz") from None


def _is_list(file) -> bool:
    """Tells whether a file's first character, white space aside, opens a list; rewinds the file."""
    first = " "
    while first and first.isspace():
        first = file.read(1)
    file.seek(0)
    return first == "["


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = parse_json(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error.msg}); write one object a line") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield f"{path}, line {number}", row


def _parquet_rows(path: Path, streaming: bool) -> Iterator[tuple[str, dict]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the path of a .parquet file")
    # JSON does not go this way: `datasets` turns texts that look like dates into timestamps, and loses line numbers.
    from datasets import Dataset, load_dataset

    with tempfile.TemporaryDirectory() as cache:
        try:
            if streaming:
                rows = load_dataset(  # nosec B615 # a file of this machine
                    "parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache, batch_size=1000
                )
            else:
                rows = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True).to_list()
            for number, row in enumerate(rows, 1):
                yield f"{path}, row {number}", row
        except Exception as error:  # pyarrow's own errors come wrapped in several kinds
            reason = error.__cause__ or error
            raise ValueError(f"{path} cannot be read as parquet ({reason}); write it anew") from error


def _record(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> Record:
    values = {}
    for ours in (*REQUIRED, *OPTIONAL):
        theirs = columns.get(ours, ours)
        if row.get(theirs) is not None:
            values[ours] = row[theirs]
        elif ours in REQUIRED or (ours in columns and theirs not in row):
            raise ValueError(
                f"{where}: there is no field {theirs!r} among {_filled(row)}; add it, "
                f"or name the one that holds the {ours} by columns={{{ours!r}: ...}}"
            )
    if isinstance(values["targets"], str):
        values["targets"] = [values["targets"]]
    for ours, value in values.items():
        if ours in ("targets", "options"):
            fits, expected = _texts(value), "a list of texts"
        elif ours == "demonstrations":
            fits = isinstance(value, (list, tuple)) and all(_texts(pair) and len(pair) == 2 for pair in value)
            expected = "a list of [input, output] pairs of texts"
        else:
            fits, expected = isinstance(value, str), "a text"
        if not fits:
            raise ValueError(f"{where}: field {columns.get(ours, ours)!r} is {value!r}, but must be {expected}")
    try:
        return Record(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _filled(row: Mapping[str, Any]) -> list[str]:
    return sorted(name for name, value in row.items() if value is not None)


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
