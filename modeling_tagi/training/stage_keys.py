"""Keys of stages: the settings, the data and the results of earlier stages that a stage's result depends on."""

import hashlib
import json
import re
from pathlib import Path
from typing import Iterable, Optional, Protocol, Union

from ..data.records import Record, record_bytes
from ..data.streams import RecordStream

KEY_FILE = "made_of.json"
# The fields (or sections) that every stage's result depends on, and those that only one that reads records does.
_OF_ALL = ("seed", "bf16", "gradient_checkpointing", "max_input_length", "max_target_length", "backbone")
_OF_RECORDS = ("data.streaming",)
# Fields with the value that stood for them before they existed: the keys of stages from then do not have them.
_AS_BEFORE = (("tagi.continues_instruction", False), ("finetuning.rows_by_length", False))
_DATA_FIELDS = ("data", "train_tasks")  # where the data come from; what they hold is what counts
_WHOLE = 2**20  # bytes of the largest file that is hashed from beginning to end
# Bytes at three places of each tensor that are hashed of a larger file: training changes the whole of a tensor.
_PIECE = 2**12


class Keyed(Protocol):
    """Says what a stage's key is made of, as a `TrainingStage` does.

    Attributes:
        name: The name of its section in the settings.
        reads: What its batches are drawn from, `records` or `text`.
        depends_on: Fields and sections, beside its own, that its result depends on.
    """

    name: str
    reads: str
    depends_on: tuple[str, ...]


def settings_of(stage: Keyed, values: dict) -> dict:
    """Returns those of a run's settings, by dotted name, that the stage's result depends on."""
    values = {name: value for name, value in values.items() if (name, value) not in _AS_BEFORE}
    of_records = _OF_RECORDS if stage.reads == "records" else ()
    return _below((*_OF_ALL, *of_records, stage.name, *stage.depends_on), values)


def data_settings(values: dict) -> dict:
    """Returns the settings that say where a run's data are."""
    return _below(_DATA_FIELDS, values)


def reads_of(stage: Keyed, scratch: bool, digests: dict[str, str]) -> dict[str, str]:
    """Returns the digests of the data that the stage depends on.

    They are of both kinds if a vocabulary is made from `scratch`, since it is made of both.
    """
    return {name: x for name, x in digests.items() if name == stage.reads or scratch}


def _below(fields: Iterable[str], values: dict) -> dict:
    fields = tuple(fields)
    return {name: value for name, value in values.items()
            if name in fields or any(name.startswith(f"{field}.") for field in fields)}  # fmt: skip


def digest_of_records(records: Iterable[Record]) -> str:
    """Returns a hash of everything that records hold, in their order; a stream has computed its own."""
    if isinstance(records, RecordStream):
        return records.digest
    digest = hashlib.sha256()
    for record in records:
        digest.update(record_bytes(record))
    return digest.hexdigest()


def digest_of_text(passages: Iterable[str]) -> str:
    """Returns a hash of passages, in their order."""
    digest = hashlib.sha256()
    for passage in passages:
        encoded = passage.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)} ".encode() + encoded)
    return digest.hexdigest()


def digest_of_folder(folder: Union[str, Path]) -> str:
    """Returns a hash of the weights, configurations and vocabularies in a folder.

    Small files are hashed whole, of large ones some numbers of every tensor. What people edit (a card) and what an
    update changes (code) do not count.
    """
    folder, digest = Path(folder), hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.name == KEY_FILE or file.suffix in (".md", ".py", ".lock") or name.startswith(".") or "/." in name:
            continue
        digest.update(f"{name} ".encode())
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterable[bytes]:
    size = file.stat().st_size
    if file.name.endswith("config.json") or file.name == "tagi_adapter.json":
        yield json.dumps(_without_places(file.read_text(encoding="utf-8"))).encode()
        return
    if size <= _WHOLE:
        yield file.read_bytes()
        return
    with open(file, "rb") as opened:
        for start, end in _parts(file, opened, size):
            for place in sorted({start, (start + end) // 2, max(start, end - _PIECE)}):
                opened.seek(place)
                yield opened.read(min(_PIECE, end - place))


def _without_places(text: str):
    """Returns a configuration without its paths, names of repositories and versions.

    Folders may be moved and copied, and a tokenizer may have been read from one or just been made.
    """
    def kept(value):
        if isinstance(value, dict):
            return {name: kept(x) for name, x in value.items() if not re.search("version|local", name)}
        if isinstance(value, list):
            return [kept(x) for x in value]
        return None if isinstance(value, str) and "/" in value else value

    try:
        return kept(json.loads(text))
    except ValueError:
        return text


def _parts(file: Path, opened, size: int) -> list[tuple[int, int]]:
    """Returns the start and end of each tensor in a file; for another kind of file, of each mebibyte."""
    if file.suffix == ".safetensors":
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(length)) if length < size else {}
            found = [x["data_offsets"] for name, x in header.items() if name != "__metadata__"]
            return [(0, 8 + length), *((8 + length + start, 8 + length + end) for start, end in sorted(found))]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # no such file after all; whoever loads it says so
    return [(start, min(start + _WHOLE, size)) for start in range(0, size, _WHOLE)]


def digest_of(place: Union[str, Path, dict, None]) -> Optional[str]:
    """Returns what identifies a result: the hash of a folder, a repository's name, or a hash of several by name."""
    if place is None:
        return None
    if isinstance(place, dict):
        digests = json.dumps({name: digest_of(one) for name, one in sorted(place.items())})
        return hashlib.sha256(digests.encode()).hexdigest()
    return digest_of_folder(place) if Path(place).is_dir() else str(place)
