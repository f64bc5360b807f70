"""How far a mean over tasks is to be trusted: percentile bootstraps that draw tasks with replacement."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_DRAWN_AT_ONCE = 2**22  # 32 MiB of task numbers


class Interval(NamedTuple):
    """A mean and the bounds that it lies between, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: ArrayLike, draws: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile bootstrap of the mean over tasks (Efron, 1979).

    Args:
        values: [tasks] or [seeds, tasks]. Seeds are averaged within each task first: the interval is over tasks
            alone, and how much seeds differ is to be reported apart. Of one task it has no width, and warns.
        draws: How many samples of tasks are drawn.
        seed: Of the draws; the same one gives the same interval.
        level: The share of the draws' means within the interval.

    Raises:
        ValueError: if the shape is another, there are no values, one is not a finite number, or `draws` or `level`
            make no sense.
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws is {draws} and level {level}, but give at least 1 draw and a level between 0 and 1")
    tasks = _task_means(values, "values")
    if len(tasks) == 1:
        warnings.warn("there is one task, so its interval has no width and says nothing of other tasks", stacklevel=2)
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // len(tasks))
    sizes = (min(rows, draws - start) for start in range(0, draws, rows))
    means = np.concatenate([tasks[rng.integers(len(tasks), size=(size, len(tasks)))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(tasks.mean()), float(low), float(high))


def paired_difference(a: ArrayLike, b: ArrayLike, draws: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Interval of the mean of `a` less that of `b`, both over the same tasks, drawn together.

    Args:
        a, b: [tasks] or [seeds, tasks], the tasks in the same order; seeds are averaged within each task first, and
            need not be as many.
        draws, seed, level: As for `bootstrap_interval`.

    Raises:
        ValueError: as `bootstrap_interval`, and if the tasks are not as many.
    """
    ours, theirs = _task_means(a, "a"), _task_means(b, "b")
    if len(ours) != len(theirs):
        raise ValueError(f"a has {len(ours)} tasks and b {len(theirs)}, but a paired difference needs the same tasks")
    # A draw's difference of means is its mean of differences, so drawing tasks for both is drawing differences.
    return bootstrap_interval(ours - theirs, draws, seed, level)


def paired_difference_by_task(
    a: Mapping[str, float], b: Mapping[str, float], draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """`paired_difference` of two methods' scores by the name of the task, in whatever order.

    Raises:
        ValueError: as `paired_difference`, and if a task is in one alone.
    """
    if a.keys() != b.keys():
        only_a, only_b = (sorted(some - other) for some, other in ((a.keys(), b.keys()), (b.keys(), a.keys())))
        raise ValueError(
            f"the tasks differ: {_some(only_a)} in a alone and {_some(only_b)} in b alone; compare on those of both"
        )
    tasks = sorted(a)
    return paired_difference([a[task] for task in tasks], [b[task] for task in tasks], draws, seed, level)


def _task_means(values: ArrayLike, name: str) -> np.ndarray:
    """[tasks], the means over seeds where there are some."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not make an array of numbers ({error}); give [tasks] or [seeds, tasks], with every task for "
            "each seed"
        ) from error
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"{name} is {list(array.shape)}, but must be [tasks] or [seeds, tasks], at least one of each")
    wrong = np.argwhere(~np.isfinite(array)).tolist()
    if wrong:
        places = _some([tuple(place) if array.ndim == 2 else place[0] for place in wrong])
        raise ValueError(f"{name} has no finite number at {places}; leave out the tasks that have no score")
    return array if array.ndim == 1 else array.mean(axis=0)


def _some(items: list, most: int = 5) -> str:
    """The first of them, and how many more."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{items[:most]}{more}"
