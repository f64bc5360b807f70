"""The index of training instructions that a checkpoint carries: which ones, and from what distance one is far."""

from typing import Optional, Sequence

import torch
from torch import Tensor

from ..data.records import Record
from ..evaluation.references import encode_instructions
from ..instruction_index import InstructionIndex
from ..instructions import instruction_text
from ..modeling_tagi import TagiModel
from ..tokens import Tokens

_QUANTILE = 0.99


def index_instructions(
    model: TagiModel, tokens: Tokens, train: Sequence[Record], most: int = 1000
) -> Optional[InstructionIndex]:
    """An index of the train split's instructions, as `model` encodes them.

    What is far is found by leaving tasks out: for each instruction its distance to the nearest in the index of another
    task, as for a new task of the same kind. Beyond the 99 % quantile of these is far.

    Args:
        most: Instructions kept at most, spread over all of them.

    Returns:
        `None` if there is a single task, which nothing can be compared with.
    """
    task_of: dict[str, str] = {}
    for record in train:
        task_of.setdefault(instruction_text(record.instruction, record.demonstrations), record.task)
    texts, tasks = list(task_of), list(task_of.values())
    if len(set(tasks)) < 2:
        return None
    vectors = encode_instructions(model, tokens, texts)
    kept = spread_rows(vectors, most)
    index = InstructionIndex(vectors[kept], [texts[row] for row in kept], threshold=0.0)
    numbers = {task: number for number, task in enumerate(dict.fromkeys(tasks))}
    task_numbers = torch.tensor([numbers[task] for task in tasks])
    nearest = []
    for start in range(0, len(texts), 1024):
        distances = index.distances(vectors[start: start + 1024])
        own = task_numbers[start: start + 1024, None] == task_numbers[kept]
        nearest.append(distances.masked_fill(own, torch.inf).min(1).values)
    found = torch.cat(nearest)
    threshold = found[found.isfinite()].quantile(_QUANTILE).item()
    notes = {"instructions": len(texts), "tasks": len(numbers), "left_out_task_quantile": _QUANTILE}
    return InstructionIndex(index.vectors, index.texts, threshold, notes=notes)


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
