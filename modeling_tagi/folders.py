"""Folders that are written to: what may lie in one, how files get there whole, and names from elsewhere as file names.

Nothing here needs torch, so that a command refuses a folder before it loads anything.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Iterable, Iterator, Optional, Sequence, Union

# Kind -> what it is called, and the files and folders by which it is known. A later kind's may lie in an earlier one.
KINDS = {
    "adapter": ("an adapter", ("adapter_config.json", "adapter_model.*", "tagi_adapter.json",
                               "tagi_memory.safetensors")),
    "checkpoint": ("a TAGI checkpoint", ("config.json",)),
    "model": ("another model", ("config.json",)),
    "study": ("a study", ("study.yaml", "cells")),
    "run": ("a training run", ("settings.yaml", "stages", "cell.yaml")),
    "bank": ("a bank of task adapters", ("index.json", "index-added.jsonl")),
    "evaluation": ("an evaluation", ("results.json", "results.md")),
    "report": ("a report", ("index.html", "report.md")),
}  # fmt: skip
_HARMLESS = ("README*", "LICENSE*", "*.log", "log.txt")  # beside whatever is written
_LONGEST_NAME = 80  # bytes, before a hash
# What the system may say of a write, and what torch says of one that failed, whatever the reason.
_OF_WRITES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM,
              errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}  # fmt: skip
_TORCH_WRITES = re.compile(r"iostream error|unexpected pos|PytorchStreamWriter failed")
_SMALL = 4 << 20  # bytes
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # Windows'


def require_folder_for(kind: str, folder: Union[str, os.PathLike]) -> Path:
    """Returns the folder as a path if something of `kind` may be written there: it is absent or empty, or holds one.

    A checkpoint may be written beside files that are nobody's, such as those of a Trainer, as long as it replaces
    none: a long training must not fail when it is saved.

    Args:
        kind: Of `KINDS`.

    Raises:
        ValueError: if the folder has no name, is a file or lies below one, or holds something else.
    """
    name = os.fspath(folder)
    if not name:
        raise ValueError(f"the folder for {KINDS[kind][0]} is '', which names none; give one, '.' for the current one")
    if "\0" in name:
        raise ValueError(f"the folder {name!r} has a NUL in its name, which no file can have; choose another folder")
    place = Path(name)
    if os.path.lexists(place) and not place.is_dir():
        what = "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
        mend = "save_pretrained needs a folder" if kind in ("adapter", "checkpoint") else "give a folder"
        raise ValueError(f"{place} is {what}; {mend}")
    above = next((parent for parent in place.parents if os.path.lexists(parent)), None)
    if above is not None and not above.is_dir():
        raise ValueError(f"{place} lies below {above}, which is no folder; choose another folder")
    held = kind_in(place)
    if held is not None and held != kind:
        raise ValueError(
            f"{place} holds {KINDS[held][0]} ({_sign(place, held)}), which {KINDS[kind][0]} written there would "
            "break; choose another folder"
        )
    strangers = _strangers(place, kind) if held is None else []
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise ValueError(
            f"{place} holds {', '.join(strangers[:3])}{more}, which {'are' if len(strangers) > 1 else 'is'} no part "
            f"of {KINDS[kind][0]}; choose another folder"
        )
    return place


def kind_in(folder: Union[str, os.PathLike]) -> Optional[str]:
    """Which of `KINDS` lies in a folder; `None` if there is no such folder, or nothing known is in it."""
    folder = Path(folder)
    for kind in KINDS:
        of_another = kind in ("checkpoint", "model") and _model_kind(folder) != kind
        if _sign(folder, kind) is not None and not of_another:
            return kind
    return None


def _sign(folder: Path, kind: str) -> Optional[str]:
    """The file or folder by which `kind` is known to be there."""
    names = _names(folder)
    return next((name for sign in KINDS[kind][1] for name in names if fnmatch(name, sign)), None)


def _model_kind(folder: Path) -> Optional[str]:
    """What a config.json is of: a checkpoint, another model, or (`None`) no model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except OSError:
        return None
    except (ValueError, AttributeError):  # damaged, or none of ours: a checkpoint is mended by saving it again
        return "checkpoint" if (folder / "modeling_tagi.py").is_file() else None
    return {"tagi": "checkpoint", None: None}.get(kind, "model")


