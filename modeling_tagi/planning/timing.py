"""How long a run takes: by the FLOPs of its stages and the speed of a device, or by trying a few steps of each."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

from ..training.settings import RunSettings
from ..training.stage_costs import RunCosts
from .inputs import Inputs
from .printed import time_text
from .speed import measured_flops_per_second
from .trial import STEPS, Trial, timed_trial

_TRIAL_SECONDS = 30


@dataclass(frozen=True)
class Device:
    """Holds how fast a run's device computes.

    Args:
        name: What plans call it; `given` for one that is not this machine.
        dtype: The precision that it computes in.
        flops_per_second: As specified by its maker, or as measured.
        utilisation: Share of that speed that training gets.
    """

    name: str
    dtype: str
    flops_per_second: float
    utilisation: float

    @property
    def is_here(self) -> bool:
        return self.name != "given"

    def seconds(self, flops: float) -> float:
        return flops / (self.flops_per_second * self.utilisation)


def device_of(settings: RunSettings, flops_per_second: Optional[float], utilisation: float) -> Device:
    """Returns the device of a run: one of a given speed, or this machine, whose speed is measured."""
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    name = "given"
    if flops_per_second is None:
        name, flops_per_second = _this_machine(), measured_flops_per_second(dtype)
    return Device(name, str(dtype).removeprefix("torch."), flops_per_second, utilisation)


def _this_machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"this CPU, {threads} thread{'s' if threads > 1 else ''}"


def tried(
    settings: RunSettings, inputs: Inputs, predicted: dict[str, float], longest_target: int, notes: list[str]
) -> Optional[Trial]:
    """Tries a few steps of every stage on this machine.

    Args:
        settings: The run's settings.
        inputs: Its data and tokenizer.
        predicted: Seconds of one step of each stage, by its FLOPs.
        longest_target: Tokens of the longest target.
        notes: A list to which it is added why nothing was tried.

    Returns:
        What was timed; `None` if the run's inputs are not here, or it would take too long or cannot be done.
    """
    backbone = settings.backbone.name
    # nothing is downloaded for it
    if inputs.tokenizer is None or not (backbone is None or Path(backbone).is_dir()):
        return None
    seconds = sum(predicted.values()) * STEPS
    if math.isnan(seconds):  # how long it would take is not known
        return None
    if seconds > _TRIAL_SECONDS:
        notes.append(
            f"no steps were tried here, which would take about {time_text(seconds)}: time is by products of matrices, "
            "which steps of training do not reach as a rule"
        )
        return None
    try:
        return timed_trial(settings, inputs.splits, inputs.text, inputs.tokenizer, longest_target)
    except (OSError, RuntimeError) as error:
        notes.append(f"no steps could be tried here ({str(error).splitlines()[0]}): time is by products of matrices")
        return None


def seconds_of(stage, trial: Trial, costs: RunCosts, inputs: Inputs, lengths) -> float:
    """Returns the seconds of a stage by the trial of a few of its steps, whose batches were the largest."""
    times = trial.stages[stage.name]
    part = stage.batch(costs, lengths).rows / (stage.largest_batch(costs, lengths).rows or 1)
    seconds = times.of(0, stage.trainings(costs)) + part * times.of(stage.steps(costs), 0)
    if stage.name == "finetuning":
        seconds += trial.scores_on_the_way(costs.settings, inputs.splits)
    return seconds
