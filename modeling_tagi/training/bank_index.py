"""The index of a bank of task adapters: a JSON file, and beside it the lines of what was added since."""

import json
import os
from pathlib import Path

INDEX_FILE = "index.json"
ADDED_FILE = "index-added.jsonl"
_SHARE = 16  # the file is written anew when what was added is this part of all: n additions cost O(n), not O(n²)


class BankIndex(dict):
    """Name -> what is known of its adapter, in the order in which they were added.

    Args:
        folder: Of the bank; what it has is read.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self._added, self._whole = folder, 0, 0  # adapters and bytes of what was added since
        if (folder / INDEX_FILE).is_file():
            self.update(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).get("adapters", {}))
        if (folder / ADDED_FILE).is_file():
            for line in (folder / ADDED_FILE).read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # cut off while it was written: its adapters count as not added
                entries = json.loads(line)
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
