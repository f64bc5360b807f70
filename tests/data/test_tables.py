import gzip
import json
import os
from pathlib import Path

import pytest

from modeling_tagi.data.records import Record
from modeling_tagi.data.tables import field, read_json_rows, read_table, read_tables, write_table

RECORDS = [
    Record("dates", "Copy the date.", "2020-01-01", ("2020-01-01", "1 Jan 2020"), "copy", (("a", "b"), ("c", "d"))),
    Record("dates", "Copy the date.", "2020-01-02", ("2020-01-02",), options=("2020-01-02", "no")),
    Record("odd", "Copy.", "a\u2028b\n\"c\" é", ("2020-01-03",)),
]
ROWS = [{"task": "t", "instruction": "Do.", "input": "1", "targets": ["a"]},
        {"task": "t", "instruction": "Do.", "input": "2", "targets": "b"}]
READ = [Record("t", "Do.", "1", ("a",)), Record("t", "Do.", "2", ("b",))]


def lines(*rows):
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def packed(content):
    return gzip.compress(content, mtime=0)  # parameters, and so the names of tests, must not depend on the clock


def test_records_come_back_as_written_even_if_they_look_like_dates(tmp_path):
    write_table(RECORDS, tmp_path / "records.jsonl")
    assert read_table(tmp_path / "records.jsonl") == RECORDS
    assert os.listdir(tmp_path) == ["records.jsonl"]


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "records.jsonl"
    write_table(RECORDS[:1], path)

    def broken():
        yield RECORDS[1]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_table(broken(), path)
    assert read_table(path) == RECORDS[:1] and os.listdir(tmp_path) == ["records.jsonl"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    write_table(RECORDS, tmp_path / "records.jsonl")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "records.jsonl").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_only_json_lines_are_written(tmp_path):
    with pytest.raises(ValueError, match="jsonl"):
        write_table(RECORDS, tmp_path / "records.parquet")


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", lines(*ROWS).encode()),
    ("a.jsonl.gz", packed(lines(ROWS[0], "\n", ROWS[1]).encode())),
    ("a.json", json.dumps(ROWS, indent=1).encode()),
    ("a.json.gz", packed(json.dumps(ROWS).encode())),
    ("lines.json", b"\xef\xbb\xbf" + lines(*ROWS).encode()),
])
def test_every_kind_of_json_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_table(tmp_path / name) == READ
    assert read_tables({"train": tmp_path / name, "unseen": str(tmp_path / name)}) == {"train": READ, "unseen": READ}


def test_parquet_is_read_and_leaves_nothing_behind(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    from pyarrow import parquet

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    rows = [{"task": r.task, "instruction": r.instruction, "input": r.input, "targets": list(r.targets),
             "group": r.group, "demonstrations": [list(pair) for pair in r.demonstrations],
             "options": list(r.options) if r.options else None} for r in RECORDS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet") == RECORDS
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_columns_are_mapped(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"task": "t", "instruction": "Do.", "input": "x", "question": "1", "answer": "a", "kind": "g"}
    path.write_text(lines(row))
    columns = {"input": "question", "targets": "answer", "group": "kind"}
    assert read_table(path, columns) == [Record("t", "Do.", "1", ("a",), "g")]
    with pytest.raises(ValueError, match="target"):
        read_table(path, {"target": "answer"})
    with pytest.raises(ValueError, match=r"line 1.*'hint'.*columns=\{'options'"):
        read_table(path, {**columns, "options": "hint"})


@pytest.mark.parametrize("row, message", [
    ({"targets": None}, r"line 3.*'targets'.*columns=\{'targets'"),
    ({"targets": []}, "line 3.*targets"),
    ({"targets": [1]}, r"line 3: field 'targets' is \[1\].*list of texts"),
    ({"targets": ""}, "line 3.*targets"),
    ({"input": 5}, "line 3: field 'input' is 5.*a text"),
    ({"input": " "}, "line 3.*input"),
    ({"task": None}, "line 3.*'task'"),
    ({"options": ["b", "c"]}, "line 3.*'a' is not among the options"),
    ({"options": ["a", "b", "b"]}, "line 3: record of task .* the option 'b' is there twice"),
    ({"input": "half \ud83d"}, r"line 3: record of task .* the text 'half .ud83d' has a lone surrogate"),
    ({"targets": ["\udc80"]}, "line 3: .* lone surrogate"),
    ({"options": "a"}, "line 3: field 'options' is 'a'"),
    ({"demonstrations": [["a", "b", "c"]]}, "line 3: field 'demonstrations'.*pairs"),
    ({"demonstrations": [{"input": "a", "output": "b"}]}, "line 3: field 'demonstrations'.*pairs"),
])
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS[0], "\n", {**ROWS[0], **row}))
    with pytest.raises(ValueError, match=f"a.jsonl, {message}"):
        read_table(path)


@pytest.mark.parametrize("name, content, message", [
    ("a.jsonl", lines(ROWS[0], '{"task": "t\n').encode(), "a.jsonl, line 2: no JSON"),
    ("a.jsonl", b"3\n", "line 1 is a int"),
    ("a.json", json.dumps([ROWS[0], json.dumps(ROWS[1])]).encode(), "row 2 is a str"),
    ("a.json", b'[{"task": "t"},\n {]', "a.json, line 2"),
    ("a.jsonl", b"\xff", "a.jsonl, line 1: not UTF-8"),
    ("a.jsonl", lines(*ROWS).encode() + b'{"task": "caf\xe9"}\n', f"a.jsonl, line {len(ROWS) + 1}: not UTF-8"),
    ("a.jsonl.gz", packed(b"\n\n\xff"), "a.jsonl.gz, line 3: not UTF-8"),
    ("a.jsonl", b'\n{"x": ' + b"[" * 100_000, "a.jsonl, line 2: it is nested too deeply"),
    ("a.json", b"[" * 100_000, "a.json: it is nested too deeply"),
    ("a.jsonl", b'{"task": "a", "task": "b"}\n', "a.jsonl, line 1: the field 'task' is given twice in one object"),
    ("a.json", b'[{"task": {"x": 1, "x": 2}}]', "a.json: the field 'x' is given twice in one object"),
    ("a.jsonl.gz", b"plain", "gzip"),
    ("a.jsonl.gz", packed(lines(*ROWS).encode())[:-12], "cannot be read"),
    ("a.jsonl", b"\n", "no rows"),
    ("a.parquet", b"plain", "cannot be read as parquet"),
    ("a.csv", b"task", "unknown kind"),
])
def test_an_unreadable_file_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        read_table(tmp_path / name)


def test_json_rows_say_where_they_stand(tmp_path):
    path: Path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y"}\n\n{"a": null}\n', encoding="utf-8")
    (first, row), (third, empty) = read_json_rows(path)
    assert (first, third) == (f"{path}, line 1", f"{path}, line 3")
    assert field(row, "a", first) == "x\u2028y"
    with pytest.raises(ValueError, match="line 3: there is no field 'a'"):
        field(empty, "a", third)
