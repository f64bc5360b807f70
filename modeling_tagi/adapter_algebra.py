"""Calculating with adapters: inner products, weighted sums, merging into a backbone.

Functions here take a [`TagiAdapter`] by its fields. Its updates are ΔW = scaling * B A, which are
computed in full only to be added to a weight.
"""

import copy
import math
from dataclasses import replace
from typing import Optional, Sequence, Union

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .fit import alike, fingerprinted, require_fit
from .lora import remove_hooks


def inner_products(a: Tensor, b: Tensor, other_a: Tensor, other_b: Tensor) -> Tensor:
    """Returns `⟨B A, B' A'⟩`, the sum of the products of their entries, from rank × rank products.

    Args:
        a, other_a: `[..., rank, d_in]`; the ranks may differ, and leading axes are broadcast.
        b, other_b: `[..., d_out, rank]`.

    Returns:
        `[...]`.
    """
    return ((b.transpose(-2, -1) @ other_b) * (a @ other_a.transpose(-2, -1))).sum((-2, -1))


@torch.no_grad()
def cosine_similarity(one, other) -> Tensor:
    """Returns the cosines of all updates, `[tasks of one, tasks of other]`, fp32; see `TagiAdapter.similarity`."""
    require_one_backbone(require_adapters("similarity", [one, other]))
    gram = torch.zeros(len(one), len(other), dtype=torch.float64)
    for path in one.lora_a.keys() & other.lora_a.keys():
        a, b, other_a, other_b = (
            x.to("cpu", torch.float64) for x in (*_factors(one, path), *_factors(other, path))
        )
        for row in range(len(one)):  # one at a time: matmul would copy what it broadcasts
            gram[row] += inner_products(a[row], b[row], other_a, other_b)
    scale = _norms(one)[:, None] * _norms(other)
    return (gram / scale.clamp_min(torch.finfo(torch.float64).tiny)).float()


def _norms(adapter) -> Tensor:
    total = torch.zeros(len(adapter), dtype=torch.float64)
    for path in adapter.lora_a:
        a, b = (x.to("cpu", torch.float64) for x in _factors(adapter, path))
        total += inner_products(a, b, a, b)
    return total.clamp_min(0).sqrt()


def _factors(adapter, path: str) -> tuple[Tensor, Tensor]:
    """Returns A, and B multiplied by the scale."""
    return adapter.lora_a[path], adapter.lora_b[path] * adapter.scaling


@torch.no_grad()
def combine(adapters: Sequence, weights: Sequence[float], rank: Optional[int], memory: Union[int, str, None]):
    """Returns the adapter whose updates are `Σ weight * ΔW`; see `TagiAdapter.combine`."""
    adapters, weights = require_adapters("combine", adapters), [float(weight) for weight in weights]
    _require_combinable(adapters, weights, rank)
    first, total = adapters[0], sum(adapter.rank for adapter in adapters)
    lora_a, lora_b = {}, {}
    for path in first.lora_a:
        parts_a = [adapter.lora_a[path].to(first.device) for adapter in adapters]
        parts_b = [
            adapter.lora_b[path].to(first.device) * (weight * adapter.scaling / first.scaling)
            for adapter, weight in zip(adapters, weights)
        ]
        lora_a[path], lora_b[path] = torch.cat(parts_a, 1), torch.cat(parts_b, 2)
        if rank is not None:
            lora_a[path], lora_b[path] = truncated(lora_a[path], lora_b[path], rank)
    return replace(
        first,
        lora_a=lora_a,
        lora_b=lora_b,
        lora_alpha=first.scaling * (rank or total),
        memory=_combined_memory([adapter.memory for adapter in adapters], memory),
        provenance=_combined_provenance(adapters, weights),
        peft_config=dict(first.peft_config),
        origin=None,
    )


def _require_combinable(adapters: Sequence, weights: Sequence[float], rank: Optional[int]):
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"combine got {len(adapters)} adapters and {len(weights)} weights; give one weight for each")
    for number, (adapter, weight) in enumerate(zip(adapters, weights)):
        if len(adapter) != 1:
            raise ValueError(f"combine sums single adapters, but adapter {number} holds {len(adapter)}; choose by [i]")
        if not math.isfinite(weight):
            raise ValueError(f"weight {number} of combine is {weight}, but weights must be finite numbers")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ValueError(f"rank is {rank!r}, but must be a whole number of at least 1, or None for the exact sum")
    require_one_backbone(adapters)
    for number, adapter in enumerate(adapters):
        others = sorted(adapter.lora_a.keys() ^ adapters[0].lora_a.keys())
        if others:
            raise ValueError(
                f"adapters 0 and {number} change different modules ({others[0]!r} is in one of them alone, and "
                f"{len(others) - 1} more); combine takes adapters for the same modules"
            )


