"""A generator at work for many clients: what the endpoints call."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import AsyncIterator, Callable, Optional, Sequence

from ..adapter import TagiAdapter
from ..modeling_tagi import TagiModel
from .adapters import Adapters
from .adapters_on_disk import AdaptersOnDisk, is_id
from .batching import Batcher, require_written
from .engine import Engine, one_input
from .limits import Limits, Refusal
from .metrics import Metrics
from .model_names import BACKBONE, ModelNames
from .replies import Shape
from .requests import ChatBody, CompletionBody
from .rows import Row

_NEW_TOKENS = 64  # where a request does not say; what `tagi run` takes


class Service:
    """Answers requests with one model: it finds or makes their adapters, and has their answers written in batches.

    What computes runs in one thread of its own, what reads and packs texts and files in another.

    Args:
        names: Instructions by the short names that requests may use.
    """

    def __init__(
        self, model: TagiModel, disk: AdaptersOnDisk, limits: Limits = Limits(), names: Optional[dict[str, str]] = None
    ):
        self.disk, self.limits, self.metrics = disk, limits, Metrics()
        self.engine = Engine(model, limits)
        backbone = model.adapter_base()["backbone"]
        self.names = ModelNames(backbone or BACKBONE, dict(names or {}), disk)
        for instruction in self.names.names.values():
            self.engine.require_instruction(instruction)
        self.computer = ThreadPoolExecutor(1, thread_name_prefix="computer")
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self.adapters = Adapters(disk, self.computer, limits.memory_bytes, self.metrics)
        on_cpu = model.device.type == "cpu"
        self.batcher = Batcher(self.engine.run, self.computer, limits, self.metrics, on_cpu)
        self.began = int(time.time())
        self._working: Optional[asyncio.Task] = None

    def start(self):
        """Starts to work on what is asked, on the event loop that runs."""
        self._working = self.batcher.start()

    async def stop(self):
        """Ends the work; whoever waits has been answered before."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        for executor in (self.computer, self.reader):
            executor.shutdown(wait=True)

    # Answers

    async def complete(self, body: CompletionBody) -> "Answering":
        """Takes a request for completions; see [`Answering`].

        Raises:
            Refusal: if it cannot be done.
        """
        adapted = self.names.instruction_of(body.model) is not None
        read = self.engine.read_input if adapted else self.engine.read_text
        return await self._ask(body, False, body.max_tokens, lambda: [read(text) for text in body.texts()])

    async def chat(self, body: ChatBody) -> "Answering":
        """Takes a request for the answer to messages; see [`Answering`].

        Raises:
            Refusal: if it cannot be done.
        """
        messages = [message.plain() for message in body.messages]
        most = body.max_completion_tokens or body.max_tokens

        def read():
            if self.names.instruction_of(body.model) is None:
                return [self.engine.read_messages(messages)]
            return [self.engine.read_input(one_input(messages, "an adapter"))]

        return await self._ask(body, True, most, read)

    async def _ask(self, body, chat: bool, most: Optional[int], read: Callable[[], list[Row]]) -> "Answering":
        most = min(_NEW_TOKENS, self.limits.new_tokens) if most is None else most
        if most > self.limits.new_tokens:
            message = f"max_tokens is {most}, but may be {self.limits.new_tokens}; ask for fewer"
            raise Refusal(400, message, "max_tokens")
        copies = body.n or 1
        asked = (len(body.texts()) if isinstance(body, CompletionBody) else 1) * copies
        self.batcher.require_room(asked)  # before work is done for nothing
        rows = await asyncio.get_running_loop().run_in_executor(self.reader, read)
        instruction = self.names.instruction_of(body.model)
        adapter = None if instruction is None else await self.adapter_of(instruction)
        name = None if instruction is None else self.disk.id_of(instruction)
        rows = [row if copy == 0 else Row(row.ids, ends=row.ends) for row in rows for copy in range(copies)]
        for number, row in enumerate(rows):
            row.adapter, row.name, row.max_new_tokens = adapter, name, most
            row.temperature = body.temperature or 0.0
            row.top_p = body.top_p or 1.0
            row.seed = None if body.seed is None else body.seed + number
            row.stop = tuple(body.stop or ())
            self.engine.require_room(row)
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Answering(self.batcher, rows, Shape(chat, body.model), copies, bool(body.stream), with_usage)

    # Adapters

    async def adapter_of(self, instruction: str) -> TagiAdapter:
        """Returns the adapter of an instruction, which is made once, however many ask.

        Raises:
            Refusal: if the instruction cannot be read, or too many others wait.
        """
        if not self.adapters.ready(instruction):
            if self.adapters.coming >= self.limits.waiting:
                self.metrics.turned_away.inc()
                seconds = self.batcher.seconds_of_queue()
                message = f"{self.adapters.coming} adapters are to be made already; try again in {seconds} s"
                raise Refusal(429, message, retry_after=seconds)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.reader, self.engine.require_instruction, instruction)
        return await self.adapters.of(instruction)

    def folder_of(self, name: str) -> Path:
        """Returns the folder of the adapter with an id.

        Raises:
            Refusal: with status 404 if there is none.
        """
        folder = self.disk.find(name) if is_id(name) else None
        if folder is None:
            raise Refusal(404, f"there is no adapter {name[:100]!r}; POST its instruction to /v1/adapters to make it")
        return folder

    def described(self, name: str) -> dict:
        """Returns what is said of the adapter with an id.

        Raises:
            Refusal: with status 404 if there is none.
        """
        folder = self.folder_of(name)
        return {
            "id": name,
            "object": "adapter",
            "instruction": self.disk.instruction_of(name),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "download": f"/v1/adapters/{name}/download",
        }

    # What there is

    def models(self) -> list[dict]:
        """Returns what `model` may be, but for instructions."""
        return [self._model(name) for name in [self.names.backbone, *self.names.names, *self.disk.ids()]]

    def model(self, name: str) -> dict:
        """Returns what a `model` stands for.

        Raises:
            Refusal: with status 404 if it stands for nothing.
        """
        return {**self._model(name), "instruction": self.names.instruction_of(name)}

    def _model(self, name: str) -> dict:
        return {"id": name, "object": "model", "created": self.began, "owned_by": "tagi"}

    def state(self) -> dict:
        """Returns how much is being done."""
        return {"waiting": len(self.batcher.waiting), "running": self.batcher.running}


