"""The plugin for vLLM: makes the adapter that a request names as its model, and gives vLLM its folder.

vLLM loads it (entry point `tagi_resolver` in setup.cfg) in every one of its processes; it does nothing where the
environment, which `tagi vllm` sets, names no checkpoint.
"""

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Mapping, Optional, Union

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from ..adapter import TagiAdapter
from ..modeling_tagi import TagiModel
from ..tokens import read_instructions
from .adapters_on_disk import AdaptersOnDisk, adapters_folder
from .generator_mark import generator_mark
from .vllm_options import (
    ADAPTERS,
    CHECKPOINT,
    NAMES,
    PLUGIN,
    instruction_of,
    served_config,
    short_names,
)

logger = init_logger(f"vllm.{PLUGIN}")  # vLLM shows its own loggers alone


class TagiResolver(LoRAResolver):
    """Gives vLLM the adapters of a generator, which it computes in a thread of its own, one after the other.

    Args:
        checkpoint: A folder, or a repository on the Hub.
        folder: Where adapters are kept; processes and machines may share it.
        names: Short name -> instruction.

    Raises:
        ValueError: if vLLM cannot apply the generator's adapters.
    """

    def __init__(self, checkpoint: str, folder: Union[str, os.PathLike], names: Optional[Mapping[str, str]] = None):
        served_config(checkpoint)
        self.checkpoint, self.folder, self.names = checkpoint, Path(folder), dict(names or {})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=PLUGIN)
        self._loaded: Optional[Future] = None
        self._generating = 0.0  # seconds that the last adapter took to compute

    def load(self) -> Future:
        """Starts to load the generator, unless it is loaded; returns what has its adapters in the end."""
        if self._loaded is None:
            self._loaded = self._thread.submit(self._load)
        return self._loaded

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Optional[LoRARequest]:
        """Returns the adapter that a request names as its model; `None` if it is no name of ours.

        Raises:
            ValueError: for an instruction that the generator cannot read; vLLM answers 400 with the message.
            OSError: if the adapter cannot be written.
        """
        instruction = instruction_of(lora_name, self.names)
        if instruction is None:
            return None
        self.load()
        asked = time.perf_counter()
        path = await asyncio.get_running_loop().run_in_executor(self._thread, self._path, instruction, asked)
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=path)  # vLLM gives it a number of its own

    def _load(self) -> AdaptersOnDisk:
        """Loads the generator; it runs in the thread, as what follows."""
        began = time.perf_counter()
        try:
            model = TagiModel.from_pretrained(self.checkpoint).eval()
            self._generate = model.generate_adapter
            adapters = AdaptersOnDisk(self.folder, self._timed, generator_mark(model))
        except Exception as error:
            said = f"the generator {self.checkpoint} cannot be loaded, so no request gets an adapter: {error}"
            logger.error(said)
            raise RuntimeError(said) from error  # no fault of a request's, as a ValueError would be
        logger.info("the generator %s was loaded in %.1f s; adapters are kept in %s", self.checkpoint,
                    time.perf_counter() - began, self.folder)  # fmt: skip
        for name, instruction in self.names.items():
            try:
                read_instructions(model, instruction)
            except ValueError as error:
                logger.error("requests for the name %r will be refused: %s", name, error)
        return adapters

    def _path(self, instruction: str, asked: float) -> str:
        """Returns the folder of an instruction's adapter, and logs what it took where it was not there."""
        adapters = self._loaded.result()
        began, self._generating = time.perf_counter(), 0.0
        folder = adapters.folder_for(instruction)
        if self._generating:
            ended = time.perf_counter()
            logger.info(
                "adapter %.12s was made in %.3f s (waiting %.3f s, the generator %.3f s, the disk %.3f s): %.80r",
                folder.name, ended - asked, began - asked, self._generating, ended - began - self._generating,
                instruction,
            )  # fmt: skip
        return str(folder)

    def _timed(self, instruction: str) -> TagiAdapter:
        began = time.perf_counter()
        adapter = self._generate(instruction)
        self._generating = time.perf_counter() - began
        return adapter


def register():
    """Registers a resolver for the checkpoint that the environment names, if it names one."""
    checkpoint, names = os.environ.get(CHECKPOINT), os.environ.get(NAMES)
    if not checkpoint:
        return
    folder = adapters_folder(os.environ.get(ADAPTERS))
    resolver = TagiResolver(checkpoint, folder, short_names(names) if names else None)
    LoRAResolverRegistry.register_resolver(PLUGIN, resolver)
    # Not in the engine or a worker, which answer no requests; and a thread would not survive if these were forked.
    if multiprocessing.parent_process() is None and os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "spawn":
        resolver.load()
