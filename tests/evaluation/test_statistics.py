import math

import numpy as np
import pytest
from interval_alternatives import OTHERS, compare
from interval_coverage import HIGH, LOW, POPULATIONS, coverage, sizes

from modeling_tagi.evaluation.statistics import (
    DIFFERENCES,
    SCORES,
    mean_interval,
    paired_difference,
    paired_difference_by_task,
    student_t_quantile,
)


def test_tasks_of_their_own_by_hand():
    # Of 0, 0 and 3 the mean is 1 and its standard error sqrt(3 / 3) = 1; t with 2 degrees of freedom is 4.302653.
    interval = mean_interval([0.0, 0.0, 3.0])
    assert interval == pytest.approx((1.0, 1 - 4.302653, 1 + 4.302653), abs=1e-5)
    # At 50 per cent it is sqrt(2 * 0.5^2 / (1 - 0.5^2)) = 0.816497.
    assert mean_interval([0.0, 0.0, 3.0], level=0.5) == pytest.approx((1.0, 1 - 0.816497, 1 + 0.816497), abs=1e-5)


def test_clusters_of_one_size_are_their_means_by_hand():
    values, clusters = [10, 30, 40, 60, 70, 30], ["a", "a", "b", "b", "c", "c"]
    assert mean_interval(values, clusters) == pytest.approx(mean_interval([20.0, 50.0, 50.0]))
    order = [5, 0, 3, 2, 4, 1]
    mixed = mean_interval([values[n] for n in order], [clusters[n] for n in order])
    assert mixed == pytest.approx(mean_interval(values, clusters))


def test_clusters_of_different_sizes_by_hand():
    # Sizes 1, 1 and 2 with means 0, 4 and 8: the mean is 5. CR2: (1 * -5)^2 / (1 - 1/4) + (1 * -1)^2 / (1 - 1/4)
    # + (2 * 3)^2 / (1 - 1/2) = 33.333 + 1.333 + 72, over 4^2: 6.6667. Satterthwaite: shares 1/4, 1/4, 1/2 have the sum
    # of squares 3/8; weights h^2 / (1 - h) are 1/12, 1/12, 1/2: 1 / (3/8 + (2/3)^2 - 19/72) = 1.8.
    interval = mean_interval([0.0, 4.0, 7.0, 9.0], ["a", "b", "c", "c"])
    half = student_t_quantile(0.95, 1.8) * math.sqrt(6 + 2 / 3)
    assert interval == pytest.approx((5.0, 5 - half, 5 + half))


@pytest.mark.parametrize("level, freedom, quantile", [  # of any table of Student's t, two-sided
    (0.95, 1, 12.7062), (0.95, 2, 4.30265), (0.95, 4, 2.77645), (0.95, 20, 2.08596), (0.95, 1000, 1.96234),
    (0.99, 9, 3.24984), (0.5, 4, 0.740697),
])  # fmt: skip
def test_quantiles_of_students_t(level, freedom, quantile):
    assert student_t_quantile(level, freedom) == pytest.approx(quantile, rel=1e-5)


def test_what_is_bounded_stays_within_and_leans_away_from_the_bound():
    values = [0.0, 0.0, 0.0, 2.0, 0.0, 9.0]
    free, bounded = mean_interval(values), mean_interval(values, bounds=SCORES)
    assert free.low < 0 < bounded.low < bounded.mean == free.mean and bounded.high > free.high
    two = mean_interval([0.0, 100.0], bounds=SCORES)
    assert two.mean == 50 and 0 < two.low < 0.1 and 99.9 < two.high < 100
    # In the middle of the scale both are the same but for its ends.
    values = [49.0, 50.0, 51.0, 50.0]
    assert mean_interval(values, bounds=SCORES) == pytest.approx(mean_interval(values), abs=1e-3)
    # The logit of 0.2 is -1.386294; the error of 20 is 10 / sqrt(4) = 5, on the logit scale 0.05 / 0.16.
    half = student_t_quantile(0.95, 3) * 0.05 / 0.16
    expected = [100 / (1 + math.exp(1.386294 + side * half)) for side in (1, -1)]
    values = [20 - math.sqrt(75), 20 + math.sqrt(75), 20 - math.sqrt(75), 20 + math.sqrt(75)]
    assert mean_interval(values, bounds=SCORES)[1:] == pytest.approx(expected, rel=1e-4)


