"""Confidence intervals of means over tasks, where tasks come in clusters: families, categories, data sets.

Tasks of one cluster are alike, so a few large clusters say less than as many tasks of their own would, and a
percentile bootstrap over few of either is too narrow. The variance here is the cluster-robust CR2 (Bell & McCaffrey,
2002, "Bias reduction in standard errors for linear regression with multi-stage samples"), with Satterthwaite's
degrees of freedom for Student's t, as Pustejovsky & Tipton (2018) advise for few and unequal clusters. Where values
are bounded, the interval is taken on the logit scale, as for proportions in surveys (Korn & Graubard, 1998): it stays
within the bounds and allows for the skewness of means near them. `tests/evaluation/interval_coverage.py` shows how
often the intervals cover.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import ArrayLike

SCORES = (0.0, 100.0)
DIFFERENCES = (-100.0, 100.0)
METHOD = "t-intervals with a cluster-robust variance (CR2)"


class Interval(NamedTuple):
    """Holds a mean and the bounds that it lies between, in the unit of the values."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: ArrayLike,
    clusters: Optional[Sequence[Hashable]] = None,
    level: float = 0.95,
    bounds: Optional[tuple[float, float]] = None,
) -> Interval:
    """Returns the mean over tasks with its confidence interval over clusters.

    Args:
        values: [tasks] or [seeds, tasks]. Seeds are averaged within each task first: the interval is over tasks, and
            how much seeds differ is to be reported apart.
        clusters: The cluster of each task; `None` makes every task one of its own, and so does a single cluster that
            holds them all, since nothing can be said of others then. The interval of one task has no width, and a
            warning says so; that of equal values has none either.
        level: The fraction of such intervals that cover the mean of the population that the clusters are drawn from.
        bounds: The least and the highest value that there can be, `SCORES` or `DIFFERENCES`. Without them the interval
            is symmetric.

    Raises:
        ValueError: if the shape is another, there are no values, one is not a finite number or out of bounds, there
            is not one cluster for each task, or `level` makes no sense.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, but must be a number between 0 and 1, like 0.95")
    tasks = _task_means(values, "values")
    rounding = 1e-9 * np.ptp(bounds) if bounds is not None else 0.0
    if bounds is not None and not (bounds[0] - rounding <= tasks.min() and tasks.max() <= bounds[1] + rounding):
        raise ValueError(f"values go from {tasks.min():g} to {tasks.max():g}, but must lie in {list(bounds)}")
    sizes, sums = _clusters(tasks, clusters)
    mean = float(tasks.mean())
    if len(sizes) == 1:
        warnings.warn("there is one task, so its interval has no width and says nothing of other tasks", stacklevel=2)
        return Interval(mean, mean, mean)
    share = sizes / len(tasks)
    error = float(np.sqrt(((share * (sums / sizes - mean)) ** 2 / (1 - share)).sum()))
    if np.ptp(tasks) == 0:  # what is left of the error is rounding
        return Interval(mean, mean, mean)
    half = student_t_quantile(level, _degrees_of_freedom(share)) * error
    if bounds is None:
        return Interval(mean, mean - half, mean + half)
    low, high = bounds
    place = (mean - low) / (high - low)
    logit, half = np.log(place / (1 - place)), half / ((high - low) * place * (1 - place))  # by the delta method
    with np.errstate(over="ignore"):
        ends = (low + (high - low) / (1 + np.exp(-end)) for end in (logit - half, logit + half))
    return Interval(mean, *map(float, ends))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Optional[Sequence[Hashable]] = None,
    level: float = 0.95,
    bounds: Optional[tuple[float, float]] = None,
) -> Interval:
    """Returns the mean of `a` less that of `b` over the same tasks, with the interval of the tasks' differences.

    Args:
        a, b: [tasks] or [seeds, tasks], the tasks in the same order; seeds are averaged within each task first, and
            need not be as many.
        clusters, level, bounds: As for `mean_interval`; the bounds are the differences'.

    Raises:
        ValueError: as `mean_interval`, and if the tasks are not as many.
    """
    ours, theirs = _task_means(a, "a"), _task_means(b, "b")
    if len(ours) != len(theirs):
        raise ValueError(f"a has {len(ours)} tasks and b {len(theirs)}, but a paired difference needs the same tasks")
    return mean_interval(ours - theirs, clusters, level, bounds)


def paired_difference_by_task(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Optional[Mapping[str, Hashable]] = None,
    level: float = 0.95,
    bounds: Optional[tuple[float, float]] = None,
) -> Interval:
    """Returns `paired_difference` of two methods' scores by the name of the task, in whatever order.

    Args:
        a, b: The score of each task.
        clusters: The cluster of each task.
        level, bounds: As for `paired_difference`.

    Raises:
        ValueError: as `paired_difference`, and if a task is in one alone.
    """
    if a.keys() != b.keys():
        only_a, only_b = (sorted(some - other) for some, other in ((a.keys(), b.keys()), (b.keys(), a.keys())))
        raise ValueError(
            f"the tasks differ: {_some(only_a)} in a alone and {_some(only_b)} in b alone; compare on those of both"
        )
    tasks = sorted(a)
    of_tasks = None if clusters is None else [clusters[task] for task in tasks]
    return paired_difference([a[task] for task in tasks], [b[task] for task in tasks], of_tasks, level, bounds)


@lru_cache(maxsize=4096)
def student_t_quantile(level: float, freedom: float) -> float:
    """Returns the t that |T| stays below with probability `level`; T is Student's with `freedom` degrees, 1 or more.

    T = sqrt(freedom) tan(angle) has the density cos(angle) ** (freedom - 1) in the angle, up to a factor; it is
    integrated by the trapezoidal rule. The relative error is below 1e-6 at 95 per cent.
    """
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(level * mass[-1], mass, angles)))


def _degrees_of_freedom(share: np.ndarray) -> float:
    """Returns Satterthwaite's for the CR2 variance of a mean of independent tasks; G - 1 for G clusters of one size.

    Args:
        share: [clusters], the fraction of the tasks that is in each.
    """
    weight = share**2 / (1 - share)
    return float(max(1.0, 1 / ((share**2).sum() + weight.sum() ** 2 - (weight**2).sum())))


def _clusters(tasks: np.ndarray, clusters: Optional[Sequence[Hashable]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of tasks and the sum of their values in each cluster."""
    if clusters is not None and len(clusters) != len(tasks):
        raise ValueError(f"there are {len(tasks)} tasks and {len(clusters)} clusters; name the cluster of each task")
    numbers: dict[Hashable, int] = {}
    place = [numbers.setdefault(name, len(numbers)) for name in (clusters if clusters is not None else ())]
    if len(numbers) < 2:
        return np.ones(len(tasks)), tasks
    return np.bincount(place).astype(np.float64), np.bincount(place, tasks)


def _task_means(values: ArrayLike, name: str) -> np.ndarray:
    """Returns [tasks], the means over seeds where there are some."""
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
    """Returns the first of them, and how many more."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{items[:most]}{more}"
