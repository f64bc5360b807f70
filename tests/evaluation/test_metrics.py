import json
import random
import string

import pytest
from rouge_score import rouge_scorer

from modeling_tagi.data.records import Record
from modeling_tagi.evaluation.metrics import chance_and_majority, exact_match, normalise_answer, rouge_l, score
from modeling_tagi.evaluation.modules.sni_answers.scores import answer_scores


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
    # Over records as SNI's script has them: 1 of 4, and (1 + 1/2) / 4.
    assert result["over_records"] == pytest.approx({"exact_match": 25, "rouge_l": 37.5})
    assert result["n"] == 4
    third = pytest.approx(100 / 3)
    assert result["per_task"]["a"] == {"exact_match": third, "rouge_l": third, "n": 3}
    assert result["per_task"]["b"] == {"exact_match": 0.0, "rouge_l": pytest.approx(50), "n": 1}


def test_a_category_is_the_mean_over_its_records():
    records = [Record("a", "i", str(n), ("yes",), group="c") for n in range(3)] + [
        Record("b", "i", "x", ("red bus", "van"), group="c"), Record("d", "i", "x", ("no",)),
    ]
    result = score(["Yes!", "no", "no", "red car", "no"], records)
    # Category c: 1 of 4 matches; ROUGE-L 1, 0, 0, 1/2. A task without a group is its own.
    assert result["per_category"] == {
        "c": {"exact_match": 25.0, "rouge_l": pytest.approx(37.5), "n": 4},
        "d": {"exact_match": 100.0, "rouge_l": 100.0, "n": 1},
    }


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


WORDS = """the a cat cats running ran run dogs bus red yes no Yes NO 42 3.14 U.S.A. well-known don't (b) "quoted" café
naïve Ünïcode 東京 здравствуйте — … ’s 🙂 new\tline two\nlines 𝟙 İstanbul ß answer: option_a""".split(" ")


def _write_files(folder, count):
    """Predictions and references of the published script: JSON lines, 7 tasks of 3 categories."""
    rng = random.Random(0)
    predictions, references = [], []

    def text(least):
        return " ".join(rng.choices(WORDS, k=rng.randint(least, 8)))

    for number in range(count):
        accepted = [text(1) for _ in range(rng.randint(1, 4))]
        kind = rng.randrange(5)
        words = rng.choice(accepted).split(" ")
        answer = {
            0: lambda: "",
            1: lambda: text(0),
            2: lambda: f"  {' '.join(words).upper()}!! ",
            3: lambda: " ".join(rng.sample(words, len(words))),
            4: lambda: " ".join(words[: rng.randint(1, len(words))] + [rng.choice(WORDS)]),
        }[kind]()
        task = rng.randrange(7)
        predictions.append({"id": f"id-{number}", "prediction": answer})
        references.append({
            "id": f"id-{number}", "references": accepted, "task_id": f"task{task}",
            "task_category": f"category_{task % 3}", "track": "default",
        })
    for name, lines in (("predictions", predictions), ("references", references)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _published(pairs):
    """Exact match and ROUGE-L in per cent, worked out anew: character by character, with a scorer for each pair."""
    def normal(text):
        kept = "".join(" " if c.isspace() else c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split(" ") if word]

    matches = sum(any(normal(answer) == normal(known) for known in accepted) for answer, accepted in pairs)
    rouge = sum(
        sorted(
            rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(target=known, prediction=answer)["rougeL"][2]
            for known in accepted
        )[-1]
        for answer, accepted in pairs
    )
    return {"exact_match": 100.0 * matches / len(pairs), "rouge_l": 100.0 * rouge / len(pairs), "n": len(pairs)}


def test_a_file_of_500_predictions_is_scored_as_by_the_published_script(tmp_path):
    _write_files(tmp_path, 500)
    files = [(tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines() for name in ("predictions", "references")]
    answers = {line["id"]: line["prediction"] for line in map(json.loads, files[0])}
    lines = [json.loads(line) for line in files[1]]
    pairs = [(answers[line["id"]], line["references"]) for line in lines]
    tasks, categories = ([line[key] for line in lines] for key in ("task_id", "task_category"))
    found = answer_scores([answer for answer, _ in pairs], [accepted for _, accepted in pairs], tasks, categories)

    expected = _published(pairs)
    assert len(pairs) == 500 and sum(answer == "" for answer, _ in pairs) > 50
    assert 15 < expected["exact_match"] < 60 and 30 < expected["rouge_l"] < 80  # neither all right nor all wrong
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for names, key in ((tasks, "per_task"), (categories, "per_category")):
        assert found[key].keys() == set(names)
        for name, scores in found[key].items():
            assert scores == pytest.approx(_published([pair for n, pair in zip(names, pairs) if n == name]), abs=1e-6)
    for metric in ("exact_match", "rouge_l"):
        of_tasks = [_published([pair for n, pair in zip(tasks, pairs) if n == t])[metric] for t in sorted(set(tasks))]
        assert found["macro"][metric] == pytest.approx(sum(of_tasks) / 7, abs=1e-6)

    records = [
        Record(task, "i", "x", tuple(accepted), group=category)
        for task, category, (_, accepted) in zip(tasks, categories, pairs)
    ]
    result = score([answer for answer, _ in pairs], records)
    # over records is what the published script reports, which `found` is compared with above
    assert result.pop("over_records") == {metric: found[metric] for metric in ("exact_match", "rouge_l")}
    assert result == {**found["macro"], **{key: found[key] for key in ("n", "per_task", "per_category")}}


def test_the_best_reference_may_be_another_for_each_metric():
    # Exact match drops the full stops, "us"; ROUGE-L splits at them, "u" and "s".
    assert answer_scores(["U.S."], [["us", "u s"]]) == {"exact_match": 100.0, "rouge_l": 100.0, "n": 1}
    assert answer_scores(["U.S."], [["us"]]) == {"exact_match": 100.0, "rouge_l": 0.0, "n": 1}
    assert answer_scores(["U.S."], [["u s"]]) == {"exact_match": 0.0, "rouge_l": 100.0, "n": 1}
    # Of two words "he walks fast" shares one, F = 2 * 1 / (2 + 3); "he ran" none.
    scores = answer_scores(["runs fast"], [["he ran", "he walks fast"]])
    assert scores == {"exact_match": 0.0, "rouge_l": pytest.approx(40.0), "n": 1}


def test_without_tasks_every_instance_weighs_the_same():
    predictions, references = ["a", "b", "b", "b"], [["a"]] * 4
    assert answer_scores(predictions, references) == {"exact_match": 25.0, "rouge_l": 25.0, "n": 4}
    found = answer_scores(predictions, references, tasks=["one", "two", "two", "two"])
    assert found["exact_match"] == 25.0 and found["macro"] == {"exact_match": 50.0, "rouge_l": 50.0}
    assert "per_category" not in found


@pytest.mark.parametrize("columns, message", [
    ({"references": [["a"]]}, "2 predictions came with 1 references"),
    ({"tasks": ["t"]}, "2 predictions came with 1 tasks"),
    ({"categories": ["c"] * 3}, "2 predictions came with 3 categories"),
    ({"references": [["a"], "b"]}, "list of at least one text"),
    ({"predictions": [], "references": []}, "no predictions"),
])
def test_columns_must_match(columns, message):
    with pytest.raises(ValueError, match=message):
        answer_scores(**{"predictions": ["a", "b"], "references": [["a"], ["b"]], **columns})
