"""The hash of a backbone's stored weights, which tells it from another one of its name."""

import hashlib
import json
import os
from typing import Optional

import torch
from safetensors import safe_open
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
    if None in files:
        return None
    rows: dict[str, bytes] = {}
    for path in files:
        with safe_open(os.path.realpath(path), framework="pt") as file:
            for key in file.keys():
                rows[key] = _some_of(file, key)
    digest = hashlib.sha256()
    for key in sorted(rows):
        digest.update(rows[key])
    return digest.hexdigest()


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
