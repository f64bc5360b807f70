"""The runs of a study: what each of its grids comes to, and the starts that runs share."""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ..common.methods import METHODS, TAGI
from ..common.names import file_name
from ..common.yaml_files import flat, read_recipe
from ..evaluation.references import REFERENCES
from ..training.settings import RunSettings, build_settings
from .settings import START, START_REFERENCES, TAGI_REFERENCES, Grid, StudySettings, check_grid

# Fields of a run that what comes before the hypernetwork depends on: tokenizer, taught backbone, task adapters.
_SHARED_FIELDS = ("bf16", "gradient_checkpointing", "max_input_length", "max_target_length", "seed", "train_tasks",
                  "data", "backbone", "text", "instruction_tuning", "task_adapters")  # fmt: skip
_SHARED_TAGI_FIELDS = ("tagi.r", "tagi.lora_alpha", "tagi.target_modules", "tagi.layers_to_transform")
_NOT_PUSHED = {"push_to_hub": None, "push_every": 0}  # by a study, whose runs are many


@dataclass(frozen=True)
class Cell:
    """Holds one run of a study.

    Args:
        name: The name of its folder.
        method, seed, train_tasks: Where it is in the grid; the start that runs share has method `start_prompted`.
        settings: The run's settings.
        after: Name of the cell that must be done before.
    """

    name: str
    method: str
    seed: int
    train_tasks: Optional[int]
    settings: RunSettings
    after: Optional[str] = None


def cells(study: StudySettings) -> list[Cell]:
    """Returns the runs of a study, each after the start it needs.

    A start is the tokenizer, the taught backbone and the task adapters; runs whose settings agree in all that these
    depend on share one.

    Raises:
        ValueError: for a method or a field that does not exist, or a cell that is in two grids with other settings.
    """
    base, folder = {**read_recipe(study.config), **_NOT_PUSHED}, Path(study.output_dir)
    starts: dict[str, Cell] = {}
    made: dict[str, Cell] = {}
    with_references = _with_references(study)
    for grid in (study, *(_grid(values) for values in study.also)):
        for seed in _given(grid.seeds, "seed", study, base):
            for train_tasks in _given(grid.train_tasks, "train_tasks", study, base):
                for entry in grid.methods:
                    method, preset, own = _method(entry)
                    common = {**study.overrides, "seed": seed, "train_tasks": train_tasks}
                    start = _start(base, {**common, **own}, folder, study, starts)
                    name = _name(method, seed, train_tasks)
                    scored = TAGI_REFERENCES if method == with_references else ()
                    settings = build_settings(base, {
                        **common, "label": method, **METHODS[preset].fields, **own,
                        "evaluation.references": [name for name in study.references if name in scored],
                    })  # fmt: skip
                    settings.output_dir = str(folder / "cells" / name)
                    _begin_at(settings, start.settings)
                    cell = Cell(name, method, seed, train_tasks, settings, after=start.name)
                    if made.setdefault(name, cell) != cell:
                        raise ValueError(f"the study has {name} twice, with other settings; give one another name")
    return [*starts.values(), *made.values()]


def _given(values: Optional[list], name: str, study: StudySettings, base: dict) -> list:
    """Returns the values of a grid's axis; if it has none, the one that every run has."""
    if values is not None:
        return values
    return [study.overrides.get(name, base.get(name, getattr(RunSettings(), name)))]


def _with_references(study: StudySettings) -> Optional[str]:
    """Returns the method whose wrong instructions are scored: the first that is TAGI."""
    grids = (study, *(_grid(values) for values in study.also))
    found = (_method(entry) for grid in grids for entry in grid.methods)
    return next((name for name, preset, _ in found if preset == TAGI), None)


def _grid(values) -> Grid:
    known = [f.name for f in dataclasses.fields(Grid)]
    if not isinstance(values, dict) or any(name not in known for name in values):
        raise ValueError(f"the study's also has {values!r}, but each must hold fields of {', '.join(known)}")
    grid = Grid(**values)
    check_grid(grid, "the study's also")
    return grid


def _method(entry) -> tuple[str, str, dict]:
    """Returns a method's name, the method of `METHODS` that it builds on, and the fields that it changes."""
    if isinstance(entry, str):
        name, own = entry, {}
    elif isinstance(entry, dict) and len(entry) == 1 and isinstance(next(iter(entry.values())), dict):
        [(name, own)] = entry.items()
    else:
        raise ValueError(f"the study's methods have {entry!r}, but must be names or {{name: {{base: …, field: …}}}}")
    own = dict(own)
    preset = own.pop("base", name)
    if name.startswith(START) or name in (*START_REFERENCES, *TAGI_REFERENCES):
        raise ValueError(f"the study's methods have {name!r}, which is a reference's name; choose another")
    if preset not in METHODS:
        raise ValueError(f"the study's method {preset!r} must be one of {', '.join(METHODS)}")
    return name, preset, own


def _name(method: str, seed: int, train_tasks: Optional[int]) -> str:
    return f"{file_name(method)}-seed{seed}" + (f"-tasks{train_tasks}" if train_tasks is not None else "")


def _start(base: dict, fields: dict, folder: Path, study: StudySettings, starts: dict[str, Cell]) -> Cell:
    """Returns the start for a cell with these fields: one of `starts`, or a new one."""
    shared = {name: value for name, value in fields.items() if _is_shared(name)}
    shared |= {"pretraining.steps": 0, "finetuning.steps": 0, "evaluation.references": []}
    settings = build_settings(base, shared)
    key = repr([(name, value) for name, value in sorted(flat(dataclasses.asdict(settings)).items())
                if _is_shared(name)])  # fmt: skip
    if key not in starts:
        seed, train_tasks = fields["seed"], fields["train_tasks"]
        alike = sum(cell.seed == seed and cell.train_tasks == train_tasks for cell in starts.values())
        method = START + (f"-{alike + 1}" if alike else "")
        name = _name(method, seed, train_tasks)
        settings = build_settings(base, {**study.overrides, **shared, "label": method})
        settings.output_dir = str(folder / "cells" / name)
        has_bank = settings.task_adapters.steps or settings.task_adapters.given
        references = [name for name in study.references
                      if name in START_REFERENCES and (has_bank or not REFERENCES[name].needs_bank)]  # fmt: skip
        # once for each seed: with the start that is the study's, and not a method's own
        settings.evaluation.references = [START, *(references if not alike else [])]
        starts[key] = Cell(name, method, seed, train_tasks, settings)
    return starts[key]


def _is_shared(name: str) -> bool:
    return name.split(".")[0] in _SHARED_FIELDS or name in _SHARED_TAGI_FIELDS


def _begin_at(settings: RunSettings, start: RunSettings):
    """Sets a run to use the start's backbone and task adapters instead of making its own."""
    folder = Path(start.output_dir)
    taught = [name for name in ("text", "instruction_tuning") if getattr(start, name).steps]
    scratch = start.backbone.name is None
    if taught or scratch:
        last = "instruction_tuning" if scratch or "instruction_tuning" in taught else "text"
        settings.backbone = copy.deepcopy(settings.backbone)
        settings.backbone.name, settings.backbone.revision = str(folder / "stages" / last / "backbone"), None
        settings.text.steps = settings.instruction_tuning.steps = 0
    if settings.finetuning.needs_teacher and settings.task_adapters.given is None:
        settings.task_adapters.given = str(folder / "task_adapters")
    settings.task_adapters.steps = 0
