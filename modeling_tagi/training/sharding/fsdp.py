"""Weights sharded by torch's FSDP2, if accelerate was configured for it."""

import math
import os
from functools import partial
from typing import Optional

import accelerate
import torch
from accelerate.utils import DistributedType
from packaging.version import Version
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from ...common.processes import processes

_ACCELERATE = "1.15"  # the first version that this was tried with


def used() -> bool:
    """Tells whether accelerate was configured to use FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def require_possible():
    """Refuses a configuration of FSDP in accelerate that training does not support.

    Raises:
        ValueError: naming the field of accelerate's configuration.
    """
    if Version(accelerate.__version__) < Version(_ACCELERATE):
        raise ValueError(
            f"sharded weights need accelerate {_ACCELERATE} or later, this is {accelerate.__version__}: "
            f"pip install 'accelerate>={_ACCELERATE}', or use hub_configs/accelerate/ddp.yaml"
        )
    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError(
            "accelerate was told to use FSDP's first version, but train.py shards weights by the second: set "
            "fsdp_version: 2, as hub_configs/accelerate/fsdp2.yaml does"
        )
    if processes().distributed_type == DistributedType.MULTI_CPU:
        raise ValueError("accelerate shards no weights on CPUs: use hub_configs/accelerate/ddp.yaml or torchrun")
    if os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT") != "SHARDED_STATE_DICT":
        raise ValueError(
            "a run with sharded weights goes on from sharded checkpoints alone: set fsdp_state_dict_type: "
            "SHARDED_STATE_DICT, as hub_configs/accelerate/fsdp2.yaml does; models are saved whole all the same"
        )
    for field in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        if os.environ.get(f"FSDP_{field}", "false").lower() == "true":
            raise ValueError(
                f"fsdp_{field.lower()} is true, but train.py cannot do that: set it to false; "
                "--gradient_checkpointing true saves memory too"
            )


def shard(model: nn.Module, bf16: bool):
    """Shards the trained weights of `model` in place, block by block; accelerate then uses it unchanged.

    accelerate's own sharding fails if embeddings are tied, as T5's are.

    Args:
        model: A model that is not sharded, with the same weights in all processes.
        bf16: Whether it computes in bfloat16; the dtype of the trained weights stays the same.

    Raises:
        ValueError: if some trained weight cannot be split over so many processes.
    """
    device, number = processes().device.type, processes().num_processes
    for name, weight in model.named_parameters():
        if weight.requires_grad and cut(weight, number) is None:
            raise ValueError(
                f"{name} is trained and has the shape {tuple(weight.shape)}, which {number} processes cannot share: "
                "use fewer, or hub_configs/accelerate/ddp.yaml"
            )
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shard = partial(
        fully_shard,
        mesh=init_device_mesh(device, (number,)),
        shard_placement_fn=lambda weight: cut(weight, number),
        mp_policy=half if bf16 else MixedPrecisionPolicy(),
    )
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            shard(module, reshard_after_forward=again)
    shard(model)


def cut(weight: Tensor, number: int) -> Optional[Shard]:
    """Returns the dimension to shard a weight along; `None` if no dimension will do.

    It is the first that can be split into equal parts, or else the first of all if none of its parts would be empty:
    accelerate cannot tell empty parts of two weights apart.
    """
    for place, size in enumerate(weight.shape):
        if size % number == 0:
            return Shard(place)
    rows = weight.shape[0] if weight.shape else 0
    return Shard(0) if rows > (number - 1) * math.ceil(rows / number) else None


def own_part(weight: Tensor) -> Tensor:
    """Returns this process's shard of a sharded weight, and any other weight unchanged."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gathers the weights of a sharded model on the CPU of the main process; all processes must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
