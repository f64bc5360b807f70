"""The index of training instructions in a checkpoint, by which it tells how far a new instruction is from them."""

import random
from typing import Optional, Sequence

import torch
from torch import Tensor

from ..data.records import Record
from ..instructions import InstructionIndex, mean_embeddings
from ..modeling_tagi import TagiModel
from ..tokens import Tokens, instruction_text

TASK_QUANTILE, GROUP_QUANTILE = 0.99, 0.75
FEWEST = 5  # instructions that a vector averages, if none may be published
_ROUNDS = 10  # of Lloyd's algorithm


def index_instructions(
    model: TagiModel, tokens: Tokens, train: Sequence[Record], most: int = 1000, publish: bool = True
) -> Optional[InstructionIndex]:
    """Makes an index of the train split's instructions, or of groups of them.

    The index says from which distance on an instruction is far: if it is farther from the nearest vector than 99 % of
    the training instructions are with their own task left out, and than 75 % of them with their whole group left out.

    Args:
        most: Most vectors in the index, for instructions that lie far apart; of groups there are a tenth as many.
        publish: Whether the index holds instructions: their texts, and a vector of each. If not, it holds means over
            groups of at least `FEWEST` instructions (over all, where there are fewer).

    Returns:
        `None` if there is a single task, which nothing can be compared with.
    """
    first: dict[str, Record] = {}
    for record in train:
        first.setdefault(instruction_text(record.instruction, record.demonstrations), record)
    texts = list(first)
    vectors = mean_embeddings(model.get_input_embeddings(), [tokens.instruction(text) for text in texts])
    if publish:
        members = torch.full((len(texts),), -1)
        kept = spread_rows(vectors, most)
        members[kept] = torch.arange(len(kept))
    else:
        members = grouped(vectors, most // 10)
    distances = [
        _left_out_distances(vectors, members, [getattr(first[text], by) for text in texts])
        for by in ("task", "group")
    ]
    if not len(distances[0]):
        return None
    found = [
        float(d.quantile(q)) if len(d) else 0.0 for d, q in zip(distances, (TASK_QUANTILE, GROUP_QUANTILE))
    ]
    notes = {
        "instructions": len(texts), "task_left_out": found[0], "task_quantile": TASK_QUANTILE,
        "group_left_out": found[1], "group_quantile": GROUP_QUANTILE,
    }  # fmt: skip
    return InstructionIndex(_means(vectors, members), [texts[row] for row in kept] if publish else None,
                            max(found), notes)  # fmt: skip


def drawn_instructions(tokens: Tokens, train: Sequence[Record], seed: int, most: int = 1024) -> list[list[int]]:
    """Returns the token ids of the unique instructions of the train split, or of `most` of them drawn by `seed`."""
    texts = list(dict.fromkeys(instruction_text(r.instruction, r.demonstrations) for r in train))
    if len(texts) > most:
        texts = random.Random(seed).sample(texts, most)
    return [tokens.instruction(text) for text in texts]


def grouped(vectors: Tensor, most: int) -> Tensor:
    """Clusters the instructions' vectors (k-means, from starting points that lie far apart).

    Returns:
        `[instructions]`, the group of each: at most `most` groups of at least `FEWEST` instructions, or one group.
    """
    means = vectors[spread_rows(vectors, max(1, min(most, len(vectors) // (2 * FEWEST))))]
    for _ in range(_ROUNDS):
        members = _nearest(vectors, means)
        means = _means(vectors, members)
    while len(means) > 1 and (sizes := members.bincount()).min() < FEWEST:
        members = _nearest(vectors, means[torch.arange(len(means)) != sizes.argmin()])  # the smallest joins others
        means = _means(vectors, members)
    return members


def _nearest(vectors: Tensor, means: Tensor) -> Tensor:
    """Returns `[instructions]`, the number of the nearest mean; means that are nearest to none are not counted."""
    return torch.cdist(vectors, means).argmin(1).unique(return_inverse=True)[1]


def _means(vectors: Tensor, members: Tensor) -> Tensor:
    """Returns `[groups, d_model]`, the mean vector of each group that is not empty; a member of -1 is in no group."""
    inside = members >= 0
    _, numbers = members[inside].unique(return_inverse=True)
    sums = vectors.new_zeros(int(numbers.max()) + 1, vectors.shape[1]).index_add(0, numbers, vectors[inside])
    return sums / numbers.bincount()[:, None]


def _left_out_distances(vectors: Tensor, members: Tensor, units: list[str]) -> Tensor:
    """Returns the distance of each instruction to the nearest group mean, taken without its own unit's instructions.

    An instruction is left out if no group remains without its unit.
    """
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    unit = torch.tensor([numbers[name] for name in units])
    groups, inside = int(members.max()) + 1, members >= 0
    sums = vectors.new_zeros(groups, vectors.shape[1]).index_add(0, members[inside], vectors[inside])
    counts = members[inside].bincount(minlength=groups)
    nearest = vectors.new_full((len(vectors),), torch.inf)
    for number in range(len(numbers)):
        own = unit == number
        out = own & inside
        left = counts - members[out].bincount(minlength=groups)
        means = (sums - torch.zeros_like(sums).index_add(0, members[out], vectors[out]))[left > 0]
        if len(means):
            nearest[own] = torch.cdist(vectors[own], means / left[left > 0][:, None]).min(1).values
    return nearest[nearest.isfinite()]


def spread_rows(rows: Tensor, most: int) -> list[int]:
    """Returns the sorted numbers of at most `most` rows that lie far apart, each the farthest from those before it."""
    if len(rows) <= most:
        return list(range(len(rows)))
    chosen = [0]
    distance = (rows - rows[0]).square().sum(1)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(1))
    return sorted(chosen)
