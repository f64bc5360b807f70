"""Adapters of instructions that were read before: the same bytes, without a second computation."""

import threading
from collections import OrderedDict
from typing import Callable, Hashable, Sequence

import torch
from torch import nn

from .adapter import TagiAdapter


class InstructionCache:
    """Keeps the adapters of the last instructions, if it is asked to, until it is cleared.

    It is off at first. Turn it on where the model stays as it is: `model.instruction_cache.max_bytes = 2**28`. After
    anything that changes what the model makes of an instruction (a training step, loaded weights, a hook, PEFT's
    adapters), call `model.instruction_cache.clear()`: weights are not looked at. Only what is seen at once is told
    apart, namely another dtype, device or autocast, and another `lora_alpha` or `fusion` in the config.

    Args:
        max_bytes: Size of the adapters that are kept, the ones used last; 0 keeps none.
    """

    def __init__(self, max_bytes: int = 0):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[TagiAdapter, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):  # a copied model, or one in another process, starts with an empty one
        return InstructionCache, (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self):
        """Forgets all."""
        with self._lock:
            self._entries = OrderedDict()  # a new one: what is being computed does not come back

    def adapters(
        self, model: nn.Module, instructions: Sequence[tuple[int, ...]], compute: Callable[[list[tuple]], TagiAdapter]
    ) -> TagiAdapter:
        """An adapter for each of `instructions` (token ids); `compute` makes those of distinct ones that are new."""
        if self.max_bytes <= 0:
            return compute(list(instructions))
        way = _way_of(model)
        with self._lock:
            entries = self._entries
            found = {ids: entries[way, ids][0] for ids in dict.fromkeys(instructions) if (way, ids) in entries}
        new = [ids for ids in dict.fromkeys(instructions) if ids not in found]
        made = compute(new) if new else None
        used = found if made is None else {**found, **self._last_that_fit(new, made)}
        with self._lock:
            for ids, one in used.items():
                entries[way, ids] = entries.pop((way, ids), None) or (one, one.nbytes)
            size = sum(size for _, size in entries.values())
            while size > self.max_bytes:
                size -= entries.popitem(last=False)[1][1]
        # copies of what is kept: who changes one changes no other
        adapter = TagiAdapter.stack([*found.values(), *([made] if made is not None else [])]) if found else made
        order = {ids: number for number, ids in enumerate([*found, *new])}
        return adapter if list(order) == list(instructions) else adapter[[order[ids] for ids in instructions]]

    def _last_that_fit(self, instructions: list[tuple], adapters: TagiAdapter) -> dict[tuple, TagiAdapter]:
        """A copy of each, from the last one on, as many as there is room for."""
        copies, left = [], self.max_bytes
        for number in reversed(range(len(instructions))):
            copies.append((instructions[number], adapters[number]))
            left -= copies[-1][1].nbytes
            if left < 0:
                copies.pop()
                break
        return dict(reversed(copies))


def _way_of(model: nn.Module) -> tuple:
    """How an instruction is read now, as far as it can be told without looking at weights."""
    kind = model.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return model.dtype, model.device, autocast, model.config.lora_alpha, model.config.fusion
