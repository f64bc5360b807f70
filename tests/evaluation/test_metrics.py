import pytest

from modeling_tagi.data.records import Record
from modeling_tagi.evaluation.metrics import chance_and_majority, exact_match, normalise_answer, rouge_l, score


def test_case_punctuation_and_white_space_do_not_count_but_articles_do():
    assert normalise_answer(" The  U.S.A.,\n(well-known)! ") == "the usa wellknown"
    assert exact_match("Yes.", ["no", "yes"]) == 1.0
    assert exact_match("the cat", ["cat"]) == 0.0
    assert exact_match("", ["cat"]) == 0.0


@pytest.mark.parametrize("prediction, references, expected", [
    # Longest common subsequence "the cat on mat" of 4 words: precision 4/5, recall 4/6, F = 2 * 4 / (5 + 6).
    ("the cat sits on mat", ["the cat lay on a mat"], 8 / 11),
    # Stems are equal: "running dogs" and "run dog".
    ("running dogs", ["run dog"], 1.0),
    # Order counts: one word of two in common order, F = 2 * 1 / (2 + 2).
    ("b a", ["a b"], 0.5),
    # The best reference counts.
    ("red car", ["blue boat", "red bus"], 0.5),
    ("", ["word"], 0.0),
])
def test_rouge_l_against_values_by_hand(prediction, references, expected):
    assert rouge_l(prediction, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [exact_match, rouge_l])
@pytest.mark.parametrize("references", [[], (), "yes"])
def test_references_must_be_a_list_of_texts(metric, references):
    with pytest.raises(ValueError, match="list of at least one text"):
        metric("yes", references)


def test_every_task_weighs_the_same():
    records = [Record("a", "i", str(n), ("yes",)) for n in range(3)] + [Record("b", "i", "x", ("red bus", "van"))]
    result = score(["Yes!", "no", "no", "red car"], records)
    # Task a: 1 of 3 in both metrics. Task b: no match, ROUGE-L 1/2. Means: (1/3 + 0) / 2 and (1/3 + 1/2) / 2.
    assert result["exact_match"] == pytest.approx(100 / 6)
    assert result["rouge_l"] == pytest.approx(100 * 5 / 12)
    assert result["n"] == 4
    third = pytest.approx(100 / 3)
    assert result["per_task"]["a"] == {"exact_match": third, "rouge_l": third, "n": 3}
    assert result["per_task"]["b"] == {"exact_match": 0.0, "rouge_l": pytest.approx(50), "n": 1}


@pytest.mark.parametrize("predictions, records", [(["a"], []), ([], []), ([], [Record("a", "i", "x", ("y",))])])
def test_a_prediction_for_each_record(predictions, records):
    with pytest.raises(ValueError, match="records"):
        score(predictions, records)


def test_floors_without_a_model():
    two, four = ("yes", "no"), ("a", "b", "c", "d")
    records = [
        *(Record("nli", "i", str(n), (target,), options=two) for n, target in enumerate(["yes", "yes", "yes", "no"])),
        *(Record("qa", "i", str(n), (target,), options=four) for n, target in enumerate("ab")),
        Record("free", "i", "x", ("text",)),
    ]
    # Chance: (1/2 + 1/4) / 2. Majority: (3/4 + 1/2) / 2.
    assert chance_and_majority(records) == {"chance": 37.5, "majority": 62.5, "n": 6}
    # A task's own instances may differ in their number of options: (1/2 + 1/4) / 2.
    mixed = [Record("t", "i", "1", ("yes",), options=two), Record("t", "i", "2", ("a",), options=four)]
    assert chance_and_majority(mixed)["chance"] == 37.5
    assert chance_and_majority(records[-1:]) == {"chance": None, "majority": None, "n": 0}
