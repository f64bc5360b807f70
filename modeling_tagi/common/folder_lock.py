"""One process at a time in a folder that is written to."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from filelock import FileLock, Timeout


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it; one that was made for nothing is taken away again.

    Raises:
        ValueError: at once, if another process is in there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is at work in {folder}; wait, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()
        if made and set(os.listdir(folder)) <= {".lock"}:
            shutil.rmtree(folder)
