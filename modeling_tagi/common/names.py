"""Safe names of files and folders from names in untrusted data, such as those of tasks."""

import hashlib
import os
import re
from pathlib import Path
from typing import Iterable, Union

_LONGEST_NAME = 80  # bytes, before a hash
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # Windows'


def file_name(name: str) -> str:
    """Returns a safe name of a file or folder for any text: different names for different texts.

    An ordinary text is its own name: it has only ASCII letters, digits, `_`, `.` and `-`, neither begins nor ends with
    `-` or `.`, and has at most 80 characters. Of any other text as much is kept, followed by eight digits of its
    SHA-256.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:_LONGEST_NAME].rstrip("-.")
    looks_hashed = re.search(r"-[0-9a-f]{8}$", plain)  # or one text could be chosen to meet another's name
    if plain == name and name and not looks_hashed and name.split(".")[0].lower() not in _RESERVED:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'name'}-{digest}"


def require_names(names: Iterable[str], listed_in: Union[str, os.PathLike]):
    """Refuses a list from elsewhere that names a file outside of the list's own folder.

    Args:
        names: Names of files without their endings, which may lie in folders below.
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
