"""The loss that finetuning minimises: the paper's three terms with their weights, and further terms by name."""

from dataclasses import dataclass, fields
from typing import Optional

import torch

from .losses import ALIGNMENTS, LOSSES, alignment_weight
from .setting_fields import ObjectiveSettings


@dataclass
class Objective(ObjectiveSettings):
    """Holds the weights of the losses, and refuses names and weights that are not allowed.

    Raises:
        ValueError: for an unknown name, or a temperature that is not above 0.
    """

    def __post_init__(self):
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment is {self.alignment!r}, but must be one of {', '.join(map(repr, ALIGNMENTS))}")
        alignment_weight(torch.zeros(()), self.alignment_weight)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}, but must be above 0")
        for name, weight in self.losses.items():
            if name not in LOSSES:
                raise ValueError(f"losses has {name!r}, but knows {', '.join(map(repr, LOSSES))}")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1000:
                raise ValueError(f"losses.{name} is {weight!r}, but must be a number from 0 to 1000")

    @classmethod
    def of(cls, settings: ObjectiveSettings) -> "Objective":
        """Returns the objective that a section of settings describes."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(ObjectiveSettings)})

    def lasts(self, steps: int) -> bool:
        """Tells whether some loss still has a weight in the last of `steps`, as training needs one to the end."""
        def to_the_end(falls_over: Optional[int]) -> bool:
            return falls_over is None or falls_over >= steps

        distils = self.distillation_weight != 0 and to_the_end(self.distillation_steps)
        aligns = self.alignment != "none" and self.alignment_weight != 0 and to_the_end(self.alignment_steps)
        return self.prediction_weight != 0 or distils or aligns