def _combined_memory(memories: Sequence, choice: Union[int, str, None]):
    if all(memory is None for memory in memories):
        return None
    if isinstance(choice, int) and not isinstance(choice, bool) and 0 <= choice < len(memories):
        return memories[choice]
    if choice != "join":
        raise ValueError(
            f"the adapters have instruction memories, which have no weighted sum, and memory is {choice!r}: give the "
            f"number of the adapter whose instruction is kept (0 to {len(memories) - 1}) or memory='join' to attend "
            "to all of them, or combine each adapter.without_memory()"
        )
    kinds = {frozenset(memory.tensors()) if memory is not None else frozenset() for memory in memories}
    if len(kinds) > 1:
        raise ValueError("memory='join' takes adapters of one generator, but theirs differ in kind of memory")
    parts = [memory.trimmed().tensors() for memory in memories]
    axes = {"mask": 1, "states": 1}  # of the tokens; -2 in all others
    return replace(memories[0], **{
        name: torch.cat([part[name] for part in parts], axes.get(name, -2)) for name in parts[0]
    })  # fmt: skip


def _combined_provenance(adapters: Sequence, weights: Sequence[float]) -> tuple[dict, ...]:
    parts = [dict(adapter.provenance[0]) if adapter.provenance else {} for adapter in adapters]
    if not any(parts):
        return ()
    common = {}
    for name in ("generator", "generator_revision", "backbone", "backbone_revision", "input_format"):
        values = [part.get(name) for part in parts]
        common[name] = values[0] if all(value == values[0] for value in values) else None
    marks = [part.get("backbone_fingerprint") for part in parts]
    common["backbone_fingerprint"] = next((mark for mark in marks if mark), None)  # alike, in whatever precision
    kept = ("instruction", "instruction_sha256", "tuned", "combined")
    described = [
        {"weight": weight, **{name: part[name] for name in kept if part.get(name) is not None}}
        for weight, part in zip(weights, parts)
    ]
    return ({"instruction": None, **common, "combined": described},)


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the factors of rank `rank` whose product is nearest to `b @ a`, which is not formed.

    Args:
        a: `[tasks, old_rank, d_in]`.
        b: `[tasks, d_out, old_rank]`.

    Returns:
        A `[tasks, rank, d_in]` and B `[tasks, d_out, rank]`, of equal norm; padded with zeros if the product's rank
        is below `rank`.
    """
    left, left_r = torch.linalg.qr(b.double())
    right, right_r = torch.linalg.qr(a.double().transpose(1, 2))
    u, s, vh = torch.linalg.svd(left_r @ right_r.transpose(1, 2), full_matrices=False)
    root = s[:, :rank].sqrt()
    new_a = root[:, :, None] * (vh[:, :rank] @ right.transpose(1, 2))
    new_b = (left @ u[:, :, :rank]) * root[:, None, :]
    missing = rank - root.shape[1]
    return F.pad(new_a, (0, 0, 0, max(0, missing))).to(a.dtype), F.pad(new_b, (0, max(0, missing))).to(b.dtype)


@torch.no_grad()
def merge(adapter, model: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of the backbone with `W + ΔW` for its weights; see `TagiAdapter.merge_into`."""
    _require_mergeable(adapter, model)
    merged = copy.deepcopy(model.backbone)
    remove_hooks(merged)
    for path in adapter.lora_a:
        module = merged.get_submodule(path)
        a, b = (x[0].to(module.weight.device, torch.float32) for x in _factors(adapter, path))
        update = (b @ a).T if isinstance(module, Conv1D) else b @ a
        module.weight.copy_(module.weight.float() + update)
    return merged