def _strangers(folder: Path, kind: str) -> list[str]:
    """What lies in a folder of no known kind and is not harmless to what is to be written."""
    names = [name for name in _names(folder) if not any(fnmatch(name, pattern) for pattern in _HARMLESS)]
    if kind == "checkpoint":  # what it would replace
        return [name for name in names if name == "config.json" or name.endswith((".py", ".safetensors"))]
    if kind == "bank":  # one that was cut off before its first index was written
        return [name for name in names if kind_in(folder / name) != "adapter"]
    return names


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def naming(place: Union[str, os.PathLike]) -> Iterator[None]:
    """Names the file or folder in what the system says of a write to it, such as that the disk is full.

    Python does not where a write fails, and safetensors and torch have errors of their own.

    Raises:
        OSError: of the kind that it was, with `place` for its file.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            number = error.errno if error.filename is None else None
        else:
            found = re.search(r"\(os error (\d+)\)", str(error))
            number = int(found[1]) if found else None
            if number is None and _TORCH_WRITES.search(str(error)) and _is_full(place):
                number = errno.ENOSPC
        if number not in _OF_WRITES:
            raise
        raise OSError(number, os.strerror(number), os.fspath(place)) from error


def _is_full(place: Union[str, os.PathLike]) -> bool:
    """Whether the file system has no room for as much as a file of weights."""
    there = next(path for path in (Path(place).absolute(), *Path(place).absolute().parents) if path.exists())
    return shutil.disk_usage(there).free < _SMALL


@contextmanager
def filling(target: Union[str, os.PathLike], last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write to, whose files are moved into `target` when the block ends well.

    Other files in `target` are left alone. `last` is taken away first and moved last: whoever is cut off in between
    leaves a folder without it, which does not load, rather than a mixture.

    Args:
        target: Where the files go; made if there is none.
        last: The file without which nobody reads the others. Where it is not written, as by all but the main one of
            several processes, nothing is taken away.
        stale: Patterns of files that go if nothing of their name was written.
    """
    target = Path(target)
    whole = Path(os.path.abspath(target))  # of "." too
    whole.parent.mkdir(parents=True, exist_ok=True)
    place = whole.parent
    if target.is_dir() and (not os.access(place, os.W_OK) or os.stat(place).st_dev != os.stat(target).st_dev):
        place = whole  # a volume of its own: no file can be moved into it from outside
    beside = Path(tempfile.mkdtemp(prefix=f".{whole.name[:60]}-", dir=place))
    try:
        with naming(target):
            yield beside
        written = sorted(os.listdir(beside), key=lambda name: (name == last, name))
        target.mkdir(exist_ok=True)
        if last in written:
            (target / last).unlink(missing_ok=True)
            for name in _names(target):
                if name not in written and any(fnmatch(name, pattern) for pattern in stale):
                    (target / name).unlink(missing_ok=True)
        for name in written:
            os.replace(beside / name, target / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def file_name(name: str) -> str:
    """Turns any text into the name of a file or folder; other texts get other names, ordinary ones stay as they are.

    Ordinary is what has only ASCII letters, digits, `_`, `.` and `-`, neither begins nor ends with `-` or `.`, and has
    at most 80 characters. Of any other text this much is kept, with eight digits of its SHA-256 behind it.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:_LONGEST_NAME].rstrip("-.")
    looks_hashed = re.search(r"-[0-9a-f]{8}$", plain)  # or one text could be chosen to meet another's name
    if plain == name and name and not looks_hashed and name.split(".")[0].lower() not in _RESERVED:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'name'}-{digest}"


def require_names(names: Iterable[str], listed_in: Union[str, os.PathLike]):
    """Accepts names that a list from elsewhere gives of files, if each is of a file in the folder it is sought in.

    Args:
        names: Of files, without their endings; they may lie in folders below.
        listed_in: The list's file, for the message.

    Raises:
        ValueError: for a name that would leave the folder.
    """
    for name in names:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise ValueError(
                f"{listed_in} lists {name!r}, which names no file in its own folder; give a plain name, without '..'"
            )
