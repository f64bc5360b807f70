"""Studies, signals, other commands, and two commands at once."""

import json
import os
import re
import shutil
import signal
import sys
import time

import yaml
from case import Case, Either, Fine, Outcome, Place, Refused, tagi, tagi_case, train, train_case
from forked import ROOT, module
from results import as_the_first, finished
from world import INSTRUCTION


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
         _interrupted(sys.executable, "-m", "modeling_tagi.commands.main", "run", "<model>", INSTRUCTION, "dog"),
         INTERRUPTED),
    Case("torchrun with a bad field", _torchrun, Refused(("learnign_rate",), 1)),
]  # fmt: skip

MODULES = [
    Case("few_shot: missing checkpoint",
         lambda place: place.call(module("modeling_tagi.studies.few_shot"), "/nope", "--output", "<out>/x"),
         Refused(("/nope",))),
    Case("costs: missing sni",
         lambda place: place.call(module("modeling_tagi.costs.inference"), "--sni", "/nope"), Refused(("/nope",))),
    Case("costs: lengths -1",
         lambda place: place.call(module("modeling_tagi.costs.inference"), "--lengths", "-1", "5", "5"),
         Refused(("-1",))),
]  # fmt: skip

LATE = Case("late failure, corrected value", _late_then_right, Fine(finished))


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
        (signal.SIGKILL, "text"), (signal.SIGTERM, "instruction_tuning"), (signal.SIGINT, "task_adapters"),
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
