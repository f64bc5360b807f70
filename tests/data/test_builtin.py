from collections import Counter, defaultdict

import pytest

from modeling_tagi.data.builtin import builtin_suite
from modeling_tagi.data.builtin_families import CATEGORIES, FAMILIES, KIND, NOUNS, plain_instruction
from modeling_tagi.data.builtin_text import builtin_text

SPLITS = ("train", "dev", "unseen", "new_wordings")


@pytest.fixture(scope="module")
def suite():
    return builtin_suite()


@pytest.fixture(scope="module")
def text():
    return builtin_text(passages=5000)


def tasks(records):
    return {record.task for record in records}


def instructions(records):
    return {record.instruction for record in records}


def wording(record):
    arguments = tuple(record.task.split(":")[1].split(","))
    return [plain_instruction(record.group, arguments, i) for i in range(6)].index(record.instruction)


def test_the_world_is_64_nouns_in_8_categories():
    assert len(NOUNS) == len(set(NOUNS)) == 64
    assert [len(nouns) for nouns in CATEGORIES.values()] == [8] * 8


def test_suite_and_text_depend_on_the_seed_only(suite):
    assert builtin_suite() == suite
    assert builtin_suite(seed=1, train_instances=2, eval_instances=2)["train"] != suite["train"]
    assert builtin_text(3, 50) == builtin_text(3, 100)[:50]
    assert builtin_text(3, 50) != builtin_text(4, 50)


