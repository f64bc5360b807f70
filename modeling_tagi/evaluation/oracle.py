"""The oracle: a backbone with a LoRA tuned on instances of the evaluated task itself, without its instruction."""

import random
from functools import partial
from typing import Mapping, Optional, Sequence

import torch
from torch import Tensor

from ..adapter import TagiAdapter
from ..adapter_tuning import lower_loss
from ..common.console import progress_bar
from ..common.randomness import unchanged_randomness
from ..common.seeds import derived_seed
from ..configuration_tagi import TagiConfig
from ..data.collate import RecordCollator
from ..data.records import Record
from ..data.sampling import TaskBatchSampler
from ..data.splits import normalise_text
from ..lora import evaluating
from ..modeling_tagi import TagiModel
from ..tokens import Tokens
from ..training.task_adapters import AdapterTuner
from .backbones import adaptable
from .predict import Answering


def oracle(
    start: Answering,
    records: Sequence[Record],
    steps: int = 100,
    learning_rate: float = 1e-3,
    examples_per_task: int = 8,
    reads: str = "input",
    seed: int = 0,
    config: Optional[TagiConfig] = None,
    progress: str = "",
) -> Answering:
    """Returns answers by a LoRA tuned on the other half of a task's records, so that none is tuned on and scored.

    Args:
        start: The backbone to tune on, and its tokens.
        records: What is to be answered.
        steps, learning_rate, examples_per_task, reads, progress: As in `tune_adapters`.
        seed: Seeds the halves, A and the tuning.
        config: As in `adaptable`.

    Raises:
        ValueError: if a task has a single input.
    """
    fold = two_folds(records, seed)
    model = adaptable(start.model, config, derived_seed(seed, "A"))
    tasks = list(dict.fromkeys(record.task for record in records))
    tuned = []
    for half in (0, 1):
        of_task: dict[str, list[Record]] = {task: [] for task in tasks}
        for record in records:
            if fold[_instance(record)] == half:
                of_task[record.task].append(record)
        tuned.append(tune_adapters(
            model, start.tokens, of_task, steps, learning_rate, examples_per_task, reads,
            derived_seed(seed, "tuning", str(half)), progress=progress and f"{progress}, half {half + 1}",
        ))  # fmt: skip
    number = {task: number for number, task in enumerate(tasks)}

    def row_of(record: Record) -> int:
        other = 1 - fold[_instance(record)]
        return other * len(tasks) + number[record.task]

    return Answering(model, start.tokens, reads, start.batch_size, adapters=TagiAdapter.stack(tuned), row_of=row_of)


def two_folds(records: Sequence[Record], seed: int = 0) -> dict[tuple[str, str], int]:
    """Returns half 0 or 1 for each (task, normalised input), drawn by `seed`; records of one input share a half.

    Raises:
        ValueError: if a task has a single input.
    """
    inputs: dict[str, dict[tuple[str, str], None]] = {}
    for record in records:
        inputs.setdefault(record.task, {})[_instance(record)] = None
    fold = {}
    for task, instances in inputs.items():
        if len(instances) < 2:
            raise ValueError(f"task {task!r} has 1 distinct input, but tuning on one half of a task needs 2 or more")
        shuffled = list(instances)
        random.Random(derived_seed(seed, "halves", task)).shuffle(shuffled)
        fold.update((instance, place % 2) for place, instance in enumerate(shuffled))
    return fold


def tune_adapters(
    model: TagiModel,
    tokens: Tokens,
    records_by_task: Mapping[str, Sequence[Record]],
    steps: int = 100,
    learning_rate: float = 1e-3,
    examples_per_task: int = 8,
    reads: str = "input",
    seed: int = 0,
    at_once: int = 32,
    progress: str = "",
) -> TagiAdapter:
    """Tunes a LoRA for each task by AdamW with a linearly falling learning rate; a seed fixes the result.

    Args:
        model: The backbone and the A that every adapter starts from; all its parameters are frozen by this.
        tokens: How texts become tokens.
        records_by_task: What to tune on; each task's own records.
        steps: Optimizer steps, each on all tasks tuned at once.
        learning_rate: At its highest.
        examples_per_task: Examples of each task in a batch.
        reads: What the model reads: the `"input"` or the `"prompt"`.
        seed: Seeds the draws and dropout; the random generators are left as they were.
        at_once: Adapters tuned side by side.
        progress: Shown beside the progress bar; without it there is none.

    Returns:
        The adapters in the order of `records_by_task`.

    Raises:
        ValueError: if `steps` is below 1, or a loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, but tuning takes at least 1")
    model.requires_grad_(False)
    names, tuned = list(records_by_task), []
    chunks = [names[start: start + at_once] for start in range(0, len(names), at_once)]
    bar = progress_bar(total=steps * len(chunks), desc=progress, disable=not progress)
    with bar, unchanged_randomness(), evaluating(model):
        for chunk in chunks:
            own = derived_seed(seed, chunk[0])
            torch.manual_seed(own)
            records = [record for name in chunk for record in records_by_task[name]]
            tuner = AdapterTuner(model.backbone, chunk, model.hypernetwork.shared_factors(), model.config.lora_alpha)
            collator = RecordCollator(tokens, reads, {name: number for number, name in enumerate(chunk)}, "task")
            sampler = TaskBatchSampler(records, len(chunk), examples_per_task, steps, own, every=True)
            batches = (collator([records[row] for row in rows]) for rows in sampler)
            tuner.train()
            lower_loss(tuner.parameters(), batches, partial(_loss, tuner), steps, learning_rate, len(chunk), bar)
            tuner.eval()
            tuned.append(tuner.adapter().detach())
    return TagiAdapter.stack(tuned)


def _loss(tuner: AdapterTuner, batch: dict[str, Tensor]) -> Tensor:
    device = tuner.backbone.device
    return tuner(**{name: tensor.to(device) for name, tensor in batch.items()})["loss"]


def _instance(record: Record) -> tuple[str, str]:
    return record.task, normalise_text(record.input)
