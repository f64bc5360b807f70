"""`tagi plan`: what a run will take, worked out from its settings before anything is spent."""

import dataclasses
import math
from typing import Optional

from transformers import PretrainedConfig

from ..common.console import quiet_libraries
from ..configuration_tagi import TagiConfig, new_model_fields
from ..costs.work import FLOAT, UnknownFlops, Work, size_of
from ..training.settings import RunSettings
from ..training.stage_costs import RunCosts
from ..training.stages import TrainingStage, training_stages
from ..training.trainable import trained_parameters
from .checks import check_data, check_run, check_setup
from .device_memory import memory_there
from .inputs import Inputs, PlannedLengths, backbone_shape, lengths_of_run, read_inputs
from .printed import bytes_text
from .shapes import flops_of
from .timing import Device, device_of, seconds_of, tried

_TOKENS = ("hypernetwork", "backbone", "target", "teacher")


def plan_run(
    settings: RunSettings,
    flops_per_second: Optional[float] = None,
    utilisation: float = 0.4,
    adapters: Optional[int] = None,
    with_data: bool = True,
    startup: float = 0.0,
) -> dict:
    """Returns the parameters, memory, disk, tokens, FLOPs and time of every stage.

    Lengths are the configured limits, which give upper bounds and the memory, and beside them the means of the data
    where that and the backbone's tokenizer are at hand; FLOPs and time are by the means if there are any.

    A named backbone's shape is its own where it is a folder or has been loaded before; else what `backbone.config`
    says; else it is asked of the Hub. No weights are loaded or made.

    Args:
        settings: The run's settings.
        flops_per_second: The device's speed; `None` measures this machine.
        utilisation: Share of that speed that training gets.
        adapters: How many task adapters there are, if the data does not say.
        with_data: Whether to read the data.
        startup: Seconds that a command takes before it begins.

    Returns:
        `backbone`, `parameters`, `data`, `lengths`, `stages`, `total`, `device`, `time` and `notes`. Values of JSON
        alone; FLOPs and seconds that are not known are `None`. Seconds are those of a few steps of every stage, tried
        on this machine, where that takes no longer than half a minute and the backbone is at hand (`time` is then
        what comes on top of the stages); else FLOPs by the speed.

    Raises:
        ValueError: for what the run would refuse, or a backbone whose shape is not to be had.
        FileNotFoundError: for a backbone's folder that does not exist.
    """
    quiet_libraries()
    notes: list[str] = []
    inputs = read_inputs(settings, with_data, notes)
    vocabulary = len(inputs.tokenizer) if inputs.tokenizer is not None else None
    backbone, source = backbone_shape(settings, vocabulary, notes)
    settings = dataclasses.replace(settings, tagi=new_model_fields(backbone, settings.tagi))
    _check(settings, backbone, source, inputs)
    config = TagiConfig(backbone, **settings.tagi)

    counted = inputs.counted(settings.task_adapters.by)
    number = counted["adapters"] if counted is not None else adapters
    costs = RunCosts(settings, flops_of(config), number, counted and counted["records"])
    _note_what_is_not_known(costs, number, notes)
    lengths = lengths_of_run(settings, config, inputs)
    device = device_of(settings, flops_per_second, utilisation)
    planned = training_stages(settings)
    rows = [_stage_row(stage, costs, lengths, device) for stage in planned]
    around = _trial(planned, rows, costs, inputs, lengths, notes, startup) if device.is_here else None
    plan = {
        "output_dir": settings.output_dir,
        "backbone": {
            "name": settings.backbone.name or "from scratch",
            "model_type": backbone.model_type,
            "shape_from": source,
        },
        "parameters": _parameters(costs, number),
        "data": counted,
        "lengths": lengths.as_json(),
        "stages": [_known(row) for row in rows],
        "total": _known(_total(rows, around, costs)),
        "device": dataclasses.asdict(device),
        "time": around,
        "notes": notes,
    }
    if device.is_here:
        _note_memory(plan)
    return plan


def _check(settings: RunSettings, backbone: PretrainedConfig, source: str, inputs: Inputs):
    """Refuses what the run would refuse, as far as its inputs are here."""
    check_setup(settings, backbone)
    if inputs.tokenizer is not None and source != "config":
        check_run(settings, inputs.tokenizer, inputs.splits, inputs.text, here=False)
    elif inputs.splits is not None:
        check_data(settings, inputs.splits, inputs.text)


