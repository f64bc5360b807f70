"""Weights in shares: each process holds a part of what is trained, and gathers a block while it is at work. By FSDP2
or by DeepSpeed, as accelerate was told."""

import copy

import torch
from torch import Tensor, nn

from ...common.processes import processes
from ..setting_fields import StageSettings
from ..task_adapters import AdapterTuner
from . import fsdp, zero


def in_shares() -> bool:
    """Whether accelerate was started with a configuration that has weights in shares."""
    return fsdp.used() or zero.used()


def require_possible_shares(settings):
    """Refuses what accelerate was told and cannot be done, and what a run cannot do in shares.

    Args:
        settings: The run's `RunSettings`.

    Raises:
        ValueError: naming the field of accelerate's configuration or of the run's.
    """
    if not in_shares():
        return
    _way().require_possible()
    for name, stage in vars(settings).items():
        if isinstance(stage, StageSettings) and stage.steps and stage.optimizer == "adafactor":
            raise ValueError(
                f"{name}.optimizer is 'adafactor', which cannot work on weights in shares: set it to "
                "'adamw_torch_fused', or use hub_configs/accelerate/ddp.yaml"
            )
    for name, value in (("evaluation.every", settings.evaluation.every), ("push_every", settings.push_every)):
        if value:
            raise ValueError(
                f"{name} is {value}, but a model whose weights are in shares is whole only after training; "
                "set it to 0, or use hub_configs/accelerate/ddp.yaml"
            )


def shared_copy(model: nn.Module, bf16: bool) -> nn.Module:
    """A copy of `model` to be trained in shares; `model` is left on the CPU. A tuner's backbone is not trained, and
    stays whole, where it is.

    Args:
        model: Whole, the same in all processes.
        bf16: Whether the copy computes in bfloat16; what it is trained in stays as it is.

    Raises:
        ValueError: if there are more processes than some trained weight has rows for.
    """
    if isinstance(model, AdapterTuner):
        model = copy.deepcopy(model, {id(model.backbone): model.backbone})
    else:
        model = copy.deepcopy(model.to("cpu"))
    _way().share(model, bf16)
    if bf16:
        model.forward = torch.autocast(processes().device.type, torch.bfloat16)(model.forward)
    return model


def end_in_shares(trainer) -> dict[str, Tensor]:
    """What training changed of the trainer's model in shares, whole, on the CPU; all processes must ask, and the main
    one gets it. The trainer is of no use after it."""
    weights = _way().trained_weights(trainer.model)
    if zero.used():
        zero.release(trainer)
    return weights


def _way():
    return zero if zero.used() else fsdp
