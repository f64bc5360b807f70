"""The units that a run's stages declare their work in: tokens and FLOPs, bytes on the device and on disk."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Sequence

from torch import nn

from ..modeling_tagi import TagiModel
from .flops import Lengths

FLOAT = 4  # bytes: weights, gradients and optimizer states are fp32, also where bf16 computes
_KEPT_CHECKPOINTS = 2
_STATES = {"adamw": 2, "adam": 2, "sgd": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}  # numbers for each weight


@dataclass(frozen=True)
class TextLengths:
    """Holds the lengths of a run's texts in tokens, special ones included.

    Args:
        instruction, input, target: The lengths of a task's texts.
        passage: The length of the text that is cut into a, b and c of eq. 3, all three together.
    """

    instruction: float
    input: float
    target: float
    passage: float

    @property
    def task(self) -> Lengths:
        return Lengths(self.instruction, self.input, self.target)

    @property
    def cut(self) -> Lengths:
        """Returns the mean lengths of a, b and c, into which a passage is cut at random: a third each."""
        return Lengths(*[max(1.0, self.passage / 3)] * 3)

    def with_passages_of(self, most: float) -> "TextLengths":
        """Returns these lengths for a stage that reads at most `most` tokens of a passage."""
        return replace(self, passage=min(self.passage, most))


@dataclass(frozen=True)
class Work:
    """Holds what is computed in one batch, or (by `times`) in many.

    Args:
        rows: Examples.
        hypernetwork: Tokens of instructions that the hypernetwork reads.
        backbone: Tokens of inputs (or prompts) that the trained model reads.
        target: Tokens that are predicted.
        teacher: Tokens of prompts that the teacher reads.
        flops: The FLOPs of it all; `nan` if they cannot be counted.
    """

    rows: float = 0.0
    hypernetwork: float = 0.0
    backbone: float = 0.0
    target: float = 0.0
    teacher: float = 0.0
    flops: float = 0.0

    def times(self, number: float) -> "Work":
        return Work(**{name: value * number for name, value in asdict(self).items()})


@dataclass(frozen=True)
class DeviceMemory:
    """Holds the bytes that a stage needs on its device.

    Args:
        weights, gradients, optimizer: Bytes of what is held and trained.
        activations: Roughly what a batch needs; `nan` if that cannot be told.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """Returns the sum of the parts that are known."""
        return self.weights + self.gradients + self.optimizer + (0.0 if math.isnan(self.activations)
                                                                 else self.activations)  # fmt: skip


@dataclass(frozen=True)
class Disk:
    """Holds the bytes that a stage writes.

    Args:
        checkpoints: What is deleted when the stage is done, such as the checkpoints that it resumes from.
        kept: Its result.
    """

    checkpoints: float
    kept: float

    @classmethod
    def of(cls, kept: float, saved: float, optimizer: float, further: float = 0.0) -> "Disk":
        """Returns the bytes of a stage that saves `saved` bytes of weights and `optimizer` in each checkpoint, and
        `further` ones once."""
        return cls(_KEPT_CHECKPOINTS * (saved + optimizer) + further, kept)


class UnknownFlops:
    """Stands in for `TaskFlops` if no formula knows the backbone's family: every sum is `nan`, "not known".

    Args:
        model: The model, on the meta device.
    """

    def __init__(self, model: TagiModel):
        self.model = model
        targets = model.targets.values()
        self.adapter_size = sum(model.config.r * (d_in + d_out) for d_in, d_out in targets)  # in numbers

    def forward(self, read: float, target: float, inputs: int) -> float:
        return math.nan

    def low_rank(self, read: float, written: float, targets_given: bool = False) -> float:
        return math.nan

    def adapted(self, lengths: Lengths, inputs: int, targets_given: bool = False) -> dict[str, float]:
        return {}


def size_of(module: nn.Module) -> int:
    """Returns the number of a module's parameters."""
    return sum(x.numel() for x in module.parameters())


def optimizer_states(optimizer: str) -> int:
    """Returns how many numbers an optimizer, by transformers' name, keeps for each weight (Adafactor keeps fewer)."""
    return _STATES.get(optimizer.split("_")[0], 2)


def optimizer_numbers(optimizer: str, parameters: Sequence) -> int:
    """Returns how many numbers an optimizer keeps for all `parameters`.

    Adafactor keeps a row and a column for each matrix, others as many for every weight (`optimizer_states`).
    """
    if optimizer == "adafactor":
        return sum(
            x.numel() // x.shape[-1] + x.numel() // x.shape[-2] if x.dim() > 1 else x.numel() for x in parameters
        )
    return sum(x.numel() for x in parameters) * optimizer_states(optimizer)
