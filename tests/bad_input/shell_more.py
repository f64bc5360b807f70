"""Further input from the shell that a user may well give by mistake."""

import gzip
import json
import shutil

from case import Either, Fine, Place, Refused, tagi_case, train_case
from results import finished
from shell_checkpoints import ANSWERED
from shell_data import FINE, OWN, SHORT, own_data, rows_of
from world import INSTRUCTION, record


def _refused(name: str, field: str, value: str, *words: str):
    return train_case(name, [f"--{field}", value], Refused(words or (field.rpartition(".")[2],)))


def _either(name: str, field: str, value: str):
    return train_case(name, [f"--{field}", value], Either(Refused((field.rpartition(".")[2],)), Fine(finished)))


FIELDS = [
    _refused("splits empty", "evaluation.splits", "[]", "splits"),
    _refused("references a text", "evaluation.references", "prompted", "references"),
    _either("stage null", "finetuning", "null"),  # an empty section has its defaults: it is left out
    _refused("data a text", "data", "builtin", "data"),
    _refused("tagi a list", "tagi", "[r, 4]", "tagi"),
    _refused("backbone.config a text", "backbone.config", "t5", "config"),
    _refused("model_type unknown", "backbone.config.model_type", "t55", "model_type|t55"),
    _refused("model_type of an encoder", "backbone.config.model_type", "vit", "vit"),
    _refused("num_layers 0", "backbone.config.num_layers", "0", "num_layers|target_modules"),
    _refused("d_model a text", "backbone.config.d_model", "wide", "d_model"),
    _refused("d_model 1e9", "backbone.config.d_model", "1000000000", "memory|d_model"),
    _refused("dropout_rate 2", "backbone.config.dropout_rate", "2", "dropout_rate"),
    _refused("vocab_size a million millions", "backbone.vocab_size", "1000000000000", "vocab"),
    _refused("text.max_length 1", "text.max_length", "1", "max_length"),
    _refused("max_instruction_length 2", "tagi.max_instruction_length", "2", "max_instruction_length"),
    _refused("push_every without a repository", "push_every", "5", "push_every"),
    _refused("steps as a list", "finetuning.steps", "[3]", r"finetuning\.steps"),
    _refused("steps nan", "finetuning.steps", ".nan", r"finetuning\.steps"),
    _refused("steps 1e30", "finetuning.steps", "1e30", r"finetuning\.steps"),
    _refused("warmup -1", "finetuning.warmup", "-1", "warmup"),
    _refused("r true", "tagi.r", "true", r"\br is True|tagi\.r"),
    _refused("target_modules a number", "tagi.target_modules", "[3]", "target_modules"),
    _refused("label with a line's end", "label", '"a\\nb"', "label"),
    _either("label empty", "label", '""'),
    _refused("output_dir with NUL", "output_dir", '"a\\0b"', "output_dir|NUL|null byte"),
    _refused("data.options a list", "data.options", "[1]", "options"),
    _refused("collection empty", "task_adapters.given", "{}", "given"),
    _refused("steps and given", "task_adapters.given", "{first: x}", "steps|given|first"),
    _refused("alignment steps -1", "finetuning.alignment_steps", "-1", "alignment_steps"),
    _refused("schedule a number", "finetuning.schedule", "5", "schedule"),
    _refused("embedding_std -1", "backbone.embedding_std", "-1", "embedding_std"),
    _either("save_every huge", "finetuning.save_every", "1000000000"),
    _either("evaluation batch huge", "evaluation.batch_size", "1000000000"),
    train_case("a field twice", ["--seed", "1", "--seed", "2"], Either(Refused(("seed",)), Fine(finished))),
    train_case("no such option -x", ["-x", "3"], Refused(("-x",))),
]  # fmt: skip


def _kept(folder: str):
    """Makes a folder of the user's own, with a file in it."""

    def make(place: Place):
        (place.here / folder).mkdir()
        (place.here / folder / "precious.txt").write_text("mine")

    return make


def _model(place: Place):
    place.world.checkpoint(place.here / "ck")


def _adapter(place: Place):
    shutil.copytree(place.world.adapter, place.here / "ad")


def _link(place: Place):
    _model(place)
    (place.here / "link").symlink_to(place.here / "ck")


def _generate(name: str, output: str, make, *words: str):
    return tagi_case(name, ["generate", "<model>", INSTRUCTION, "--output_dir", output], Refused(words), make)


def _evaluate(name: str, output: str, make, *words: str):
    arguments = ["evaluate", "<model>", "--data", "<records>", "--max_target_length", "4", "--references"]
    return tagi_case(name, [*arguments, "--output_dir", output], Refused(words), make)


