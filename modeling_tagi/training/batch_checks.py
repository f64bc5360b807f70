"""Whether there is enough to draw a batch from."""

# Small tasks have a record several times in a batch; where even the largest would, more than so often, or in batches
# larger than these, the batch is a mistake.
_REPEATS, _SMALL = 4, 16


def require_drawn(field: str, number: int, there: int, said: str):
    """Refuses a batch of `number` records, or passages, where there are far fewer.

    Args:
        field: Of the settings.
        number: Its value.
        there: How many there are.
        said: Says so, with `{}` for the number.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    most = max(_SMALL, _REPEATS * there)
    if number > most:
        raise ValueError(
            f"{field} is {number}, but {said.format(there)}, each of which would be in a batch {number / there:,.0f} "
            f"times; give at most {most}"
        )
