"""Folders of runs: tasks with names that are paths, runs that are cut off, and folders that something happened to."""

import json
import shutil
import signal
import time

from case import Case, Either, Fine, Outcome, Place, Refused, train, train_case
from results import as_the_first, finished
from shell_data import OWN, own_data, rows_of


def _tasks(name: str, *tasks: str, make=None) -> Case:
    rows = [row for number, task in enumerate(tasks)
            for row in rows_of(task, f"say word {number} of the list {number}")]  # fmt: skip

    def made(place: Place):
        own_data([json.loads(json.dumps(row).replace("<here>", str(place.here))) for row in rows])(place)
        if make:
            make(place)

    few = ["--finetuning.tasks_per_batch", "1", "--instruction_tuning.tasks_per_batch", "1"] if len(tasks) == 1 else []
    expects = Either(Refused(("name of|[Tt]ask.* name",)), Fine(finished))
    return train_case(name, [*OWN, *few], expects, made)


def _victim(place: Place):
    for folder in (place.here / "victim", place.here.parent / "victim"):
        folder.mkdir()
        (folder / "precious.txt").write_text("mine")


TASK_NAMES = [
    _tasks("train: task names ../../x, /abs, NUL, emoji, 300 chars", "../../x", "<here>/abs", "a\0b", "🦊", "x" * 300),
    _tasks("train: one task named ../../../../escaped", "../../../../escaped"),
    _tasks("train: one task named 300 chars", "x" * 300),
    _tasks("train: one task named NUL", "\0"),
    _tasks("train: one task named ..", ".."),
    _tasks("train: one task named .", "."),
    _tasks("train: task ../../../../victim over an existing folder", "../../../../victim", make=_victim),
    _tasks("train: task is an absolute path of an existing folder", "<here>/victim", make=_victim),
    train_case("train: data with a train split alone", OWN, Refused(("split", "train")),
               lambda place: (own_data(rows_of("first") + rows_of("second"))(place),
                              (place.here / "own" / "unseen.jsonl").unlink())),
    train_case("train: a single file as data.path", ["--data.path", "<folder>/data/train.jsonl"],
               Refused((r"train\.jsonl", "folder"))),
]  # fmt: skip
TRAVERSAL = _tasks("traversal minimal", "../../../../pwn")


def _cut_off(name: str, number: int, stage: str) -> Case:
    def act(place: Place) -> Outcome:
        child = place.start(train, "<config>", "--output_dir", "<out>")
        while child.code is None and f"{stage}: starts" not in child.shown():
            time.sleep(0.002)
            if stage == "data" and time.monotonic() - child.began > 0.15:
                break
        child.send(number)
        ended = child.wait()
        again = place.train()
        if ended.code == 0:
            again.code, again.err = 71, "the run ended before it could be cut off"
        if number == signal.SIGINT and (ended.code != 130 or "Traceback" in ended.err):
            again.code, again.err = 72, f"interrupted: rc {ended.code}: {ended.err}"
        return again

    return Case(name, act, Fine(as_the_first))


CUT_OFF = [
    *(_cut_off(f"restart after SIGKILL in {stage}", signal.SIGKILL, stage)
      for stage in ("data", "text", "task_adapters", "finetuning", "evaluation")),
    _cut_off("restart after SIGINT in finetuning", signal.SIGINT, "finetuning"),
    _cut_off("restart after SIGTERM in instruction_tuning", signal.SIGTERM, "instruction_tuning"),
]  # fmt: skip


def _damaged(name: str, damage, *words: str) -> Case:
    """A finished run's folder that `damage` does something to, and the same command again."""

    def make(place: Place):
        shutil.copytree(place.world.run, place.out)
        damage(place.out)

    expects = Either(Refused(words, late=True), Fine(finished, replaces=True))
    return Case(f"run folder: {name}", lambda place: place.train(), expects, make)


