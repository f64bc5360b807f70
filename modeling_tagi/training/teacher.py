"""The teacher of finetuning: the backbone with each task's own adapter (section 3.2.4)."""

import copy
from contextlib import nullcontext
from typing import Union

import torch
from torch import Tensor, nn

from ..adapter import TagiAdapter
from ..banks.stored import StoredAdapters
from ..lora import Application, applied, evaluating
from . import losses
from .target_positions import is_adapted, reading_at


class Teacher:
    """Runs the backbone with each task's own adapter and the instruction in its input (section 3.2.4).

    Args:
        backbone: The language model that the task adapters were tuned on; never trained. If all answers are in
            a `TeacherCache`, its output head is enough.
        bank: The task adapters, stacked, or a [`StoredAdapters`] for many.
        bf16: Whether the teacher computes in bfloat16; the trainer's own setting is for the trained model alone.
    """

    def __init__(self, backbone: nn.Module, bank: Union[TagiAdapter, StoredAdapters], bf16: bool = False):
        self.backbone, self.bank, self.bf16 = backbone, bank, bf16
        self.head, self.is_encoder_decoder = backbone.get_output_embeddings(), backbone.config.is_encoder_decoder

    def precision(self):
        """Returns a context in which the teacher computes in its precision."""
        return torch.autocast(self.head.weight.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def adapters(self, index: Tensor) -> TagiAdapter:
        """Returns the adapters of `index [tasks]`, without gradients."""
        return self.bank[index].to(index.device).detach()

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor], adapters: TagiAdapter, task_index: Tensor) -> Tensor:
        """Returns `[batch, seq, vocab]` for the prompts in `inputs`, row i with the adapter `task_index[i]`."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if self.backbone.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = self.backbone.prepare_decoder_input_ids_from_labels(labels=labels)
        application = Application.of(adapters, self.backbone, task_index)
        with applied(application), evaluating(self.backbone):
            return self.backbone(**inputs).logits

    @torch.no_grad()
    def answers(
        self, inputs: dict[str, Tensor], index: Tensor, task_index: Tensor, rows: Tensor
    ) -> Union[Tensor, losses.TopK]:
        """Returns the teacher's part of `distillation_loss`, for the target tokens of `rows [batch]` of `inputs`.

        The teacher reads the prompts in `inputs`, unless they hold a `TeacherCache`'s tensors, which are used instead.
        """
        if "values" in inputs:
            return losses.TopK(**inputs)
        if "states" in inputs:
            return self.head(inputs["states"])
        places = losses.predicting(of_rows(inputs["labels"], rows), self.is_encoder_decoder)
        adapters = self.adapters(index)
        if is_adapted(self.head, self.backbone, adapters.lora_a):
            return self.logits(inputs, adapters, task_index)[places]  # the head needs each row's own update
        with reading_at(self.head, places):
            return self.logits(inputs, adapters, task_index)


def of_rows(labels: Tensor, rows: Tensor) -> Tensor:
    """Returns `labels [batch, seq]`, with -100 in all rows but `rows [batch]`."""
    return labels.masked_fill(~rows[:, None], -100)


def frozen_copy(backbone: nn.Module) -> nn.Module:
    """Returns a copy that training does not change, for a teacher whose backbone is being trained."""
    return copy.deepcopy(backbone).requires_grad_(False).eval()
