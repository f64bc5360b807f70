"""Runs adapters on a GGUF base in llama.cpp, by the package `xllamacpp`."""

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional, Sequence, Union

from ..common.gguf_files import gguf_path
from ..hub import is_gguf

_ROOM = 16  # places of the context beyond what is asked for


def start_server(
    base: Union[str, os.PathLike],
    adapters: Sequence[Union[str, os.PathLike]] = (),
    context: int = 2048,
    parallel: int = 1,
    threads: Optional[int] = None,
):
    """Returns llama.cpp's server in this process, reachable from this machine alone.

    Keys and values are kept in float32 and attention is not the fused one, which rounds to float16: with a float32
    base outputs are those of transformers to rounding.

    Args:
        base: A GGUF model.
        adapters: GGUF LoRAs, all in force at scale 1 unless a request says otherwise.
        context: Places of one sequence.
        parallel: Sequences at once.
        threads: Of the CPU; `None` leaves it to llama.cpp.

    Raises:
        ImportError: if `xllamacpp` is missing.
        ValueError: if llama.cpp does not load the base with these adapters.
    """
    require_xllamacpp()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = os.fspath(base)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(os.fspath(file), 1.0) for file in adapters]
    params.n_ctx, params.n_parallel = context * parallel, parallel
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_ram_mib = 0  # it keeps what a prompt came to, and takes that for another adapter's too
    params.warmup, params.verbosity = False, -1
    threads = threads or int(os.environ.get("OMP_NUM_THREADS", 0))
    if threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        with_adapters = f" with {', '.join(map(str, adapters))}" if adapters else ""
        raise ValueError(
            f"llama.cpp does not load {base}{with_adapters} ({' '.join(str(error).split())}); the file is cut off, is "
            "no model, or is another model than the adapter is for"
        ) from None


class LlamaCpp:
    """Answers inputs with one adapter on a GGUF base.

    Args:
        base: A GGUF model.
        adapter: A GGUF LoRA.
        longest: Tokens of the longest input and its output together.
        at_once: Inputs that are worked on together.
    """

    def __init__(self, base: Union[str, os.PathLike], adapter: Union[str, os.PathLike], longest: int, at_once: int):
        self._server = start_server(base, [adapter], longest + _ROOM, at_once)
        self._at_once = at_once

    def answers(self, inputs: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
        """Returns the greedy outputs of inputs given as token ids, without special tokens.

        Raises:
            RuntimeError: if llama.cpp refuses one, with its words.
        """
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(lambda ids: self._answer(ids, max_new_tokens), inputs))

    def _answer(self, ids: Sequence[int], max_new_tokens: int) -> str:
        found = self._server.handle_completions(
            {"prompt": list(ids), "max_tokens": max_new_tokens, "temperature": 0, "cache_prompt": False}
        )
        if "choices" not in found:
            raise RuntimeError(f"llama.cpp refused an input of {len(ids)} tokens: {found}")
        return found["choices"][0]["text"]


def require_xllamacpp():
    """Refuses to go on without the package `xllamacpp`."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ImportError("the engine llama.cpp takes the package xllamacpp: pip install xllamacpp")


def base_for(config, base: Optional[str]) -> Path:
    """Returns the GGUF file that a checkpoint's adapters run on: `base`, else the backbone that the checkpoint names.

    Args:
        config: A [`TagiConfig`].

    Raises:
        ValueError: if llama.cpp cannot run the checkpoint's adapters, or there is no GGUF file.
        OSError: if the file is not there.
    """
    kind = config.backbone_config.model_type
    if config.fusion != "none":
        raise ValueError(
            f"the generator has fusion {config.fusion!r}: its model attends to the encoded instruction, which "
            "llama.cpp does not know. Leave out --engine, or train with --tagi.fusion none"
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"the backbone ({kind}) is an encoder-decoder, which llama.cpp's server does not run; leave out --engine"
        )
    name = base if base is not None else config.backbone_name_or_path
    if is_gguf(name):
        return Path(gguf_path(name, config.backbone_revision if base is None else None))
    what = f"--base is {base!r}" if base is not None else f"the backbone is {name or 'in the checkpoint alone'}"
    raise ValueError(
        f"{what}, but the engine llama.cpp takes a GGUF file: convert the backbone with llama.cpp's "
        "convert_hf_to_gguf.py, and give --base FILE.gguf"
    )
