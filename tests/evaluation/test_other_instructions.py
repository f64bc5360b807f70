from toy_records import TRAIN, record

from modeling_tagi.evaluation.other_instructions import random_word_instructions, wrong_instructions
from modeling_tagi.tokens import instruction_text


def test_random_words_are_as_many_and_none_of_them_the_tasks_own():
    own = {r.task: {word for s in TRAIN if s.task == r.task for word in s.instruction.split()} for r in TRAIN}
    others = {word for words in own.values() for word in words}
    for seed in range(20):
        drawn = random_word_instructions(TRAIN, seed)
        assert {task: len(text.split()) for task, text in drawn.items()} == {"first": 4, "count": 5, "odd": 4}
        for task, text in drawn.items():
            assert set(text.split()) <= others - own[task]
    assert drawn != random_word_instructions(TRAIN, 0) == random_word_instructions(TRAIN[::-1], 0)


def test_demonstrations_count_as_words_of_the_instruction():
    long = [record("first", "say it", demonstrations=(("one two", "one"),)), TRAIN[2]]
    text = "say it\n\nExample 1: Input: one two Output: one"
    assert len(random_word_instructions(long)["first"].split()) == len(text.split())


def test_a_task_whose_words_are_all_there_are_has_no_random_words():
    assert set(random_word_instructions([record("a", "say it"), record("b", "say it now")])) == {"a"}


def suite(tasks=6, groups=3, wordings=2):
    return [
        record(f"t{t}", f"wording {w} of task {t}", f"x{n}", "y", group=f"g{t % groups}")
        for t in range(tasks) for w in range(wordings) for n in range(2)
    ]


def test_wrong_instructions_are_another_groups():
    records = suite()
    group = {r.instruction: r.group for r in records}
    for seed in range(10):
        wrong = wrong_instructions(records, seed)
        assert set(wrong) == {f"t{t}" for t in range(6)}
        for task, instruction in wrong.items():
            assert group[instruction] != f"g{int(task[1:]) % 3}"
    assert wrong_instructions(records, 1) == wrong_instructions(records, 1) != wrong_instructions(records, 2)


def test_wrong_instructions_are_another_tasks_where_there_is_one_group():
    for seed in range(10):
        wrong = wrong_instructions(suite(groups=1), seed)
        assert len(wrong) == 6
        assert not any(instruction.endswith(f"task {task[1:]}") for task, instruction in wrong.items())


def test_wrong_instructions_are_never_a_tasks_own_text():
    records = [record("a", "same", "x", "y", group="g"), record("b", "same", "x", "y", group="h"),
               record("c", "other", "x", "y", group="g")]  # fmt: skip
    for seed in range(10):
        assert wrong_instructions(records, seed) == {"a": "other", "b": "other", "c": "same"}
    assert wrong_instructions(records[:2]) == {}


def test_wrong_instructions_come_with_their_demonstrations():
    shown = record("last", "say the last word", "one two", "two", demonstrations=(("red cat", "cat"),))
    wrong = wrong_instructions([shown, record("first", "say the first word", "red", "red")])
    assert wrong["first"] == instruction_text(shown.instruction, shown.demonstrations)
