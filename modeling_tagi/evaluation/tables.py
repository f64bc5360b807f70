"""Tables of scores in Markdown, as `results.md` and the shell show them."""

from typing import Optional, Sequence

from ..common.markdown import markdown_table
from .references import in_order, title_of
from .scores import COLUMNS


def table(results: dict, splits: Optional[Sequence[str]] = None) -> str:
    """Returns the methods' scores on each split, and if there are any the differences between methods.

    Args:
        results: `score_methods`'.
        splits: Which ones; `None` is all.
    """
    shown = {name: results["splits"][name] for name in (splits or results["splits"])}
    columns = _present(shown.values())
    heads = [column.replace("_", " ") for column in columns]
    rows = [row for split, found in shown.items() for row in _score_rows(split, found, columns)]
    lines = markdown_table(["split", "method", *heads], rows, text=2)
    rows = [row for split, found in shown.items() for row in _difference_rows(split, found, columns)]
    if rows:
        lines += ["", *markdown_table(["split", "difference", *heads], rows, text=2)]
    return "\n".join(lines)


def columns_of(found: dict) -> list[str]:
    """Returns the scores that some method of a split has."""
    return _present([found])


def _present(splits) -> list[str]:
    every = [scores for found in splits for scores in found["methods"].values()]
    return [column for column in COLUMNS if any(scores.get(column) is not None for scores in every)]


def _score_rows(split: str, found: dict, columns: Sequence[str]) -> list[list[str]]:
    """Returns a row for each method, and where options were ranked one for each score that needs no model."""
    rows = []
    for method in in_order(found["methods"]):
        scores = found["methods"][method]
        cells = [_cell(scores.get(column), scores.get(f"{column}_interval")) for column in columns]
        rows.append([split, title_of(method), *cells])
    if found.get("chance") is not None and "rank_accuracy" in columns:
        for name in ("chance", "majority"):
            cells = [f"{found[name]:.1f}" if "rank" in column else "–" for column in columns]
            rows.append([split, f"*{name}*", *cells])
    return rows


def _difference_rows(split: str, found: dict, columns: Sequence[str]) -> list[list[str]]:
    rows = []
    for pair, scores in found.get("differences", {}).items():
        values = [scores.get(column) for column in columns]
        cells = [_cell(value and value["mean"], value and (value["low"], value["high"]), "+") for value in values]
        rows.append([split, " − ".join(map(title_of, pair.split(" - "))), *cells])
    return rows


def _cell(value: Optional[float], interval: Optional[Sequence[float]] = None, sign: str = "") -> str:
    if value is None:
        return "–"
    inside = f" [{interval[0]:{sign}.1f}, {interval[1]:{sign}.1f}]" if interval else ""
    return f"{value:{sign}.1f}{inside}"
