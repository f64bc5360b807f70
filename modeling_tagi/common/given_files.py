"""Looks at a model's files, which may come from anyone, before a model is made of them.

transformers makes the model that a config.json describes before it compares it with the weights, so a config of a few
bytes could ask for all memory there is. It follows links and names of files, and loads kernels that a config names.
"""

import json
import math
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, Optional, Union

from ..hub import GUARDS
from .chat_templates import require_bounded

_KERNELS = ("attn_implementation", "experts_implementation")  # also with "_" before and "_internal" behind
_SPARE = 2**20  # numbers that a model may have beyond what is stored: buffers, gates
_LAYERS = 512  # that may be described whatever is stored: a generator's checkpoint may leave its backbone out
_MEND = "take the checkpoint from where it was made, or do not use it"


def look_at(name: Any, revision: Optional[str] = None, tokenizer: Any = None, **access: Any):
    """Refuses a folder or repository of a model whose files lead elsewhere or describe what its weights are not.

    Args:
        name: A folder, or a repository, of which the config and the weights are then fetched.
        tokenizer: That of the model; then its chat template alone is looked at.
        revision, access: What it is read with: `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    from ..named_backbone import file_of  # imports torch, which takes seconds

    if tokenizer is not None:
        return require_bounded(tokenizer, name)
    folder = Path(name, access.get("subfolder") or "")
    if folder.is_dir():
        require_own_files(folder)
    file = file_of(str(name), "config.json", revision, **access)
    if file is None:
        return
    fields = _object(file)
    _require_no_kernels(fields, file)
    _require_known_types(fields, file)
    weights = [file_of(str(name), "model.safetensors", revision, **access)]
    index = None if weights[0] else file_of(str(name), "model.safetensors.index.json", revision, **access)
    if index is not None:
        weights = [file_of(str(name), shard, revision, **access) for shard in require_shards(index)]
    for path in filter(None, weights):
        _require_safetensors(path)
    if all(weights):
        _require_stored(file, *((path, os.stat(path).st_mtime_ns) for path in (file, *weights)))


# Places


def require_own_files(folder: Path, whole: Optional[Path] = None):
    """Refuses a folder with a link that leads out of it; links of the Hub's cache lead to its blobs.

    Args:
        folder: Is looked into, not the folders in it.
        whole: What links may lead to; `None` is the folder itself.

    Raises:
        ValueError: naming the link.
    """
    home = os.path.realpath(whole or folder)
    for entry in os.scandir(folder):
        if entry.is_symlink():
            place = os.path.realpath(entry.path)
            if os.path.commonpath([home, place]) != home and os.path.basename(os.path.dirname(place)) != "blobs":
                raise ValueError(
                    f"{entry.path} is a link that leads out of its folder, to {place}; put the file itself there, if "
                    "it is meant to be there"
                )


def require_shards(index: Union[str, Path]) -> list[str]:
    """Returns the names of the files that an index of shards lists.

    Raises:
        ValueError: if it is no index, or names anything but files of safetensors beside it.
    """
    try:
        names = sorted(set(_object(index)["weight_map"].values()))
        plain = all(name.endswith(".safetensors") and os.path.basename(name) == name for name in names)
    except (LookupError, TypeError, AttributeError):
        raise ValueError(f"{index} is broken (it is no index of files with weights); {_MEND}") from None
    strange = [name for name in names if not name.endswith(".safetensors") or os.path.basename(name) != name]
    if not plain:
        raise ValueError(f"{index} names {strange[0]!r}, but must name files of safetensors beside it; {_MEND}")
    return names


def _require_safetensors(path: str):
    from safetensors import SafetensorError, safe_open

    try:
        safe_open(os.path.realpath(path), framework="pt").__exit__(None, None, None)
    except SafetensorError as error:
        raise ValueError(f"{path} is broken ({error}); save the checkpoint again, or download it again") from None


# Configurations


def _object(file: Union[str, Path]) -> dict:
    try:
        found = json.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is broken, it is not a valid JSON file ({error}); {_MEND}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is broken, it holds a {type(found).__name__}, but must hold an object; {_MEND}")
    return found


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the fields of an object and of the objects in it."""
    for name, inner in value.items():
        yield name, inner
        if isinstance(inner, dict):
            yield from _fields(inner)


def _require_no_kernels(fields: dict, file: str):
    """Refuses a config that names a repository for its attention: its code would be fetched, and run."""
    for name, value in _fields(fields):
        if name.removeprefix("_").removesuffix("_internal") in _KERNELS:
            named = [x for x in (value.values() if isinstance(value, dict) else [value]) if "/" in str(x)]
            if named:
                raise ValueError(
                    f"{file}: {name} is {named[0]!r}, a repository of kernels, whose code would run; take the line "
                    "out, and give attn_implementation when you load the model, if you trust it"
                )


