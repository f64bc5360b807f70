"""A run's folder: which stages are done or begun, from which settings and data, and how long they took."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Iterable, Mapping, Optional, Union

import yaml

from ..common.processes import is_main, say, wait
from ..common.writing import reading, write_text
from ..common.yaml_files import flat
from ..data.records import Record
from ..hub import require_folder_for
from . import stage_keys as keys
from .setting_fields import RENAMED, RunSettings

SETTINGS_FILE = "settings.yaml"
DONE_FILE = "done.json"
BANK_FOLDER = "task_adapters"
# Fields that may differ when a run resumes, since they do not change what was trained.
FREE_FIELDS = (
    "output_dir", "label", "evaluation", "push_to_hub", "push_private", "push_every", "publish_instructions",
)  # fmt: skip


class Run:
    """Manages the folder of one run, and refuses one that holds stages of other settings or data.

    Args:
        settings: The run's settings.
        stages: Names of the stages, in order, to show progress.
        known: Every stage there is by its name, in order: `training.stages.STAGES`.
        records, text: The training data; with `None`, the data that earlier stages were trained on is not checked.

    Raises:
        ValueError: if the folder holds something else, or a stage with other settings or data. The settings and data
            of a stage that has saved nothing yet may change.
    """

    def __init__(
        self,
        settings: RunSettings,
        stages: list[str],
        known: Mapping[str, keys.Keyed],
        records: Optional[Iterable[Record]] = None,
        text: Optional[Iterable[str]] = None,
    ):
        self.settings, self.stages, self._known = settings, stages, known
        self.folder = require_folder_for("run", settings.output_dir)
        self.read = {} if records is None else {"records": keys.digest_of_records(records)}
        self.read |= {} if text is None else {"text": keys.digest_of_text(text)}
        values = flat(dataclasses.asdict(settings))
        self._values = {k: v for k, v in values.items() if k.split(".")[0] not in FREE_FIELDS}
        self._require_as_begun()
        wait()  # until all have read what was there
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / SETTINGS_FILE, yaml.safe_dump(self._values, sort_keys=False))

    def stage(self, name: str, **before: Union[str, Path, dict, None]) -> "Stage":
        """Returns one of the run's stages.

        Args:
            name: The stage's name.
            before: The results of earlier stages that it reads, each by a description: a folder, a repository's
                name, or several of them by name.

        Raises:
            ValueError: if the stage has begun with another of these.
        """
        number = self.stages.index(name) + 1 if name in self.stages else 0
        stage = Stage(name, self.folder / "stages" / name, number, len(self.stages))
        if name in self._known:
            stage.key = self._key(self._known[name])
        if before:
            stage.key["before"] = now = {what: keys.digest_of(place) for what, place in before.items()}
            made = (stage.made_of() or {}).get("before") or {}
            other = [what for what in now if what in made and made[what] != now[what]]
            if other and self.has_begun(name):
                raise ValueError(
                    f"{self.folder}: the stage {name} was trained with another {other[0]} than there is now; choose "
                    f"another --output_dir, or delete {self._from(name)} to do what came of it again"
                )
        return stage

    def has_begun(self, name: str) -> bool:
        """Tells whether a stage has saved something that doing it again would lose."""
        return has_begun(self.folder, name)

    def again(self, name: str) -> str:
        """Returns how to do a stage again, for a message: the same command makes its folders anew, once deleted."""
        return f"delete {self._folders(name)} to do that stage again"

    def _key(self, stage: keys.Keyed) -> dict:
        scratch = self.settings.backbone.name is None
        return {
            "settings": keys.settings_of(stage, self._values),
            "data": keys.data_settings(self._values),
            "read": keys.reads_of(stage, scratch, self.read),
        }

    def _folders(self, name: str) -> str:
        adapters = [str(self.folder / BANK_FOLDER)] if name == "task_adapters" else []
        return " and ".join([*adapters, str(self.folder / "stages" / name)])

    def _from(self, name: str) -> str:
        """Returns the folders of a stage and of those after it, for a message."""
        later = list(self._known)[list(self._known).index(name):]
        return " and ".join(self._folders(other) for other in later if other == name or self.has_begun(other))

    def _require_as_begun(self):
        for old, new in RENAMED.items():
            if (self.folder / "stages" / old).is_dir():
                raise ValueError(
                    f"{self.folder} holds a run of an earlier version, whose stage {old} is called {new} now; choose "
                    "another --output_dir, or train with that version"
                )
        before = None
        for name, stage in self._known.items():
            if not self.has_begun(name):
                continue
            now, made = self._key(stage), Stage(name, self.folder / "stages" / name, 0, 0).made_of()
            if made is None:  # a run of an earlier version, whose settings were one for all stages
                before = _settings_before(self.folder) if before is None else before
                made = {"settings": keys.settings_of(stage, before), "read": {}} if before else now
            mend = f"choose another --output_dir, or delete {self._from(name)} to train anew from there"
            changed = _differences(made["settings"], now["settings"])
            if changed:
                raise ValueError(
                    f"{self.folder} holds a run with other settings: its stage {name} was begun with them "
                    f"({changed}); take those, {mend}"
                )
            other = [what for what, x in now["read"].items() if made["read"].get(what, x) != x]
            if other:
                why = _differences(made.get("data", now["data"]), now["data"]) or "the files have changed since"
                raise ValueError(
                    f"{self.folder} holds a run on other data: its stage {name} was begun with other "
                    f"{' and '.join(other)} than the data hold now ({why}); {mend}"
                )


def has_begun(run: Path, stage: str) -> bool:
    """Tells whether a stage has saved something in a run's folder that doing it again would lose."""
    folder, bank = run / "stages" / stage, run / BANK_FOLDER
    adapters = stage == "task_adapters" and any(bank.glob("index*.json*"))
    return (folder / DONE_FILE).is_file() or adapters or any(folder.glob("checkpoints/*/checkpoint-*/complete"))


