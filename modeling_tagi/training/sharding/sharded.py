"""Sharded weights: each process holds a part of what is trained, and gathers a block while it computes with it.

FSDP2 or DeepSpeed does this, as accelerate was configured.
"""

import copy

import torch
from torch import Tensor, nn

from ...common.processes import processes
from ..setting_fields import StageSettings
from ..task_adapters import AdapterTuner
from . import fsdp, zero


def weights_are_sharded() -> bool:
    """Tells whether accelerate was started with a configuration that shards weights."""
    return fsdp.used() or zero.used()


def require_possible_sharding(settings):
    """Refuses a sharding configuration that training does not support, and settings that do not go with sharding.

    Args:
        settings: The run's `RunSettings`.

    Raises:
        ValueError: naming the field of accelerate's configuration or of the run's.
    """
    if not weights_are_sharded():
        return
    _way().require_possible()
    for name, stage in vars(settings).items():
        if isinstance(stage, StageSettings) and stage.steps and stage.optimizer == "adafactor":
            raise ValueError(
                f"{name}.optimizer is 'adafactor', which cannot work on sharded weights: set it to "
                "'adamw_torch_fused', or use hub_configs/accelerate/ddp.yaml"
            )
    for name, value in (("evaluation.every", settings.evaluation.every), ("push_every", settings.push_every)):
        if value:
            raise ValueError(
                f"{name} is {value}, but a model whose weights are sharded is whole only after training; "
                "set it to 0, or use hub_configs/accelerate/ddp.yaml"
            )


def sharded_copy(model: nn.Module, bf16: bool) -> nn.Module:
    """Returns a sharded copy of `model` to train, and moves `model` to the CPU.

    An [`AdapterTuner`] stays where it is, and its copy shares its backbone, which is frozen and not sharded.

    Args:
        model: A model that is not sharded, with the same weights in all processes.
        bf16: Whether the copy computes in bfloat16; the dtype of the trained weights stays the same.

    Raises:
        ValueError: if some trained weight cannot be split over so many processes.
    """
    if isinstance(model, AdapterTuner):
        model = copy.deepcopy(model, {id(model.backbone): model.backbone})
    else:
        model = copy.deepcopy(model.to("cpu"))
    _way().shard(model, bf16)
    if bf16:
        model.forward = torch.autocast(processes().device.type, torch.bfloat16)(model.forward)
    return model


def gathered_weights(trainer) -> dict[str, Tensor]:
    """Gathers the trained weights of the trainer's sharded model on the CPU of the main process.

    All processes must call this. The trainer cannot be used afterwards.
    """
    weights = _way().trained_weights(trainer.model)
    if zero.used():
        zero.release(trainer)
    return weights


def _way():
    return zero if zero.used() else fsdp
