"""Adapters in memory, above those on the disk: the ones in use are read once."""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import Executor

from ..adapter import TagiAdapter
from .adapters_on_disk import AdaptersOnDisk
from .metrics import Metrics


class Adapters:
    """Gives the adapters of instructions: from memory, from the disk, or made anew, once however many ask at once.

    Used on one event loop. What takes long is done in `worker`.

    Args:
        max_bytes: Of adapters in memory; those used the longest ago leave. One is always kept.
    """

    def __init__(self, disk: AdaptersOnDisk, worker: Executor, max_bytes: int, metrics: Metrics):
        self.disk, self.worker, self.max_bytes, self.metrics = disk, worker, max_bytes, metrics
        self._kept: OrderedDict[str, TagiAdapter] = OrderedDict()
        self._coming: dict[str, asyncio.Future] = {}

    @property
    def coming(self) -> int:
        """Returns how many adapters are being made or read."""
        return len(self._coming)

    def ready(self, instruction: str) -> bool:
        """Tells whether an instruction's adapter need not be made."""
        name = self.disk.id_of(instruction)
        return name in self._kept or name in self._coming or self.disk.find(name) is not None

    async def of(self, instruction: str) -> TagiAdapter:
        """Returns an instruction's adapter.

        Raises:
            ValueError, OSError: as `AdaptersOnDisk.folder_for`.
        """
        name = self.disk.id_of(instruction)
        on_disk = self.disk.find(name) is not None  # and notes that it is used
        if name in self._kept and on_disk:
            self._kept.move_to_end(name)
            self.metrics.adapters.labels("memory").inc()
            return self._kept[name]
        if name not in self._coming:
            loop = asyncio.get_running_loop()
            self._coming[name] = loop.create_task(self._bring(name, instruction, "disk" if on_disk else "made"))
        return await asyncio.shield(self._coming[name])  # another may wait for it when this client goes

    async def _bring(self, name: str, instruction: str, source: str) -> TagiAdapter:
        began = time.perf_counter()
        try:
            adapter = await asyncio.get_running_loop().run_in_executor(self.worker, self.disk.load, instruction)
        finally:
            del self._coming[name]
        self.metrics.adapters.labels(source).inc()
        if source == "made":
            self.metrics.adapter_seconds.observe(time.perf_counter() - began)
        self._keep(name, adapter)
        return adapter

    def _keep(self, name: str, adapter: TagiAdapter):
        self._kept[name] = adapter
        total = sum(one.nbytes for one in self._kept.values())
        while total > self.max_bytes and len(self._kept) > 1:
            _, left = self._kept.popitem(last=False)
            total -= left.nbytes
        self.metrics.memory.set(total)
