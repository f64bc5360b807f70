"""What a checkpoint must be to be loaded; what is refused is named with its file and what mends it."""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file

_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_ADAPTER = "adapter_config.json"
_DTYPES = ("float64", "float32", "bfloat16", "float16")
_NAMED = 8  # tensors in a message
_SAVE_AGAIN = "save the checkpoint again with save_pretrained, or download it again"


def require_name(name, what: str):
    """Refuses what can name neither a folder nor a repository.

    Args:
        what: Whose name it is, for the message.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip() or "\0" in str(name):
        raise ValueError(f"{what} is named {name!r}, but must be named as a folder or a repository (user/name)")


def require_dtype(dtype):
    """Refuses a precision that no model computes in."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in (*_DTYPES, "auto"):
        raise ValueError(f"dtype is {name}, but a model computes in one of {', '.join(_DTYPES)}; or give 'auto'")


def require_tagi_config(fields: dict, name, model_type: str):
    """Refuses the `config.json` of another model."""
    found = fields.get("model_type")
    if found not in (None, model_type):
        raise ValueError(
            f"{name} is no TAGI checkpoint but a model of type {found!r}; make a new generator on it with "
            f"TagiModel.from_backbone({str(name)!r}), or name a checkpoint that a TagiModel's save_pretrained has "
            "written"
        )


def require_no_adapter_beside(name):
    """Refuses a checkpoint's folder that an adapter was written into, which transformers would build into it."""
    if (Path(name) / _ADAPTER).is_file() and (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{name} holds an adapter's {_ADAPTER} beside the checkpoint's files; move the adapter's files into a "
            "folder of their own"
        )


@contextmanager
def broken_weights_named(name, **options) -> Iterator[None]:
    """Names the file if reading a checkpoint's weights inside the block fails.

    Args:
        options: `revision`, `cache_dir` and `subfolder` that it is loaded with.

    Raises:
        ValueError: if a file is broken.
        OSError: if there are none in safetensors.
    """
    try:
        yield
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{_broken(name, options) or name} is broken ({error}); {_SAVE_AGAIN}") from error
    except OSError as error:
        if _at_hand(name, _PICKLE, options) is None or _at_hand(name, _WEIGHTS, options) is not None:
            raise
        raise OSError(
            f"{name} holds its weights as {_PICKLE}, a pickle, which can run code when it is read and is refused; get "
            f"the checkpoint with {_WEIGHTS}, as save_pretrained writes it"
        ) from error


def _broken(name, options: dict) -> Optional[str]:
    """The first file of the weights that cannot be read."""
    index = _at_hand(name, _INDEX, options)
    files = [_at_hand(name, _WEIGHTS, options)]
    if files == [None] and index is not None:
        try:
            shards = json.loads(Path(index).read_text())["weight_map"].values()
            files = [_at_hand(name, shard, options) for shard in shards]
        except (ValueError, KeyError, TypeError, AttributeError):
            return index
    for file in dict.fromkeys(filter(None, files)):
        try:
            safe_open(os.path.realpath(file), framework="pt").__exit__(None, None, None)
        except SafetensorError:
            return file
    return None


def _at_hand(name, file: str, options: dict) -> Optional[str]:
    try:
        return cached_file(str(name), file, local_files_only=True, **options)
    except OSError:
        return None


def require_whole(name, info: dict):
    """Refuses a checkpoint that lacks tensors of the model, or has them in other shapes.

    Args:
        info: transformers' loading info, its mismatches not yet refused.
    """
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"{name} lacks {len(missing)} of the model's tensors: {_some(missing)}; save the whole model with "
            "save_pretrained, or take the config that its weights were saved with"
        )
    if info["mismatched_keys"]:
        shapes = [f"{key} ({_times(stored)}, the config says {_times(here)})"
                  for key, stored, here in sorted(info["mismatched_keys"])]  # fmt: skip
        raise ValueError(
            f"{name} holds {len(shapes)} tensors of other shapes than its config.json says: {_some(shapes)}; take the "
            "config that its weights were saved with, or save the model again with save_pretrained"
        )


def require_finite(name, model: PreTrainedModel):
    """Refuses weights that are NaN or infinite."""
    broken = []
    for key, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.device.type == "meta" or parameter.element_size() < 2:
            continue
        # the sum is finite if all are, unless it overflows; it takes no memory
        if not parameter.detach().sum(dtype=torch.float32).isfinite() and not parameter.isfinite().all():
            broken.append(key)
    if broken:
        raise ValueError(
            f"{name} holds {len(broken)} tensors with numbers that are not finite: {_some(broken)}; the file is "
            "damaged, or training had diverged when it was written: take an earlier checkpoint"
            + (" (or another dtype: float16 has no numbers above 65504)" if model.dtype == torch.float16 else "")
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _times(shape) -> str:
    return " × ".join(map(str, shape)) or "a number"
