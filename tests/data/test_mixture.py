import dataclasses
import json
from collections import Counter

import pytest

from modeling_tagi.data.records import Record, record_bytes
from modeling_tagi.data.sampling import TaskBatchSampler
from modeling_tagi.data.sources import read_source

SMALL = {"train_instances": 4, "eval_instances": 2}


@pytest.fixture
def table(tmp_path):
    """A folder of tables; `rows(split, [(task, instruction, input, target)])` writes a split of it."""
    def rows(split, records):
        fields = ("task", "instruction", "input", "targets")
        lines = [json.dumps(dict(zip(fields, [*record[:3], [record[3]]]))) for record in records]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))

    rows("train", [("shout", "write it in capitals", f"word {n}", f"WORD {n}") for n in range(6)])
    rows("unseen", [("greet", "say hello to", "Anna", "hello Anna")])
    rows.folder = str(tmp_path)
    return rows


def mixed(parts):
    return read_source("mixture", options={"parts": parts})


def test_parts_keep_their_names_and_their_splits(table):
    splits, _, report = mixed({"builtin": SMALL, "mine": {"source": "tables", "path": table.folder}})
    assert {name for name in splits if name != "train"} == {
        "builtin/dev", "builtin/unseen", "builtin/new_wordings", "mine/unseen"
    }  # fmt: skip
    assert {record.task.partition("/")[0] for record in splits["train"]} == {"builtin", "mine"}
    assert report["leaks"] == 0 and report["splits"]["builtin/new_wordings"]["may_share"] == ["task"]
    alone, _, _ = read_source("builtin", options=SMALL)
    assert len(splits["builtin/unseen"]) == len(alone["unseen"])


def test_tasks_are_drawn_by_the_weights_of_their_parts(table):
    splits, _, _ = mixed({"builtin": {**SMALL, "weight": 1},
                          "mine": {"source": "tables", "path": table.folder, "weight": 0.5}})  # fmt: skip
    train = splits["train"]
    drawn = Counter(
        train[index].task.partition("/")[0] for batch in TaskBatchSampler(train, 1, 1, 900, seed=0) for index in batch
    )
    assert 0.28 < drawn["mine"] / 900 < 0.39  # one task with half the weight of all the others together
    assert max(Counter(batch for batch in map(tuple, TaskBatchSampler(train, 8, 1, 50, seed=0))).values()) == 1


def test_equal_weights_draw_as_without_any():
    records = [Record(f"task {n % 5}", "do", f"input {n}", ("x",)) for n in range(40)]
    heavy = [dataclasses.replace(record, weight=3.0) for record in records]
    assert list(TaskBatchSampler(records, 3, 2, 20, 0)) == list(TaskBatchSampler(heavy, 3, 2, 20, 0))


def test_a_weight_is_part_of_what_a_stage_depends_on():
    record = Record("task", "do", "input", ("x",))
    assert record_bytes(record) != record_bytes(dataclasses.replace(record, weight=2.0))
    assert record_bytes(record) == repr(("task", "do", "input", ("x",), "task", (), None)).encode()


def test_what_one_part_trains_on_and_another_is_evaluated_on_is_not_trained_on(table):
    splits, _, _ = mixed({"builtin": SMALL})
    asked = splits["builtin/unseen"][0]
    table("train", [("copied", asked.instruction, "something else", "x"), ("other", "do it", asked.input, "y"),
                    ("mine", "do that", "some text", "z")])  # fmt: skip
    splits, _, report = mixed({"builtin": SMALL, "mine": {"source": "tables", "path": table.folder}})
    assert {r.task for r in splits["train"] if r.task.startswith("mine/")} == {"mine/mine"} and report["leaks"] == 0


@pytest.mark.parametrize("parts, message", [
    ({}, "parts is empty, but a mixture has at least one part"),
    ({"nothing": {}}, "parts.nothing.source is 'nothing', but must be one of 'builtin', 'p3', 'sni', 'tables', 'text"),
    ({"a": {"source": "mixture"}}, "parts.a.source is 'mixture', but must be one of"),
    ({"builtin": {"weight": 0}}, "parts.builtin.weight is 0.0, but must be a number above 0; leave the part out"),
    ({"builtin": {"weight": "much"}}, "parts.builtin.weight is 'much', but must be of type float"),
    ({"builtin": {"instances": 3}}, "parts.builtin has 'instances', but builtin takes"),
    ({"builtin": 1}, "parts.builtin is 1, but must hold fields such as weight"),
    ({"p3": {}}, "parts.p3.path is not given"),
])  # fmt: skip
def test_parts_that_cannot_be_read_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        mixed(parts)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="parts.p3.path: there is no .*gone; give its place"):
        mixed({"p3": {"path": str(tmp_path / "gone")}})
