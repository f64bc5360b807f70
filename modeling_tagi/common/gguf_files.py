"""Backbones from GGUF files, which are converted once to a folder that transformers reads like any other model's.

Such a backbone has a name that ends in the file's: `folder/model.gguf`, `user/name/model.gguf` of a repository, or
`package:module/model.gguf` of an installed package, whose code is not run.
"""

import hashlib
import importlib.util
import os
import shutil
import struct
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Optional

from huggingface_hub import cached_assets_path

from ..hub import GGUF_READER, PACKAGE, repository_of
from .given_files import require_described

_NUMBERS_A_BYTE = 8  # in the smallest of GGUF's types
_OF_THE_FILE = ("quantization_config", "_name_or_path", "dtype", "torch_dtype", "transformers_version")


def gguf_path(name: str, revision: Optional[str] = None, **access) -> str:
    """Returns the path of a backbone's GGUF file, which is fetched if it is of a repository.

    Raises:
        OSError: if it is not there.
    """
    if os.path.isfile(name):
        return name
    if name.startswith(PACKAGE):
        module, _, file = name[len(PACKAGE):].partition("/")
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"the backbone is {name!r}, but there is no installed package {module!r}; install it with pip"
            )
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        inside = ".." not in Path(file).parts and not Path(file).is_absolute()
        found = next((folder / file for folder in folders if inside and (folder / file).is_file()), None)
        if found is None:
            held = sorted(path.name for folder in folders for path in folder.glob("*.gguf"))
            raise FileNotFoundError(
                f"the backbone is {name!r}, but the package has no such file; its GGUF files: {', '.join(held) or '-'}"
            )
        return str(found)
    folder = os.path.dirname(name)
    if os.path.isabs(name) or name.startswith((".", "~")) or os.path.isdir(folder) or name.count("/") < 2:
        raise FileNotFoundError(f"the backbone is {name!r}, but there is no such file")
    from transformers.utils import cached_file

    repository = repository_of(name)
    return cached_file(repository, name[len(repository) + 1:], revision=revision, **access)


def converted(name: str, revision: Optional[str] = None, **access) -> str:
    """Returns the folder that transformers reads in place of a GGUF file.

    The folder (float32, with config and tokenizer) lies in the cache of `huggingface_hub` for assets, by the file's
    SHA-256, with which its name begins, and is made if it is not there.

    Raises:
        OSError: if the file is not there.
        ValueError: if it cannot be read.
        ImportError: if the package `gguf` is missing.
    """
    file = gguf_path(name, revision, **access)
    key = f"{file_hash(file)}-{version('transformers')}"
    folder = cached_assets_path("modeling-tagi", namespace="gguf") / key
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.mkdtemp(dir=folder.parent, prefix=".")
        try:
            _convert(name, file, beside)
            if not folder.exists():  # another process may have been first
                os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return str(folder)


def require_gguf(what: str):
    """Refuses to go on without the package `gguf`, which `what` takes."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"{what} takes the package gguf: pip install gguf")


def file_hash(file: str) -> str:
    """Returns the SHA-256 of all bytes of a file."""
    found = os.stat(file)
    return _hash(os.path.realpath(file), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _hash(file: str, *_) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(name: str, file: str, folder: str):
    require_gguf(f"the backbone {name!r} is a GGUF file, which")
    import torch  # takes seconds, which commands that read no backbone do without
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": os.path.dirname(file) or ".", "gguf_file": os.path.basename(file)}
    what = "the weights"
    try:
        config = AutoConfig.from_pretrained(**place, trust_remote_code=False)  # nosec B615 # a file of this machine
        what = "the config"
        require_described(config.to_dict(), file, _NUMBERS_A_BYTE * os.path.getsize(file), _tensors_in(file))
        what = "the weights"
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        read = auto.from_pretrained(**place, dtype=torch.float32, trust_remote_code=False)
        what = "the tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)  # nosec B615 # the same
    except Exception as error:  # the reader raises whatever a broken file leads to
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{what} of the backbone {name!r} cannot be read ({said[:200]}): the file is cut off or broken, has no "
            "tokenizer, or is of an architecture that transformers does not read from GGUF"
        ) from error
    fields = {key: value for key, value in config.to_dict().items() if key not in _OF_THE_FILE}
    # a model that was read from GGUF counts as quantized, and is not saved
    model = auto.from_config(type(config).from_dict(fields), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def _tensors_in(file: str) -> int:
    """Returns how many tensors a GGUF file says that it has, as far as there is room for what describes them."""
    with open(file, "rb") as stream:
        (count,) = struct.unpack("<Q", stream.read(16)[8:])
    return min(count, os.path.getsize(file) // 32)


GGUF_READER.append(converted)
