"""`tagi evaluate`: rows, files and folders of data that cannot be used, and options that make no sense."""

import json
import os

from case import Case, Either, Fine, Outcome, Place, Refused, tagi_case, train_case
from world import record

SHORT = ("--max_target_length", "4", "--batch_size", "4", "--output_dir", "<out>", "--references")


def _evaluated(place: Place, outcome: Outcome):
    scores = json.loads((place.out / "results.json").read_text())["splits"]
    return None if all("tagi" in split["methods"] for split in scores.values()) else "no scores"


FINE = Fine(_evaluated)


def _evaluate(name: str, data: str, expects, make=None, *more: str) -> Case:
    return tagi_case(name, ["evaluate", "<model>", "--data", data, *SHORT, *more], expects, make)


def _bytes(name: str, file: str, content: bytes, expects) -> Case:
    def make(place: Place):
        (place.here / file).write_bytes(content)

    return _evaluate(f"data: {name}", f"<here>/{file}", expects, make)


def _text(name: str, content: str, *words: str, file: str = "a.jsonl") -> Case:
    """A file that is refused in a message that names it."""
    return _bytes(name, file, content.encode(), Refused((file.replace(".", r"\."), *words)))


def _row(name: str, expects, file: str = "a.jsonl", **fields) -> Case:
    """A file with one row, which has these fields."""
    return _bytes(name, file, (json.dumps(record(**fields)) + "\n").encode(), expects)


def _at(*words: str, line: int = 1) -> Refused:
    return Refused((rf"a\.jsonl, (line|row) {line}", *words))


def _cut(**fields) -> str:
    """A row's text, for what json does not write."""
    return json.dumps(record(**fields), ensure_ascii=False)


ROW = _cut()
FILES = [
    _text("broken json line", ROW + "\n{task: 3\n", "line 2", "JSON"),
    _text("empty file", "", "no rows"),
    _text("only blank lines", "\n \n\n", "no rows"),
    _bytes("latin-1", "a.jsonl", _cut(input="caf\xe9 plum").encode("latin-1"), Refused((r"a\.jsonl", "UTF-8"))),
    _bytes("utf-16", "a.jsonl", ROW.encode("utf-16"), Refused((r"a\.jsonl", "UTF-8"))),
    _bytes("utf-8 BOM", "a.jsonl", ROW.encode("utf-8-sig"), FINE),
    _text("NUL byte raw", ROW.replace("dog", "d\0g"), "line 1", "JSON"),
    _row("NUL inside text (\\u0000)", FINE, input="d\0g plum"),
    _row("missing instruction column", _at("instruction"), instruction=None),
    _row("missing targets", _at("targets"), targets=None),
    _row("missing task", _at("task"), task=None),
    _row("missing group", FINE, group=None),
    _row("targets a string", FINE, targets="plum"),
    _row("targets empty list", _at("targets"), targets=[]),
    _row("targets [null]", _at("targets"), targets=[None]),
    _row("targets ['']", _at("targets"), targets=[""]),
    _row("instruction empty", _at("instruction"), instruction=""),
    _row("instruction whitespace", _at("instruction"), instruction=" "),
    _text("instruction null", ROW.replace(json.dumps(record()["instruction"]), "null"), "line 1", "instruction"),
    _row("instruction a list", _at("instruction"), instruction=["a", ""]),
    _row("instruction 100k characters", Refused(("t1", "tokens", "1024")), instruction="word " * 20_000),
    _row("instruction emoji", FINE, instruction="write 🦊🔥"),
    _row("lone surrogate", Refused((r"a\.jsonl|t1", "surrogate|UTF-8|Unicode")), input="d\ud800g plum"),
    _row("input number", _at("input"), input=5),
    _text("input null", ROW.replace('"dog plum"', "null"), "line 1", "input"),
    _text("line is a list", "[1, 2]\n", "JSON object"),
    _bytes("file is one JSON array", "a.jsonl", f"[{ROW}, {ROW}]".encode(), FINE),
    _bytes("file .json", "a.json", f"[{ROW}]".encode(), FINE),
    _text("file .csv", "task,input\n", "csv", r"\.jsonl", file="a.csv"),
    _text("file .txt", "dog plum\n", r"\.jsonl", file="a.txt"),
    _row("options without target among them", _at("options", "plum"), options=["a", "b"]),
    _row("options one", FINE, options=["plum"]),
    _row("options duplicate", _at("options", "twice|duplicate|repeat|same"), options=["plum", "plum", "dog"]),
    _row("options a string", _at("options"), options="plum"),
    _row("demonstrations string", _at("demonstrations"), demonstrations="x"),
    _row("demonstrations of wrong shape", _at("demonstrations"), demonstrations=[["a"]]),
    _row("unknown extra column", FINE, colour="red"),
    _bytes("huge line (60 MB input)", "a.jsonl", _cut(input="dog plum " * 6_600_000).encode(), FINE),
    _row("task ../../x", FINE, task="../../x"),
    _row("task with slash, NUL and emoji", FINE, task="a/b\0🦊"),
    _row("task 5000 characters", FINE, task="x" * 5000),
    _row("task number", _at("task"), task=7),
    _text("deeply nested JSON", "[" * 100_000 + "]" * 100_000, "line 1|nested"),
    _text("duplicate keys in JSON", ROW[:-1] + ', "input": "cat dog"}\n', "line 1", "input",
          "twice|duplicate|again|more than once"),
    _text("NaN literal", ROW.replace('"dog plum"', "NaN"), "line 1", "input|NaN"),
    _text("parquet garbage", "PAR1 nothing", "parquet", file="a.parquet"),
    _text("parquet empty", "", "parquet", file="a.parquet"),
]  # fmt: skip