def _settings_before(folder: Path) -> dict:
    """Returns the settings that a folder's run was last started with; an empty dict if none were written."""
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return {}
    with reading(file, "delete it: what it says is known of every stage that has begun"):
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def _differences(made: dict, now: dict) -> str:
    """Returns a text of the first six fields that differ, with both values; an empty text if none do."""
    changed = [k for k in {**made, **now} if made.get(k) != now.get(k)]
    named = [f"{k} was {made.get(k)!r}, is now {now.get(k)!r}" for k in changed[:6]]
    return "; ".join(named + ([f"{len(changed) - 6} more differ"] if len(changed) > 6 else []))


class Stage:
    """Tracks the progress of one part of a run, which is done once.

    Args:
        name: The stage's name.
        folder: The folder of its checkpoints and its result.
        number, of: Which stage of how many it is.
    """

    def __init__(self, name: str, folder: Path, number: int, of: int):
        self.name, self.folder, self.label = name, folder, f"[{number}/{of}] {name}"
        self.key: dict = {}
        self._started: Optional[float] = None
        self._before = 0.0

    @property
    def facts(self) -> Optional[dict]:
        """Returns what was recorded when the stage was done; `None` if it is not done."""
        return self._read_json(DONE_FILE)

    def made_of(self) -> Optional[dict]:
        """Returns the settings and data that the stage was begun with; `None` if none were written."""
        return self._read_json(keys.KEY_FILE)

    def _read_json(self, name: str) -> Optional[dict]:
        file = self.folder / name
        if not file.is_file():
            return None
        with reading(file, f"delete {self.folder} to do that stage again"):
            return dict(json.loads(file.read_text(encoding="utf-8")))

    def start(self, anew: bool = False):
        """Prints that the stage starts or goes on, and starts its clock, from 0 if the work begins `anew`."""
        say(f"{self.label}: {'goes on' if self.folder.exists() else 'starts'}")
        wait()  # until all know that it is not done
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_main() and self.key:
            write_text(self.folder / keys.KEY_FILE, json.dumps(self.key, indent=2) + "\n")
        clock = self.folder / "seconds.json"
        try:
            self._before = float(clock.read_text()) if clock.is_file() and not anew else 0.0
        except ValueError:  # a damaged clock is no reason to stop
            self._before = 0.0
        self._started = time.monotonic()

    def tick(self) -> float:
        """Saves and returns the seconds worked on the stage, over all attempts."""
        seconds = self._before + time.monotonic() - self._started
        if is_main():
            write_text(self.folder / "seconds.json", json.dumps(seconds))
        return seconds

    def finish(self, result: str = "", **facts):
        """Marks the stage as done, and prints that with its `result`, or else with its final loss."""
        facts = {"seconds": round(self.tick(), 1), **facts}
        if is_main():
            write_text(self.folder / DONE_FILE, json.dumps(facts, indent=2) + "\n")
            self._drop_checkpoints()
        if not result and facts.get("loss") is not None:
            result = f"loss {facts['loss']:.2f}"
        say(f"{self.label}: done in {facts['seconds']:.0f} s" + (f", {result}" if result else ""))
        wait()  # the next stage reads what this one left

    def _drop_checkpoints(self):
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def skip(self):
        if is_main():
            self._drop_checkpoints()  # of a run that was killed when it had just finished this stage
        say(f"{self.label}: was done before")
