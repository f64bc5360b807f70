"""A backbone's stored weights: a hash that tells it from another of its name, and whether a model still has them."""

import hashlib
import json
import os
from typing import Optional

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.utils import cached_file

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def backbone_hash(name: str, revision: Optional[str] = None, cache_dir: Optional[str] = None) -> Optional[str]:
    """SHA-256 over the name, type and shape of every tensor, its vectors whole, and three rows of its matrices.

    Of the files, not of the loaded model: the same in whatever precision or on whatever device it is loaded, quantized
    or not, and however the files are cut into shards. Three rows (first, middle, last), since reading all weights
    would take as long as loading them (T5-base: 0.04 s instead), and training that reaches a matrix changes each of
    its rows; a change of single rows alone, such as one word's embedding, can go unnoticed.

    Args:
        name: A folder, or a repository that was loaded before: nothing is downloaded.

    Returns:
        `None` where the weights are no safetensors that are at hand.
    """
    files = _stored(name, revision, cache_dir)
    if files is None:
        return None
    rows: dict[str, bytes] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                rows[key] = _some_of(file, key)
    digest = hashlib.sha256()
    for key in sorted(rows):
        digest.update(rows[key])
    return digest.hexdigest()


def differs_from_stored(
    states: dict[str, Tensor],
    name: str,
    revision: Optional[str] = None,
    cache_dir: Optional[str] = None,
    prefix: str = "",
    base: str = "",
) -> Optional[bool]:
    """Compares a model's weights with those of the files that it was loaded from, number by number.

    Weights that were only cast (to another precision, or there and back) do not differ. The first tensor that does
    ends the reading, and one tensor is read at a time.

    Args:
        states: The model's state dict.
        name, revision, cache_dir: As for `backbone_hash`.
        prefix: What the files' keys have before those of `states`; other keys are passed over.
        base: The model's `base_model_prefix`, which files may have or lack.

    Returns:
        `None` where it cannot be told: the files are no safetensors that are at hand or name other tensors, or the
        weights are quantized, sharded or offloaded.
    """
    files = _stored(name, revision, cache_dir)
    if files is None or not states or any(_is_elsewhere(tensor) for tensor in states.values()):
        return None
    compared: dict[tuple, list[Tensor]] = {}
    left = dict(states)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if not key.startswith(prefix):
                    continue
                own = key[len(prefix):]
                own = next((n for n in (own, f"{base}.{own}", own.removeprefix(f"{base}.")) if n in left), None)
                if own is None:
                    continue
                tensor = left.pop(own)
                if not _alike(tensor, file.get_tensor(key)):
                    return True
                compared.setdefault(tuple(tensor.shape), []).append(tensor)
    # tied weights are stored once
    tied = all(any(torch.equal(x, y) for y in compared.get(tuple(x.shape), ())) for x in left.values())
    return False if tied else None


def _is_elsewhere(tensor: Tensor) -> bool:
    # an empty one is ZeRO-3's, whose shards no state dict has
    return tensor.device.type == "meta" or is_traceable_wrapper_subclass(tensor) or not tensor.numel()


def _alike(tensor: Tensor, stored: Tensor) -> bool:
    if tensor.shape != stored.shape:
        return False
    stored = stored.to(tensor.device)
    through = (stored.dtype, torch.bfloat16, torch.float16) if stored.is_floating_point() else (stored.dtype,)
    return any(torch.equal(stored.to(dtype).to(tensor.dtype), tensor) for dtype in through)


def _stored(name: str, revision: Optional[str], cache_dir: Optional[str]) -> Optional[list[str]]:
    """The files of a folder's or a loaded repository's weights; `None` if they are no safetensors, or not at hand."""
    options = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}

    def find(file: str) -> Optional[str]:
        try:
            return cached_file(name, file, **options)
        except OSError:
            return None

    files = [find(_WEIGHTS)]
    if files == [None] and (index := find(_INDEX)) is not None:
        with open(index) as file:
            files = [find(shard) for shard in sorted(set(json.load(file)["weight_map"].values()))]
    return None if None in files else [os.path.realpath(path) for path in files]


def _some_of(file, key: str) -> bytes:
    stored = file.get_slice(key)
    shape = stored.get_shape()
    head = f"{key} {stored.get_dtype()} {shape}\n".encode()
    if len(shape) < 2:
        return head + _bytes(file.get_tensor(key))
    inner = (slice(0, 1),) * (len(shape) - 2)
    places = sorted({0, shape[0] // 2, max(0, shape[0] - 1)})
    return head + b"".join(_bytes(stored[(slice(place, place + 1), *inner)]) for place in places)


def _bytes(tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
