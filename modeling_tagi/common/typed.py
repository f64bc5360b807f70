"""Conversion of values that YAML gives to a setting's type."""

import types
import typing
from typing import Any, Union


def typed(value: Any, kind, name: str) -> Any:
    """Returns the value as a `kind`, such as `int` or `Optional[float]`; a number in quotes is a number.

    Raises:
        ValueError: for a value of another type, which the message calls `name`.
    """
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    kinds = [typing.get_origin(k) or k for k in kinds]
    for wanted in sorted(kinds, key=lambda k: k is not float):
        if wanted is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)  # YAML reads 1e-4 as a text
            except (ValueError, OverflowError):
                continue
        if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
            return value
    allowed = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
    raise ValueError(f"{name} is {value!r:.200}, but must be of type {allowed}")
