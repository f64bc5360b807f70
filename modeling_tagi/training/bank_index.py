"""The index of a bank of task adapters: a JSON file, and beside it the lines of what was added since."""

import json
import os
import re
from pathlib import Path
from typing import Optional

INDEX_FILE = "index.json"
ADDED_FILE = "index-added.jsonl"
_SHARE = 16  # the file is written anew when what was added is this part of all: n additions cost O(n), not O(n²)


class BankIndex(dict):
    """Name -> what is known of its adapter, in the order in which they were added.

    Args:
        folder: Of the bank; what it has is read.

    Raises:
        ValueError: if what is there is no index, or names what is not in the folder.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self._added, self._whole = folder, 0, 0  # adapters and bytes of what was added since
        if (folder / INDEX_FILE).is_file():
            self.update(_read(folder / INDEX_FILE, (folder / INDEX_FILE).read_bytes(), "adapters"))
        if (folder / ADDED_FILE).is_file():
            for line in (folder / ADDED_FILE).read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # cut off while it was written: its adapters count as not added
                entries = _read(folder / ADDED_FILE, line)
                self.update(entries)
                self._added, self._whole = self._added + len(entries), self._whole + len(line)

    def add(self, entries: dict[str, dict]):
        """Adds `entries`, on disk too. Whoever is cut off in between finds all or none of them."""
        self.update(entries)
        line = json.dumps(entries, ensure_ascii=False).encode() + b"\n"
        with open(self.folder / ADDED_FILE, "rb+" if self._added else "wb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(line)
        self._added, self._whole = self._added + len(entries), self._whole + len(line)
        if self._added * _SHARE >= len(self):
            self.write()

    def write(self):
        """Writes the file anew, whole; nothing is left beside."""
        beside = self.folder / f".{INDEX_FILE}"
        beside.write_text(json.dumps({"adapters": self}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, self.folder / INDEX_FILE)
        (self.folder / ADDED_FILE).unlink(missing_ok=True)  # a reader between the two finds them twice, and alike
        self._added = self._whole = 0


def _read(file: Path, text: bytes, field: Optional[str] = None) -> dict[str, dict]:
    """An index may come from the Hub: it names folders beside itself, and nothing else is read for it."""
    try:
        entries = json.loads(text)
        entries = entries if field is None else entries[field]
        folders = [entry["folder"] for entry in entries.values()]
        ours = all(re.fullmatch(r"[A-Za-z0-9_.-]+", folder) and folder.strip(".") for folder in folders)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is no index of task adapters, which has a folder for each name") from None
    if not ours:
        raise ValueError(f"{file} names folders that are not beside it; an index of task adapters names its own alone")
    return entries
