"""One process at a time in a folder that is written to."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from filelock import FileLock, Timeout


@contextmanager
def alone_in(folder: Path, lock_file: str = ".lock") -> Iterator[None]:
    """Keeps other processes out of a folder during the block; removes the folder if it is new and stays empty.

    If the process is killed, the system releases the lock.

    Args:
        folder: Where the process works.
        lock_file: Name of the file in the folder that is locked.

    Raises:
        ValueError: at once, if another process holds the lock.
        OSError: at once, if the folder cannot be made or written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is at work in {folder}; wait, or choose another folder") from None
    except NotImplementedError:  # a file system that knows no locks
        pass
    try:
        yield
    finally:
        if made and set(os.listdir(folder)) <= {lock_file}:
            (folder / lock_file).unlink(missing_ok=True)
            for path in made:
                if os.listdir(path):
                    break
                path.rmdir()
        lock.release()
