import re
from collections import defaultdict

import pytest

from modeling_tagi.data.builtin import builtin_suite
from modeling_tagi.data.builtin_english import english_instruction
from modeling_tagi.data.builtin_families import CATEGORIES, FAMILIES, NOUNS
from modeling_tagi.data.sources import read_source

SPLITS = ("train", "dev", "unseen", "new_wordings")


@pytest.fixture(scope="module")
def suite():
    return builtin_suite(train_instances=16, eval_instances=8, wordings="english")


def arguments_of(record):
    return tuple(record.task.split(":")[1].split(","))


def wording(record):
    return [english_instruction(record.group, arguments_of(record), i) for i in range(12)].index(record.instruction)


def test_the_tasks_of_each_split_are_those_of_the_plain_wordings(suite):
    plain = builtin_suite(train_instances=1, eval_instances=1)
    for split in SPLITS:
        assert {record.task for record in suite[split]} == {record.task for record in plain[split]}


def test_a_task_has_eight_wordings_and_four_that_are_kept_out(suite):
    of_task, owners = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for record in suite[split]:
            of_task[split, record.task].add(wording(record))
            owners[record.instruction].add(record.task)
    for (split, _), wordings in of_task.items():
        assert wordings == set(range(8, 12) if split == "new_wordings" else range(8))
    assert all(len(tasks) == 1 for tasks in owners.values())


def test_nothing_that_is_evaluated_is_trained():
    _, _, report = read_source(
        "builtin", options={"wordings": "english", "train_instances": 16, "eval_instances": 2}
    )
    assert report["leaks"] == 0
    assert report["splits"]["new_wordings"]["shared"]["instruction"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_wordings_are_english_sentences_that_name_their_arguments(family):
    for arguments in FAMILIES[family].arguments:
        texts = [english_instruction(family, arguments, i) for i in range(12)]
        assert len(set(texts)) == 12
        for text in texts:
            assert text[0].isupper() and " ," not in text and "  " not in text and "{" not in text
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text), text
            for argument in arguments:
                assert argument.replace("last but one", "second-to-last") in text.lower(), text


def test_an_instruction_reads_as_it_was_written():
    assert english_instruction("contains_category", ("animal",), 1).startswith("Is any of these words an animal?")
    assert "Which word stands in second-to-last place?" in english_instruction("nth_word", ("last but one",), 5)
    assert "First in the list: van or pine?" in english_instruction("which_first", ("van", "pine"), 4)
    assert "Is it an animal, a fruit, a tool, a garment, a vehicle, an instrument, a tree or a drink?" in (
        english_instruction("kind_of_nth", ("third",), 1)
    )


def test_lists_and_answers_have_commas_between_their_words(suite):
    for split in SPLITS:
        for record in suite[split]:
            words = record.input.split(", ")
            assert 5 <= len(words) == len(set(words)) <= 8 and set(words) <= set(NOUNS)
            target, = record.targets
            assert " " not in target.replace(", ", "")


def test_answers_are_right(suite):
    for record in suite["train"]:
        words, arguments, answer = record.input.split(", "), arguments_of(record), record.targets[0]
        if record.group == "all_of_category":
            assert answer.split(", ") == [word for word in words if word in CATEGORIES[arguments[0]]]
        if record.group == "add_noun":
            assert answer == f"{record.input}, {arguments[0]}"
        if record.group == "repeat_nth" and arguments == ("second", "twice"):
            assert answer == f"{words[1]}, {words[1]}"
        if record.group == "which_first":
            assert words.index(answer) == min(map(words.index, arguments))


def test_two_answers_are_equally_frequent_whatever_the_wording(suite):
    first = defaultdict(list)
    for split in ("train", "new_wordings"):
        for record in suite[split]:
            if record.options:
                first[record.group, wording(record)].append(record.targets[0] == record.options[0])
    assert all(sum(answers) == len(answers) / 2 for answers in first.values())


def test_unknown_wordings_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no wordings 'german'; give wordings as one of plain, english"):
        builtin_suite(wordings="german")
