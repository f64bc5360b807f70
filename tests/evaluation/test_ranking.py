import math

import pytest
import torch

from modeling_tagi.evaluation.ranking import rank_accuracy


def test_accuracies_by_hand():
    # By sum -4 beats -6, per token -6/3 = -2 beats -4/1.
    short_and_long = [(-4.0, 1), (-6.0, 3)]
    groups = [
        ("a", short_and_long, 0), ("a", short_and_long, 1), ("a", short_and_long, 1),
        ("b", [(-1.0, 1), (-2.0, 1), (-3.0, 1)], 0),
    ]
    result = rank_accuracy(groups)
    # Task a: 1/3 by sum, 2/3 per token; task b: 1 by both.
    assert result["sum"] == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert result["mean"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert result["n"] == 4
    assert result["per_task"]["a"] == {"sum": pytest.approx(100 / 3), "mean": pytest.approx(200 / 3), "n": 3}
    assert result["per_task"]["b"] == {"sum": 100.0, "mean": 100.0, "n": 1}


def test_a_tie_is_shared_wherever_the_right_option_stands():
    tied = [(-1.0, 1), (-1.0, 1), (-5.0, 1)]
    assert [rank_accuracy([("t", tied, right)])["sum"] for right in range(3)] == [50.0, 50.0, 0.0]


def test_scores_may_be_tensors():
    total, tokens = torch.tensor([-0.1, -2.1]), torch.tensor([1, 1])
    assert rank_accuracy([("t", list(zip(total, tokens)), 0)])["mean"] == 100.0


@pytest.mark.parametrize("groups, message", [
    ([], "no records"),
    ([("t", [(-1.0, 1)], 1)], "1 options"),
    ([("t", [(-1.0, 1)], -1)], "-1"),
    ([("t", [], 0)], "0 options"),
    ([("t", [(-1.0, 1), (math.nan, 1)], 0)], "NaN"),
    ([("t", [(-1.0, 1), (0.0, 0)], 0)], "at least one token"),
])
def test_what_cannot_be_ranked_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        rank_accuracy(groups)


def test_a_data_set_has_the_median_and_the_spread_of_its_templates():
    right, wrong = ([(-1.0, 1), (-2.0, 1)], 0), ([(-1.0, 1), (-2.0, 1)], 1)
    # Of four records the templates of rte get 1, 2, 4 and 4 right: 25, 50, 100 and 100 per cent.
    groups = [
        (f"rte {template}", *(right if number < hits else wrong))
        for template, hits in zip("abcd", (1, 2, 4, 4)) for number in range(4)
    ] + [("cb a", *right), ("cb a", *wrong)]
    result = rank_accuracy(groups, {**{f"rte {template}": "rte" for template in "abcd"}, "cb a": "cb", "other": "x"})
    # Quartiles lie at the places 0.75, 1.5 and 2.25 of 0 to 3: 25 + 0.75 * 25, 75 and 100.
    spread = {"median": 75.0, "q1": 43.75, "q3": 100.0, "iqr": 56.25, "min": 25.0, "max": 100.0}
    assert result["per_dataset"]["rte"] == {"sum": spread, "mean": spread, "templates": 4, "n": 16}
    lone = {"median": 50.0, "q1": 50.0, "q3": 50.0, "iqr": 0.0, "min": 50.0, "max": 50.0}
    assert result["per_dataset"]["cb"] == {"sum": lone, "mean": lone, "templates": 1, "n": 2}
    assert set(result["per_dataset"]) == {"rte", "cb"}
    assert {**result, "per_dataset": None} == {**rank_accuracy(groups), "per_dataset": None}


def test_by_sum_and_by_mean_have_their_own_spread():
    options = [(-4.0, 1), (-6.0, 3)]  # by sum the first, per token the second
    found = rank_accuracy([("a", options, 0), ("b", options, 1), ("c", options, 1)], dict.fromkeys("abc", "d"))
    assert [found["per_dataset"]["d"][by]["median"] for by in ("sum", "mean")] == [0.0, 100.0]


def test_a_task_without_a_data_set_is_refused():
    with pytest.raises(ValueError, match=r"no data set for the tasks \['b'\]"):
        rank_accuracy([("a", [(-1.0, 1)], 0), ("b", [(-1.0, 1)], 0)], {"a": "x"})