PLACES = [
    _evaluate("data: missing file", "/nope.jsonl", Refused((r"/nope\.jsonl",))),
    _evaluate("data: empty folder", "<here>/ef", Refused(("<here>/ef", r"\.jsonl")),
              lambda place: (place.here / "ef").mkdir()),
    _evaluate("data: folder named x.jsonl", "<here>/dir.jsonl", Refused((r"dir\.jsonl",)),
              lambda place: (place.here / "dir.jsonl").mkdir()),
    tagi_case("data: not given", ["evaluate", "<model>"], Refused(("no data", "--data"), 2)),
    _evaluate("data: a FIFO", "<here>/ff.jsonl", Refused((r"ff\.jsonl",)),
              lambda place: os.mkfifo(place.here / "ff.jsonl")),
]  # fmt: skip


def _asked(name: str, *more: str, expects, data: str = "<records>", make=None) -> Case:
    return tagi_case(
        f"evaluate: {name}",
        ["evaluate", "<model>", "--data", data, "--output_dir", "<out>", "--max_target_length", "4", *more],
        expects, make,
    )  # fmt: skip


OPTIONS = [
    _asked("split unknown", "--splits", "zzz", expects=Refused(("zzz", "words"))),
    _asked("reference unknown", "--references", "zzz", expects=Refused(("zzz", "start_prompted"), 2)),
    _asked("max_records -1", "--max_records", "-1", expects=Refused(("max_records", "'-1'"), 2)),
    _asked("source sni on file", "--source", "sni", expects=Refused((r"words\.jsonl",))),
    _asked("source p3 on empty folder", "--source", "p3", data="<here>/ef", expects=Refused(("<here>/ef",)),
           make=lambda place: (place.here / "ef").mkdir()),
    _asked("baseline missing", "--baseline", "/nope", expects=Refused(("/nope", "there is no|folder"))),
    _asked("oracle bad key", "--references", "oracle", "--oracle", "foo=3", expects=Refused(("foo", "steps"), 2)),
    _asked("nearest_adapter without adapters", "--references", "nearest_adapter",
           expects=Refused(("nearest_adapter", "task_adapters"), 2)),
    _asked("options bad", "--options", "foo=3", expects=Refused(("foo", "columns"))),
    _asked("task_adapters missing", "--references", "nearest_adapter", "--task_adapters", "/nope",
           expects=Refused(("/nope",))),
    tagi_case("evaluate: output a file", ["evaluate", "<model>", "--data", "<records>", "--output_dir",
                                          "<here>/afile"],
              Refused(("afile", "is a file"), 2), lambda place: (place.here / "afile").write_text("mine")),
    _asked("max_input_length 0", "--max_input_length", "0", expects=Refused(("max_input_length", "'0'"), 2)),
    _asked("single record oracle", "--references", "oracle", "--oracle", "steps=2", expects=FINE),
]  # fmt: skip

TASK = {
    "Definition": ["say the last word"], "Categories": ["words"], "Positive Examples": [], "Negative Examples": [],
    "Input_language": ["English"], "Output_language": ["English"], "Instruction_language": ["English"],
    "Instances": [{"input": f"dog plum {n}", "output": [f"plum {n}"]} for n in range(3)],
}  # fmt: skip


