"""Instruction fusion: the language model attends to the encoded instruction (eq. 1)."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from .adapter import InstructionMemory
from .lora import take_rows

# Where a layer's self-attention, residual included, ends: the place of eq. 1's cross-attention sub-layer.
_SELF_ATTENTION_SUBLAYER = {"t5": "layer.0", "mt5": "layer.0", "umt5": "layer.0"}
# Where a decoder's layer makes keys and values of its memory.
_CROSS_ATTENTION = dict.fromkeys(("t5", "mt5", "umt5"), "layer.1.EncDecAttention")


class InstructionCrossAttention(nn.Module):
    """The cross-attention sub-layer of one layer: queries from its states, keys and values from the instruction.

    eq. 1, `F_l = CrossAttentionLayer_l(S_l, I_x)`, with the normalisation before instead of after the attention, as
    the pre-norm backbones have it, and a gate per channel. The gate starts at zero: a fresh layer is an identity.

    Args:
        d_model: Width of the states and of the encoded instruction.
        heads: Number of attention heads.
        d_head: Width of a head.
    """

    def __init__(self, d_model: int, heads: int, d_head: int):
        super().__init__()
        self.heads, self.d_head = heads, d_head
        self.q = nn.Linear(d_model, heads * d_head, bias=False)
        self.k = nn.Linear(d_model, heads * d_head, bias=False)
        self.v = nn.Linear(d_model, heads * d_head, bias=False)
        self.o = nn.Linear(heads * d_head, d_model, bias=False)
        self.gate = nn.Parameter(torch.empty(d_model))

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[tasks, heads, memory, d_head]` of `memory [tasks, memory, d_model]`, once per task."""
        memory = _normalise(memory)
        return self._split(self.k(memory)), self._split(self.v(memory))

    def forward(
        self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor, task_index: Optional[Tensor] = None
    ) -> Tensor:
        """
        Args:
            states: `[batch, seq, d_model]`, the output of the layer's self-attention.
            keys, values: `[tasks, heads, memory, d_head]`.
            mask: `[tasks, memory]`, 1 for a token of the instruction.
            task_index: `[batch]`; `None` if there is one task, or if tasks and rows are the same.

        Returns:
            `[batch, seq, d_model]`.
        """
        queries = self._split(self.q(_normalise(states).to(self.q.weight.dtype)))
        keys, values = (take_rows(x, states.shape[0], task_index).to(queries.dtype) for x in (keys, values))
        mask = take_rows(mask, states.shape[0], task_index)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask.bool()[:, None, None, :])
        return states + self.gate * self.o(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.d_head)).transpose(1, 2)


def fused_modules(backbone: nn.Module, is_encoder_decoder: bool) -> list[nn.Module]:
    """The modules behind which cross-attention to the instruction goes, one for each layer that reads the input.

    In an encoder: behind the self-attention (eq. 1). In a causal model: behind the layer, since what lies between
    its self-attention and its feed-forward part is not a module.

    Raises:
        ValueError: for an encoder whose self-attention's place is not known.
    """
    if not is_encoder_decoder:
        return list(_layers(backbone.base_model))
    place = _SELF_ATTENTION_SUBLAYER.get(backbone.config.model_type)
    if place is None:
        raise ValueError(
            f"fusion='cross_attention' is not supported for a backbone of type {backbone.config.model_type!r} (it is "
            f"for {', '.join(_SELF_ATTENTION_SUBLAYER)} and causal ones); use fusion='concat' or 'none'"
        )
    return [layer.get_submodule(place) for layer in _layers(backbone.get_encoder())]


def memory_projections(backbone: nn.Module) -> list[nn.Module]:
    """The modules that make the decoder's keys and values of its memory; none where their place is not known."""
    place = _CROSS_ATTENTION.get(backbone.config.model_type)
    if place is None:
        return []
    return [layer.get_submodule(f"{place}.{name}") for layer in _layers(backbone.get_decoder()) for name in "kv"]


def _layers(stack: nn.Module) -> nn.ModuleList:
    lists = [module for module in stack.children() if isinstance(module, nn.ModuleList)]
    if len(lists) != 1:
        raise ValueError(f"cannot tell which modules of {type(stack).__name__} are its layers; use fusion='none'")
    return lists[0]


def _normalise(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def concat_memory(
    memory: Tensor,
    mask: Tensor,
    states: Tensor,
    attention_mask: Optional[Tensor] = None,
    task_index: Optional[Tensor] = None,
) -> tuple[Tensor, Tensor]:
    """The decoder's memory `(I_x ; F)` with both masks (section 3.2.1).

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


def prefix_cache(
    memory: InstructionMemory,
    rows: int,
    dtype: torch.dtype,
    task_index: Optional[Tensor] = None,
    cache: Optional[Cache] = None,
) -> Cache:
    """A new cache, or an empty one that is given, with the instruction's keys and values for every row."""
    cache = cache if cache is not None else DynamicCache()
    for layer in range(memory.prefix_keys.shape[1]):
        keys, values = (x[:, layer] for x in (memory.prefix_keys, memory.prefix_values))
        cache.update(
            take_rows(keys, rows, task_index).to(dtype), take_rows(values, rows, task_index).to(dtype), layer
        )
    return cache
