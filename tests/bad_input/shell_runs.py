"""Folders of runs and studies: disks that are full, names that are paths, runs cut off, damaged, and two at once."""

import json
import os
import re
import shutil
import signal
import sys
import time

import mounts
import yaml
from forked import ROOT, module
from shell_data import OWN, own_data, rows_of
from world import INSTRUCTION

from cases import Case, Either, Fine, Outcome, Place, Refused, tagi, tagi_case, train, train_case


def finished(place: Place, outcome=None):
    """What is wrong with a run's folder that should hold a whole run."""
    folder = place.out
    for name in ("results.json", "results.md", "model/model.safetensors", "model/config.json", "report/index.html"):
        if not (folder / name).is_file():
            return f"there is no {name}"
    return not_finite(folder / "model" / "model.safetensors")


def not_finite(file):
    from safetensors.torch import load_file

    bad = [name for name, x in load_file(file).items() if not x.isfinite().all()]
    return f"{len(bad)} tensors are not finite" if bad else None


def as_the_first(place: Place, outcome: Outcome):
    """What is wrong with a run that should have ended as the one that all cases share."""
    from safetensors.torch import load_file

    wrong = finished(place)
    if wrong:
        return wrong
    one, two = (load_file(run / "model" / "model.safetensors") for run in (place.world.run, place.out))
    if one.keys() != two.keys() or any(not one[name].equal(two[name]) for name in one):
        return "other weights than the run that was not cut off"
    first, second = (json.loads((run / "results.json").read_text())["splits"] for run in (place.world.run, place.out))
    return None if first == second else "other scores than the run that was not cut off"


# Disks

