"""A run's folder: what is done, what is under way, how long it took."""

import dataclasses
import errno
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterable, Iterator, Optional, Union

import torch
import yaml
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.records import Record
from ..folders import naming, require_folder_for
from . import stage_keys as keys
from .processes import is_main, say, wait
from .settings import RunSettings
from .yaml_files import flat

SETTINGS_FILE = "settings.yaml"
DONE_FILE = "done.json"
BANK_FOLDER = "task_adapters"
# May differ when a run is taken up again: they do not change what was trained.
FREE_FIELDS = (
    "output_dir", "label", "evaluation", "push_to_hub", "push_private", "push_every", "publish_instructions",
)  # fmt: skip


class Run:
    """The folder of one run.

    Args:
        settings: What the run is.
        stages: Names of the stages, in order, for the progress it shows.
        records, text: What it trains on; `None` leaves unchecked whether stages were trained on the same.

    Raises:
        ValueError: if the folder holds something else, or a stage that was made with other settings or of other
            data. What a stage that has not begun, or has saved nothing yet, was to be made with may change.
    """

    def __init__(
        self,
        settings: RunSettings,
        stages: list[str],
        records: Optional[Iterable[Record]] = None,
        text: Optional[Iterable[str]] = None,
    ):
        self.settings, self.stages = settings, stages
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
        """One of the run's stages.

        Args:
            name: Of the stage.
            before: What it reads of what earlier stages left, by what that is: a folder, a repository's name, or
                several of them by name.

        Raises:
            ValueError: if it has begun, with something else.
        """
        number = self.stages.index(name) + 1 if name in self.stages else 0
        stage = Stage(name, self.folder / "stages" / name, number, len(self.stages))
        if name in keys.STAGES:
            stage.key = self._key(name)
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
        """Whether there is something of a stage that would be lost if it were done again."""
        return has_begun(self.folder, name)

    def again(self, name: str) -> str:
        """Says how to do a stage again: its folders, deleted, are made anew by the same command."""
        return f"delete {self._folders(name)} to do that stage again"

    def _key(self, name: str) -> dict:
        scratch = self.settings.backbone.name is None
        return {
            "settings": keys.settings_of(name, self._values),
            "data": keys.data_settings(self._values),
            "read": keys.reads_of(name, scratch, self.read),
        }

    def _folders(self, name: str) -> str:
        adapters = [str(self.folder / BANK_FOLDER)] if name == "task_adapters" else []
        return " and ".join([*adapters, str(self.folder / "stages" / name)])

    def _from(self, name: str) -> str:
        """The folders of a stage and of those after it."""
        later = keys.STAGES[keys.STAGES.index(name):]
        return " and ".join(self._folders(other) for other in later if other == name or self.has_begun(other))

    def _require_as_begun(self):
        before = None
        for name in keys.STAGES:
            if not self.has_begun(name):
                continue
            now, made = self._key(name), Stage(name, self.folder / "stages" / name, 0, 0).made_of()
            if made is None:  # a run of an earlier version, whose settings were one for all stages
                before = _settings_before(self.folder) if before is None else before
                made = {"settings": keys.settings_of(name, before), "read": {}} if before else now
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
    """Whether a run's folder holds something of a stage that would be lost if it were done again."""
    folder, bank = run / "stages" / stage, run / BANK_FOLDER
    adapters = stage == "task_adapters" and any(bank.glob("index*.json*"))
    return (folder / DONE_FILE).is_file() or adapters or any(folder.glob("checkpoints/*/checkpoint-*/complete"))


def _settings_before(folder: Path) -> dict:
    """The settings that a folder's run was last started with; nothing if it does not say."""
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return {}
    with reading(file, "delete it: what it says is known of every stage that has begun"):
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def _differences(made: dict, now: dict) -> str:
    """What was something else, the first six of it; nothing if all is the same."""
    changed = [k for k in {**made, **now} if made.get(k) != now.get(k)]
    named = [f"{k} was {made.get(k)!r}, is now {now.get(k)!r}" for k in changed[:6]]
    return "; ".join(named + ([f"{len(changed) - 6} more differ"] if len(changed) > 6 else []))


