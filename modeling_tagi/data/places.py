"""Places of data on the disk, as settings name them."""

import os
from pathlib import Path
from typing import Optional


def folder_of(path: Optional[str], field: str) -> Path:
    """Returns the file or folder that a field names, with environment variables and ~ filled in.

    Raises:
        FileNotFoundError: if it is not there, or a variable is not set.
        ValueError: if it is not given.
    """
    if path is None:
        raise ValueError(f"{field} is not given; say where the data is by --{field} FOLDER")
    expanded = Path(os.path.expandvars(os.path.expanduser(path)))
    if "$" in str(expanded):
        raise FileNotFoundError(
            f"{field} is {path!r}, and that environment variable is not set; set it, or give --{field} FOLDER"
        )
    if not expanded.exists():
        raise FileNotFoundError(f"{field}: there is no {expanded}; give its place by --{field} FOLDER")
    return expanded