def _sni(name: str, expects, change=None, train: str = "task1", test: str = "task2") -> Case:
    """A folder in the layout of SNI, in which `change` does something to the evaluated task."""

    def make(place: Place):
        folder = place.here / "sni"
        (folder / "tasks").mkdir(parents=True)
        (folder / "splits" / "default").mkdir(parents=True)
        (folder / "splits" / "default" / "train_tasks.txt").write_text(train)
        (folder / "splits" / "default" / "test_tasks.txt").write_text(test)
        (folder / "tasks" / "task1.json").write_text(json.dumps({**TASK, "Definition": ["say the first word"]}))
        second = {**TASK, "Instances": [{"input": f"cat pear {n}", "output": [f"pear {n}"]} for n in range(3)]}
        file = folder / "tasks" / "task2.json"
        file.write_text(json.dumps(second))
        if change:
            change(file, second)

    return tagi_case(name, ["evaluate", "<model>", "--data", "<here>/sni", "--source", "sni", *SHORT], expects, make)


def _with(**fields):
    return lambda file, task: file.write_text(json.dumps({**task, **fields}))


SNI = [
    _sni("sni task file missing", Refused((r"task2\.json",)), lambda file, task: file.unlink()),
    _sni("sni task file broken JSON", Refused((r"task2\.json", "JSON")), lambda file, task: file.write_text("{")),
    _sni("sni task without Definition", Refused((r"task2\.json", "Definition")),
         lambda file, task: file.write_text(json.dumps({k: v for k, v in task.items() if k != "Definition"}))),
    _sni("sni empty Instances", Refused((r"test_tasks\.txt",)), _with(Instances=[])),
    _sni("sni output a number", Refused((r"task2\.json",)), _with(Instances=[{"input": "dog", "output": [5]}])),
    _sni("sni task names ../../etc/passwd", Refused(("etc/passwd",)), test="../../../../../../etc/passwd"),
    _sni("sni test list empty", Refused((r"test_tasks\.txt",)), test=""),
    _sni("sni leak: same task in train and test", Refused(("task1", "train_tasks", "test_tasks")), test="task1"),
]  # fmt: skip


def _tables(train: list, unseen: list | None):
    """Makes `own/`, a folder of tables."""

    def make(place: Place):
        (place.here / "own").mkdir()
        for split, rows in (("train", train), ("unseen", unseen)):
            if rows is not None:
                lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
                (place.here / "own" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    return make


def rows_of(task: str, instruction: str = "", count: int = 6, of: str = "red green blue one two three") -> list[dict]:
    """Rows of one task, which differ from those of a task with a name of another length."""
    words = of.split()
    return [
        record(task=task, group=task, instruction=instruction or f"say word {len(task)} of the list",
               input=" ".join([words[n], *words[: n + 1], *[words[len(task) % 6]] * (len(task) % 7), words[n]]),
               targets=[words[n]])
        for n in range(count)
    ]  # fmt: skip


def own_data(train: list, unseen: list | None = None):
    """Makes `own/`; without `unseen`, with a task of its own there."""
    fruit = rows_of("new", "say the new word", of="four apple pear plum cat dog")
    return _tables(train, fruit if unseen is None else unseen)


OWN = ("--data.path", "<here>/own")
LEAKED = rows_of("first") + rows_of("second")
LATE_BREAK = [*rows_of("first"), *rows_of("second"), "{broken"]
TRAIN = [
    train_case("train: leak (test instance in train)", OWN, Refused(("unseen|test", "share|leak")),
               own_data(LEAKED, rows_of("first"))),
    train_case("train: one task, one record",
               [*OWN, "--finetuning.tasks_per_batch", "1", "--instruction_tuning.tasks_per_batch", "1"],
               Either(Refused(("task",))), own_data(rows_of("first", count=1))),
    train_case("train: data_path is broken jsonl late in file", OWN, Refused((r"train\.jsonl, line 13", "JSON")),
               own_data(LATE_BREAK)),
    train_case("train: streaming of broken jsonl", [*OWN, "--data.streaming", "64"],
               Refused((r"train\.jsonl, line 13", "JSON")), own_data(LATE_BREAK)),
    train_case("train: streaming 0", ["--data.streaming", "0"], Refused((r"data\.streaming",))),
    train_case("train: streaming builtin",
               ["--data.source", "builtin", "--data.path", "null", "--data.streaming", "64"],
               Refused((r"streaming", "builtin"))),
]  # fmt: skip

CASES = [*FILES, *PLACES, *OPTIONS]