FOLDERS = [
    _generate("generate: output is the current folder", ".", _kept("x"), r"\.|folder"),
    _generate("generate: output holds foreign files", "<here>/mine", _kept("mine"), "<here>/mine"),
    _generate("generate: output is a link to a checkpoint", "<here>/link", _link, "link|<here>/ck"),
    _generate("generate: output is a run", "<here>/run",
              lambda place: shutil.copytree(place.world.run, place.here / "run"), "<here>/run"),
    _evaluate("evaluate: output is a checkpoint", "<here>/ck", _model, "<here>/ck"),
    _evaluate("evaluate: output is an adapter", "<here>/ad", _adapter, "<here>/ad"),
    train_case("train: output_dir is a checkpoint", ["--output_dir", "<here>/ck"], Refused(("<here>/ck",)), _model),
    train_case("train: output_dir is an adapter", ["--output_dir", "<here>/ad"], Refused(("<here>/ad",)), _adapter),
    train_case("train: output_dir is a bank", ["--output_dir", "<here>/bank"], Refused(("<here>/bank",)),
               lambda place: shutil.copytree(place.world.run / "task_adapters", place.here / "bank")),
    tagi_case("study: output_dir is a run", ["study", "<here>/s.yaml", "--output_dir", "<here>/run"],
              Refused(("<here>/run",)), lambda place: (
        (place.here / "s.yaml").write_text(f"config: {place.world.config}\nmethods: [tagi]\n"),
        shutil.copytree(place.world.run, place.here / "run"))),
]  # fmt: skip


def _data(name: str, file: str, content: bytes, expects):
    return tagi_case(
        f"data: {name}", ["evaluate", "<model>", "--data", f"<here>/{file}", *SHORT], expects,
        lambda place: (place.here / file).write_bytes(content),
    )  # fmt: skip


ROW = json.dumps(record()).encode()


def _parquet(**columns):
    def make(place: Place):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), place.here / "a.parquet")

    return make


DATA = [
    _data("gzip cut off", "a.jsonl.gz", gzip.compress(ROW * 50, mtime=0)[:-9], Refused((r"a\.jsonl\.gz",))),
    _data("gzip that is none", "a.jsonl.gz", ROW, Refused((r"a\.jsonl\.gz",))),
    _data("line ends of Windows", "a.jsonl", ROW + b"\r\n" + ROW + b"\r\n", FINE),
    _data("a number of 5000 digits", "a.jsonl", ROW.replace(b'"dog plum"', b"1" * 5000), Refused((r"a\.jsonl",))),
    _data("1e999", "a.jsonl", ROW.replace(b'"dog plum"', b"1e999"), Refused((r"a\.jsonl, line 1", "input"))),
    _data("two objects on a line", "a.jsonl", ROW + ROW, Refused((r"a\.jsonl, line 1", "JSON"))),
    _data("an object that is the file", "a.json", ROW, Either(Refused((r"a\.json",)), FINE)),
    _data("null", "a.json", b"null", Refused((r"a\.json",))),
    _data("input empty", "a.jsonl", ROW.replace(b"dog plum", b""), Either(Refused((r"a\.jsonl",)), FINE)),
    _data("options empty", "a.jsonl", json.dumps(record(options=[])).encode(), Either(Refused(("options",)), FINE)),
    _data("targets a thousand times the same", "a.jsonl", json.dumps(record(targets=["plum"] * 1000)).encode(), FINE),
    tagi_case("data: parquet without a column", ["evaluate", "<model>", "--data", "<here>/a.parquet", *SHORT],
              Refused((r"a\.parquet", "instruction|targets")), _parquet(task=["t"], input=["dog"])),
    tagi_case("data: parquet with numbers", ["evaluate", "<model>", "--data", "<here>/a.parquet", *SHORT],
              Refused((r"a\.parquet", "input")),
              _parquet(task=["t"], input=[3], instruction=["say"], targets=[["a"]])),
    tagi_case("data: two files of one split", ["evaluate", "<model>", "--data", "<here>/two", *SHORT],
              Refused((r"ok\.jsonl", r"ok\.json")), lambda place: (
        (place.here / "two").mkdir(), (place.here / "two" / "ok.jsonl").write_bytes(ROW),
        (place.here / "two" / "ok.json").write_bytes(b"[" + ROW + b"]"))),
    train_case("train: unseen split without records", OWN, Refused(("unseen",)),
               own_data(rows_of("first"), unseen=[])),
    train_case("train: data.path is a checkpoint", ["--data.path", "<model>"], Refused(("<model>",))),
]  # fmt: skip


def _run(name: str, *arguments: str, expects, make=None, **options):
    return tagi_case(f"run: {name}", ["run", *arguments, "--max_new_tokens", "4"], expects, make, **options)


RUNS = [
    _run("instruction that begins with a dash", "<model>", "-say it", "dog", expects=Either(Refused(("-say",)))),
    _run("stdin binary", "<model>", INSTRUCTION, expects=Refused(("UTF-8",)), stdin=bytes(range(128, 256))),
    _run("a thousand inputs", "<model>", INSTRUCTION, expects=ANSWERED, stdin=b"dog plum\n" * 1000),
    _run("adapter that is not there", "--adapter", "/nope", "<model>", "dog", expects=Refused(("/nope",))),
    _run("adapter that is a checkpoint", "--adapter", "<model>", "<model>", "dog", expects=Refused(("<model>",))),
    _run("no arguments", expects=Refused(("CHECKPOINT",), 2)),
    tagi_case("no such command", ["fly"], Refused(("fly", "generate"), 2)),
    tagi_case("plan: no configuration", ["plan"], Refused(("CONFIG",), 2)),
]
CASES = [*FIELDS, *FOLDERS, *DATA, *RUNS]
