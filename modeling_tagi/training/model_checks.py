"""Checks before a run's first step that need its tokenizer and its data."""

import os
from typing import Sequence

import torch

from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..tokens import Tokens, instruction_text
from .backbones import backbone_config
from .setting_fields import RunSettings
from .sharding.sharded import require_possible_sharding
from .stages import STAGES


def check_model(settings: RunSettings, tokenizer, splits: dict[str, list[Record]], text: Sequence[str] = ()):
    """Refuses a run that would fail at a later stage.

    It would if the model cannot be built, if instructions are longer than the model reads, or if a stage's `require`
    refuses it.

    Raises:
        ValueError: naming the field, or the longest instruction.
        FileNotFoundError: for a missing bank.
    """
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs, but one process: start train.py by accelerate launch or "
            "torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    require_possible_sharding(settings)
    config = TagiConfig(backbone_config(settings, len(tokenizer)), **settings.tagi)
    for stage in STAGES.values():
        stage.require(settings, config, splits["train"], text)
    _require_whole_instructions(settings, tokenizer, config, splits)


def _require_whole_instructions(settings: RunSettings, tokenizer, config: TagiConfig, splits: dict[str, list[Record]]):
    """Refuses instructions that are longer than the model reads."""
    tokens = Tokens.of(tokenizer, config, settings.max_input_length, settings.max_target_length)
    texts = {(r.instruction, r.demonstrations): r for records in splits.values() for r in records}
    lengths = {key: len(tokens.instruction(instruction_text(*key))) for key in texts}
    longest = max(lengths, key=lengths.get)
    if lengths[longest] > config.max_instruction_length:
        raise ValueError(
            f"the instruction of task {texts[longest].task!r} has {lengths[longest]} tokens, but tagi."
            f"max_instruction_length is {config.max_instruction_length}; raise it, or use fewer demonstrations"
        )
