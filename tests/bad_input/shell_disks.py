"""Disks that are full or read-only."""

import shutil

import mounts
import yaml
from case import Case, Outcome, Place, Refused, tagi
from results import as_the_first
from world import INSTRUCTION


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
