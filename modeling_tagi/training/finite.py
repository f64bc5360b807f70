"""Training stops at the first number that is not finite."""

from typing import Iterable, Optional

import torch
from torch import Tensor
from transformers import TrainerCallback

from .sharding import fsdp


class NotFinite(ValueError):
    """Reports a loss or a weight that is not finite."""


class FiniteWeights(TrainerCallback):
    """Stops training after the first step that makes a weight infinite or NaN, before that weight is saved."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        name = not_finite((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
        if name is not None:
            raise NotFinite(f"step {state.global_step + 1}: the weight {name} is no longer finite")


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> Optional[str]:
    """Returns the name of the first weight that holds a number that is not finite; `None` if there is none."""
    weights = [(name, fsdp.own_part(weight.detach())) for name, weight in weights if weight.is_floating_point()]
    # a sum is not finite if one of its numbers is not, and takes no memory
    sums = [weight.sum(dtype=torch.float32) for _, weight in weights]
    if not sums or torch.stack([x.to(sums[0].device) for x in sums]).isfinite().all():
        return None
    return next((name for name, weight in weights if not weight.isfinite().all()), None)