def _require_mergeable(adapter, model: PreTrainedModel):
    if len(adapter) != 1:
        raise ValueError(f"one adapter can be merged into a backbone, this object holds {len(adapter)}; choose by [i]")
    if adapter.memory is not None:
        raise ValueError(
            "the adapter has an instruction memory, which its generator's fusion attends to and no weight can hold: a "
            "merged backbone would answer differently. Merge adapter.without_memory() if the update alone will do"
        )
    if not hasattr(model, "backbone"):
        raise ValueError(f"merge_into got a {type(model).__name__}, but takes the TagiModel whose backbone is merged")
    require_fit(adapter, model)
    owners: dict[int, list[str]] = {}
    for name, parameter in model.backbone.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for path in adapter.lora_a:
        weight = model.backbone.get_submodule(path).weight
        if not weight.is_floating_point() or weight.dtype.itemsize < 2 or hasattr(weight, "quant_state"):
            raise ValueError(
                f"{path} is quantised ({weight.dtype}), and a sum with it would be rounded away; load the backbone in "
                "bfloat16 or float32 to merge, or use the adapter beside it"
            )
        if len(owners.get(id(weight), ())) > 1:
            shared = ", ".join(owners[id(weight)])
            raise ValueError(f"{path} shares its weight ({shared}): merging would change both; use the adapter beside")


def require_adapters(whose: str, adapters: Sequence) -> list:
    """Returns the adapters as a list.

    Args:
        whose: The function that got them.

    Raises:
        TypeError: if one is something else.
    """
    if isinstance(adapters, str) or not hasattr(adapters, "__iter__"):
        raise TypeError(f"{whose} got a {type(adapters).__name__}, but takes a list of TagiAdapters")
    adapters = list(adapters)
    for number, adapter in enumerate(adapters):
        if not hasattr(adapter, "lora_a"):  # not by its class: a checkpoint's code defines its own
            raise TypeError(
                f"{whose} takes TagiAdapters (generate_adapter's, or TagiAdapter.from_pretrained's), but number "
                f"{number} is a {type(adapter).__name__}"
            )
    return adapters


def same_weights(one, other) -> Optional[bool]:
    """Tells whether two adapters were made for the same weights, in any precision, by their modules and fingerprints;
    returns `None` if these do not tell, such as when no module is in both."""
    for path in one.lora_a.keys() & other.lora_a.keys():
        if any(x[path].shape[axis] != y[path].shape[axis]
               for x, y, axis in ((one.lora_a, other.lora_a, 2), (one.lora_b, other.lora_b, 1))):  # fmt: skip
            return False
    places = [fingerprinted(adapter) for adapter in (one, other)]
    verdicts = []
    for mark in _marks(one):
        for another in _marks(other):
            if mark == another and places[0] == places[1]:
                verdicts.append(True)
                continue
            weights, others = (_by_module(x, paths) for x, paths in zip((mark, another), places))
            if weights is None or others is None:  # fingerprints of other modules
                verdicts.append(False)
            elif shared := weights.keys() & others.keys():
                verdicts.append(all(alike(weights[path], others[path]) for path in shared))
    return all(verdicts) if verdicts else None


def require_one_backbone(adapters: Sequence):
    """Refuses adapters for different backbones, as far as shapes and fingerprints tell.

    Raises:
        ValueError: naming the first two of them.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for number, adapter in enumerate(adapters):
        for path, a in adapter.lora_a.items():
            shape = adapter.lora_b[path].shape[1], a.shape[2]
            if shapes.setdefault(path, shape) != shape:
                raise ValueError(
                    f"adapter {number} changes a weight {path!r} of {shape[0]} × {shape[1]}, an earlier one of "
                    f"{shapes[path][0]} × {shapes[path][1]}; they must be for one backbone"
                )
    marked = [number for number, adapter in enumerate(adapters) if _marks(adapter)]
    for number in marked[1:]:
        first, other = adapters[marked[0]], adapters[number]
        if same_weights(first, other) is False:
            names = (", ".join(sorted({str(p.get("backbone")) for p in x.provenance})) for x in (first, other))
            raise ValueError(
                f"adapters {marked[0]} and {number} were made for backbones with different weights "
                f"({' and '.join(names)}); their updates cannot be added or compared"
            )


def _marks(adapter) -> list:
    """Returns the distinct fingerprints of an adapter's tasks."""
    marks = [source.get("backbone_fingerprint") for source in adapter.provenance]
    return [mark for number, mark in enumerate(marks) if mark and mark not in marks[:number]]


def _by_module(mark, paths: Sequence[str]) -> Optional[dict[str, Sequence[float]]]:
    if len(mark) != 2 * len(paths):
        return None
    return {path: mark[2 * place: 2 * place + 2] for place, path in enumerate(paths)}