def _written(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def _shortened(pattern: str, by: int = 200):
    def damage(folder):
        file = sorted(folder.glob(pattern))[0]
        file.write_bytes(file.read_bytes()[:-by])

    return damage


def _a_file_for_the_model(folder):
    shutil.rmtree(folder / "model")
    (folder / "model").write_text("mine")


def _without_adapter(folder):
    shutil.rmtree(next(path for path in sorted((folder / "task_adapters").iterdir()) if path.is_dir()))


RUN_FOLDERS = [
    _damaged("settings.yaml broken", _written("settings.yaml", "a: [1"), r"settings\.yaml"),
    _damaged("settings.yaml deleted", lambda folder: (folder / "settings.yaml").unlink(), r"settings\.yaml"),
    _damaged("done.json empty", _written("stages/instruction_tuning/done.json", ""), r"done\.json"),
    _damaged("finetuned weights truncated", _shortened("stages/finetuning/model/model.safetensors"),
             r"finetuning/model", "safetensors"),
    _damaged("taught backbone's weights deleted",
             lambda folder: (folder / "stages/instruction_tuning/backbone/model.safetensors").unlink(),
             "instruction_tuning/backbone"),
    _damaged("task_adapters/index.json broken", _written("task_adapters/index.json", "{"), r"index\.json"),
    _damaged("one task adapter truncated", _shortened("task_adapters/*/adapter_model.safetensors"),
             r"adapter_model\.safetensors"),
    _damaged("one task adapter deleted", _without_adapter, "task_adapters/"),
    _damaged("results.json broken", _written("results.json", "{"), r"results\.json"),
    _damaged("log.jsonl half a line", _written("stages/finetuning/log.jsonl", '{"lo'), r"log\.jsonl"),
    _damaged("tokenizer broken", _written("tokenizer/tokenizer.json", ""), r"tokenizer"),
    _damaged("model is a file", _a_file_for_the_model, "model"),
]  # fmt: skip


def _foreign(place: Place):
    place.out.mkdir()
    (place.out / "precious.txt").write_text("mine")


def _kept(place: Place, outcome: Outcome):
    return None if (place.out / "precious.txt").read_text() == "mine" else "the file is lost"


def _a_file(place: Place):
    (place.here / "afile").write_text("mine")


COLLECTION = "--task_adapters.given"
NO_TUNING = ("--task_adapters.steps", "0")
WORDS = ("first", "last", "second")
OUTPUTS = [
    train_case("output_dir holds foreign files", [], Either(Refused(("<out>", "holds|empty")), Fine(_kept)), _foreign),
    train_case("output_dir is a file", ["--output_dir", "<here>/afile"], Refused(("afile", "file")), _a_file),
    train_case("output_dir below a file", ["--output_dir", "<here>/afile/x"], Refused(("afile", "file|folder")),
               _a_file),
    train_case("output_dir ''", ["--output_dir", ""], Either(Refused(("output_dir",))), writes=("outputs",)),
    train_case("output_dir is the adapter folder of another run (task_adapters.given)",
               [*NO_TUNING, "--task_adapters.given", "/nope/x"], Refused(("/nope/x",))),
    train_case("task_adapters.given of other backbone",
               [*NO_TUNING, "--task_adapters.given", "<run>/task_adapters", "--backbone.config.d_model", "24"],
               Refused(("task adapter|bank", "backbone|shape|width|weight"))),
    train_case("collection missing", [*NO_TUNING, COLLECTION, "/nope.yaml"], Refused((r"/nope\.yaml",))),
    train_case("collection broken", [*NO_TUNING, COLLECTION, "<here>/c.yaml"], Refused((r"c\.yaml", "YAML")),
               lambda place: (place.here / "c.yaml").write_text("a: [1")),
    train_case("collection a list", [*NO_TUNING, COLLECTION, "<here>/c.yaml"], Refused((r"c\.yaml", "list")),
               lambda place: (place.here / "c.yaml").write_text("- a\n")),
    train_case("collection folder missing", [*NO_TUNING, COLLECTION, "{first: /nope/a}"],
               Refused(("/nope/a|first",))),
]  # fmt: skip
