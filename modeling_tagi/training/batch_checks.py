"""A check that there is enough data to draw a batch from."""

# A small task may have a record in a batch several times. If even the largest task would, more than `_REPEATS` times
# and in a batch of more than `_SMALL` records, the size of the batch is taken for a mistake.
_REPEATS, _SMALL = 4, 16


def require_drawn(field: str, number: int, there: int, said: str):
    """Refuses a batch of `number` records, or passages, where there are far fewer.

    Args:
        field: Name of the setting.
        number: Its value.
        there: How many records or passages there are.
        said: The part of the message that says so, with `{}` for the number.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    most = max(_SMALL, _REPEATS * there)
    if number > most:
        raise ValueError(
            f"{field} is {number}, but {said.format(there)}, each of which would be in a batch {number / there:,.0f} "
            f"times; give at most {most}"
        )
