"""Weights in shares (FSDP2): each process holds a part of what is trained, and gathers a block while it is at work."""

import copy
import os
from functools import partial
from typing import Optional

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from .processes import processes
from .task_adapters import AdapterTuner


def in_shares() -> bool:
    """Whether accelerate was started with a configuration that has weights in shares."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shared_copy(model: nn.Module, bf16: bool) -> nn.Module:
    """A copy of `model` in shares, to be trained; accelerate takes it as it is.

    Its own way to share weights fails where embeddings are tied, as T5's are. A tuner's backbone is not trained, and
    stays whole.

    Args:
        model: Whole, the same in all processes.
        bf16: Whether the copy computes in bfloat16; its weights stay as they are.
    """
    kept = model.backbone if isinstance(model, AdapterTuner) else None
    model = copy.deepcopy(model, {id(kept): kept})
    device, number = processes().device.type, processes().num_processes
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    share = partial(fully_shard, mesh=init_device_mesh(device, (number,)), shard_placement_fn=_place)
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            share(module, reshard_after_forward=again)
    share(model)
    if bf16:
        model.forward = torch.autocast(device, torch.bfloat16)(model.forward)
    return model


def _place(weight: nn.Parameter) -> Optional[Shard]:
    """The first dimension that has something for each process; by default it is the first, however small."""
    number = processes().num_processes
    if weight.shape and weight.shape[0] < number:
        return next((Shard(place) for place, size in enumerate(weight.shape) if size % number == 0), None)
    return None


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model in shares, on the CPU: empty but in the main process, and all of them must ask."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
