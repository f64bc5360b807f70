"""Whether a run fits into the memory of this machine's device."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Optional

import torch

from ..configuration_tagi import TagiConfig
from ..costs.work import TextLengths
from ..training.settings import RunSettings
from ..training.sharding.sharded import weights_are_sharded
from ..training.stage_costs import RunCosts
from ..training.stages import training_stages
from .shapes import flops_of


def require_device_memory(
    settings: RunSettings, config: TagiConfig, adapters: int, lengths: Optional[TextLengths] = None
):
    """Refuses a run that cannot fit into this machine's memory; the estimate is rough, so only clear cases are
    refused.

    Args:
        settings: The run's settings.
        config: Its model's configuration.
        adapters: Task adapters that there are.
        lengths: Mean lengths of its texts; without them activations are not counted.

    Raises:
        ValueError: with how much is needed, for what, and how much there is.
    """
    if weights_are_sharded():  # each process has a part, of which the plan knows nothing
        return
    there, what = memory_there()
    costs = RunCosts(settings, flops_of(config), adapters)
    for stage in training_stages(settings):
        needs = dataclasses.asdict(stage.device_memory(costs, lengths or TextLengths(1, 1, 1, 3)))
        activations = needs.pop("activations")
        known = lengths is not None and not math.isnan(activations)
        _require_room(stage.name, needs, activations if known else 0.0, there, what)


def memory_there() -> tuple[int, str]:
    """Returns the bytes of the GPU's memory or, without one, of the memory that this process may use.

    With them comes whose they are, for a message: "this GPU" or "this machine".
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "this GPU"
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(file).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():
            there = min(there, int(limit))
    return there, "this machine"


def _require_room(stage: str, needs: dict[str, float], activations: float, there: int, what: str):
    sure, unit = sum(needs.values()), 2**30
    parts = ", ".join(f"{name} {number / unit:,.1f}" for name, number in needs.items())
    if sure > there:
        raise ValueError(
            f"{stage} needs {sure / unit:,.1f} GiB of memory ({parts}), and {what} has {there / unit:,.1f}: use a "
            "smaller backbone, tagi.r or tagi.generator_hidden_size, or fewer task adapters at_once"
        )
    if sure + activations / 2 > there:  # the estimate of these may be twice what they are
        raise ValueError(
            f"{stage} needs about {(sure + activations) / unit:,.1f} GiB of memory ({parts}, activations "
            f"{activations / unit:,.1f}), and {what} has {there / unit:,.1f}: take fewer rows a batch, and more "
            "accumulation"
        )
