"""Tables in Markdown."""

from typing import Sequence


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> list[str]:
    """Returns the lines of a table, of which the first `text` columns are not numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return [lines[0], "|" + " --- |" * text + " ---: |" * (len(heads) - text), *lines[1:]]
