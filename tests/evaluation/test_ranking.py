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
