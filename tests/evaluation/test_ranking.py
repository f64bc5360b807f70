import math

import pytest
import torch

from modeling_tagi.evaluation.ranking import option_log_likelihood, rank_accuracy


def test_log_likelihood_by_hand():
    # Vocabulary of 2. Row 0: probabilities 1/4 then 1/2 of the labels; row 1: 3/4, the other place is not counted.
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]], [[0.0, math.log(3)], [9.0, 0.0]]])
    labels = torch.tensor([[0, 1], [1, -100]])
    total, tokens = option_log_likelihood(logits, labels)
    assert tokens.tolist() == [2, 1]
    assert total.tolist() == pytest.approx([math.log(1 / 8), math.log(3 / 4)], abs=1e-6)


def test_padding_and_the_rest_of_the_batch_change_nothing():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    padded = torch.cat([torch.full((3, 2), -100), labels, torch.full((3, 4), -100)], dim=1)
    around = torch.cat([torch.randn(3, 2, 11), logits, torch.randn(3, 4, 11)], dim=1)
    total, tokens = option_log_likelihood(around, padded)
    for row in range(3):
        alone, count = option_log_likelihood(logits[row:row + 1], labels[row:row + 1])
        assert total[row].item() == pytest.approx(alone.item(), abs=1e-5) and tokens[row] == count == 5


def test_half_precision_logits_are_summed_in_fp32():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 300, 7).bfloat16(), torch.randint(0, 7, (2, 300))
    total, _ = option_log_likelihood(logits, labels)
    exact, _ = option_log_likelihood(logits.float(), labels)
    assert total.dtype == torch.float32
    assert torch.equal(total, exact)


def test_logits_of_the_labels_alone_say_the_same():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 3:] = labels[2, :2] = -100
    whole, alone = option_log_likelihood(logits, labels), option_log_likelihood(logits[labels != -100], labels)
    assert torch.equal(whole[0], alone[0]) and torch.equal(whole[1], alone[1])


@pytest.mark.parametrize("shape, labels, message", [
    ((2, 3, 5), torch.zeros(2, 4, dtype=torch.long), r"\[2, 3, 5\].*\[2, 4\]"),
    ((3, 5), torch.zeros(3, dtype=torch.long), "batch, seq"),
    ((2, 2, 5), torch.tensor([[0, 1], [-100, -100]]), r"rows \[1\]"),
])
def test_what_has_no_likelihood_is_refused(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        option_log_likelihood(torch.zeros(shape), labels)


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
    total, tokens = option_log_likelihood(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]]), torch.tensor([[0], [0]]))
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
