"""A bank's adapters by number, read when a batch needs them, so that only a few of thousands are in memory."""

from collections import OrderedDict
from typing import Sequence, Union

import torch
from torch import Tensor

from ..adapter import TagiAdapter
from .adapter_bank import AdapterBank, joined

KEPT_BYTES = 2 * 2**30


class StoredAdapters:
    """Reads adapters from a bank on demand, instead of holding them all in memory.

    `stored[index]` is equal to indexing a [`TagiAdapter`] of all adapters. On a CPU files are memory-mapped, so the
    system can take their pages back when it needs them.

    Args:
        bank: The bank to read from.
        device: The device of the adapters that are returned.
        max_bytes: Most bytes of adapters to keep, those used last; a batch's own are in memory in any case.
    """

    def __init__(self, bank: AdapterBank, device: Union[str, torch.device] = "cpu", max_bytes: int = KEPT_BYTES):
        self.bank, self.device, self.max_bytes = bank, torch.device(device), max_bytes
        self._names = bank.names
        self._kept: OrderedDict[int, TagiAdapter] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Union[Sequence[int], Tensor]) -> TagiAdapter:
        """Returns the adapters of `index [tasks]` stacked into one, of the highest rank among them.

        Raises:
            IndexError: if there is no such adapter.
        """
        numbers = [int(number) for number in index]
        for number in numbers:
            if not 0 <= number < len(self):
                raise IndexError(f"adapter {number} of {len(self)}; give numbers of AdapterBank.numbers()")
        read = {number: self._read(number) for number in dict.fromkeys(numbers)}
        return joined([read[number] for number in numbers])

    def _read(self, number: int) -> TagiAdapter:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        adapter = self.bank.read(self._names[number], self.device)
        self._kept[number] = adapter
        self._bytes += adapter.nbytes
        while self._bytes > self.max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return adapter
