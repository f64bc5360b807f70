"""Adapters of instructions that were read before: the same bytes, without a second computation."""

import threading
from collections import OrderedDict
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .adapter import TagiAdapter

_PROBED = 32  # numbers of each tensor


class InstructionCache:
    """The adapters of the last instructions, as long as the model's weights stay as they are.

    Weights are taken to have changed if a tensor is another one, lies elsewhere, or was written to: torch counts every
    write but those through `.data` and by foreign kernels, for which some numbers of every tensor are looked at as
    well. Who changes a few single numbers through `.data` must call `clear`.

    Args:
        max_bytes: Size of the adapters that are kept, the ones used last; 0 keeps none.
    """

    def __init__(self, max_bytes: int = 256 * 2**20):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple, tuple[TagiAdapter, int]] = OrderedDict()
        self._state: Optional[tuple] = None
        self._lock = threading.Lock()

    def __reduce__(self):  # a copied model, or one in another process, starts with an empty one
        return InstructionCache, (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self):
        """Forgets all."""
        with self._lock:
            self._entries, self._state = OrderedDict(), None

    def adapters(
        self, model: nn.Module, instructions: Sequence[tuple[int, ...]], compute: Callable[[list[tuple]], TagiAdapter]
    ) -> TagiAdapter:
        """An adapter for each of `instructions` (token ids); `compute` makes those of distinct ones that are new."""
        state = _state_of(model) if self.max_bytes > 0 else None
        if state is None:
            return compute(list(instructions))
        with self._lock:
            if state != self._state:
                self._entries, self._state = OrderedDict(), state
            entries = self._entries  # of these weights: another thread may find others
            found = {ids: entries[ids][0] for ids in dict.fromkeys(instructions) if ids in entries}
        new = [ids for ids in dict.fromkeys(instructions) if ids not in found]
        made = compute(new) if new else None
        used = found if made is None else {**found, **self._last_that_fit(new, made)}
        with self._lock:
            for ids, one in used.items():
                entries[ids] = entries.pop(ids, None) or (one, one.nbytes)
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


def _state_of(model: nn.Module) -> Optional[tuple]:
    """What an adapter of the model depends on beside the instruction; `None` where that cannot be told."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(x.is_inference() or x.device.type == "meta" or is_traceable_wrapper_subclass(x) for x in tensors):
        return None  # writes are not counted, there is nothing to look at, or it is spread over devices
    kind = tensors[0].device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    # none is kept alive by this: of a freed tensor's place and number another would have to have the same content
    places = tuple((id(x), x.data_ptr(), x._version, x.dtype, x.device) for x in tensors)
    return autocast, places, _probe(tensors)


def _probe(tensors: Sequence[Tensor]) -> bytes:
    """Some numbers of each tensor, spread over it."""
    parts: dict[torch.device, list[Tensor]] = {}
    for x in tensors:
        flat = x.detach().reshape(-1)
        parts.setdefault(x.device, []).append(flat[:: max(1, flat.numel() // _PROBED)][:_PROBED].float())
    return b"".join(torch.cat(of_device).cpu().numpy().tobytes() for of_device in parts.values())
