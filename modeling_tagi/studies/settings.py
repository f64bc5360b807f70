"""What a study is: one YAML file that names a run's configuration, methods, seeds and numbers of training tasks."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from ..common.methods import PROMPTED, TAGI
from ..common.yaml_files import read_yaml
from ..evaluation.references import REFERENCES, StartPrompted
from ..training.settings import RunSettings

START = StartPrompted.name
# References that are scored once with the start, and those scored with TAGI's own cell.
START_REFERENCES = tuple(name for name, kind in REFERENCES.items() if not kind.asks_trained and name != START)
TAGI_REFERENCES = tuple(name for name, kind in REFERENCES.items() if kind.asks_trained)


@dataclass
class Grid:
    """Holds one grid of runs: every combination of its methods, seeds and numbers of training tasks.

    Args:
        methods: Names of `METHODS`, or `{name: {base: method, field: value}}` for one of your own.
        seeds: Seeds of training; not given, the configuration's one.
        train_tasks: Numbers of tasks to train on, a `null` among them for all; not given, the configuration's one.
    """

    methods: list = field(default_factory=lambda: [PROMPTED, TAGI])
    seeds: Optional[list] = None
    train_tasks: Optional[list] = None


@dataclass
class StudySettings(Grid):
    """Holds what a study's YAML file says.

    Args:
        config: The run's YAML file, seen from the study's; it may build on another.
        output_dir: Where the study goes; default `outputs/<study file's name>`.
        overrides: Fields of every run by dotted name.
        also: Further grids, such as more numbers of training tasks for some of the methods.
        references: Names of `REFERENCES`. Those of the start are scored once with each start, those that ask the
            trained model with the first method that is TAGI.
        workers: Runs side by side.
        threads: CPU threads of each; the figures depend on it in their last digits.
    """

    config: str = ""
    output_dir: Optional[str] = None
    overrides: dict = field(default_factory=dict)
    also: list = field(default_factory=list)
    references: list = field(default_factory=lambda: [*START_REFERENCES, *TAGI_REFERENCES])
    workers: int = 1
    threads: int = 1


def load_study(path: Union[str, Path], overrides: Optional[dict[str, Any]] = None) -> StudySettings:
    """Reads a study's YAML file, with values for its own fields.

    Raises:
        FileNotFoundError: if it, or the configuration it names, is missing.
        ValueError: for an unknown field or a value that is not allowed.
    """
    path = Path(path)
    values = {**read_yaml(path), **(overrides or {})}
    known = [f.name for f in dataclasses.fields(StudySettings)]
    if "config" not in values and set(values) & {f.name for f in dataclasses.fields(RunSettings)} - set(known):
        raise ValueError(f"{path} is the configuration of one run; start it with: python train.py {path}")
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(
                f"{path}: unknown field {name!r}; "
                + (f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(known)}")
            )
    study = StudySettings(**values)
    check_grid(study, path)
    for name, kind in (("also", list), ("references", list), ("overrides", dict)):
        if not isinstance(getattr(study, name), kind):
            raise ValueError(f"{path}: {name} is {getattr(study, name)!r}, but must be a {kind.__name__}")
    if not study.config:
        raise ValueError(f"{path} names no run; give config: FILE.yaml, such as one of hub_configs/")
    study.config = str(path.parent / study.config)
    if study.output_dir is None:
        study.output_dir = f"outputs/{path.stem}"
    for name in ("workers", "threads"):
        value = getattr(study, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {name} is {value!r}, but must be a whole number of at least 1")
    unknown = [name for name in study.references if name not in (*START_REFERENCES, *TAGI_REFERENCES)]
    if unknown:
        allowed = ", ".join((*START_REFERENCES, *TAGI_REFERENCES))
        raise ValueError(f"{path}: references has {unknown[0]!r}, but knows {allowed}")
    return study


def check_grid(grid: Grid, path: Union[str, Path]):
    """Refuses a grid whose fields are not lists of what they must be; `path` says where it is, for the message."""
    numbers = {"seeds": (int,), "train_tasks": (int, type(None)), "methods": (str, dict)}
    for name, kinds in numbers.items():
        value = getattr(grid, name)
        if value is None and name != "methods":
            continue
        if not isinstance(value, list) or not value or any(type(entry) not in kinds for entry in value):
            allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{path}: {name} is {value!r}, but must be a list of {allowed}")