def test_equal_tasks_have_no_width():
    assert mean_interval([40.0] * 7) == (40.0, 40.0, 40.0)
    assert mean_interval([0.0] * 7, list("aabbccc"), bounds=SCORES) == (0.0, 0.0, 0.0)
    assert mean_interval([100.0] * 3, bounds=SCORES) == (100.0, 100.0, 100.0)


def test_clusters_with_equal_means_have_a_width_where_tasks_do_not_agree():
    interval = mean_interval([0.0, 100.0, 20.0, 40.0], ["a", "a", "b", "c"], bounds=SCORES)
    assert interval.low < interval.mean < interval.high


def test_of_one_task_there_is_no_interval():
    with pytest.warns(UserWarning, match="one task"):
        assert mean_interval([[60.0], [70.0]]) == (65.0, 65.0, 65.0)


def test_tasks_of_one_cluster_alone_are_taken_for_themselves():
    values = [10.0, 40.0, 70.0]
    assert mean_interval(values, ["same"] * 3) == mean_interval(values) == mean_interval(values, ["a", "b", "c"])


def test_seeds_are_averaged_within_each_task():
    values = np.random.default_rng(0).uniform(0, 100, size=(3, 20))
    assert mean_interval(values) == mean_interval(values.mean(axis=0))
    # Seeds that differ alike on every task leave an interval without width: it is over tasks.
    assert mean_interval([[10.0, 10.0], [30.0, 30.0]]) == (20.0, 20.0, 20.0)


def test_nothing_is_drawn():
    values = np.random.default_rng(0).normal(size=30)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert mean_interval(values) == mean_interval(list(values))
    assert (np.random.get_state()[1] == before).all()


def test_of_many_tasks_the_width_is_the_standard_errors():
    values = np.random.default_rng(0).normal(size=5000)
    interval = mean_interval(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std(ddof=1) / math.sqrt(5000), rel=1e-3)


# docs/results/interval-coverage.md has all cells. Of 1,000 intervals the standard error is 0.7 %, so what is within
# 0.93 and 0.97 is given two of them more here.
@pytest.mark.parametrize("name, number, size, correlation", [
    ("scores, normal around 50", 5, "1 each", 0.0), ("scores, normal around 50", 5, "1 to 9", 0.8),
    ("scores, most near 0 or 100", 8, "1 to 9", 0.3), ("scores, skewed, mean 80", 5, "4 each", 0.3),
    ("scores, skewed, mean 15", 12, "4 each", 0.8), ("scores, skewed, mean 80", 20, "1 to 9", 0.0),
    ("differences, normal", 5, "4 each", 0.8), ("differences, heavy tails", 12, "1 to 9", 0.3),
])  # fmt: skip
def test_intervals_cover_the_mean_as_often_as_they_say(name, number, size, correlation):
    rng = np.random.default_rng(1)
    covered = coverage(POPULATIONS[name], sizes(number)[size], correlation, 1000, rng)
    assert LOW - 0.014 <= covered <= HIGH + 0.014


def test_the_comparison_with_other_methods_has_our_intervals_and_finds_the_percentile_bootstrap_too_narrow():
    # `compare` checks one interval of each cell against `mean_interval`.
    name = "log-normal gains"
    covered, widths = compare(OTHERS, [(name, 6, "1 to 6", np.arange(1, 7), 0.2)], 500)
    ours = next(iter(covered))
    assert "present" in ours and widths[ours] == [1.0] and 0.88 <= covered[ours][0] <= 0.99
    narrow = "percentile bootstrap over clusters"
    assert covered[narrow][0] < LOW and widths[narrow][0] < 0.9


def test_intervals_of_another_level_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    half = [mean_interval(rng.beta(2, 3, size=40), level=0.5) for _ in range(300)]
    # The standard error at one half is 2.9 %.
    assert 0.41 <= np.mean([interval.low <= 0.4 <= interval.high for interval in half]) <= 0.59