def _mounted(kilobytes: int, fill=None, read_only: bool = False):
    def make(place: Place):
        folder = place.here / "mnt"
        mounts.mount(folder, 64 << 10)
        if fill:
            fill(place, folder)
        if read_only:
            mounts.make_read_only(folder)
        else:
            used = sum(file.stat().st_size // 4096 * 4 + 4 for file in folder.rglob("*") if file.is_file())
            mounts.mount(folder, kilobytes + used, again=True)

    return make


def _on_mount(name: str, act, kilobytes: int = 0, words=("space|full", "mnt"), fill=None, read_only=False) -> Case:
    return Case(name, act, Refused(words, late=True), _mounted(kilobytes, fill, read_only), ("mnt",), True)


def _train_there(place: Place) -> Outcome:
    return place.train(out="<here>/mnt/run")


def _generate_there(place: Place) -> Outcome:
    return place.call(tagi, "generate", "<model>", INSTRUCTION, "--output_dir", "<here>/mnt/ad")


def _evaluate_there(place: Place) -> Outcome:
    return place.call(
        tagi, "evaluate", "<model>", "--data", "<records>", "--max_target_length", "4", "--references",
        "--output_dir", "<here>/mnt/ev",
    )  # fmt: skip


def _study_there(place: Place) -> Outcome:
    return place.call(tagi, "study", "<here>/mnt/study.yaml", "--output_dir", "<here>/mnt/st")


def _a_study(place: Place, folder):
    study = {"config": str(place.world.config), "methods": ["tagi"], "seeds": [0]}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def _an_adapter(place: Place, folder):
    shutil.copytree(place.world.adapter, folder / "ad")


def _full_train(name: str, share: float) -> Case:
    """A run on a disk with room for this share of what it needs; more room, and the same command ends it."""
    before = {}

    def make(place: Place):
        needs = sum(-(-file.stat().st_size // 4096) * 4 for file in place.world.run.rglob("*") if file.is_file())
        _mounted(max(8, int(needs * share)))(place)

    def act(place: Place) -> Outcome:
        outcome = _train_there(place)
        mounts.mount(place.here / "mnt", 64 << 10, again=True)
        place.out = place.here / "mnt" / "run"
        again = _train_there(place)
        before["wrong"] = again.err[-300:] if again.code else as_the_first(place, again)
        if outcome.code and before["wrong"]:
            outcome.err += f"\ntrain.py: and with more room: {before['wrong']}"
        return outcome

    return Case(name, act, Refused(("space|full", "mnt"), late=True), make, ("mnt",), True)


DISKS = [
    _on_mount("read-only: train", _train_there, words=("[Rr]ead-only|writ", "mnt"), read_only=True),
    _on_mount("read-only: generate", _generate_there, words=("[Rr]ead-only|writ", "mnt"), read_only=True),
    _on_mount("read-only: evaluate", _evaluate_there, words=("[Rr]ead-only|writ", "mnt"), read_only=True),
    _on_mount("read-only: study", _study_there, words=("[Rr]ead-only|writ", "mnt"), fill=_a_study, read_only=True),
    _on_mount("disk full: generate (24k)", _generate_there, 8),
    _on_mount("disk full: generate over an existing adapter", _generate_there, 4, fill=_an_adapter),
    _on_mount("disk full: evaluate", _evaluate_there, 8),
    _full_train("disk full: train (8k)", 0.0),
    _full_train("disk full: train (600k)", 0.1),
    _full_train("disk full: train (3m)", 0.3),
    _full_train("disk full: train (6m)", 0.5),
    _full_train("disk full: train (11m)", 0.85),
]


# Names of tasks

def _tasks(name: str, *tasks: str, make=None) -> Case:
    rows = [row for number, task in enumerate(tasks)
            for row in rows_of(task, f"say word {number} of the list {number}")]  # fmt: skip

    def made(place: Place):
        own_data([json.loads(json.dumps(row).replace("<here>", str(place.here))) for row in rows])(place)
        if make:
            make(place)

    few = ["--finetuning.tasks_per_batch", "1", "--prompted.tasks_per_batch", "1"] if len(tasks) == 1 else []
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


# Runs that are cut off

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
    _cut_off("restart after SIGTERM in prompted", signal.SIGTERM, "prompted"),
]  # fmt: skip


# Folders of runs that something happened to

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
    _damaged("done.json empty", _written("stages/prompted/done.json", ""), r"done\.json"),
    _damaged("finetuned weights truncated", _shortened("stages/finetuning/model/model.safetensors"),
             r"finetuning/model", "safetensors"),
    _damaged("taught backbone's weights deleted",
             lambda folder: (folder / "stages/prompted/backbone/model.safetensors").unlink(), "prompted/backbone"),
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


COLLECTION = "--task_adapters.collection"
NO_TUNING = ("--task_adapters.steps", "0")
WORDS = ("first", "last", "second")
OUTPUTS = [
    train_case("output_dir holds foreign files", [], Either(Refused(("<out>", "holds|empty")), Fine(_kept)), _foreign),
    train_case("output_dir is a file", ["--output_dir", "<here>/afile"], Refused(("afile", "file")), _a_file),
    train_case("output_dir below a file", ["--output_dir", "<here>/afile/x"], Refused(("afile", "file|folder")),
               _a_file),
    train_case("output_dir ''", ["--output_dir", ""], Either(Refused(("output_dir",))), writes=("outputs",)),
    train_case("output_dir is the adapter folder of another run (task_adapters.path)",
               [*NO_TUNING, "--task_adapters.path", "/nope/x"], Refused(("/nope/x",))),
    train_case("task_adapters.path of other backbone",
               [*NO_TUNING, "--task_adapters.path", "<run>/task_adapters", "--backbone.config.d_model", "24"],
               Refused(("task adapter|bank", "backbone|shape|width|weight"))),
    train_case("collection missing", [*NO_TUNING, COLLECTION, "/nope.yaml"], Refused((r"/nope\.yaml",))),
    train_case("collection broken", [*NO_TUNING, COLLECTION, "<here>/c.yaml"], Refused((r"c\.yaml", "YAML")),
               lambda place: (place.here / "c.yaml").write_text("a: [1")),
    train_case("collection a list", [*NO_TUNING, COLLECTION, "<here>/c.yaml"], Refused((r"c\.yaml", "list")),
               lambda place: (place.here / "c.yaml").write_text("- a\n")),
    train_case("collection folder missing", [*NO_TUNING, COLLECTION, "{first: /nope/a}"],
               Refused(("/nope/a|first",))),
]  # fmt: skip


# Studies

def _study(name: str, text: str, expects) -> Case:
    def make(place: Place):
        (place.here / "s.yaml").write_text(place.filled(text))

    return tagi_case(f"study: {name}", ["study", "<here>/s.yaml", "--output_dir", "<out>"], expects, make)


BASE = "config: <config>\nreferences: []\n"


def _tables(place: Place, outcome: Outcome):
    return None if (place.out / "table.md").is_file() else "no table"


def _limited(place: Place, outcome: Outcome):
    """A study must heed the number of tasks that its run's configuration says."""
    lines = [json.loads(line) for line in (place.out / "results.jsonl").read_text().splitlines()]
    cells = [yaml.safe_load(file.read_text()) for file in (place.out / "cells").glob("*/cell.yaml")]
    return None if lines and all(cell["train_tasks"] == 2 for cell in cells) else "it took all tasks"


STUDIES = [
    tagi_case("study: missing", ["study", "/nope.yaml"], Refused((r"/nope\.yaml",))),
    _study("empty", "", Refused((r"s\.yaml", "config"))),
    _study("no methods", BASE, Either(Refused(("methods",)), Fine(_tables))),
    _study("unknown method", BASE + "methods: [magic]\n", Refused(("magic", "tagi"))),
    _study("seeds empty", BASE + "methods: [tagi]\nseeds: []\n", Refused(("seeds",))),
    _study("seed text", BASE + "methods: [tagi]\nseeds: [a]\n", Refused(("seeds", "'a'"))),
    _study("config missing", "config: nope.yaml\nmethods: [tagi]\n", Refused((r"nope\.yaml",))),
    _study("method name ../../x", BASE + "methods: [{../../x: {base: tagi}}]\n",
           Either(Refused((r"\.\./\.\./x",)), Fine(_tables))),
    _study("duplicate methods", BASE + "methods: [tagi, tagi]\n", Either(Refused(("tagi", "twice")), Fine(_tables))),
    _study("unknown key", BASE + "methods: [tagi]\ncolour: red\n", Refused(("colour",))),
    _study("workers 0", BASE + "methods: [tagi]\nworkers: 0\n", Refused(("workers",))),
    tagi_case("study: a run config", ["study", "<config>"], Refused((r"tiny\.yaml", r"train\.py"))),
    _study("override unknown", BASE + "methods: [tagi]\noverrides: {finetuning.lerning_rate: 1}\n",
           Refused(("lerning_rate", "learning_rate"))),
    _study("cell that fails (lr -1)", BASE + "methods: [tagi]\noverrides: {finetuning.learning_rate: -1}\n",
           Refused(("learning_rate", "-1"))),
]  # fmt: skip


# The rest

def _late_then_right(place: Place) -> Outcome:
    place.train("--finetuning.learning_rate", "-1")
    return place.train("--finetuning.learning_rate", "0.001")


def _closed_pipe(place: Place) -> Outcome:
    reader, writer = os.pipe()
    child = place.start(
        tagi, "evaluate", "<model>", "--data", "<records>", "--references", "--max_target_length", "4", stdout=writer
    )  # fmt: skip
    os.close(reader)
    os.close(writer)
    outcome = child.wait()
    if outcome.code in (1, 120, 141, -signal.SIGPIPE) and "Traceback" not in outcome.err:
        outcome.code = 0  # nobody is there to read what it says
    return outcome


def _interrupted(*command: str):
    def act(place: Place) -> Outcome:
        child = place.start(tagi, process=[place.filled(text) for text in command])
        time.sleep(0.7)
        child.send(signal.SIGINT)
        outcome = child.wait(60)
        if outcome.code == -signal.SIGINT:  # as good: who started it sees that it was interrupted
            outcome.code = 130
        return outcome

    return act


TRAIN = (sys.executable, str(ROOT / "train.py"))
INTERRUPTED = Refused(("interrupted",), 130, late=True)


def _torchrun(place: Place) -> Outcome:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", TRAIN[1],
               str(place.world.config), "--learnign_rate", "1"]  # fmt: skip
    outcome = place.call(tagi, process=command)
    said = next((line for line in outcome.err.splitlines() if line.startswith("train.py: ")), "")
    outcome.err = said or outcome.err  # the launcher's own words are not ours
    return outcome


REST = [
    tagi_case("generate over checkpoint", ["generate", "<model>", INSTRUCTION, "--output_dir", "<here>/ck"],
              Refused(("<here>/ck",)), lambda place: place.world.checkpoint(place.here / "ck")),
    tagi_case("evaluate into a run's folder",
              ["evaluate", "<model>", "--data", "<records>", "--output_dir", "<here>/run"],
              Refused(("<here>/run", "run"), 2), lambda place: shutil.copytree(place.world.run, place.here / "run")),
]  # fmt: skip

TEXT_AND_SIGNALS = [
    train_case("offline data.text directory", ["--data.text", "<here>/h.py"], Refused((r"h\.py",)),
               lambda place: (place.here / "h.py").mkdir()),
    train_case("data.text empty file", ["--data.text", "<here>/e.txt"], Refused((r"e\.txt",)),
               lambda place: (place.here / "e.txt").write_text("\n\n")),
    train_case("data.text binary file", ["--data.text", "<here>/bin.txt"], Refused((r"bin\.txt", "UTF-8")),
               lambda place: (place.here / "bin.txt").write_bytes(bytes(range(128, 256)) * 8)),
    train_case("bf16 maybe", ["--bf16", "maybe"], Refused(("bf16", "maybe"))),
    Case("tagi through a closed pipe", _closed_pipe, Fine()),
    Case("train Ctrl-C early", _interrupted(*TRAIN, "<config>", "--output_dir", "<out>"), INTERRUPTED),
    Case("tagi run Ctrl-C early",
         _interrupted(sys.executable, "-m", "modeling_tagi.cli", "run", "<model>", INSTRUCTION, "dog"), INTERRUPTED),
    Case("torchrun with a bad field", _torchrun, Refused(("learnign_rate",))),
]  # fmt: skip

MODULES = [
    Case("few_shot: missing checkpoint",
         lambda place: place.call(module("modeling_tagi.experiments.few_shot"), "/nope", "--output", "<out>/x"),
         Refused(("/nope",))),
    Case("costs: missing sni",
         lambda place: place.call(module("modeling_tagi.evaluation.costs"), "--sni", "/nope"), Refused(("/nope",))),
    Case("costs: lengths -1",
         lambda place: place.call(module("modeling_tagi.evaluation.costs"), "--lengths", "-1", "5", "5"),
         Refused(("-1",))),
]  # fmt: skip

LATE = Case("late failure, corrected value", _late_then_right, Fine(finished))


# Two at once

def _both(*starts, words=("another process|at work|in use",), fine=None, whole=None) -> tuple:
    """Starts all at once; the last one that failed is judged, or the first if none did."""

    def act(place: Place) -> Outcome:
        children = [begin(place) for begin in starts]
        outcomes = [child.wait() for child in children]
        failed = [outcome for outcome in outcomes if outcome.code]
        wrong = None
        if len(failed) == len(outcomes):
            wrong = "none of them ended well"
        elif len(outcomes) - len(failed) > (1 if whole is None else len(outcomes)):
            wrong = "several worked at once, without a word"
        elif whole:
            wrong = whole(place, outcomes[0])
        if wrong:
            return Outcome(0 if "several" in wrong else 73, "", f"{wrong}; {failed[0].err if failed else ''}", 0.0)
        return failed[0] if failed else outcomes[0]

    return act, Either(Refused(words, late=True), Fine(fine))


def _a_run(*fields):
    return lambda place: place.start(train, "<config>", "--output_dir", "<out>", *fields)


def _an_evaluation(place: Place):
    return place.start(tagi, "evaluate", "<model>", "--data", "<records>", "--references", "--max_target_length", "4",
                       "--output_dir", "<out>")  # fmt: skip


def _a_generation(place: Place):
    return place.start(tagi, "generate", "<model>", INSTRUCTION, "--output_dir", "<out>")


def _whole_scores(place: Place, outcome: Outcome):
    json.loads((place.out / "results.json").read_text())
    left = [path.name for path in place.out.iterdir() if re.match(r"\.(report|results)", path.name)]
    return f"left over: {left}" if left else None


def _whole_adapter(place: Place, outcome: Outcome):
    from modeling_tagi import TagiAdapter

    TagiAdapter.from_pretrained(place.out)


def _refused_only(case_act):
    act, either = case_act
    return act, either.refused


def _every_moment(place: Place) -> Outcome:
    """One run that is cut off again and again, at every stage."""
    for number, stage in (
        (signal.SIGKILL, "text"), (signal.SIGTERM, "prompted"), (signal.SIGINT, "task_adapters"),
        (signal.SIGKILL, "pretraining"), (signal.SIGTERM, "finetuning"), (signal.SIGKILL, "evaluation"),
    ):  # fmt: skip
        child = place.start(train, "<config>", "--output_dir", "<out>")
        while child.code is None and not re.search(f"{stage}: (starts|goes on)", child.shown()):
            time.sleep(0.002)
        child.send(number)
        child.wait()
    return place.train()


AT_ONCE = [
    Case("two `train.py` with one output_dir at once", *_refused_only(_both(_a_run(), _a_run()))),
    Case("two `tagi evaluate` into one folder at once",
         *_both(_an_evaluation, _an_evaluation, fine=_whole_scores, whole=_whole_scores)),
    Case("three `tagi generate` into one folder at once",
         *_both(*[_a_generation] * 3, fine=_whole_adapter, whole=_whole_adapter)),
    Case("two train.py, different seeds, one folder", *_refused_only(
        _both(_a_run(), _a_run("--seed", "1"), words=("another process|at work|in use|other settings",)))),
    Case("SIGKILL/SIGINT/SIGTERM at 7 moments", _every_moment, Fine(as_the_first)),
    tagi_case("study: config's train_tasks: 50", ["study", "<here>/s.yaml", "--output_dir", "<out>"],
              Fine(_limited), lambda place: (
        (place.here / "two.yaml").write_text(f"base: {place.world.config}\ntrain_tasks: 2\n"),
        (place.here / "s.yaml").write_text("config: two.yaml\nreferences: []\nmethods: [without_fusion]\n"))),
]  # fmt: skip
