"""Instruction fusion: the language model attends to the encoded instruction (eq. 1)."""

from functools import partial
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask

from .adapter import InstructionMemory
from .families import FAMILIES, family_of, window_of
from .lora import CACHE_NAMES, take_rows


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

    def initialise(self):
        """Draws the projections; the gate is zero."""
        for linear in (self.q, self.k, self.v, self.o):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.gate)

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

    In an encoder: behind the self-attention (eq. 1), or behind the layer where no module ends there. In a causal
    model: behind the layer, for the same reason.

    Raises:
        ValueError: for an encoder whose self-attention's place is not known.
    """
    if not is_encoder_decoder:
        return list(layers_of(backbone.base_model))
    family = family_of(backbone.config)
    if family is None or family.fused_behind is None:
        known = (name for name, family in FAMILIES.items() if family.fused_behind is not None)
        raise ValueError(
            f"fusion='cross_attention' is not supported for a backbone of type {backbone.config.model_type!r} (it is "
            f"for {', '.join(known)} and causal ones); use fusion='concat' or 'none'"
        )
    return [layer.get_submodule(family.fused_behind) for layer in layers_of(backbone.get_encoder())]


def memory_projections(backbone: nn.Module) -> list[nn.Module]:
    """The modules that make the decoder's keys and values of its memory; none where their place is not known."""
    family = family_of(backbone.config)
    if family is None or family.memory is None:
        return []
    return [layer.get_submodule(family.memory.format(x)) for layer in layers_of(backbone.get_decoder()) for x in "kv"]


def layers_of(stack: nn.Module) -> nn.ModuleList:
    """The layers of an encoder, a decoder, or a causal backbone's `base_model`."""
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
    """A new cache, or an empty one that is given, with the instruction's keys and values for every row.

    A new one holds them all, also in layers that see a window alone: what is padding in a batch's longest instruction
    would otherwise push out tokens of shorter ones.
    """
    cache = cache if cache is not None else DynamicCache()
    for layer, (keys, values) in enumerate(zip(memory.prefix_keys.unbind(1), memory.prefix_values.unbind(1))):
        cache.update(
            take_rows(keys, rows, task_index).to(dtype), take_rows(values, rows, task_index).to(dtype), layer
        )
    return cache


def without_start(mask: Tensor, ids: Tensor, start: Optional[int], cache: Cache) -> Tensor:
    """Returns the mask of rows behind an instruction, which has the token that begins a text already: in rows that
    begin with it again it is masked, as if it were padding.

    The cache is marked with these places, which later calls have not got the ids of.

    Args:
        mask: `[batch, seen + seq]`, of the rows' tokens in the cache and of the new ones.
        ids: `[batch, seq]`, the new tokens.
        start: The token; `None` leaves the mask as it is.
        cache: What the rows are read with.
    """
    if start is None:
        return mask
    seen = mask.shape[1] - ids.shape[1]
    first = (mask[:, seen:] != 0) & (mask.cumsum(1)[:, seen:] == 1)
    known = getattr(cache, "starts", mask.new_zeros(len(mask), 0, dtype=torch.bool))[:, :seen]
    known = F.pad(known, (0, seen - known.shape[1]))
    cache.starts = torch.cat([known, first & (ids == start)], 1)
    return mask.masked_fill(cache.starts, 0)


def windowed_masks(stack: nn.Module, arguments: dict) -> dict:
    """The arguments of a causal backbone's stack of layers, with masks whose window is counted in tokens.

    transformers counts it in places of the cache. Between a row's instruction and its input lie places that are
    padding, so a row would see less of its instruction in a batch than alone.

    Args:
        stack: The backbone's `base_model`, of a family with a window.
        arguments: What it is called with, an `attention_mask [batch, places]` over the cache among them.

    Raises:
        ValueError: for an attention that takes no mask of its own.
    """
    mask, window = arguments["attention_mask"], window_of(stack.config)
    # without padding there may be none; for a static cache, which ends within the window, it is made already
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] <= window:
        return arguments
    if "flash" in stack.config._attn_implementation:
        raise ValueError(
            f"instruction and input together are {mask.shape[1]} tokens, but layers of this backbone see {window} "
            "at a time, and flash attention cannot count these beside padding; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    token = mask.cumsum(1)

    def within(batch, head, query, key):
        return token[batch, query] - token[batch, key] < window

    ids = arguments["input_ids"] if arguments.get("input_ids") is not None else arguments["inputs_embeds"]
    like = torch.empty(*ids.shape[:2], 1, dtype=stack.dtype, device=ids.device)  # shape and type are all that is read
    cache = [arguments[name] for name in CACHE_NAMES if name in arguments][0]
    masks = partial(create_causal_mask, stack.config, like, mask, cache)
    windowed = masks(and_mask_function=within)
    if family_of(stack.config).window == "by_layer":
        windowed = {"full_attention": masks(), "sliding_attention": windowed}
    return {**arguments, "attention_mask": windowed}
