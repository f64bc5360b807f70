"""The FLOPs and bytes of training, from which each stage declares its work, its memory and its disk space.

FLOPs are those of `TaskFlops`, times the passes that training makes: 3 for what is trained (forward, and twice as much
backward, for the states and for the weights), 2 for what is frozen but lies behind something trained, 1 for what is
only run; one more where gradient checkpointing runs it again.
"""

import math
from typing import Optional, Sequence, Union

from torch import nn

from ..costs.flops import Lengths, TaskFlops
from ..costs.work import FLOAT, DeviceMemory, TextLengths, UnknownFlops, Work, optimizer_numbers, size_of
from .setting_fields import RunSettings, StageSettings
from .trainable import trained_parameters


class RunCosts:
    """Counts the FLOPs and bytes that the stages of a run have in common.

    Args:
        settings: The run's settings.
        formula: The FLOPs of its model, whose `model` holds shapes alone.
        adapters: Number of task adapters that are tuned or loaded; if it is `None` (unknown), those tuned at once
            are counted.
        records: Number of records of the train split; if it is `None` (unknown), those drawn are counted.
    """

    def __init__(
        self,
        settings: RunSettings,
        formula: Union[TaskFlops, UnknownFlops],
        adapters: Optional[int] = None,
        records: Optional[int] = None,
    ):
        self.settings, self.formula, self.model, self.records = settings, formula, formula.model, records
        self.adapters = adapters if adapters is not None else settings.task_adapters.at_once
        self.adapter_size = formula.adapter_size
        self.backbone_trained = settings.finetuning.train == "all" and "backbone" not in settings.finetuning.freeze

    # work of one batch

    def plain(self, rows: int, read: float, target: float) -> Work:
        """Returns the work of training the backbone itself on rows of so many tokens."""
        flops = self._passes(True) * self.formula.forward(read, target, rows)
        return Work(rows, backbone=rows * read, target=rows * target, flops=flops)

    def generated(self, lengths: Lengths, inputs: int) -> float:
        """Returns the FLOPs of training the hypernetwork on one instruction and its inputs."""
        parts = self.formula.adapted(lengths, inputs, targets_given=True)
        if not parts:
            return math.nan
        again = int(self.settings.gradient_checkpointing)
        # a gradient reaches the instruction's encoding where the embeddings below it are trained
        norms_trained = self.settings.finetuning.train == "generator_and_norms"
        encoding = 3 + again if self.backbone_trained else 2 + again if norms_trained else 1
        passes = {
            "instruction": encoding,
            "generator": 3,
            "lora": 3 + again,
            "fusion": 3 + again,
            **dict.fromkeys(("input", "output", "memory"), self._passes(self.backbone_trained)),
        }
        return sum(passes[part] * flops for part, flops in parts.items())

    def with_task_adapter(self, lengths: TextLengths, backbone: int, adapter: int) -> float:
        """Returns the FLOPs of a row that a backbone with a task adapter reads; numbers are passes through each."""
        read = self.read_with_task_adapter(lengths)
        low_rank = self.formula.low_rank(read, lengths.target, targets_given=True)
        return backbone * self.formula.forward(read, lengths.target, 1) + adapter * low_rank

    def read_with_task_adapter(self, lengths: TextLengths) -> float:
        """Returns the tokens of a row that a backbone with a task adapter reads, when it is tuned and as a teacher."""
        prompt = self.settings.task_adapters.reads == "prompt"
        return lengths.input + (lengths.instruction if prompt else 0)

    def _passes(self, trained: bool) -> int:
        return (3 if trained else 2) + int(self.settings.gradient_checkpointing)

    # bytes

    def backbone_memory(self, stage: StageSettings, batch: Work) -> DeviceMemory:
        """Returns the memory of training the whole backbone, when nothing else is held."""
        backbone = self.model.backbone
        return self._memory(size_of(backbone), list(backbone.parameters()), stage.optimizer, self.activations(batch))

    def model_memory(
        self, stage: StageSettings, batch: Work, further: float = 0, logits: int = 3
    ) -> DeviceMemory:
        """Returns the memory of training the hypernetwork's model, with `further` numbers that are only held.

        Args:
            stage: The stage's settings.
            batch: Its work.
            further: Numbers of other weights.
            logits: Tensors as large as the logits that are held at once.
        """
        trained = trained_parameters(self.model, self.settings)
        held = size_of(self.model) + further
        return self._memory(held, trained, stage.optimizer, self.activations(batch, logits=logits))

    @staticmethod
    def _memory(held: float, trained: Sequence[nn.Parameter], optimizer: str, activations: float) -> DeviceMemory:
        return DeviceMemory(
            weights=FLOAT * held,
            gradients=FLOAT * sum(x.numel() for x in trained),
            optimizer=FLOAT * optimizer_numbers(optimizer, trained),
            activations=activations,
        )

    def activations(self, batch: Work, logits: int = 3, checkpointing: Optional[bool] = None) -> float:
        """Returns roughly the bytes of a batch's activations.

        They are the inputs and outputs of every product, the scores of attention, and the logits with their softmax
        and gradient.

        Args:
            batch: Its work.
            logits: Tensors as large as the logits that are held at once.
            checkpointing: Whether layers are computed again; by default as the run's settings say.
        """
        formula = self.formula
        if isinstance(formula, UnknownFlops):
            return math.nan
        rows = batch.rows or 1
        read, target = batch.backbone / rows, batch.target / rows
        number = 2 if self.settings.bf16 else FLOAT
        config = self.model.config.backbone_config.get_text_config()
        heads, layers = config.num_attention_heads, formula.layers
        if formula.is_encoder_decoder:
            wide = (formula.width["read"] + formula.width["memory"]) * read + formula.width["write"] * target
            seen = layers * read * read + formula.decoder_layers * target * (target + read)
            scored, tokens = target, read + target
        else:
            wide, seen = formula.width["read"] * (read + target), layers * (read + target) ** 2
            scored, tokens = read + target, read + target
        stored = rows * number * (wide + 2 * heads * seen)
        if self.settings.gradient_checkpointing if checkpointing is None else checkpointing:
            depth = layers + (formula.decoder_layers if formula.is_encoder_decoder else 0)
            stored = stored / depth + rows * tokens * depth * config.hidden_size * FLOAT
        return stored + logits * FLOAT * rows * scored * config.vocab_size
