"""How reports write names, numbers and times."""

from typing import Optional, Sequence

from ...common.methods import METHODS
from .. import references

INTERVALS = "95 % intervals over the groups that the tasks come from (families, categories or data sets)"
UNITS = {
    "exact_match": "exact match (%)", "rouge_l": "ROUGE-L (%)", "rank_accuracy": "rank accuracy (%)",
    "rank_accuracy_mean": "rank accuracy, by token (%)",
}  # fmt: skip
STEPS = "optimizer steps"


def title_of(name: str) -> str:
    """Returns what a report calls a method or a reference."""
    return (METHODS[name].title if name in METHODS else None) or references.title_of(name)


def plain(name: str) -> str:
    """Returns the name of a split or a stage with blanks."""
    return name.replace("_", " ")


def sentence(text: str) -> str:
    """Returns a note as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def number(value: Optional[float], digits: int = 1, sign: str = "") -> str:
    """Returns a number with a true minus sign, or a dash for `None`."""
    return "–" if value is None else f"{value:{sign},.{digits}f}".replace("-", "−")


def with_interval(value: Optional[float], interval: Optional[Sequence[float]] = None, sign: str = "") -> str:
    """Returns a score and its interval, such as `72.5 [70.1, 74.0]`."""
    if value is None or interval is None:
        return number(value, sign=sign)
    return f"{number(value, sign=sign)} [{number(interval[0], sign=sign)}, {number(interval[1], sign=sign)}]"


def mean_with_interval(found: Optional[dict], sign: str = "") -> str:
    """Returns a `mean` and its interval from `low` to `high`."""
    return with_interval(found and found["mean"], found and (found["low"], found["high"]), sign)


def in_per_cent(column: str) -> str:
    """Returns what a sentence calls a score, such as "exact match in per cent"."""
    return UNITS[column].replace("(%)", "in per cent")


def in_points(column: str) -> str:
    """Returns what the difference of two scores is called, such as "exact match (points)"."""
    return UNITS[column].replace("(%)", "(points)")


def duration(seconds: Optional[float]) -> str:
    """Returns a time in seconds, minutes or hours, or a dash for `None`."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
