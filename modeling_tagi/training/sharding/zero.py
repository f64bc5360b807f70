"""Weights sharded by DeepSpeed (ZeRO), if accelerate was configured for it."""

import os

from torch import Tensor, nn
from transformers import Trainer
from transformers.integrations import is_deepspeed_available, unset_hf_deepspeed_config

from ...common.processes import is_main

_CONTAINERS = (nn.ParameterDict, nn.ParameterList)


def used() -> bool:
    """Tells whether accelerate was configured to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def stage() -> int:
    """Returns the ZeRO stage that accelerate was configured for."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))  # accelerate's own default


def require_possible():
    """Refuses a configuration of DeepSpeed in accelerate that training does not support.

    Raises:
        ImportError: if DeepSpeed is not installed.
        ValueError: naming the field of accelerate's configuration.
    """
    if not is_deepspeed_available():
        raise ImportError("accelerate was told to use DeepSpeed, which is not installed: pip install deepspeed")
    if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        raise ValueError(
            "accelerate was given a deepspeed_config_file, but train.py reads accelerate's own fields: set zero_stage "
            "under deepspeed_config, as hub_configs/accelerate/zero3.yaml does"
        )
    if stage() not in (1, 2, 3):
        raise ValueError(f"zero_stage is {stage()}, but must be 1, 2 or 3; or use hub_configs/accelerate/ddp.yaml")
    for field in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{field.upper()}_DEVICE", "none").lower()
        if device != "none":
            raise ValueError(
                f"offload_{field}_device is {device!r}, but train.py cannot do that: set it to 'none'; "
                "--gradient_checkpointing true saves memory too"
            )
    for field in ("gradient_clipping", "gradient_accumulation_steps"):
        value = os.environ.get(f"ACCELERATE_{field.upper()}", "auto").lower()
        if value not in ("auto", "none"):
            raise ValueError(
                f"accelerate's {field} is {value}, but the run's settings say that of each stage: leave it out"
            )


def shard(model: nn.Module, bf16: bool):
    """Lets DeepSpeed gather, with a module's own weights, those in its `ParameterList`s and `ParameterDict`s.

    DeepSpeed's stage 3 would leave these sharded otherwise. `model` itself is not sharded here; accelerate does that
    later. `bf16` is not used: other ways of sharding take it.
    """
    if stage() < 3:
        return
    from deepspeed.runtime.zero import register_external_parameter

    for module in model.modules():
        for child in module.children():
            if isinstance(child, _CONTAINERS):
                for weight in child.parameters():
                    register_external_parameter(module, weight)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gathers the trained weights of `model` on the CPU of the main process; all processes must call this."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            whole = safe_get_full_fp32_param(weight)
            if is_main():
                weights[name] = whole.detach().cpu()
    return weights


def release(trainer: Trainer):
    """Frees DeepSpeed's engine and its weights, and lets later models be made and loaded without sharding.

    DeepSpeed would keep the engine, and transformers would go on sharding new models by its configuration.
    """
    engine = trainer.model_wrapped
    trainer.accelerator.free_memory()
    if stage() == 3:  # DeepSpeed keeps its engines alive, so free their weights explicitly
        for weight in trainer.model.parameters():
            vars(weight).clear()
            weight.data = weight.new_empty(0)
        engine.basic_optimizer.state.clear()
        engine.basic_optimizer.param_groups.clear()
        vars(engine.optimizer).clear()
    unset_hf_deepspeed_config()
