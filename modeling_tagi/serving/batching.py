"""Collects answers that are asked for at once, and has those that are alike written in one forward pass."""

import asyncio
import math
import time
from concurrent.futures import Executor
from typing import Callable, Sequence

from ..tokens import alike_in_length
from .engine import kind_of, shown
from .limits import Limits, Refusal
from .metrics import Metrics
from .rows import Row

_WINDOWS = 10  # a batch waits for so many windows at most
_STEPS = 4  # rows whose lengths differ by up to this factor may share a batch


def choose(waiting: Sequence[Row], at_most: int, on_cpu: bool = True) -> list[Row]:
    """Returns the rows of the next batch: the one that has waited longest, and those that go well with it.

    They are of its kind, may become about as long, and have inputs of like length, for little padding.
    """
    first = waiting[0]
    alike = [row for row in waiting if kind_of(row) == kind_of(first) and _level(row) == _level(first)]
    for group in alike_in_length([len(row.ids) for row in alike], on_cpu=on_cpu):
        if 0 in group:
            return [alike[number] for number in group[:at_most]]
    return [first]


def _level(row: Row) -> int:
    return int(math.log(row.max_new_tokens, _STEPS))


class Batcher:
    """Runs rows in batches, in one worker thread, off the event loop.

    A batch starts when it is full, when no request came for a window, or when the first of it has waited for ten.
    While one runs, the next collects.

    Args:
        run: Writes the answers of rows that may share a batch; called in `worker`.
        worker: An executor of one thread.
    """

    def __init__(
        self, run: Callable[[Sequence[Row]], None], worker: Executor, limits: Limits, metrics: Metrics, on_cpu: bool
    ):
        self.run, self.worker, self.limits, self.metrics, self.on_cpu = run, worker, limits, metrics, on_cpu
        self.waiting: list[Row] = []
        self.running = 0
        self._ended: dict[Row, asyncio.Future] = {}
        self._some = asyncio.Event()
        self._per_second = 0.0  # answers, lately

    def start(self) -> asyncio.Task:
        """Starts to work on what comes, in a task that runs until it is cancelled."""
        return asyncio.get_running_loop().create_task(self._work())

    def require_room(self, rows: int):
        """Refuses rows for which the queue has no room.

        Raises:
            Refusal: with status 429 and the seconds after which to try again, or 400 if they can never fit.
        """
        if rows > self.limits.waiting:
            raise Refusal(
                400, f"the request asks for {rows} answers, but {self.limits.waiting} may wait; ask for fewer at once"
            )
        if len(self.waiting) + rows > self.limits.waiting:
            self.metrics.turned_away.inc()
            seconds = self.seconds_of_queue()
            raise Refusal(
                429,
                f"{len(self.waiting)} answers wait already, and {self.limits.waiting} may; try again in {seconds} s",
                retry_after=seconds,
            )

    def seconds_of_queue(self) -> int:
        """Returns the seconds that what waits will take, as far as is known; at least 1."""
        if not self._per_second:
            return 1
        return min(60, max(1, math.ceil(len(self.waiting) / self._per_second)))

    def submit(self, rows: Sequence[Row]) -> list[asyncio.Future]:
        """Queues rows; returns for each what is done when its answer is written.

        Raises:
            Refusal: if the queue has no room for them.
        """
        self.require_room(len(rows))
        self.waiting += rows
        self.metrics.waiting.set(len(self.waiting))
        futures = [asyncio.get_running_loop().create_future() for _ in rows]
        self._ended.update(zip(rows, futures))
        self._some.set()
        return futures

    async def _work(self):
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            await self._collect()
            rows = choose(self.waiting, self.limits.batch, self.on_cpu)
            chosen = set(rows)
            self.waiting = [row for row in self.waiting if row not in chosen]
            if not self.waiting:
                self._some.clear()
            self.metrics.waiting.set(len(self.waiting))
            began = time.perf_counter()
            self.running = len(rows)
            try:
                await loop.run_in_executor(self.worker, self.run, rows)
            finally:
                self.running = 0
                self._end(rows)
            self._note(rows, time.perf_counter() - began)

    async def _collect(self):
        """Waits until a batch is full, or nothing new came for a window."""
        for _ in range(_WINDOWS):
            before = len(self.waiting)
            if before >= self.limits.batch or not self.limits.window or self.limits.batch == 1:
                return
            await asyncio.sleep(self.limits.window)
            if len(self.waiting) == before:
                return

    def _end(self, rows: Sequence[Row]):
        for row in rows:
            future = self._ended.pop(row)
            if not future.done():
                future.set_result(None)

    def _note(self, rows: Sequence[Row], seconds: float):
        self.metrics.batch_rows.observe(len(rows))
        self.metrics.batch_seconds.observe(seconds)
        self.metrics.tokens.labels("read").inc(sum(len(row.ids) for row in rows))
        self.metrics.tokens.labels("written").inc(sum(len(row.written) for row in rows))
        now = len(rows) / max(seconds, 1e-6)
        self._per_second = 0.8 * self._per_second + 0.2 * now if self._per_second else now


def require_written(row: Row):
    """Refuses what an answer could not be written for.

    Raises:
        Refusal: with status 400 if the request is to blame, else 500.
    """
    if row.error is not None:
        ours = not isinstance(row.error, (ValueError, TypeError))
        raise Refusal(500 if ours else 400, shown(row.error)) from row.error
