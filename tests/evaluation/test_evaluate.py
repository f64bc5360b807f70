from collections import Counter

import pytest

from modeling_tagi.data.records import Record
from modeling_tagi.evaluation.evaluate import evaluate_split, spread, table


class Scripted:
    """Answers with what it is given, in order, and remembers what it was asked."""

    def __init__(self, answers=(), scores=()):
        self.answers, self.scores, self.asked = answers, scores, []

    def generate(self, records, progress=""):
        self.asked.append(("generate", [r.input for r in records]))
        return list(self.answers)

    def rank(self, records, progress=""):
        self.asked.append(("rank", [r.input for r in records]))
        return [(r.task, s, r.options.index(r.targets[0])) for r, s in zip(records, self.scores)]


FREE = [Record("a", "i", "1", ("yes",)), Record("a", "i", "2", ("no",)), Record("b", "j", "3", ("maybe so",))]
CHOICE = [Record("c", "k", "4", ("x",), options=("x", "y", "z", "w"))]


def test_free_answers_are_scored_as_means_over_tasks():
    # task a: one of two right; task b: one of two words, ROUGE-L 2 * 1 * 0.5 / 1.5 = 2/3
    results = evaluate_split({"tagi": Scripted(["Yes.", "yes", "maybe"])}, FREE, rank=True)
    assert results["tagi"]["exact_match"] == 25.0
    assert results["tagi"]["rouge_l"] == pytest.approx((50 + 200 / 3) / 2, abs=0.01)
    assert results["tagi"]["n"] == 3 and results["tagi"]["per_task"]["a"]["exact_match"] == 50
    assert results["chance"] is None and "rank_accuracy" not in results["tagi"]


def test_records_with_options_are_ranked_and_the_others_answered():
    # by the sum the right option wins, by token another one does
    method = Scripted(["yes", "no", "maybe so"], [[(-1.0, 1), (-2.0, 4), (-9.0, 1), (-9.0, 1)]])
    results = evaluate_split({"tagi": method}, FREE + CHOICE, rank=True)
    assert method.asked == [("generate", ["1", "2", "3"]), ("rank", ["4"])]
    scores = results["tagi"]
    assert (scores["exact_match"], scores["rank_accuracy"], scores["rank_accuracy_mean"]) == (100, 100, 0)
    assert (scores["n"], scores["n_ranked"]) == (3, 1)
    assert (results["chance"], results["majority"]) == (25, 100)


def test_without_ranking_options_are_answered_freely():
    method = Scripted(["x"])
    results = evaluate_split({"tagi": method}, CHOICE, rank=False)
    assert method.asked == [("generate", ["4"])] and results["tagi"]["exact_match"] == 100


def test_a_split_of_options_alone_has_no_exact_match():
    results = evaluate_split({"tagi": Scripted(scores=[[(-1.0, 1)] + [(-2.0, 1)] * 3])}, CHOICE, rank=True)
    assert results["tagi"]["exact_match"] is None and results["tagi"]["n"] == 0


def many(**sizes):
    return [Record(task, "i", f"{task} {n}", ("y",)) for task, size in sizes.items() for n in range(size)]


def test_a_limit_is_spread_over_the_tasks():
    records = many(a=10, b=2, c=10)
    chosen = spread(records, 9)
    assert Counter(r.task for r in chosen) == {"a": 4, "b": 2, "c": 3}
    assert chosen == [r for r in records if r in chosen]
    assert Counter(r.task for r in spread(records, 2)) == {"a": 1, "b": 1}


def test_no_limit_keeps_every_record():
    records = many(a=3, b=2)
    assert spread(records, None) == spread(records, 5) == spread(records, 99) == records


def test_a_table_has_a_row_for_each_method_and_a_column_for_each_score():
    free = {"exact_match": 12.34, "rouge_l": 0.0, "n": 3}
    ranked = {"exact_match": None, "rouge_l": None, "n": 0, "rank_accuracy": 50.0, "rank_accuracy_mean": 25.0}
    results = {
        "unseen": {"prompted": free, "tagi": free, "chance": None, "majority": None},
        "choices": {"prompted": ranked, "tagi": ranked, "chance": 25.0, "majority": 33.3},
    }
    assert table(results, ["unseen", "choices"]).splitlines() == [
        "| split | method | exact match | rouge l | rank accuracy | rank accuracy mean |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| unseen | prompted | 12.3 | 0.0 | – | – |",
        "| unseen | tagi | 12.3 | 0.0 | – | – |",
        "| choices | prompted | – | – | 50.0 | 25.0 |",
        "| choices | tagi | – | – | 50.0 | 25.0 |",
        "| choices | *chance* | – | – | 25.0 | 25.0 |",
        "| choices | *majority* | – | – | 33.3 | 33.3 |",
    ]
    assert table(results, ["unseen"]).splitlines()[0] == "| split | method | exact match | rouge l |"
