"""Where generated adapters lie: a map of them in two dimensions, and how near they are to tuned ones."""

import random
from typing import Optional, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapter import TagiAdapter
from ..banks.adapter_bank import AdapterBank
from ..data.records import Record
from ..lora import evaluating
from ..modeling_tagi import TagiModel
from ..tokens import Tokens, instruction_text, pad

_SKETCH = 64  # sides of the sketch of a module's ΔW
_AT_ONCE = 32  # instructions


@torch.no_grad()
def adapter_map(
    model: TagiModel,
    tokens: Tokens,
    splits: dict[str, list[Record]],
    bank: Optional[AdapterBank] = None,
    most: int = 600,
    seed: int = 0,
) -> dict:
    """Returns the adapter of each task, from the first wording of its instruction, in two principal components.

    Args:
        model: The generator.
        tokens: How instructions become tokens.
        splits: Records by split; a task that is in several counts for the first.
        bank: Task adapters to compare with, by task or by group.
        most: Tasks shown at most, drawn by `seed`.
        seed: Seeds that draw and the sketches.

    Returns:
        `points`: `task`, `group`, `split`, `x` and `y` of each. `explained`: the fraction of the variance in each
        component. `similarity`, `None` without a bank: mean cosines of ΔW over all modules, of generated adapters to
        their `own` tuned one, to `others` (tuned on another group), among the `generated` and among the `tuned`, and
        `ratio`, own to others; `None` for those that there is no pair for. Values of JSON alone.

    Raises:
        ValueError: if there are no records.
    """
    first: dict[str, tuple[str, Record]] = {}
    for split, records in splits.items():
        for record in records:
            first.setdefault(record.task, (split, record))
    if not first:
        raise ValueError("there are no records to generate adapters for; give at least one")
    shown = list(first.values())
    if len(shown) > most:
        shown = [shown[place] for place in sorted(random.Random(seed).sample(range(len(shown)), most))]
    records = [record for _, record in shown]
    generated = _generated(model, tokens, records, seed)
    places, explained = _components(generated)
    similarity = None
    if bank is not None:
        similarity = _similarity(generated, records, bank, [record for _, record in first.values()], seed)
    return {
        "points": [
            {"task": record.task, "group": record.group, "split": split, "x": x, "y": y}
            for (split, record), (x, y) in zip(shown, places.tolist())
        ],
        "explained": explained,
        "similarity": similarity,
    }


def sketches(adapter: TagiAdapter, seed: int = 0) -> Tensor:
    """Returns `[tasks, features]`, fp32 on the CPU, with the updates' inner products, ⟨ΔW, ΔW'⟩ over all modules.

    Sides of ΔW longer than 64 are projected to 64 by Gaussian matrices, the same for every task: S B A R instead of
    B A, whose inner product is ⟨ΔW, ΔW'⟩ in expectation. No ΔW is formed.
    """
    features = []
    generator = torch.Generator().manual_seed(seed)
    for path in sorted(adapter.lora_a):
        a, b = adapter.lora_a[path].float().cpu(), adapter.lora_b[path].float().cpu()
        a, b = _projected(a, generator), _projected(b.transpose(1, 2), generator).transpose(1, 2)
        features.append((b @ a).flatten(1) * adapter.scaling)
    return torch.cat(features, 1)


def _projected(factor: Tensor, generator: torch.Generator) -> Tensor:
    """Projects `[tasks, rank, size]` to `[tasks, rank, at most 64]`."""
    size = factor.shape[-1]
    if size <= _SKETCH:
        return factor
    return factor @ (torch.randn(size, _SKETCH, generator=generator) / _SKETCH**0.5)


def _generated(model: TagiModel, tokens: Tokens, records: Sequence[Record], seed: int) -> Tensor:
    texts = [instruction_text(record.instruction, record.demonstrations) for record in records]
    made = []
    with evaluating(model):
        for start in range(0, len(texts), _AT_ONCE):
            ids, mask = pad([tokens.instruction(text) for text in texts[start: start + _AT_ONCE]], 0)
            adapter = model.adapter_from_ids(ids.to(model.device), mask.to(model.device))
            made.append(sketches(adapter, seed))
    return torch.cat(made)


def _components(rows: Tensor) -> tuple[Tensor, list[float]]:
    """Returns the first two principal components, `[tasks, 2]`, and the fraction of the variance in each."""
    centred = (rows - rows.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # tasks are fewer than features
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    places = torch.zeros(len(rows), 2, dtype=torch.float64)
    kept = min(2, len(rows))
    places[:, :kept] = vectors[:, :kept] * values[:kept].sqrt()
    farthest = places.gather(0, places.abs().argmax(0, keepdim=True))
    places *= torch.where(farthest < 0, -1.0, 1.0)  # else the sign is chance
    total = values.sum().item()
    explained = [value.item() / total if total else 0.0 for value in values[:kept]]
    return places, explained + [0.0] * (2 - kept)


def _similarity(
    generated: Tensor, records: Sequence[Record], bank: AdapterBank, everyone: Sequence[Record], seed: int
) -> dict:
    """Returns mean cosines; `everyone` has a record of each task, shown or not, which tells its group."""
    names, group_of = bank.names, {record.task: record.group for record in everyone}
    groups = set(group_of.values())
    by = "task" if len(group_of.keys() & set(names)) > len(groups & set(names)) else "group"
    if by == "group":
        group_of = {group: group for group in groups}
    tuned = F.normalize(sketches(bank.load(), seed))
    own = torch.tensor([[name == getattr(record, by) for name in names] for record in records])
    other = torch.tensor([[group_of.get(name, record.group) != record.group for name in names] for record in records])
    generated = F.normalize(generated)
    cosines = generated @ tuned.T
    found = {
        "own": _mean(cosines[own]),
        "others": _mean(cosines[other]),
        "generated": _mean_pair(generated),
        "tuned": _mean_pair(tuned),
    }
    comparable = found["own"] is not None and found["others"]
    return {**found, "ratio": found["own"] / found["others"] if comparable else None}


def _mean(values: Tensor) -> Optional[float]:
    return values.mean().item() if len(values) else None


def _mean_pair(rows: Tensor) -> Optional[float]:
    """Returns the mean inner product of two different rows."""
    return _mean((rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)])
