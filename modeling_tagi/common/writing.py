"""Files and folders that are written beside and moved into place, and read with one message if they are damaged."""

import errno
import glob
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Union

import yaml
from safetensors import SafetensorError

from .. import hub

# What torch says of a failed write, whatever the reason.
_TORCH_WRITES = re.compile(r"iostream error|unexpected pos|PytorchStreamWriter failed")
_SMALL = 4 << 20  # bytes
_LEFT_OVER = 3600.0  # seconds after which what lies beside an output is what a killed process left


@contextmanager
def naming(place: Union[str, os.PathLike]) -> Iterator[None]:
    """Adds the name of a file or folder to the error of a write to it, such as that the disk is full.

    Raises:
        OSError: of the same class as the error, with `place` as its file name.
    """
    with hub.naming(place):
        try:
            yield
        except RuntimeError as error:
            if _TORCH_WRITES.search(str(error)) and _is_full(place):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def _is_full(place: Union[str, os.PathLike]) -> bool:
    """Tells whether the file system has no room for as much as a file of weights."""
    there = next(path for path in (Path(place).absolute(), *Path(place).absolute().parents) if path.exists())
    return shutil.disk_usage(there).free < _SMALL


class Damaged(ValueError):
    """Says which file or folder of a run cannot be read, and how to go on."""


@contextmanager
def reading(what: Path, mend: str) -> Iterator[None]:
    """Turns any error while a run's file or folder is read into one message that names it and says how to go on.

    Raises:
        Damaged: with that message.
    """
    try:
        yield
    except Damaged:  # a part of it, which is named already
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, SafetensorError,
            yaml.YAMLError) as error:  # fmt: skip
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EIO:
            raise  # what is there may well be whole
        said = " ".join(str(error).split()) or type(error).__name__
        raise Damaged(f"{what} is damaged or not complete ({said:.300}); {mend}") from None


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yields the path of a file beside `target`, which is moved into its place if the block ends without an error."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if leftover.suffix[1:].isdigit():
            drop_left_over(leftover)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming(target):
            yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)  # half of it, where the disk is full


def drop_left_over(path: Path):
    """Removes a temporary file or folder that is older than an hour."""
    with suppress(FileNotFoundError):  # another process did, or ended well
        if time.time() - path.stat().st_mtime > _LEFT_OVER:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str):
    """Writes a text to a file beside `path`, then moves it into place."""
    with replacing_file(path) as beside:
        beside.write_text(text)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a folder to write to, which replaces `target` if the block ends without an error.

    It lies in a temporary folder, and so does what a save to it writes beside it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp's names: what another target, whose name begins with this one's, has beside it is left alone
    ours = re.compile(re.escape(f".{target.name}-") + r"[a-z0-9_]{8}(-old)?")
    for leftover in sorted(path for path in target.parent.glob(".*") if ours.fullmatch(path.name)):  # a killed run's
        if leftover.name.endswith("-old") and not target.exists():
            os.replace(leftover, target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    beside = temporary / target.name
    try:
        with naming(target):
            beside.mkdir()
            yield beside
        old = temporary.with_name(temporary.name + "-old")
        if target.exists():
            os.replace(target, old)
        os.replace(beside, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
