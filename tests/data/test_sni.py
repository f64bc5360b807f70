import json
import os
from pathlib import Path

import pytest

from modeling_tagi.data.records import Record
from modeling_tagi.data.sni import read_sni
from modeling_tagi.data.splits import check_splits, require_no_leaks

REAL = Path(os.environ.get("TAGI_DATA", Path(__file__).parents[2].parent / "shared" / "data"), "sni")
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here; set TAGI_DATA to the folder that holds sni/")


def task(inputs, **fields):
    return {
        "Categories": ["Arithmetic", "Other"],
        "Definition": [" Add the numbers. ", "Unused."],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Positive Examples": [{"input": "e1", "output": "o1"}, {"input": "e2", "output": "o2"}],
        "Negative Examples": [],
        "Instances": [{"id": text, "input": text, "output": [f"out {text}", ""]} for text in inputs],
        **fields,
    }


@pytest.fixture
def sni(tmp_path):
    """Writes tasks into a folder of SNI's layout; `train` and `test` name those of the two lists."""

    def write(train, test):
        (tmp_path / "tasks").mkdir()
        (tmp_path / "splits" / "default").mkdir(parents=True)
        for name, tasks in (("train", train), ("test", test)):
            (tmp_path / "splits" / "default" / f"{name}_tasks.txt").write_text("".join(f"{key}\n" for key in tasks))
            for key, value in tasks.items():
                if value is not None:
                    (tmp_path / "tasks" / f"{key}.json").write_text(json.dumps(value))
        return tmp_path

    return write


def texts(count, prefix="a"):
    return [f"{prefix}{n}" for n in range(count)]


def inputs(records):
    return [record.input for record in records]


def test_fields_are_taken_from_the_schema(sni):
    folder = sni({"task1": task(["1 2"])}, {"task2": task(["3 4"], Definition="Subtract.", Categories=["Other"])})
    plain = read_sni(folder)
    assert plain == {
        "train": [Record("task1", "Add the numbers.", "1 2", ("out 1 2",), "Arithmetic")],
        "seen_tasks": [],
        "unseen": [Record("task2", "Subtract.", "3 4", ("out 3 4",), "Other")],
    }
    (shown,) = read_sni(folder, positive_examples=1)["train"]
    assert shown == Record("task1", "Add the numbers.", "1 2", ("out 1 2",), "Arithmetic", (("e1", "o1"),))
    assert read_sni(folder, positive_examples=5)["unseen"][0].demonstrations == (("e1", "o1"), ("e2", "o2"))


def test_sizes_and_disjoint_instances(sni):
    splits = read_sni(sni({"t1": task(texts(20)), "t2": task(texts(20, "b"))}, {"t3": task(texts(20, "c"))}),
                      max_train_instances=8, max_eval_instances=5, seen_instances=4)
    assert {name: len(records) for name, records in splits.items()} == {"train": 16, "seen_tasks": 8, "unseen": 5}
    assert not set(inputs(splits["train"])) & set(inputs(splits["seen_tasks"]))
    assert inputs(splits["train"])[:8] != texts(20)[:8]


def test_a_draw_is_repeatable_and_grows_without_changing_what_is_evaluated(sni):
    folder = sni({"t1": task(texts(20))}, {"t3": task(texts(20, "c"))})
    small = read_sni(folder, max_train_instances=4, seen_instances=6)
    large = read_sni(folder, max_train_instances=10, seen_instances=6)
    assert small == read_sni(folder, max_train_instances=4, seen_instances=6)
    assert small["train"] == large["train"][:4] and small["seen_tasks"] == large["seen_tasks"]
    other = read_sni(folder, max_train_instances=4, seen_instances=6, seed=1)
    assert inputs(other["train"]) != inputs(small["train"])


def test_the_first_instances_of_test_tasks_are_taken_where_asked_for(sni):
    folder = sni({"t1": task(texts(20))}, {"t3": task(texts(20, "c")), "t4": task(texts(3, "d"))})
    drawn = read_sni(folder, max_eval_instances=5)
    first = read_sni(folder, max_eval_instances=5, first_eval_instances=True)
    assert inputs(first["unseen"]) == [*texts(20, "c")[:5], *texts(3, "d")] != inputs(drawn["unseen"])
    assert first["train"] == drawn["train"]


def test_training_comes_first_where_a_task_is_small(sni):
    folder = sni({"t1": task(texts(10))}, {"t3": task(texts(2, "c"))})
    splits = read_sni(folder, max_train_instances=8, seen_instances=5)
    assert len(splits["train"]) == 8 and len(splits["seen_tasks"]) == 2


