import gzip
import json

import pytest

from modeling_tagi.data.readers import READERS
from modeling_tagi.data.records import Record
from modeling_tagi.data.sources import read_source
from modeling_tagi.data.splits import LeakError
from modeling_tagi.data.tables import write_table


def table(folder, **splits):
    for name, records in splits.items():
        write_table(records, folder / f"{name}.jsonl")
    return str(folder)


TRAIN = [Record("add", "Add.", "1 2", ("3",)), Record("add", "Add.", "2 2", ("4",))]
UNSEEN = [Record("double", "Double.", "4", ("8",))]


def test_a_folder_of_tables_gives_a_split_for_each_file(tmp_path):
    splits, text, report = read_source("tables", table(tmp_path, train=TRAIN, unseen=UNSEEN))
    assert splits == {"train": TRAIN, "unseen": UNSEEN}
    assert text == [] and report["leaks"] == 0


def test_columns_of_tables_can_have_other_names(tmp_path):
    for name, word in (("train", "a"), ("unseen", "b")):
        row = {"task": word, "instruction": f"do {word}", "input": f"on {word}", "answer": "yes"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    splits, _, _ = read_source("tables", str(tmp_path), options={"columns": {"targets": "answer"}})
    assert splits["unseen"] == [Record("b", "do b", "on b", ("yes",))]


def test_new_wordings_may_share_tasks_but_no_instances(tmp_path):
    wordings = [Record("add", "Sum up.", "5 5", ("10",))]
    folder = table(tmp_path, train=TRAIN, new_wordings=wordings)
    assert read_source("tables", folder)[2]["splits"]["new_wordings"]["shared"]["task"] == 1
    table(tmp_path, new_wordings=[Record("add", "Sum up.", "1 2", ("3",))])
    with pytest.raises(LeakError, match="new_wordings: 1 instance.*1 2"):
        read_source("tables", folder)


def test_a_leak_is_refused(tmp_path):
    with pytest.raises(LeakError, match="unseen: 1 task.*'add'"):
        read_source("tables", table(tmp_path, train=TRAIN, unseen=[Record("add", "New.", "9", ("9",))]))


def test_sni_and_p3_folders_are_read_by_name(tmp_path):
    sni = tmp_path / "sni"
    (sni / "tasks").mkdir(parents=True)
    (sni / "splits" / "default").mkdir(parents=True)
    for split in ("train", "test"):
        (sni / "splits" / "default" / f"{split}_tasks.txt").write_text(f"task_{split}\n")
        task = {"Categories": [split], "Definition": [f"Define {split}."], "Input_language": ["English"],
                "Output_language": ["English"], "Instruction_language": ["English"], "Positive Examples": [],
                "Negative Examples": [], "Instances": [{"id": "1", "input": f"in {split}", "output": ["out"]}]}
        (sni / "tasks" / f"task_{split}.json").write_text(json.dumps(task))
    splits, _, report = read_source("sni", str(sni))
    assert splits["unseen"] == [Record("task_test", "Define test.", "in test", ("out",), "test")]
    assert report["leaks"] == 0

    p3 = tmp_path / "p3"
    for part in ("train", "valid", "test"):
        (p3 / part).mkdir(parents=True)
        row = {"task": f"{part}_p", "dataset": part, "template": "p", "fold": part, "input": f"text {part}",
               "instruction": f"{part}: {{{{x}}}}", "target": "Yes", "options": ["Yes", "No"], "label": 0,
               "aligned": True}
        (p3 / part / f"{part}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    (p3 / "splits.json").write_text(json.dumps({part: [part] for part in ("train", "valid", "test")}))
    splits, _, _ = read_source("p3", str(p3))
    assert [r.input for r in splits["train"]] == ["text train"]
    assert [r.group for r in splits["unseen_datasets"]] == ["test"]


def test_the_builtin_suite_brings_its_own_text():
    splits, text, report = read_source("builtin", options={"train_instances": 2, "eval_instances": 1})
    assert set(splits) > {"train", "unseen"} and report["leaks"] == 0
    assert len(text) > 1000 and all(passage.strip() for passage in text)


def test_text_is_read_beside_any_source(tmp_path, monkeypatch):
    folder = table(tmp_path, train=TRAIN, unseen=UNSEEN)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("one passage\nanother\n")
    monkeypatch.setenv("TAGI_CORPUS", str(tmp_path / "corpus"))
    assert read_source("tables", folder, text="$TAGI_CORPUS")[1] == ["one passage", "another"]
    assert read_source("builtin", text="${TAGI_CORPUS}/a.txt", options={"train_instances": 1})[1] == [
        "one passage", "another"]  # fmt: skip


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("TAGI_NOWHERE", raising=False)
    with pytest.raises(FileNotFoundError, match=r"data.path is '\$TAGI_NOWHERE/p3', and that environment variable"):
        read_source("p3", "$TAGI_NOWHERE/p3")


@pytest.mark.parametrize("arguments, error, message", [
    ({"source": "c4"}, ValueError, f"'c4', but must be one of {', '.join(map(repr, READERS))}"),
    ({"source": "p3"}, ValueError, "data.path is not given"),
    ({"source": "sni", "path": "/nowhere/at/all"}, FileNotFoundError, "data.path: there is no /nowhere/at/all"),
    ({"source": "builtin", "text": "/nowhere"}, FileNotFoundError, "data.text: there is no /nowhere"),
    ({"source": "builtin", "t0_eval": "/nowhere"}, FileNotFoundError, "data.t0_eval: there is no /nowhere"),
    ({"source": "builtin", "options": {"instances": 3}}, ValueError, "'instances', but builtin takes seed, train_ins"),
    ({"source": "tables", "path": ".", "options": {"folder": "x"}}, ValueError, "'folder', but tables takes columns"),
])
def test_what_cannot_be_read_is_refused_with_its_field(arguments, error, message):
    with pytest.raises(error, match=message):
        read_source(**arguments)


def test_a_folder_of_tables_needs_one_file_for_each_split(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_table(TRAIN, file)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        read_source("tables", str(file))
    with pytest.raises(FileNotFoundError, match="no train.jsonl"):
        read_source("tables", str(tmp_path))
    table(tmp_path, train=TRAIN)
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(ValueError, match="train.json and train.jsonl for one split"):
        read_source("tables", str(tmp_path))


def test_fewer_tasks_to_train_on_leave_splits_of_trained_tasks_those_tasks():
    splits, _, report = read_source("builtin", train_tasks=50, seed=3, options={"train_instances": 1})
    tasks = {name: {record.task for record in records} for name, records in splits.items()}
    assert len(tasks["train"]) == 50 and tasks["new_wordings"] and tasks["new_wordings"] <= tasks["train"]
    assert report["leaks"] == 0 and len(tasks["unseen"]) == 85
