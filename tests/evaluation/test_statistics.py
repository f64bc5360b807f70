import math

import numpy as np
import pytest

from modeling_tagi.evaluation.statistics import bootstrap_interval, paired_difference, paired_difference_by_task


def test_two_tasks_by_hand():
    # A draw of two among 0 and 1 has the mean 0 once, 1/2 twice and 1 once in four.
    assert bootstrap_interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5, 0.5)  # from the 30th to the 70th per cent


def test_three_tasks_by_hand():
    # Of the 27 draws among 0, 0 and 3, the sum is 0 in 8, 3 in 12, 6 in 6 and 9 in 1, so the mean is at most 0 in
    # 29.6 per cent, at most 1 in 74.1 and at most 2 in 96.3.
    interval = bootstrap_interval([0.0, 0.0, 3.0], level=0.9)
    assert interval == (1.0, 0.0, 2.0)
    assert bootstrap_interval([0.0, 0.0, 3.0], level=0.3) == (1.0, 1.0, 1.0)
    assert bootstrap_interval([0.0, 0.0, 3.0], level=0.99).high == 3.0


def test_equal_tasks_have_no_width():
    assert bootstrap_interval([40.0] * 7) == (40.0, 40.0, 40.0)


def test_of_one_task_there_is_no_interval():
    with pytest.warns(UserWarning, match="one task"):
        assert bootstrap_interval([[60.0], [70.0]]) == (65.0, 65.0, 65.0)


def test_seeds_are_averaged_within_each_task():
    values = np.random.default_rng(0).uniform(0, 100, size=(3, 20))
    assert bootstrap_interval(values) == bootstrap_interval(values.mean(axis=0))
    # Seeds that differ alike on every task leave an interval without width: it is over tasks.
    assert bootstrap_interval([[10.0, 10.0], [30.0, 30.0]]) == (20.0, 20.0, 20.0)


def test_the_same_seed_gives_the_same_interval_and_leaves_other_generators_alone():
    values = np.random.default_rng(0).normal(size=30)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(list(values), seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert (np.random.get_state()[1] == before).all()


def test_many_tasks_are_drawn_in_parts():
    # 3000 draws of 5000 tasks are more than are drawn at once. The mean's standard error is 1 / sqrt(5000).
    values = np.random.default_rng(0).normal(size=5000)
    interval = bootstrap_interval(values, draws=3000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / math.sqrt(5000), rel=0.1)


def test_intervals_cover_the_mean_as_often_as_they_say():
    # Scores of 40 tasks from Beta(2, 3), whose mean is 2/5. The percentile bootstrap covers a little less than 95 %
    # of so few; of 300 sets the standard error is 1.3 %, so three of these around 94 % are allowed.
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.beta(2, 3, size=40), draws=1000, seed=seed) for seed in range(300)]
    covered = np.mean([interval.low <= 0.4 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98
    half = [bootstrap_interval(rng.beta(2, 3, size=40), draws=1000, seed=seed, level=0.5) for seed in range(300)]
    # The standard error at one half is 2.9 %.
    assert 0.41 <= np.mean([interval.low <= 0.4 <= interval.high for interval in half]) <= 0.59


def test_paired_differences_cover_as_often_as_they_say_and_are_far_narrower():
    rng = np.random.default_rng(1)
    covered, narrower = [], []
    for seed in range(300):
        difficulty = rng.normal(50, 20, size=40)
        a, b = difficulty + rng.normal(2, 3, size=40), difficulty + rng.normal(0, 3, size=40)
        both = paired_difference(a, b, draws=1000, seed=seed)
        covered.append(both.low <= 2 <= both.high)
        alone = bootstrap_interval(a, draws=1000, seed=seed)
        narrower.append((both.high - both.low) / (alone.high - alone.low))
    assert 0.90 <= np.mean(covered) <= 0.98
    # Standard deviations: of a difference sqrt(18), of a's scores sqrt(409): 0.21.
    assert np.mean(narrower) == pytest.approx(0.21, abs=0.02)


def test_the_same_tasks_are_drawn_for_both():
    a = np.random.default_rng(0).uniform(0, 100, size=25)
    difference = paired_difference(a + 3, a)
    assert tuple(difference) == pytest.approx((3, 3, 3), abs=1e-9)
    swapped = paired_difference(a[::-1], a)
    assert swapped.mean == pytest.approx(0, abs=1e-9) and swapped.low < -1 and swapped.high > 1


def test_both_may_have_another_number_of_seeds():
    a = [[1.0, 5.0], [3.0, 7.0]]  # means 2 and 6
    assert paired_difference(a, [1.0, 6.0]) == (0.5, 0.0, 1.0)


def test_tasks_are_paired_by_name():
    a, b = {"x": 10.0, "y": 50.0, "z": 30.0}, {"z": 29.0, "y": 48.0, "x": 10.0}
    assert paired_difference_by_task(a, b) == paired_difference([10, 50, 30], [10, 48, 29])
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
        bootstrap_interval(values)
    with pytest.raises(ValueError, match=f"^b .*{message}"):
        paired_difference([1.0, 2.0], values)


@pytest.mark.parametrize("options", [{"draws": 0}, {"level": 0.0}, {"level": 1.0}, {"level": 95}])
def test_impossible_draws_and_levels_are_refused(options):
    with pytest.raises(ValueError, match="at least 1 draw and a level between 0 and 1"):
        bootstrap_interval([1.0, 2.0], **options)


def test_different_numbers_of_tasks_are_refused():
    with pytest.raises(ValueError, match="a has 2 tasks and b 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