def _require_known_types(fields: dict, file: str):
    """Refuses a model of a type that only its own code knows, and what only who loads a generator may choose."""
    from transformers import CONFIG_MAPPING

    tagi = fields.get("model_type") == "tagi"
    inner = fields.get("backbone_config") if tagi else fields
    if not isinstance(inner, dict):  # TagiConfig says what it has to be
        return
    kind = inner.get("model_type")
    if isinstance(kind, str) and (kind not in CONFIG_MAPPING or tagi and kind == "tagi"):
        where = "backbone_config.model_type" if tagi else "model_type"
        raise ValueError(
            f"{file}: {where} is {kind!r}, which this transformers does not know as a language model's; code of its "
            "own would have to run (trust_remote_code), which a backbone's never does here: take another backbone"
        )
    if tagi and (fields.get("quantization_config") or inner.get("quantization_config")):
        raise ValueError(
            f"{file} has a quantization_config, which is chosen by whoever loads the model: take it out, and give it "
            "to from_pretrained"
        )


# Sizes


@lru_cache(maxsize=64)
def _require_stored(config: str, *files: tuple[str, int]):
    """Refuses a config of a model that is larger than its weights; files are given with their times."""
    stored = {name: shape for path, _ in files[1:] for name, shape in _shapes(path).items()}
    if stored:
        fields = _object(config)
        packed = 16 if "quantization_config" in fields else 1  # two bits a number, in whole numbers of 32 bits
        described = require_described(fields, config, sum(map(math.prod, stored.values())) * packed, len(stored))
        other = [name for name, shape in described.items() if stored.get(name, shape) != shape]
        if other and packed == 1 and fields.get("model_type") != "tagi":  # whose loader says it of each tensor
            raise ValueError(
                f"{config} says that {other[0]} is of the shape {described[other[0]]}, but the weights beside it have "
                f"{stored[other[0]]} ({len(other)} tensors differ); {_MEND}"
            )


def require_described(fields: dict, file: str, numbers: int, tensors: int) -> dict[str, list[int]]:
    """Refuses a config of a model that could not have its weights; the model is made without memory for that.

    Returns:
        The shapes of the model's tensors by name.

    Args:
        fields: The config.
        file: Its file, for messages.
        numbers, tensors: How many the weights hold.

    Raises:
        ValueError: naming the file, and what is too large.
    """
    for name, value in _fields(fields):
        if "layer" in str(name) and type(value) is int and value > max(tensors, _LAYERS):
            raise ValueError(f"{file}: {name} is {value}, but the weights beside it hold {tensors} tensors; {_MEND}")
    try:
        described = _described(fields)
    except (ArithmeticError, MemoryError, RecursionError, RuntimeError, TypeError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} describes no model that can be made ({said}); {_MEND}") from error
    most, total = 2 * numbers + _SPARE, sum(map(math.prod, described.values()))
    if total > most:
        raise ValueError(
            f"{file} describes a model of {total:.3g} numbers, but the weights beside it hold {numbers:.3g}; {_MEND}"
        )
    return described


def _described(fields: dict) -> dict[str, list[int]]:
    """Returns the shapes of the tensors that a checkpoint of the config's model holds, by name."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.integrations import is_deepspeed_zero3_enabled

    from ..configuration_tagi import TagiConfig
    from ..modeling_tagi import TagiModel
    from .randomness import unchanged_randomness

    tagi = fields.get("model_type") == "tagi"
    config = TagiConfig.from_dict(dict(fields)) if tagi else AutoConfig.for_model(**fields)
    kinds = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if tagi and config.backbone_config is None or not tagi and type(config) not in kinds:
        return {}  # the loader says so
    if is_deepspeed_zero3_enabled():  # it would cut this model into pieces as well
        return {}
    with unchanged_randomness(), torch.device("meta"):
        model = TagiModel(config) if tagi else kinds[type(config)](config)
    left_out = "backbone." if tagi and not config.backbone_in_checkpoint else "\0"
    return {name: list(x.shape) for name, x in model.named_parameters() if not name.startswith(left_out)}


def _shapes(path: str) -> dict[str, list[int]]:
    """Returns the shapes of a whole file's tensors that are not empty, by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in header.items()
            if name != "__metadata__" and math.prod(entry["shape"])}  # fmt: skip


GUARDS.append(look_at)
