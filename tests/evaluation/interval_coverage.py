"""How often the intervals of evaluation/statistics.py cover the mean that they are for, by simulation.

    python tests/evaluation/interval_coverage.py [--times 2000] [--output docs/results/interval-coverage.md]

Tasks come in clusters (families, data sets); a part of what tasks differ by is common to their cluster. Each cell of
the table draws clusters and tasks many times and counts the intervals that hold the population's mean: 0.95 is what
they say, 0.93 to 0.97 what is asked of them.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from modeling_tagi.common.markdown import markdown_table  # noqa: E402
from modeling_tagi.evaluation.statistics import DIFFERENCES, SCORES, mean_interval  # noqa: E402

LOW, HIGH = 0.93, 0.97
NUMBERS = (5, 8, 12, 20)
CORRELATIONS = (0.0, 0.3, 0.8)
RECORDS = 40  # of each task
FAMILIES = (1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 8, 8, 8, 9, 9)  # unseen tasks of each, built-in suite


class Population(NamedTuple):
    """What task scores, or differences of them, are drawn from.

    Args:
        draw: `draw(rng, clusters, number of clusters, correlation)` gives a value for each task; `clusters` has the
            cluster of each.
        mean: `mean(correlation)`.
        bounds: That are known of the values.
    """

    draw: Callable
    mean: Callable
    bounds: tuple[float, float]


def additive(noise: Callable, mean: float, scale: float, of_noise: float = 0.0) -> Population:
    """Cluster effects and task effects of one kind are added; `of_noise` is the noise's own mean."""

    def draw(rng, clusters, number, correlation):
        common, own = noise(rng, number)[clusters], noise(rng, len(clusters))
        return mean + scale * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)

    return Population(draw, lambda c: mean + scale * of_noise * (np.sqrt(c) + np.sqrt(1 - c)), DIFFERENCES)


def scores(mean: float, concentration: float, less: float = 0.0) -> Population:
    """Draws accuracies on 40 records; a task's own is Beta distributed around its cluster's, as that is.

    Args:
        mean: Of the accuracies, from 0 to 1.
        concentration: a + b of a task's Beta distribution; below 2 most accuracies are near 0 and 1.
        less: Taken from each score; makes them differences.
    """
    variance = mean * (1 - mean) / (1 + concentration)

    def draw(rng, clusters, number, correlation):
        common = np.full(number, mean)
        if correlation:
            spread = (1 + concentration) / correlation - 1
            common = rng.beta(mean * spread, (1 - mean) * spread, number)
        around = common[clusters]
        # such that of a task's variance the cluster's is the share `correlation`
        spread = (mean * (1 - mean) - correlation * variance) / ((1 - correlation) * variance) - 1
        own = rng.beta(np.maximum(around * spread, 1e-6), np.maximum((1 - around) * spread, 1e-6))
        return 100 * rng.binomial(RECORDS, own) / RECORDS - less

    return Population(draw, lambda _: 100 * mean - less, DIFFERENCES if less else SCORES)


POPULATIONS = {
    "scores, normal around 50": additive(lambda rng, n: rng.normal(size=n), 50, 12)._replace(bounds=SCORES),
    "scores, most near 0 or 100": scores(0.5, 1.0),
    "scores, skewed, mean 80": scores(0.8, 2.0),
    "scores, skewed, mean 15": scores(0.15, 2.0),
    "differences, normal": additive(lambda rng, n: rng.normal(size=n), 2, 10),
    "differences, heavy tails": additive(lambda rng, n: rng.laplace(size=n), 2, 7),
    "differences, skewed, from a method at 1": scores(0.8, 2.0, less=1.0),
    "differences, half of them large gains": additive(
        lambda rng, n: rng.exponential(size=n) * np.where(rng.random(n) < 0.5, 1, -0.3), 0, 12, of_noise=0.35
    ),
}


def sizes(number: int) -> dict[str, np.ndarray]:
    """Numbers of tasks in each of `number` clusters."""
    places = np.round(np.linspace(0, len(FAMILIES) - 1, number)).astype(int)
    return {"1 each": np.ones(number, int), "4 each": np.full(number, 4), "1 to 9": np.array(FAMILIES)[places]}


