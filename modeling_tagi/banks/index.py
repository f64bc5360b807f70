"""The index of a bank of task adapters: a JSON file, and a file of JSON lines with what was added to it since."""

import json
import os
import re
from pathlib import Path
from typing import Optional

from filelock import FileLock

from ..common.given_files import require_own_files

INDEX_FILE = "index.json"
ADDED_FILE = "index-added.jsonl"
# The index is written anew when this fraction of it was added since: n additions then cost O(n), not O(n²).
_REWRITTEN_AT = 1 / 16
_READINGS = 100  # of an index that others are writing to


class BankIndex(dict):
    """Holds the entry of each adapter by its name, in the order in which they were added.

    Args:
        folder: The bank's folder, whose index is read if there is one.

    Raises:
        ValueError: if the index is damaged, or names folders outside of the bank.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self._lock = folder, FileLock(f"{folder}.lock")
        self._read()

    def _read(self):
        """Reads both files, and again where a writer went from one to the other meanwhile. No lock is taken for it,
        since a bank may lie where nothing can be written."""
        if self.folder.is_dir():
            require_own_files(self.folder)
        for _ in range(_READINGS):
            try:
                self._read_once()
                if self._on_disk() == self._seen:
                    return
            except FileNotFoundError:  # between the look for it and the reading
                pass
        self._read_once()

    def _read_once(self):
        folder = self.folder
        self._seen, self._added, self._whole = self._on_disk(), 0, 0  # adapters and bytes of what was added since
        if (folder / INDEX_FILE).is_file():
            self.update(_parsed(folder / INDEX_FILE, (folder / INDEX_FILE).read_bytes(), "adapters"))
        if (folder / ADDED_FILE).is_file():
            for line in (folder / ADDED_FILE).read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # cut off while it was written: its adapters count as not added
                entries = _parsed(folder / ADDED_FILE, line)
                self.update(entries)
                self._added, self._whole = self._added + len(entries), self._whole + len(line)

    def _on_disk(self) -> list:
        """Returns times and sizes of the files, by which to tell whether another process has written to them."""
        files = [self.folder / INDEX_FILE, self.folder / ADDED_FILE]
        return [(file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None for file in files]

    def add(self, entries: dict[str, dict]):
        """Adds `entries` in memory and on disk; if the process is killed, all or none of them are on disk."""
        with self._lock:
            if self._on_disk() != self._seen:
                self._read()
            self.update(entries)
            line = json.dumps(entries, ensure_ascii=False).encode() + b"\n"
            with open(self.folder / ADDED_FILE, "rb+" if self._whole else "wb") as file:
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(line)
            self._added, self._whole = self._added + len(entries), self._whole + len(line)
            if self._added >= _REWRITTEN_AT * len(self):
                self.write()
            self._seen = self._on_disk()

    def write(self):
        """Writes the whole index to its file anew, and removes the file of additions."""
        with self._lock:
            beside = self.folder / f".{INDEX_FILE}"
            beside.write_text(json.dumps({"adapters": self}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(beside, self.folder / INDEX_FILE)
            (self.folder / ADDED_FILE).unlink(missing_ok=True)  # a reader between the two finds them twice, and alike
            self._added = self._whole = 0
            self._seen = self._on_disk()


def _parsed(file: Path, text: bytes, field: Optional[str] = None) -> dict[str, dict]:
    """Returns the entries of an index, which may come from the Hub, and refuses folders that are not beside it."""
    try:
        entries = json.loads(text)
        entries = entries if field is None else entries[field]
        folders = [entry["folder"] for entry in entries.values()]
        ours = all(re.fullmatch(r"[A-Za-z0-9_.-]+", folder) and folder.strip(".") for folder in folders)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{file} is no index of task adapters, which has a folder for each name") from None
    if not ours:
        raise ValueError(f"{file} names folders that are not beside it; an index of task adapters names its own alone")
    return entries
