"""Strict reading of JSON in data, with errors that say what is wrong and where."""

import gzip
import json
from pathlib import Path
from typing import Any


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
        json.JSONDecodeError: for a text that is not JSON.
        ValueError: for a field that is given twice in one object, or a text nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    """Returns the error for a file that is not UTF-8; its message names the file and the first such line."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        number = next((n for n, line in enumerate(file, 1) if not _is_utf8(line)), 1)
    return ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file to UTF-8")


def is_unicode(text: str) -> bool:
    """Tells whether a text can be written: it has no lone surrogate, which is one half of a character."""
    return text.isascii() or _can_be_encoded(text)


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is given twice in one object; take one of them out")
    return made