class Stage:
    """One part of a run, done once.

    Args:
        name: Of the stage.
        folder: Where its checkpoints and its result are.
        number, of: Which stage it is of how many.
    """

    def __init__(self, name: str, folder: Path, number: int, of: int):
        self.name, self.folder, self.label = name, folder, f"[{number}/{of}] {name}"
        self.key: dict = {}
        self._started: Optional[float] = None
        self._before = 0.0

    @property
    def facts(self) -> Optional[dict]:
        """What was recorded when the stage was done; `None` if it is not."""
        return self._read_json(DONE_FILE)

    def made_of(self) -> Optional[dict]:
        """What the stage was begun with; `None` if it does not say."""
        return self._read_json(keys.KEY_FILE)

    def _read_json(self, name: str) -> Optional[dict]:
        file = self.folder / name
        if not file.is_file():
            return None
        with reading(file, f"delete {self.folder} to do that stage again"):
            return dict(json.loads(file.read_text(encoding="utf-8")))

    def start(self, anew: bool = False):
        """Says what begins, and starts the clock; `anew` for what is never taken up half-way."""
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
        """Seconds worked on the stage, over all attempts; remembered."""
        seconds = self._before + time.monotonic() - self._started
        if is_main():
            write_text(self.folder / "seconds.json", json.dumps(seconds))
        return seconds

    def finish(self, result: str = "", **facts):
        """Records that the stage is done, and says so with its `result`, or else with the loss at its end."""
        facts = {"seconds": round(self.tick(), 1), **facts}
        if is_main():
            write_text(self.folder / DONE_FILE, json.dumps(facts, indent=2) + "\n")
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        if not result and facts.get("loss") is not None:
            result = f"loss {facts['loss']:.2f}"
        say(f"{self.label}: done in {facts['seconds']:.0f} s" + (f", {result}" if result else ""))
        wait()  # the next stage reads what this one left

    def skip(self):
        say(f"{self.label}: was done before")


def quiet_libraries():
    """Leaves a program's output to the program: no bars for files that load, no notes on what will change one day."""
    logging.disable_progress_bar()
    # a note that checkpoints are sorted by their number, where the file system keeps no times
    logging.get_logger("transformers.trainer_utils").setLevel(logging.ERROR)
    # what is wrong with a file is said in the one message that refuses it
    logging.get_logger("transformers.modeling_utils").addFilter(_is_no_load_report)
    logging.get_logger("datasets.packaged_modules.parquet.parquet").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _is_no_load_report(record) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def progress_bar(*args, **kwargs) -> tqdm:
    """A bar that seldom changes where every change is a line, as in a file."""
    kwargs["disable"] = kwargs.get("disable", False) or not is_main()
    return tqdm(*args, **{"dynamic_ncols": True, "leave": False, "mininterval": 0.2 if sys.stderr.isatty() else 30,
                          **kwargs})  # fmt: skip


def circumstances(command: str, seed: int) -> dict:
    """What a figure was made with: command, seed, versions, threads and device."""
    return {
        "command": command,
        "seed": seed,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


class Damaged(ValueError):
    """Something of a run cannot be read; the message names it and says how to go on."""


@contextmanager
def reading(what: Path, mend: str) -> Iterator[None]:
    """Turns whatever is raised while something of a run is read into one message that names it and says how to go on.

    Raises:
        Damaged: with that message.
    """
    try:
        yield
    except Damaged:  # a part of it, which is named already
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, SafetensorError,
            yaml.YAMLError) as error:  # fmt: skip
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EIO:
            raise  # what is there may well be whole
        said = " ".join(str(error).split()) or type(error).__name__
        raise Damaged(f"{what} is damaged or not complete ({said:.300}); {mend}") from None


def write_text(path: Path, text: str):
    """Writes beside, then moves into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            beside.write_text(text)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # half of it, where the disk is full


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in sorted(target.parent.glob(f".{target.name}-*")):  # of a run that was killed in here
        if leftover.name.endswith("-old") and not target.exists():
            os.replace(leftover, target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with naming(target):
            yield beside
        old = beside.with_name(beside.name + "-old")
        if target.exists():
            os.replace(target, old)
        os.replace(beside, target)
        os.chmod(target, 0o755)  # mkdtemp's folders are private
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