def test_paired_differences_cover_as_often_as_they_say_and_are_far_narrower():
    rng = np.random.default_rng(1)
    covered, narrower = [], []
    for _ in range(300):
        difficulty = rng.normal(50, 20, size=40)
        a, b = difficulty + rng.normal(2, 3, size=40), difficulty + rng.normal(0, 3, size=40)
        both = paired_difference(a, b, bounds=DIFFERENCES)
        covered.append(both.low <= 2 <= both.high)
        alone = mean_interval(a)
        narrower.append((both.high - both.low) / (alone.high - alone.low))
    assert 0.91 <= np.mean(covered) <= 0.98
    # Standard deviations: of a difference sqrt(18), of a's scores sqrt(409): 0.21.
    assert np.mean(narrower) == pytest.approx(0.21, abs=0.02)


def test_differences_are_of_the_same_tasks():
    a = np.random.default_rng(0).uniform(0, 100, size=25)
    assert tuple(paired_difference(a + 3, a)) == pytest.approx((3, 3, 3), abs=1e-9)
    swapped = paired_difference(a[::-1], a)
    assert swapped.mean == pytest.approx(0, abs=1e-9) and swapped.low < -1 and swapped.high > 1


def test_differences_of_clusters_are_wider_where_tasks_of_a_cluster_differ_alike():
    a, b = [60.0, 62.0, 61.0, 40.0, 41.0, 42.0], [50.0] * 6
    alone, clustered = paired_difference(a, b), paired_difference(a, b, list("xxxyyy"))
    assert clustered.mean == alone.mean and clustered.high - clustered.low > 3 * (alone.high - alone.low)


def test_both_may_have_another_number_of_seeds():
    a = [[1.0, 5.0], [3.0, 7.0]]  # means 2 and 6
    assert paired_difference(a, [1.0, 6.0]) == mean_interval([1.0, 0.0])


def test_tasks_are_paired_by_name():
    a, b = {"x": 10.0, "y": 50.0, "z": 30.0}, {"z": 29.0, "y": 48.0, "x": 10.0}
    assert paired_difference_by_task(a, b) == paired_difference([10, 50, 30], [10, 48, 29])
    families = {"x": "one", "z": "two", "y": "one"}
    expected = paired_difference([10, 50, 30], [10, 48, 29], ["one", "one", "two"])
    assert paired_difference_by_task(a, b, families) == expected != paired_difference_by_task(a, b)
    with pytest.raises(ValueError, match=r"\['z'\] in a alone and \[\] in b alone"):
        paired_difference_by_task(a, {"x": 1.0, "y": 2.0})
    many = {f"task{number}": 0.0 for number in range(10)}
    with pytest.raises(ValueError, match=r"\['x', 'y', 'z'\] in a alone and .*'task4'\] and 5 more in b alone"):
        paired_difference_by_task(a, many)


@pytest.mark.parametrize("values, message", [
    ([], r"\[0\]"),
    ([[]], r"\[1, 0\]"),
    (5.0, r"\[\]"),
    (np.zeros((2, 3, 4)), r"\[2, 3, 4\]"),
    ([1.0, math.nan], r"no finite number at \[1\]"),
    ([1.0, None], r"no finite number at \[1\]"),
    ([[1.0, 2.0], [math.inf, 2.0]], r"no finite number at \[\(1, 0\)\]"),
    ([[1.0, 2.0], [1.0]], "every task for each seed"),
    (["high", "low"], "array of numbers"),
    ({"x": 1.0}, "array of numbers"),
])
def test_what_has_no_mean_over_tasks_is_refused(values, message):
    with pytest.raises(ValueError, match=f"values .*{message}"):
        mean_interval(values)
    with pytest.raises(ValueError, match=f"^b .*{message}"):
        paired_difference([1.0, 2.0], values)


@pytest.mark.parametrize("options, message", [
    ({"level": 0.0}, "between 0 and 1"), ({"level": 1.0}, "between 0 and 1"), ({"level": 95}, "between 0 and 1"),
    ({"clusters": ["a"]}, "2 tasks and 1 clusters"), ({"bounds": (0.0, 1.0)}, r"from 1 to 2, but must lie in \[0.0"),
])  # fmt: skip
def test_impossible_levels_clusters_and_bounds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mean_interval([1.0, 2.0], **options)


def test_different_numbers_of_tasks_are_refused():
    with pytest.raises(ValueError, match="a has 2 tasks and b 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