class Answering:
    """Writes the answers of one request, whole or piece by piece.

    Raises:
        Refusal: at once, if the queue has no room for them.
    """

    def __init__(
        self, batcher: Batcher, rows: Sequence[Row], shape: Shape, copies: int, streams: bool, with_usage: bool
    ):
        self.rows, self.shape, self.copies, self.streams, self.with_usage = rows, shape, copies, streams, with_usage
        self._pieces: asyncio.Queue = asyncio.Queue()
        if streams:
            loop = asyncio.get_running_loop()
            for number, row in enumerate(rows):
                row.tell = lambda text, number=number: loop.call_soon_threadsafe(
                    self._pieces.put_nowait, (number, text)
                )
        self._ended = batcher.submit(rows)

    async def whole(self) -> dict:
        """Returns the answer when all of it is written.

        Raises:
            Refusal: if it could not be.
        """
        await asyncio.gather(*self._ended)
        for row in self.rows:
            require_written(row)
        return self.shape.whole(self.rows, self.copies)

    async def events(self) -> AsyncIterator[bytes]:
        """Yields the answer as server-sent events while it is written. If nobody reads on, the rest is not written.

        Raises:
            Refusal: if it could not be.
        """
        for number, ended in enumerate(self._ended):
            ended.add_done_callback(lambda _, number=number: self._pieces.put_nowait((number, None)))
        try:
            for number in range(len(self.rows)):
                if (first := self.shape.begin(number)) is not None:
                    yield first
            left = len(self.rows)
            while left:
                number, text = await self._pieces.get()
                if text is not None:
                    yield self.shape.piece(number, text)
                    continue
                require_written(self.rows[number])
                left -= 1
                yield self.shape.end(number, self.rows[number])
            if self.with_usage:
                yield self.shape.usage(self.rows, self.copies)
        finally:
            self.cancel()

    def cancel(self):
        """Gives up what is not written yet."""
        for row in self.rows:
            row.cancelled = row.finished is None
