"""A run's folder: what is done, what is under way, how long it took."""

import dataclasses
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
from typing import Iterator, Optional

import torch
import yaml
from tqdm.auto import tqdm
from transformers.utils import logging

from ..folders import require_folder_for
from .processes import is_main, say, wait
from .settings import RunSettings
from .yaml_files import flat

SETTINGS_FILE = "settings.yaml"
DONE_FILE = "done.json"
# May differ when a run is taken up again: they do not change what was trained.
FREE_FIELDS = ("output_dir", "label", "evaluation", "push_to_hub", "push_private", "push_every")


class Run:
    """The folder of one run.

    Args:
        settings: What the run is.
        stages: Names of the stages, in order, for the progress it shows.

    Raises:
        ValueError: if the folder holds a run with other settings, or something else.
    """

    def __init__(self, settings: RunSettings, stages: list[str]):
        self.settings, self.stages = settings, stages
        self.folder = require_folder_for("run", settings.output_dir)
        values = {k: v for k, v in flat(dataclasses.asdict(settings)).items() if k.split(".")[0] not in FREE_FIELDS}
        file = self.folder / SETTINGS_FILE
        if file.is_file():
            before = yaml.safe_load(file.read_text())
            changed = [k for k in {**before, **values} if before.get(k) != values.get(k)]
            if changed:
                named = [f"{k} was {before.get(k)!r}, is now {values.get(k)!r}" for k in changed[:6]]
                more = [f"{len(changed) - 6} more differ"] if len(changed) > 6 else []
                raise ValueError(
                    f"{self.folder} holds a run with other settings ({'; '.join(named + more)}); choose another "
                    "--output_dir, or delete that folder"
                )
        wait()  # until all have read what was there
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, yaml.safe_dump(values, sort_keys=False))

    def stage(self, name: str) -> "Stage":
        return Stage(name, self.folder / "stages" / name, self.stages.index(name) + 1, len(self.stages))


class Stage:
    """One part of a run, done once.

    Args:
        name: Of the stage.
        folder: Where its checkpoints and its result are.
        number, of: Which stage it is of how many.
    """

    def __init__(self, name: str, folder: Path, number: int, of: int):
        self.name, self.folder, self.label = name, folder, f"[{number}/{of}] {name}"
        self._started: Optional[float] = None
        self._before = 0.0

    @property
    def facts(self) -> Optional[dict]:
        """What was recorded when the stage was done; `None` if it is not."""
        file = self.folder / DONE_FILE
        return json.loads(file.read_text()) if file.is_file() else None

    def start(self, anew: bool = False):
        """Says what begins, and starts the clock; `anew` for what is never taken up half-way."""
        say(f"{self.label}: {'goes on' if self.folder.exists() else 'starts'}")
        wait()  # until all know that it is not done
        self.folder.mkdir(parents=True, exist_ok=True)
        clock = self.folder / "seconds.json"
        self._before = json.loads(clock.read_text()) if clock.is_file() and not anew else 0.0
        self._started = time.monotonic()

    def tick(self) -> float:
        """Seconds worked on the stage, over all attempts; remembered."""
        seconds = self._before + time.monotonic() - self._started
        if is_main():
            write_text(self.folder / "seconds.json", json.dumps(seconds))
        return seconds

    def finish(self, **facts):
        """Records that the stage is done."""
        facts = {"seconds": round(self.tick(), 1), **facts}
        if is_main():
            write_text(self.folder / DONE_FILE, json.dumps(facts, indent=2) + "\n")
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        say(f"{self.label}: done in {facts['seconds']:.0f} s")
        wait()  # the next stage reads what this one left

    def skip(self):
        say(f"{self.label}: was done before")


def quiet_libraries():
    """Leaves a program's output to the program: no bars for files that load, no notes on what will change one day."""
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


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


def write_text(path: Path, text: str):
    """Writes beside, then moves into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)


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
        yield beside
        old = beside.with_name(beside.name + "-old")
        if target.exists():
            os.replace(target, old)
        os.replace(beside, target)
        os.chmod(target, 0o755)  # mkdtemp's folders are private
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
