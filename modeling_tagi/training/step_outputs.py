"""What a model returns for a training step, at the least cost: instructions are read once, the head reads targets
alone, rows of like length go through the backbone together."""

from typing import Any, Mapping, Optional

import torch
from torch import Tensor, nn

from ..modeling_tagi import TagiModel
from ..tokens import alike_in_length
from . import losses
from .target_positions import reading_at

_KEPT_BYTES = 2**30  # of instructions' states


def step_outputs(model: nn.Module, inputs: Mapping[str, Any], head: nn.Module, kept: "KeptInstructions", cut: bool):
    """Returns the outputs of a model in training, with logits `[tokens, vocab]` of the targets alone.

    Logits of all positions would be the largest tensor of a step by far, and for a small backbone with a large
    vocabulary a good part of its time.

    Args:
        model: A [`TagiModel`] or a language model, perhaps wrapped.
        inputs: The batch.
        head: The model's output head.
        kept: Instructions of earlier steps.
        cut: Whether the batch is cut into rows of like length where padding costs more than a further pass. The
            outputs are the same.
    """
    inputs = dict(inputs)
    labels, num_items = inputs.pop("labels"), inputs.pop("num_items_in_batch", None)
    if isinstance(model, TagiModel) and "instruction_input_ids" in inputs:
        instructions = inputs.pop("instruction_input_ids"), inputs.pop("instruction_attention_mask")
        inputs["adapter"] = kept.adapter(model, *instructions)
    both = getattr(model, "module", model).config.is_encoder_decoder
    if cut:
        outputs = _by_length(model, inputs, labels, head, both)
    else:
        outputs = _at_targets(model, inputs, labels, head, both)
    outputs["loss"] = losses.prediction_loss(outputs["logits"], losses.target_labels(labels, both), num_items)
    return outputs


def _at_targets(model, inputs: dict, labels: Tensor, head: nn.Module, both: bool):
    if both:
        whole = getattr(model, "module", model)
        backbone = getattr(whole, "backbone", whole)
        inputs = {**inputs, "decoder_input_ids": backbone.prepare_decoder_input_ids_from_labels(labels=labels)}
    with reading_at(head, losses.predicting(labels, both)):
        return model(**inputs)


def _by_length(model, inputs: dict, labels: Tensor, head: nn.Module, both: bool):
    """Runs groups of rows apart, each without the padding that the others need, and puts their logits in order."""
    mask = inputs["attention_mask"]
    groups = alike_in_length(mask.sum(1).tolist(), on_cpu=mask.device.type == "cpu")
    tasks, found = inputs.get("task_index"), []
    for group in groups:
        rows = torch.tensor(group, device=mask.device)
        length = int(mask[rows].sum(1).max())
        part = {**inputs, **{name: inputs[name][rows, :length] for name in ("input_ids", "attention_mask")}}
        if tasks is not None:
            part["task_index"] = tasks[rows]
        found.append(_at_targets(model, part, labels[rows] if both else labels[rows, :length], head, both))
    number = losses.predicting(labels, both).sum(1)  # of targets, by row
    row_of = torch.cat([torch.tensor(group, device=mask.device).repeat_interleave(number[group]) for group in groups])
    outputs = found[0]
    outputs["logits"] = torch.cat([one["logits"] for one in found])[row_of.argsort(stable=True)]
    return outputs


class KeptInstructions:
    """Keeps what a model's generator reads of instructions whose encoder does not change: each is encoded once.

    That is so if the backbone is frozen and has no dropout, and nothing but the generator reads an instruction
    (fusion none).
    """

    def __init__(self):
        self._states: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0
        self._stay: Optional[bool] = None  # asked at the first step

    def adapter(self, model: TagiModel, ids: Tensor, mask: Tensor):
        """Returns the adapters of `ids [tasks, seq]`, with gradients."""
        if self._stay is None:
            self._stay = _do_not_change(model)
        if not self._stay:
            return model.adapter_from_ids(ids, mask)
        rows = [tuple(row[: int(length)]) for row, length in zip(ids.tolist(), mask.sum(1))]
        if self._bytes > _KEPT_BYTES:
            self._states.clear()
            self._bytes = 0
        if new := [row for row in dict.fromkeys(rows) if row not in self._states]:
            read = model.states_from_rows(new)
            self._states.update(zip(new, read))
            self._bytes += sum(one.nbytes for one in read)
        states = [self._states[row] for row in rows]
        lengths = torch.tensor([len(one) for one in states], device=mask.device)
        within = torch.arange(int(lengths.max()), device=mask.device) < lengths.unsqueeze(1)
        return model.adapter_from_states(nn.utils.rnn.pad_sequence(states, batch_first=True), within.to(mask.dtype))


def _do_not_change(model: TagiModel) -> bool:
    """Tells whether the encoded instruction of a model in training is the same in every step, and all that is read."""
    frozen = not any(parameter.requires_grad for parameter in model.backbone.parameters())
    fields = model.config.backbone_config.to_dict().items()
    dropout = any("dropout" in name and isinstance(value, float) and value > 0 for name, value in fields)
    return model.config.fusion == "none" and frozen and not dropout
