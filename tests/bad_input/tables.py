"""Tables of verdicts, written and read."""

import re
import tempfile
from collections import Counter
from pathlib import Path


def shortened(text: str, folder: Path) -> str:
    """A line without places of this machine."""
    text = " ".join(text.replace("\0", "\\0").split())
    names = {str(folder): "WORK", str(Path(__file__).parents[2]): "ROOT", tempfile.gettempdir(): "TMP"}
    for path, name in names.items():
        text = text.replace(path, name)
    return text if len(text) <= 320 else text[:200] + " … " + text[-110:]


def escaped(text: str) -> str:
    """A cell of a table."""
    return text.replace("|", "\\|")


def merged(before: list[tuple], now: list[tuple]) -> list[tuple]:
    """The rows of before, with those of now in their places."""
    anew = {(where, name): (happened, found) for where, name, happened, found in now}
    return [(where, name, *anew.get((where, name), (happened, found))) for where, name, happened, found in before]


def table(rows: list, counts: Counter) -> str:
    lines = [f"| {where} | {escaped(name)} | {escaped(happened)} | {found} |" for where, name, happened, found in rows]
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return "\n".join([f"{len(rows)} cases: {told}", "", "| where | input | what happened | verdict |",
                      "| --- | --- | --- | --- |", *lines, ""])  # fmt: skip


def rows_of(file: Path) -> list[tuple]:
    """The rows of a table that was written before."""
    found = []
    for line in file.read_text().splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) == 6 and cells[1].strip() in ("shell", "python"):
            found.append(tuple(cell.strip().replace("\\|", "|") for cell in cells[1:-1]))
    return found
