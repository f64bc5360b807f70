"""The index of training instructions that a checkpoint carries: which ones, and from what distance one is far."""

from typing import Optional, Sequence

import torch
from torch import Tensor

from ..data.records import Record
from ..instruction_index import InstructionIndex, mean_embeddings
from ..instructions import instruction_text
from ..modeling_tagi import TagiModel
from ..tokens import Tokens

TASK_QUANTILE, GROUP_QUANTILE = 0.99, 0.75


def index_instructions(
    model: TagiModel, tokens: Tokens, train: Sequence[Record], most: int = 1000
) -> Optional[InstructionIndex]:
    """An index of the train split's instructions.

    What is far is found by leaving out what is known: it is farther from the nearest than 99 % of the instructions
    are when their task is left out, and than 75 % of them are when their whole group is.

    Args:
        most: Instructions kept at most, spread over all of them.

    Returns:
        `None` if there is a single task, which nothing can be compared with.
    """
    first: dict[str, Record] = {}
    for record in train:
        first.setdefault(instruction_text(record.instruction, record.demonstrations), record)
    texts = list(first)
    vectors = mean_embeddings(model.get_input_embeddings(), [tokens.instruction(text) for text in texts])
    kept = spread_rows(vectors, most)
    index = InstructionIndex(vectors[kept], [texts[row] for row in kept], threshold=0.0)
    distances = [
        _left_out_distances(index, vectors, kept, [getattr(first[text], by) for text in texts])
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
    return InstructionIndex(index.vectors, index.texts, max(found), notes)


def _left_out_distances(index: InstructionIndex, vectors: Tensor, kept: list[int], units: list[str]) -> Tensor:
    """Of each instruction to the nearest in the index of another unit; those that have one."""
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    unit = torch.tensor([numbers[name] for name in units])
    nearest = []
    for start in range(0, len(vectors), 1024):
        own = unit[start: start + 1024, None] == unit[kept]
        nearest.append(index.distances(vectors[start: start + 1024]).masked_fill(own, torch.inf).min(1).values)
    found = torch.cat(nearest)
    return found[found.isfinite()]


def spread_rows(rows: Tensor, most: int) -> list[int]:
    """Numbers of at most `most` rows that lie far apart, in order: each time the one farthest from those chosen."""
    if len(rows) <= most:
        return list(range(len(rows)))
    chosen = [0]
    distance = (rows - rows[0]).square().sum(1)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(1))
    return sorted(chosen)
