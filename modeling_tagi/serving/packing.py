"""A folder as one file, to be downloaded."""

import io
import zipfile
from pathlib import Path

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first date that zip files know; equal folders are equal files


def zipped(folder: Path) -> bytes:
    """Returns the files of a folder as a zip file, not compressed, since weights hardly are smaller then.

    Raises:
        FileNotFoundError: if the folder left meanwhile.
    """
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.iterdir()):
            file.writestr(zipfile.ZipInfo(path.name, _LONG_AGO), path.read_bytes())
    return held.getvalue()
