import json

import pytest

from modeling_tagi.data.records import Record
from modeling_tagi.data.splits import (
    LeakError,
    cap_tasks,
    check_splits,
    drop_duplicates,
    drop_instances,
    instance_texts,
    normalise_text,
    require_no_leaks,
)


def record(task, instruction, text, demonstrations=()):
    return Record(task, instruction, text, ("x",), demonstrations=demonstrations)


TRAIN = [record("add", "Add the numbers.", "1 2"), record("add", "Add the numbers.", "3 4")]


def test_case_and_white_space_are_normalised_away():
    assert normalise_text("  The\tCat \n SAT ") == "the cat sat"


def test_instances_include_those_of_demonstrations():
    records = [record("add", "Add.", "A  b", demonstrations=(("C D", "x"),))]
    assert instance_texts(records) == {"a b", "c d"}
    assert drop_instances([record("t", "i", "c  d"), record("t", "i", "c e")], {"c d"}) == [record("t", "i", "c e")]


def test_only_equal_records_count_as_duplicates():
    a, b = record("t", "i", "1"), Record("t", "i", "1", ("y",))
    assert drop_duplicates([b, a, b, a]) == [b, a]


def test_cap_keeps_order_and_smaller_caps_are_parts_of_larger_ones():
    records = [record(task, "i", str(n)) for n in range(20) for task in "ab"]
    small, large = cap_tasks(records, 3), cap_tasks(records, 8)
    assert len(small) == 6 and len(large) == 16
    assert [r for r in records if r in large] == large
    assert set(small) < set(large)
    assert cap_tasks(records, 3) == small != cap_tasks(records, 3, seed=1)
    assert cap_tasks([r for r in records if r.task == "b"], 3) == [r for r in small if r.task == "b"]
    assert cap_tasks(records, None) == records
    with pytest.raises(ValueError, match="-1"):
        cap_tasks(records, -1)


def test_new_tasks_leak_nothing():
    report = check_splits({"train": TRAIN, "unseen": [record("sub", "Subtract.", "5 6")]})
    assert report["train"] == {"name": "train", "records": 2, "tasks": 1, "instructions": 1}
    assert report["splits"]["unseen"] == {
        "records": 1, "tasks": 1, "instructions": 1, "may_share": [], "leaks": 0,
        "shared": {"task": 0, "instruction": 0, "instance": 0},
        "examples": {"task": [], "instruction": [], "instance": []},
    }
    assert report["leaks"] == 0
    require_no_leaks(report)


@pytest.mark.parametrize("leak, kind", [
    (record("add", "Subtract.", "5 6"), "task"),
    (record("sub", "add  the NUMBERS.", "5 6"), "instruction"),
    (record("sub", "Subtract.", " 3   4"), "instance"),
])
def test_each_kind_of_leak_is_found_and_refused(leak, kind):
    report = check_splits({"train": TRAIN, "unseen": [record("mul", "Multiply.", "7 8"), leak]})
    assert report["splits"]["unseen"]["shared"] == {**dict.fromkeys(("task", "instruction", "instance"), 0), kind: 1}
    assert report["leaks"] == 1
    with pytest.raises(LeakError, match=rf"unseen: 1 {kind}\(s\), such as"):
        require_no_leaks(report)
    assert json.loads(json.dumps(report)) == report


def test_training_demonstrations_are_training_instances():
    train = [record("add", "Add.", "1 2", demonstrations=(("9 9", "18"),))]
    assert check_splits({"train": train, "unseen": [record("sub", "Subtract.", "9 9")]})["leaks"] == 1


def test_what_a_split_may_share_is_allowed_and_nothing_else():
    seen, reworded = [record("add", "Add the numbers.", "5 6")], [record("add", "Sum up.", "5 6")]
    splits = {"fit": TRAIN, "seen": seen, "reworded": reworded}
    allowed = check_splits(splits, train="fit", same_tasks={"seen": ("task", "instruction"), "reworded": ("task",)})
    assert allowed["leaks"] == 0 and allowed["splits"]["seen"]["shared"]["instruction"] == 1
    require_no_leaks(allowed)
    assert check_splits(splits, train="fit", same_tasks=["seen", "reworded"])["leaks"] == 0
    # "seen" shares one task and one instruction, "reworded" one task.
    assert check_splits(splits, train="fit")["leaks"] == 3
    assert check_splits(splits, train="fit", same_tasks={"seen": ("task",), "reworded": ("task",)})["leaks"] == 1


def test_instances_are_never_allowed():
    report = check_splits({"train": TRAIN, "seen": TRAIN[:1]}, same_tasks=["seen"])
    assert report["leaks"] == 1
    with pytest.raises(LeakError, match="instance"):
        require_no_leaks(report)


@pytest.mark.parametrize("arguments, message", [
    ({"train": "fit"}, "no training split 'fit'"),
    ({"same_tasks": ["sean"]}, "'sean'"),
    ({"same_tasks": ["train"]}, "'train'"),
    ({"same_tasks": {"seen": ("instance",)}}, "instance"),
    ({"same_tasks": {"seen": "task"}}, "must be a list"),
])
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_splits({"train": TRAIN, "seen": TRAIN}, **arguments)


def test_a_record_that_is_among_its_own_demonstrations_is_a_leak():
    train = [Record("a", "do a", "x", ("y",))]
    shown = Record("b", "do b", "The question", ("the answer",), demonstrations=(("the  question", "the answer"),))
    other = Record("b", "do b", "another question", ("the answer",), demonstrations=(("a question", "the answer"),))
    report = check_splits({"train": train, "unseen": [shown, other]})
    assert report["leaks"] == 1 and report["splits"]["unseen"]["examples"]["instance"] == ["The question"]
    with pytest.raises(LeakError, match="unseen: 1 instance.*'The question'.*the demonstrations of the very record"):
        require_no_leaks(report)