def test_fewer_instances_are_the_first_of_many(suite):
    few, first = builtin_suite(train_instances=3, eval_instances=2), defaultdict(list)
    for record in suite["train"]:
        first[record.task].append(record)
    assert few["train"] == [record for records in first.values() for record in records[:3]]
    assert len(few["unseen"]) == 2 * len(tasks(suite["unseen"]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_task_counts_and_held_out_words(seed):
    suite = builtin_suite(seed, train_instances=4, eval_instances=4)
    assert tuple(suite) == SPLITS
    assert 380 <= len(tasks(suite["train"])) <= 440
    assert 80 <= len(tasks(suite["unseen"])) <= 90
    assert 30 <= len(tasks(suite["dev"])) <= 45
    for split in SPLITS:
        assert {record.group for record in suite[split]} == set(FAMILIES)
        assert set(Counter(record.task for record in suite[split]).values()) == {4}
    trained = set(" ".join(instructions(suite["train"])).split())
    for split in ("dev", "unseen", "new_wordings"):
        assert set(" ".join(instructions(suite[split])).split()) <= trained


def test_held_out_tasks_share_neither_tasks_nor_instructions(suite):
    for one, other in (("train", "dev"), ("train", "unseen"), ("dev", "unseen")):
        assert tasks(suite[one]).isdisjoint(tasks(suite[other]))
        assert instructions(suite[one]).isdisjoint(instructions(suite[other]))


def test_new_wordings_are_trained_tasks_in_other_words(suite):
    assert tasks(suite["new_wordings"]) < tasks(suite["train"])
    assert len(tasks(suite["new_wordings"])) == 3 * len(FAMILIES)
    for split in ("train", "dev", "unseen"):
        assert instructions(suite["new_wordings"]).isdisjoint(instructions(suite[split]))


def test_no_training_input_is_evaluated(suite):
    trained = {record.input for record in suite["train"]}
    for split in ("dev", "unseen", "new_wordings"):
        assert trained.isdisjoint(record.input for record in suite[split])


def test_an_instruction_belongs_to_one_task(suite):
    owners, wordings = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for record in suite[split]:
            owners[record.instruction].add(record.task)
            wordings[record.task, split == "new_wordings"].add(record.instruction)
    assert all(len(names) == 1 for names in owners.values())
    assert all(len(texts) == (2 if new else 4) for (_, new), texts in wordings.items())


def test_instructions_are_short_lower_case_sentences(suite):
    for split in SPLITS:
        for instruction in instructions(suite[split]):
            words = instruction.replace(" ,", "").split()
            assert 6 <= len(words) <= 16, instruction
            assert all(word.isalpha() and word.islower() for word in words), instruction


def test_inputs_are_5_to_8_distinct_nouns(suite):
    for split in SPLITS:
        for record in suite[split]:
            words = record.input.split()
            assert 5 <= len(words) == len(set(words)) <= 8
            assert set(words) <= set(NOUNS)
            assert len(record.targets) == 1


def test_two_answers_are_equally_frequent_whatever_the_wording(suite):
    first = defaultdict(list)
    for split in SPLITS:
        for record in suite[split]:
            if record.options:
                assert len(record.options) == 2
                is_first = record.targets[0] == record.options[0]
                first[split, record.task].append(is_first)
                if split == "train":
                    first[record.group, wording(record)].append(is_first)
    assert all(0.35 <= sum(answers) / len(answers) <= 0.65 for answers in first.values())


def test_the_answer_cannot_be_guessed_without_the_instruction(suite):
    assert sum(record.options == ("yes", "no") for record in suite["train"]) < 0.2 * len(suite["train"])
    for split in SPLITS:
        (_, count), = Counter(record.targets[0] for record in suite[split]).most_common(1)
        assert count < 0.1 * len(suite[split])


@pytest.mark.parametrize(
    "family, arguments, words, target",
    [
        ("contains_category", ("drink",), "dog plum saw hat car", "no"),
        ("label_if_category", ("tool", "up", "down"), "dog plum saw hat car", "up"),
        ("label_if_category", ("tree", "up", "down"), "dog plum saw hat car", "down"),
        ("first_of_category", ("animal",), "plum dog saw cat cow hat", "dog"),
        ("last_of_category", ("animal",), "plum dog saw cat cow hat", "cow"),
        ("all_of_category", ("animal",), "plum dog saw cat cow hat", "dog cat cow"),
        ("nth_word", ("fourth",), "plum dog saw cat cow hat", "cat"),
        ("nth_word", ("last but one",), "plum dog saw cat cow hat", "cow"),
        ("kind_of_nth", ("last",), "plum dog saw cat cow hat", "garment"),
        ("nth_is_category", ("third", "tool"), "plum dog saw cat cow hat", "yes"),
        ("nth_is_category", ("second", "tool"), "plum dog saw cat cow hat", "no"),
        ("repeat_nth", ("second", "three times"), "plum dog saw cat cow hat", "dog dog dog"),
        ("two_words", ("fourth", "first"), "plum dog saw cat cow hat", "cat plum"),
        ("two_words", ("fifth", "last"), "plum dog saw cat cow", None),
        ("nth_then_noun", ("third", "tea"), "plum dog saw cat cow hat", "saw tea"),
        ("noun_then_nth", ("tea", "third"), "plum dog saw cat cow hat", "tea saw"),
        ("category_then_noun", ("tool", "tea"), "plum dog saw cat cow hat", "saw tea"),
        ("noun_then_category", ("tea", "tool"), "plum dog saw cat cow hat", "tea saw"),
        ("two_categories", ("tool", "fruit"), "plum dog saw cat cow hat", "saw plum"),
        ("either_category", ("tool", "tree"), "plum dog saw cat cow hat", "saw"),
        ("either_category", ("tree", "tool"), "plum dog saw cat cow hat", "saw"),
        ("category_or_noun", ("tool", "tea"), "plum dog saw cat cow hat", "saw"),
        ("category_or_noun", ("tree", "tea"), "plum dog saw cat cow hat", "tea"),
        ("repeat_category", ("tool", "twice"), "plum dog saw cat cow hat", "saw saw"),
        ("always_noun", ("tea",), "plum dog saw cat cow hat", "tea"),
        ("which_first", ("cow", "saw"), "plum dog saw cat cow hat", "saw"),
        ("add_noun", ("tea",), "plum dog saw cat cow", "plum dog saw cat cow tea"),
    ],
)
def test_answers_worked_by_hand(family, arguments, words, target):
    assert FAMILIES[family].answer(words.split(), *arguments) == target


def test_answers_in_the_suite_agree_with_a_second_reading(suite):
    checked = Counter()
    for split in SPLITS:
        for record in suite[split]:
            arguments, text, target = record.task.split(":")[1].split(","), f" {record.input} ", record.targets[0]
            if record.group == "contains_category":
                right = bool(set(text.split()) & set(CATEGORIES[arguments[0]])) == (target == "yes")
            elif record.group == "either_category":
                right = [word for word in text.split() if KIND[word] in arguments] == [target]
            elif record.group == "first_of_category":
                before, after = text.split(f" {target} ")
                right = KIND[target] == arguments[0] and not set(before.split()) & set(CATEGORIES[arguments[0]])
            elif record.group == "which_first":
                other, = set(arguments) - {target}
                right = 0 <= text.index(f" {target} ") < text.index(f" {other} ")
            elif record.group == "noun_then_category":
                noun, found = target.split()
                right = noun == arguments[0] and [w for w in text.split() if KIND[w] == arguments[1]] == [found]
            else:
                continue
            assert right, record
            checked[record.group] += 1
    assert len(checked) == 5


def test_text_is_about_the_same_words_and_of_even_length(text):
    lengths = [len(passage.split()) for passage in text]
    assert min(lengths) >= 20 and max(lengths) <= 70
    words = Counter(" ".join(text).split())
    assert set(NOUNS) | set(CATEGORIES) <= set(words)
    assert len(set(text)) > 0.99 * len(text)


def test_text_holds_no_instruction(suite, text):
    joined = " ".join(text)
    for split in SPLITS:
        assert not [instruction for instruction in instructions(suite[split]) if instruction in joined]
