"""The mean of the adapters that a generator writes: what it has to say without being told the task."""

import random
from typing import Sequence

from ..adapter import TagiAdapter
from ..data.records import Record
from ..modeling_tagi import TagiModel
from ..tokens import Tokens, instruction_text

_MOST = 64  # instructions; the mean of their updates has a rank of so many times the adapters'


def mean_adapter(
    model: TagiModel, tokens: Tokens, train: Sequence[Record], seed: int, batch_size: int = 64
) -> TagiAdapter:
    """Returns the adapter that is nearest to the mean of the updates for training instructions, one of each task.

    Its rank is that of the model's adapters (the best approximation of the mean by singular values), and it has no
    instruction memory.

    Args:
        model: Writes the adapters.
        tokens: How texts become tokens.
        train: The records whose instructions are drawn: of at most 64 tasks.
        seed: Seeds the draw.
        batch_size: Instructions that are encoded at once.
    """
    of_task = {record.task: instruction_text(record.instruction, record.demonstrations) for record in train}
    tasks = random.Random(seed).sample(sorted(of_task), min(_MOST, len(of_task)))
    written = model.adapter_from_rows([tokens.instruction(of_task[task]) for task in tasks], batch_size)
    single = [adapter.without_memory() for adapter in written]
    return TagiAdapter.combine(single, [1 / len(single)] * len(single), rank=model.config.r)
