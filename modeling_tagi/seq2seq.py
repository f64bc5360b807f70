"""What is particular to encoder-decoder backbones: the decoder attends to the instruction that the encoder reads."""

from typing import Any, Optional

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from .families import FAMILIES, family_of
from .fit import require_no_drafts
from .fusion import InstructionMemory, layers_of
from .lora import Application, applied, hook_once, memory_hook, take_rows

_ASKED = ("output_hidden_states", "output_attentions")


class Seq2Seq:
    """Reads instructions and inputs with an encoder-decoder backbone. `model` is the [`TagiModel`] around it."""

    task_type = "SEQ_2_SEQ_LM"  # PEFT's
    one_adapter_a_row = False  # in `generate`: the memory's keys are computed once a task

    def fused_modules(self, backbone: nn.Module) -> list[nn.Module]:
        """Returns the modules behind which cross-attention to the instruction goes: in every layer of the encoder the
        self-attention (eq. 1), or the layer itself where no module ends there.

        Raises:
            ValueError: for an encoder whose self-attention's place is not known.
        """
        family = family_of(backbone.config)
        if family is None or family.fused_behind is None:
            known = (name for name, family in FAMILIES.items() if family.fused_behind is not None)
            raise ValueError(
                f"fusion='cross_attention' is not supported for a backbone of type {backbone.config.model_type!r} (it "
                f"is for {', '.join(known)} and causal ones); use fusion='concat' or 'none'"
            )
        return [layer.get_submodule(family.fused_behind) for layer in layers_of(backbone.get_encoder())]

    def hook(self, backbone: nn.Module):
        """Registers the hooks that `apply_memory` needs."""
        for module in memory_projections(backbone):
            hook_once(module, memory_hook)

    def read(self, model, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns an instruction's states `[tasks, seq, d_model]`, and the decoder's part of its memory."""
        with applied(None):
            states = model.backbone.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states, {"states": states}

    def apply_memory(self, backbone: nn.Module, application: Application, memory: InstructionMemory):
        """Lets the decoder project the memory to keys and values once a task, instead of once a row."""
        if memory.states is not None:
            application.share(memory.states, memory_projections(backbone))

    def arguments(
        self, model, application, adapter, task_index: Optional[Tensor], labels: Optional[Tensor], given: dict
    ) -> dict:
        """Returns the arguments of the backbone's `forward`, from those `given` to the model's, which this changes."""
        if given["decoder_input_ids"] is None and labels is not None:
            given["decoder_input_ids"] = model.backbone.prepare_decoder_input_ids_from_labels(labels=labels)
        if adapter is None or adapter.memory is None:
            return given
        asked = {name: given[name] for name in _ASKED if name in given}
        read = [given.pop(name, None) for name in ("input_ids", "attention_mask", "inputs_embeds", "encoder_outputs")]
        states, mask = _encode(model, adapter, task_index, *read, **asked)
        return {**given, "encoder_outputs": states, "attention_mask": mask}

    def predicted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and labels, aligned as they are."""
        return logits, labels

    def generate(self, model, input_ids: Optional[Tensor], mask: Tensor, adapter, task_index, config, **kwargs):
        """Returns the output of the backbone's `generate` on an input that is encoded once."""
        if kwargs.get("assistant_model") is not None:  # prompt lookup searches the output alone, and may stay
            require_no_drafts(model, adapter, config, kwargs["assistant_model"])
        asked = {name: True for name in _ASKED if getattr(config, name)}
        states, mask = _encode(model, adapter, task_index, input_ids, mask, kwargs.pop("inputs_embeds", None), **asked)
        # the ids beside their states: repetition penalties and an assistant model read them
        return model.backbone.generate(
            input_ids, encoder_outputs=states, attention_mask=mask, generation_config=config, **kwargs
        )


def memory_projections(backbone: nn.Module) -> list[nn.Module]:
    """Returns the modules that project what the decoder attends to into keys and values; none if their place is not
    known."""
    family = family_of(backbone.config)
    if family is None or family.memory is None:
        return []
    return [layer.get_submodule(family.memory.format(x)) for layer in layers_of(backbone.get_decoder()) for x in "kv"]


def _encode(
    model, adapter, task_index, input_ids, attention_mask, inputs_embeds=None, encoder_outputs: Any = None, **asked
) -> tuple[BaseModelOutput, Tensor]:
    """Returns what the decoder attends to, `(I_x ; F)` where there is an I_x, and its mask."""
    if encoder_outputs is None:
        embedded = {} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        encoder_outputs = model.backbone.get_encoder()(
            input_ids=input_ids, attention_mask=attention_mask, **embedded, **asked
        )
    states, mask, memory = encoder_outputs[0], attention_mask, adapter.memory
    if memory is not None:
        states, mask = concat_memory(memory.states, memory.mask, states, attention_mask, task_index)
    more = {name: getattr(encoder_outputs, name, None) for name in ("hidden_states", "attentions")}
    return BaseModelOutput(states, **more), mask


def concat_memory(
    memory: Tensor,
    mask: Tensor,
    states: Tensor,
    attention_mask: Optional[Tensor] = None,
    task_index: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """Returns what the decoder attends to, `(I_x ; F)`, with both masks (section 3.2.1).

    Args:
        memory: `[tasks, memory, d_model]`, the encoded instruction.
        mask: `[tasks, memory]`.
        states: `[batch, seq, d_model]`, the encoder's output.
        attention_mask: `[batch, seq]`; `None` if every position is a token.
        task_index: `[batch]`; `None` if there is one task, or if tasks and rows are the same.

    Returns:
        `[batch, memory + seq, d_model]` and `[batch, memory + seq]`.
    """
    batch = states.shape[0]
    if attention_mask is None:
        attention_mask = states.new_ones(states.shape[:2], dtype=torch.long)
    mask = take_rows(mask, batch, task_index).to(attention_mask.dtype)
    memory = take_rows(memory, batch, task_index).to(states.dtype)
    return torch.cat([memory, states], 1), torch.cat([mask, attention_mask], 1)
