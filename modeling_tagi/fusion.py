"""Instruction fusion: the language model attends to the encoded instruction (eq. 1)."""

from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from typing import Callable, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lora import take_rows


class InstructionCrossAttention(nn.Module):
    """Attends from the states of one layer (queries) to the encoded instruction (keys and values).

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
        """Initialises the projections at random and the gate with zeros."""
        for linear in (self.q, self.k, self.v, self.o):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.gate)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values `[tasks, heads, memory, d_head]` of `memory [tasks, memory, d_model]`."""
        memory = _normalise(memory)
        return self._split(self.k(memory)), self._split(self.v(memory))

    def forward(
        self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor, task_index: Optional[Tensor] = None
    ) -> Tensor:
        """Returns the states plus what they attend to in the instruction, times the gate.

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


def layers_of(stack: nn.Module) -> nn.ModuleList:
    """Returns the layers of an encoder, a decoder, or a causal backbone's `base_model`.

    They are the one `ModuleList` among its children or, if there is none (OPT), among those of its `decoder`.

    Raises:
        ValueError: if there is not exactly one.
    """
    lists = _lists_of(stack) or _lists_of(getattr(stack, "decoder", stack))
    if len(lists) != 1:
        raise ValueError(
            f"cannot tell which modules of {type(stack).__name__} are its layers; cross-attention and FLOPs need them"
        )
    return lists[0]


def _lists_of(module: nn.Module) -> list[nn.ModuleList]:
    return [child for child in module.children() if isinstance(child, nn.ModuleList)]


def _normalise(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


@dataclass(frozen=True)
class InstructionMemory:
    """Holds encoded instructions, made once each, for fusion to attend to; padding is at the end, where `mask` is 0.

    Args:
        mask: `[tasks, memory]`, 1 for a token of the instruction.
        states: `[tasks, memory, d_model]`, the encoded instruction I_x; encoder-decoder backbones.
        keys, values: `[tasks, layers, heads, memory, d_head]`, projected for the cross-attention of every layer.
        prefix_keys, prefix_values: `[tasks, layers, kv_heads, memory, d_head]`, the backbone's own keys and values of
            the instruction; causal backbones.
    """

    mask: Tensor
    states: Optional[Tensor] = None
    keys: Optional[Tensor] = None
    values: Optional[Tensor] = None
    prefix_keys: Optional[Tensor] = None
    prefix_values: Optional[Tensor] = None

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def map(self, function) -> "InstructionMemory":
        return InstructionMemory(**{name: function(value) for name, value in self.tensors().items()})

    def trimmed(self) -> "InstructionMemory":
        """Returns the memory without the positions that are padding for every task."""
        length = max(1, int(self.mask.sum(1).max()))
        tensors = self.tensors().items()
        return InstructionMemory(**{name: x.narrow(_axis(name, x), 0, length).contiguous() for name, x in tensors})

    def clear_padding_(self) -> "InstructionMemory":
        """Zeroes padding in place, since an encoder's states at padding depend on the rest of the batch."""
        padding = self.mask == 0
        if padding.any():
            for name, x in self.tensors().items():
                x.movedim(_axis(name, x), 1)[padding] = 0
        return self

    def blank(self, tasks: int, length: int, dtype: Optional[torch.dtype] = None) -> "InstructionMemory":
        """Returns a memory of `tasks` tasks that is all padding, into which `put_` writes memories like this one."""
        made = {}
        for name, x in self.tensors().items():
            shape = list(x.shape)
            shape[0], shape[_axis(name, x)] = tasks, length
            made[name] = x.new_zeros(shape, dtype=x.dtype if dtype is None or name == "mask" else dtype)
        return InstructionMemory(**made)

    def put_(self, rows: Union[slice, Sequence[int]], memory: "InstructionMemory"):
        """Writes the tasks of `memory`, which may be shorter, over `rows`."""
        for name, x in memory.tensors().items():
            place = self.tensors()[name].narrow(_axis(name, x), 0, memory.mask.shape[1])
            place[rows] = x.to(place.dtype)

    @classmethod
    def join(cls, memories: Sequence["InstructionMemory"]) -> "InstructionMemory":
        """Joins several memories into one, in order, padded with zeros to the longest."""
        first, tasks = memories[0], [len(memory.mask) for memory in memories]
        floating = [x.dtype for memory in memories for x in memory.tensors().values() if x.is_floating_point()]
        dtype = reduce(torch.promote_types, floating) if floating else None
        whole = first.blank(sum(tasks), max(memory.mask.shape[1] for memory in memories), dtype)
        for end, memory in zip(accumulate(tasks), memories):
            whole.put_(slice(end - len(memory.mask), end), memory)
        return whole


def attending(
    memory: InstructionMemory,
    modules: Sequence[nn.Module],
    attentions: Sequence[nn.Module],
    task_index: Optional[Tensor],
) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """Returns, for each module behind which there is a cross-attention, the function that lets its states attend.

    Args:
        modules, attentions: One of each for every layer of the memory's `keys` and `values`.
        task_index: `[batch]`, the task of each row; `None` if there is one task, or one a row.
    """
    projected = memory.keys.unbind(1), memory.values.unbind(1)
    return {
        module: partial(attention, keys=keys, values=values, mask=memory.mask, task_index=task_index)
        for module, attention, keys, values in zip(modules, attentions, *projected)
    }


def _axis(name: str, x: Tensor) -> int:
    """Returns the token axis of a tensor of an instruction memory."""
    return 1 if name in ("mask", "states") else x.ndim - 2