def _note_what_is_not_known(costs: RunCosts, adapters: Optional[int], notes: list[str]):
    settings = costs.settings.task_adapters
    if adapters is None and (settings.steps or settings.given):
        notes.append(
            "how many task adapters there are is not known without the data: taken as "
            f"{settings.at_once} (at_once); say it with --adapters"
        )
    if isinstance(costs.formula, UnknownFlops):
        family = costs.model.config.backbone_config.model_type
        notes.append(
            f"FLOPs and time are not known for a backbone of the family {family!r}, nor what its activations take: "
            "memory is without them"
        )


def _stage_row(stage: TrainingStage, costs: RunCosts, lengths: PlannedLengths, device: Device) -> dict:
    """Returns what one stage takes; numbers that are not known are `nan`."""
    steps = stage.steps(costs)
    most = stage.work(costs, lengths.limit).times(steps)
    expected = stage.work(costs, lengths.mean).times(steps) if lengths.mean is not None else None
    flops = (expected or most).flops
    device_memory, disk = stage.device_memory(costs, lengths.longest), stage.disk(costs, lengths.longest)
    has_epochs = stage.reads == "records" and costs.records is not None
    return {
        "name": stage.name,
        "steps": steps,
        "rows_per_step": most.rows / max(1, steps),
        "epochs": most.rows / costs.records if has_epochs else None,
        "tokens": {"limit": _tokens(most), "mean": expected and _tokens(expected)},
        "flops": flops,
        "seconds": device.seconds(flops),
        "device_memory": {**dataclasses.asdict(device_memory), "total": device_memory.total},
        "disk": dataclasses.asdict(disk),
    }


def _tokens(work: Work) -> dict[str, float]:
    return {name: getattr(work, name) for name in _TOKENS}


def _trial(
    planned: list[TrainingStage], rows: list[dict], costs: RunCosts, inputs: Inputs, lengths: PlannedLengths,
    notes: list[str], startup: float,
) -> Optional[dict[str, float]]:  # fmt: skip
    """Writes the seconds of a trial on this machine into the stages' rows, and returns those of everything else;
    returns `None` if nothing was tried."""
    predicted = {row["name"]: row["seconds"] / max(1, row["steps"]) for row in rows}
    trial = tried(costs.settings, inputs, predicted, math.ceil(lengths.longest.target), notes)
    if trial is None:
        return None
    for stage, row in zip(planned, rows):
        row["seconds"] = seconds_of(stage, trial, costs, inputs, lengths.limit)
    return {"evaluation": trial.evaluation(costs.settings, inputs.splits), "start": startup + inputs.seconds}


def _parameters(costs: RunCosts, adapters: Optional[int]) -> dict:
    trained = sum(x.numel() for x in trained_parameters(costs.model, costs.settings))
    sizes = {name: size_of(getattr(costs.model, name)) for name in ("backbone", "hypernetwork", "fusion")}
    total = sum(sizes.values())
    return {
        **sizes,
        "total": total,
        "trained": trained,
        "frozen": total - trained,
        "adapter": costs.adapter_size,
        "adapters_in_bank": adapters,
    }


def _total(rows: list[dict], around: Optional[dict[str, float]], costs: RunCosts) -> dict:
    """Returns FLOPs and seconds of all, and the most memory and disk that are in use at once."""
    return {
        "flops": sum(row["flops"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows) + sum((around or {}).values()),
        "device_memory": max((row["device_memory"]["total"] for row in rows), default=0),
        "disk": sum(row["disk"]["kept"] for row in rows)
        + max((row["disk"]["checkpoints"] for row in rows), default=0)
        + FLOAT * size_of(costs.model),  # model/, as it goes to the Hub
    }


def _known(values: dict) -> dict:
    """Returns nested values with `None` for what is `nan`, which JSON does not have."""
    return {
        name: _known(value) if isinstance(value, dict)
        else None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }  # fmt: skip


def _note_memory(plan: dict):
    there, _ = memory_there()
    if plan["total"]["device_memory"] > there:
        plan["notes"].append(
            f"it does not fit into this machine's {bytes_text(there)}: fewer rows a batch (and more accumulation), "
            "gradient_checkpointing or a frozen backbone take less"
        )
