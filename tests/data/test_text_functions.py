import itertools
import json
import random
import re
from collections import Counter

import pytest

from modeling_tagi.data.sources import read_source
from modeling_tagi.data.splits import check_splits, normalise_text
from modeling_tagi.data.text_functions import FUNCTIONS, text_functions
from modeling_tagi.data.text_functions.texts import Texts

SUBJECTS = "Maria; The old doctor; My brother; A young teacher; Peter; Our neighbour; I; The Italian cook"
VERBS = (
    "was slowly reading; wanted to sell; has never seen; is looking for; will paint; found; really loved; could not "
    "open"
)
OBJECTS = (
    "the small red book; a very good film about Rome; the green door; it; every letter, and most of the stamps; some "
    "bread and cheese; the house on the hill; three of the boats in the harbour; my bicycle; what he said; the early "
    "family supply"
)
ENDS = ".; !; ?; with a friend.; in the garden.; for the first time!; that evening.; at the station?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """English prose, made up."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("texts") / "prose.txt"
    parts = itertools.product(*(part.split("; ") for part in (SUBJECTS, VERBS, OBJECTS, ENDS)))
    every = [f"{s} {v} {o}{e if len(e) == 1 else ' ' + e}" for s, v, o, e in parts]
    sentences = rng.sample(every, 4000)
    path.write_text("\n".join(" ".join(sentences[place: place + 4]) for place in range(0, 4000, 4)))
    return path


@pytest.fixture(scope="module")
def splits(folder):
    return text_functions(folder, train_instances=8, eval_instances=3)


@pytest.fixture(scope="module")
def texts(folder):
    return Texts.of(folder.read_text().splitlines())


def test_there_are_many_families_tasks_and_wordings(splits):
    assert len(FUNCTIONS) >= 150 and sum(len(function.arguments) for function in FUNCTIONS.values()) >= 800
    assert all(len(function.lines()) == 5 for function in FUNCTIONS.values())
    assert all(len(set(function.arguments)) == len(function.arguments) for function in FUNCTIONS.values())
    wordings = Counter(task for task, _ in {(r.task, r.instruction) for r in splits["train"]})
    assert min(wordings.values()) >= 2 and sum(wordings.values()) / len(wordings) > 5


def test_nothing_of_evaluation_is_trained_on(splits):
    report = check_splits(splits, same_tasks={"new_wordings": ("task",), "seen_tasks": ("task", "instruction")})
    assert report["leaks"] == 0
    trained = {r.group for r in splits["train"]}
    for split, new in (("dev", False), ("unseen", False), ("new_families", True), ("dev_families", True)):
        groups = {r.group for r in splits[split]}
        assert groups and (groups.isdisjoint(trained) if new else groups <= trained)
    assert {r.group for r in splits["new_families"]}.isdisjoint(r.group for r in splits["dev_families"])


def test_no_sentence_is_in_training_and_in_evaluation(splits, texts):
    def of(records):
        found = {normalise_text(record.input) for record in records}
        return {one for one in map(normalise_text, texts.sentences) if one in found}

    train = of(splits["train"])
    assert train and all(train.isdisjoint(of(records)) for name, records in splits.items() if name != "train")


def test_a_seed_gives_the_same_records_and_another_seed_others(folder, splits):
    assert text_functions(folder, train_instances=8, eval_instances=3) == splits
    other = text_functions(folder, seed=1, train_instances=8, eval_instances=3)
    assert {r.task for r in other["unseen"]} != {r.task for r in splits["unseen"]}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_gives_instances_of_all_its_arguments(name, texts):
    function, rng = FUNCTIONS[name], random.Random(0)
    for arguments in function.arguments:
        for new in (False, True):
            instruction = function.instruction(arguments, rng, new)
            assert "{" not in re.sub(r'\{"|[{]}|" *[:}]|\{\w+}', "", instruction) or "braces" in instruction
        found = [function.instance(rng, texts, arguments) for _ in range(4)]
        assert all(text.strip() and target.strip() for text, target, _ in found)
        assert all((options is not None) == function.decides for _, _, options in found)
        if function.decides:
            assert all(f"{label}" in instruction for label in arguments[-1])


# outputs worked out by hand
@pytest.mark.parametrize("name, arguments, text, target", [
    ("nth_word", ("second",), None, lambda text: text.split()[1].strip(".,!?")),
    ("upper", (), None, str.upper),
    ("snake_case", (), None, lambda text: text.lower().replace(" ", "_")),
    ("count_items", (), None, lambda text: str(text.count(",") + 1)),
    ("sort_numbers", (), None, lambda text: ", ".join(map(str, sorted(map(int, text.split(", ")))))),
    ("json", ("title",), None, lambda text: json.dumps({"title": text})),
    ("reverse_list", (), None, lambda text: ", ".join(text.split(", ")[::-1])),
    ("is_even", (("yes", "no"),), None, lambda text: "yes" if int(text) % 2 == 0 else "no"),
    ("date_format", ("DD/MM/YYYY",), None, lambda text: "/".join(text.split("-")[::-1])),
    ("word_after", ("the",), None, lambda text: re.search(r"\bthe\W+(\w+)", text).group(1)),
    ("email_host", (), None, lambda text: text.partition("@")[2]),
    ("without_end", (), None, lambda text: text[:-1]),
    ("longer_word", (), None, lambda text: max(re.split(" or | and ", text), key=len)),
])  # fmt: skip
def test_outputs_are_right(texts, name, arguments, text, target):
    rng = random.Random(3)
    for _ in range(20):
        given, found, _ = FUNCTIONS[name].instance(rng, texts, arguments)
        assert found == target(given)


def test_decisions_are_balanced(splits):
    answers = Counter(r.targets[0] == r.options[0] for r in splits["train"] if r.options)
    assert 0.45 < answers[True] / answers.total() < 0.55


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "few.txt").write_text("It was a good day for all of us.\n")
    with pytest.raises(ValueError, match="plain sentences of 4 to 16 words .* need 200 of each; give more English"):
        text_functions(tmp_path)


def test_it_is_a_source_of_a_run(folder):
    splits, _, report = read_source("text_functions", str(folder), options={"train_instances": 2})
    assert report["leaks"] == 0 and splits["train"]
