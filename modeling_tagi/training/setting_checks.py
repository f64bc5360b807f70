"""Checks of a run's settings, each by itself and together, that do not need its data."""

import dataclasses
import math
from typing import Any, Iterator

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ..configuration_tagi import TagiConfig
from ..data.reading import READS
from ..modeling_tagi import TRAINABLE
from .losses import ALIGNMENTS
from .objective import Objective

MODULES = ("backbone", "hypernetwork", "fusion")  # of a TagiModel
# Schedules that follow the scores of an evaluation, which no stage has: the learning rate would never change.
_UNFED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
_NAMED_VALUES = {
    "finetuning.train": TRAINABLE,
    "finetuning.reads": tuple(READS),
    "finetuning.alignment": tuple(ALIGNMENTS),
    "task_adapters.by": ("group", "task"),
    "task_adapters.reads": ("prompt", "input"),
    "schedule": tuple(kind.value for kind in SchedulerType if kind.value not in _UNFED_SCHEDULES),
    "optimizer": tuple(kind.value for kind in OptimizerNames),
}
_MOST_SEED = 2**32 - 1  # numpy's
# The smallest and the largest value of a field, by the last part of its name; `None` is no limit.
_RANGES = {
    **dict.fromkeys(("steps", "push_every", "every", "distillation_steps", "alignment_steps"), (0, None)),
    **dict.fromkeys(
        ("accumulation", "at_once", "batch_size", "examples_per_task", "max_records", "save_every", "streaming",
         "tasks_per_batch", "train_tasks", "max_input_length"),
        (1, None),
    ),
    "max_target_length": (2, None),  # a token, and the one that ends it
    "max_length": (3, None),  # a token each for a, b and c
    "vocab_size": (8, 2**31 - 1),  # four are special; the most is SentencePiece's
    "seed": (0, _MOST_SEED),
    "learning_rate": (0, 10),
    "embedding_std": (0, 10),
    **dict.fromkeys(("warmup", "weight_decay"), (0, 1)),
    **dict.fromkeys(("max_grad_norm",), (0, None)),
    **dict.fromkeys(("prediction_weight", "distillation_weight", "alignment_weight"), (0, 1000)),
    "temperature": (None, 1000),  # `Objective` checks the lower bound
}  # fmt: skip
_FREE_SECTIONS = ("options", "config", "shape", "tagi", "given", "losses")  # their fields are defined elsewhere


def require_sensible(settings):
    """Refuses settings that no run could be trained with, whatever its data.

    Args:
        settings: A `RunSettings`.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    for name, value in _fields(settings):
        _require_range(name, value)
        _require_name(name, value)
    _require_places(settings)
    if settings.evaluation.splits == []:
        raise ValueError("evaluation.splits is [], but something must be scored: name a split, or give null for all")
    if len(settings.label.splitlines()) > 1:
        raise ValueError(f"label is {settings.label!r}, but must be one line, which tables have")
    _require_modules(settings)
    _require_something_to_train(settings)
    _require_teacher(settings)


def _fields(section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every field that the run itself defines."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        elif field.name not in _FREE_SECTIONS:
            yield prefix + field.name, value


def _require_range(name: str, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, but must be a finite number")
    least, most = _RANGES.get(name.rpartition(".")[2], (None, None))
    if (least is None or value >= least) and (most is None or value <= most):
        return
    allowed = f"{least} or more" if most is None else f"from {least or 0} to {most}"
    raise ValueError(f"{name} is {value}, but must be {allowed}")


def _require_name(name: str, value):
    allowed = _NAMED_VALUES.get(name) or _NAMED_VALUES.get(name.rpartition(".")[2])
    if allowed is None or value in allowed:
        return
    raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, allowed))}")


def _require_places(settings):
    if settings.push_every and settings.push_to_hub is None:
        raise ValueError(f"push_every is {settings.push_every}, but there is nowhere to push to: give push_to_hub")
    if isinstance(settings.task_adapters.given, dict):
        settings.task_adapters.given_loras()
    cache = settings.finetuning.teacher_cache
    if isinstance(cache, str) and cache != "states" or isinstance(cache, int) and cache < 1:
        raise ValueError(
            f"finetuning.teacher_cache is {cache!r}, but must be 'states', a number of tokens to keep, or null"
        )
    if settings.data.streaming is not None and settings.finetuning.teacher_cache is not None:
        raise ValueError(
            "finetuning.teacher_cache reads every record before training, and data.streaming keeps only some: set "
            "one of them to null"
        )


def _require_modules(settings):
    unknown = [entry for entry in settings.finetuning.freeze if entry not in MODULES]
    if unknown:
        raise ValueError(f"finetuning.freeze has {unknown[0]!r}, but knows {', '.join(map(repr, MODULES))}")


def _require_something_to_train(settings):
    finetuning = settings.finetuning
    objective = Objective.of(finetuning)
    if finetuning.steps and not objective.lasts(finetuning.steps):
        raise ValueError(
            "finetuning has no loss left before its last step: give finetuning.prediction_weight, or distil or "
            "align to the end (finetuning.distillation_steps or alignment_steps: null)"
        )
    if not READS[finetuning.reads].adapter and finetuning.train != "all":
        raise ValueError(
            f"finetuning.reads is {finetuning.reads!r}, where no generator is trained, and finetuning.train is "
            f"{finetuning.train!r}: set it to all"
        )
    if not READS[finetuning.reads].adapter and finetuning.losses:
        raise ValueError(
            f"finetuning.reads is {finetuning.reads!r}, where no adapter is generated, which further losses are of: "
            "set finetuning.losses to {}"
        )
    fusion = TagiConfig(**settings.tagi).fusion  # refuses fields and values that it does not know
    if all(READS[finetuning.reads]) and fusion != "none":
        raise ValueError(
            f"finetuning.reads is {finetuning.reads!r}, and tagi.fusion is {fusion!r}, so that the model would read "
            "the instruction twice: set tagi.fusion to none"
        )
    if "hypernetwork" in finetuning.freeze and finetuning.train == "generator" and (
        fusion != "cross_attention" or "fusion" in finetuning.freeze
    ):
        raise ValueError(
            "finetuning.freeze leaves nothing to train: unfreeze the hypernetwork, or set finetuning.train to all"
        )


def _require_teacher(settings):
    finetuning = settings.finetuning
    if not READS[finetuning.reads].adapter and finetuning.needs_teacher:
        raise ValueError(
            f"finetuning.reads is {finetuning.reads!r}, but distillation and alignment teach a generated "
            "adapter: set finetuning.distillation_weight to 0 and finetuning.alignment to none"
        )
    if finetuning.steps and finetuning.needs_teacher and _without_adapters(settings):
        raise ValueError(
            "finetuning distils or aligns, but there are no task adapters: give task_adapters.steps or "
            "given, or set finetuning.distillation_weight to 0 and finetuning.alignment to none"
        )


def _without_adapters(settings) -> bool:
    return settings.task_adapters.steps == 0 and settings.task_adapters.given is None