def test_empty_repeated_and_demonstrated_instances_are_left_out(sni):
    odd = task([], Instances=[
        {"input": "x", "output": ["1"]}, {"input": " X ", "output": ["2"]}, {"input": "E2", "output": ["o2"]},
        {"input": "y", "output": ["", " "]}, {"input": " ", "output": ["3"]}, {"input": "z", "output": "4"},
    ])
    train = read_sni(sni({"t1": odd}, {"t3": task(["c"])}))["train"]
    assert sorted((record.input, record.targets) for record in train) == [("x", ("1",)), ("z", ("4",))]


def test_inputs_of_training_tasks_are_taken_out_of_evaluation(sni):
    folder = sni({"t1": task(texts(10)), "t2": task(["A0", *texts(9, "b")])}, {"t3": task(["a3", "c", "E1"])})
    splits = read_sni(folder, max_train_instances=5, seen_instances=5)
    # "a0" is in both training tasks; where one is trained on, the other may not be evaluated.
    require_no_leaks(check_splits(
        splits, same_tasks={"seen_tasks": ("task", "instruction"), "unseen": ("instruction",)}))
    assert inputs(splits["unseen"]) == ["c"]


@pytest.mark.parametrize("field", ["Input_language", "Output_language", "Instruction_language"])
@pytest.mark.parametrize("languages", [["Hindi"], ["English", "Hindi"]])
def test_other_languages_are_left_out(sni, field, languages):
    unmarked = task(["b"])
    del unmarked[field]
    folder = sni({"t1": task(["a"], **{field: languages}), "t2": unmarked}, {"t3": task(["c"])})
    assert {record.task for record in read_sni(folder)["train"]} == {"t2"}


@pytest.mark.parametrize("train, test, error, message", [
    ({"t1": task(["a"])}, {"t1": task(["a"])}, ValueError, r"\['t1'\] are in"),
    ({"t1": None}, {"t3": task(["c"])}, FileNotFoundError, "t1.json"),
    ({"t1": task(["a"], Input_language=["Hindi"])}, {"t3": task(["c"])}, ValueError, "train_tasks.txt names no"),
    ({"t1": {"Definition": ["Do."]}}, {"t3": task(["c"])}, ValueError, "t1.json has not the schema.*Categories"),
    ({"t1": task(["a"], Definition=[])}, {"t3": task(["c"])}, ValueError, "t1.json has not the schema"),
    ({"t1": task(["a"], Definition=[" "])}, {"t3": task(["c"])}, ValueError, "t1.json: .*instruction"),
    ({"t1": []}, {"t3": task(["c"])}, ValueError, "t1.json has not the schema"),
])
def test_a_folder_of_another_shape_is_refused(sni, train, test, error, message):
    with pytest.raises(error, match=message):
        read_sni(sni(train, test))


def test_missing_lists_bad_json_and_negative_limits_are_refused(sni, tmp_path):
    with pytest.raises(FileNotFoundError, match="train_tasks.txt"):
        read_sni(tmp_path)
    folder = sni({"t1": task(["a"])}, {"t3": task(["c"])})
    with pytest.raises(ValueError, match="seen_instances is -1"):
        read_sni(folder, seen_instances=-1)
    (folder / "tasks" / "t1.json").write_text("{")
    with pytest.raises(ValueError, match="t1.json cannot be read as JSON"):
        read_sni(folder)
    for content, message in ((b'{"Definition": [], "Definition": []}', "t1.json .*'Definition' is given twice"),
                             (b"[" * 100_000, "t1.json .*nested too deeply"),
                             (b'{\n"Definition": "caf\xe9"}', "t1.json, line 2: not UTF-8")):
        (folder / "tasks" / "t1.json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_sni(folder)
    (folder / "splits" / "default" / "test_tasks.txt").write_bytes(b"t3\n\xff\n")
    with pytest.raises(ValueError, match="test_tasks.txt, line 2: not UTF-8"):
        read_sni(folder)


@real
def test_real_tasks_give_the_papers_sizes_and_leak_nothing():
    splits = read_sni(REAL, positive_examples=2)
    sizes = {name: (len({r.task for r in records}), len(records)) for name, records in splits.items()}
    # 13 train and 5 test tasks, each with more than 100 + 30 instances.
    assert sizes == {"train": (13, 1300), "seen_tasks": (13, 390), "unseen": (5, 500)}
    require_no_leaks(check_splits(splits, same_tasks=["seen_tasks"]))
    assert all(len(record.demonstrations) == 2 for records in splits.values() for record in records)
    assert max(len(record.targets) for record in splits["unseen"]) > 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_a_list_of_tasks_cannot_name_files_elsewhere(name, tmp_path):
    (tmp_path / "splits" / "default").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "splits" / "default" / f"{split}_tasks.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match="train_tasks.txt lists '.*', which names no file in its own folder"):
        read_sni(tmp_path)