def coverage(population: Population, of_each: np.ndarray, correlation: float, times: int, rng) -> float:
    """Returns the share of intervals that hold the population's mean."""
    clusters, mean = np.repeat(np.arange(len(of_each)), of_each), population.mean(correlation)
    names, covered = clusters.tolist(), 0
    for _ in range(times):
        values = np.clip(population.draw(rng, clusters, len(of_each), correlation), *population.bounds)
        interval = mean_interval(values, names, bounds=population.bounds)
        covered += interval.low <= mean <= interval.high
    return covered / times


def coverage_of_bootstrap(population: Population, of_each: np.ndarray, correlation: float, times: int, rng) -> float:
    """The same of the percentile bootstrap over tasks."""
    clusters, mean, covered = np.repeat(np.arange(len(of_each)), of_each), population.mean(correlation), 0
    for _ in range(times):
        values = population.draw(rng, clusters, len(of_each), correlation)
        means = values[rng.integers(len(values), size=(300, len(values)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= mean <= high
    return covered / times


def cells() -> Iterator[tuple[str, int, str, np.ndarray, float]]:
    """Each population with each number and size of clusters and each correlation there can be."""
    for name in POPULATIONS:
        for number in NUMBERS:
            for size, of_each in sizes(number).items():
                for correlation in CORRELATIONS[: 1 if of_each.max() == 1 else None]:
                    yield name, number, size, of_each, correlation


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2000, help="intervals of each cell (%(default)s)")
    parser.add_argument("--output", type=Path, help="a file to write the document to")
    options = parser.parse_args()
    rng, found, before = np.random.default_rng(0), {}, {}
    for name, number, size, of_each, correlation in cells():
        key = name, number, size, correlation
        found[key] = coverage(POPULATIONS[name], of_each, correlation, options.times, rng)
        few = max(1, options.times // 10)
        before[key] = coverage_of_bootstrap(POPULATIONS[name], of_each, correlation, few, rng)
        print(*key, f"{found[key]:.3f} (bootstrap {before[key]:.3f})", flush=True)
    text = document(found, before, options.times)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


def document(found: dict, before: dict, times: int) -> str:
    """The tables, and what they show."""
    every = np.array([*found.values()])
    inside = int(((every >= LOW) & (every <= HIGH)).sum())
    blocks = [
        "# How often the intervals cover",
        f"```bash\npython tests/evaluation/interval_coverage.py --times {times} "
        "--output docs/results/interval-coverage.md\n```",
        "A 95 % interval should hold the population's mean in 95 of 100 experiments. Each cell is the share of "
        f"{times:,} simulated experiments in which it did, so its standard error is "
        f"{np.sqrt(0.95 * 0.05 / times):.3f}. In brackets: the percentile bootstrap over tasks, on a tenth as many.",
        "The columns are how many tasks each cluster (family, category, data set) has, and how tasks in a cluster "
        "correlate. “1 to 9” are the sizes of the built-in suite's families among its unseen tasks. Scores are "
        f"accuracies on {RECORDS} records; those of skewed populations are Beta distributed with a + b = 2. Bold: "
        "outside of 0.93 to 0.97.",
        f"{inside} of {len(every)} cells are within 0.93 to 0.97; the lowest is {every.min():.3f}, the highest "
        f"{every.max():.3f}. Other methods on the same cells, and why this one: "
        "[interval-alternatives.md](interval-alternatives.md).",
    ]
    columns = list(dict.fromkeys((size, correlation) for _, _, size, correlation in found))
    head = ["clusters", *(size if size == "1 each" else f"{size}, {correlation:g}" for size, correlation in columns)]
    for name in POPULATIONS:
        rows = []
        for number in NUMBERS:
            keys = [(name, number, *column) for column in columns]
            rows.append([str(number), *(f"{_marked(found[key])} ({before[key]:.2f})" for key in keys)])
        blocks += [f"## {name[0].upper()}{name[1:]}", "\n".join(markdown_table(head, rows))]
    return "\n\n".join(blocks)


def _marked(share: float) -> str:
    return f"{share:.3f}" if LOW <= share <= HIGH else f"**{share:.3f}**"


if __name__ == "__main__":
    main()
