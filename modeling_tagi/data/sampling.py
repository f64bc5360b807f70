"""Samplers of batches; each step's draw depends on the seed and the step alone, so a resumed run draws the same."""

import math
import random
from collections import defaultdict
from itertools import islice
from typing import Iterator, Optional, Sequence

from torch.utils.data import Dataset, Sampler

from .records import Record
from .streams import RecordStream, wording_of


class TaskBatchSampler(Sampler[list[int]]):
    """Samples batches of `tasks_per_batch` tasks × `examples_per_task` examples, the examples of a task side by side.

    Tasks are drawn without replacement if there are enough of them, each with one of its instructions (wordings), and
    so are the examples of that instruction. Where records have weights, a task of twice the weight is drawn twice as
    often.

    Args:
        records: What to draw from.
        tasks_per_batch: Unique instructions in a batch.
        examples_per_task: Examples of each.
        steps: Number of batches.
        seed: Seeds the draws.
        by: `"task"`, or `"group"` to draw groups (any instruction of any of its tasks).
        every: If true, every batch holds all tasks (or groups) and `tasks_per_batch` is not used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        tasks_per_batch: int,
        examples_per_task: int,
        steps: int,
        seed: int = 0,
        by: str = "task",
        every: bool = False,
    ):
        by_unit, weight_of = defaultdict(lambda: defaultdict(list)), {}
        for index, record in enumerate(records):
            weight_of.setdefault(getattr(record, by), record.weight)
            wording = (record.instruction, record.demonstrations) if by == "task" else None
            by_unit[getattr(record, by)][wording].append(index)
        if not by_unit:
            raise ValueError("there are no records to draw batches from")
        self._records, self._by = records, by
        self._units = [list(wordings.values()) for wordings in by_unit.values()]
        weights = list(weight_of.values())
        self._weights = weights if len(set(weights)) > 1 else None
        self._tasks = len(self._units) if every else tasks_per_batch
        self._every, self._examples, self._steps, self._seed = every, examples_per_task, steps, seed

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(step) for step in range(self._steps))

    def batch(self, step: int) -> list[int]:
        """Returns the indices of the records of one step."""
        rng = random.Random(f"{self._seed} {step}")
        units = self._units if self._every else _draw(rng, self._units, self._tasks, self._weights)
        return [
            index
            for wordings in units
            for wording in rng.sample(wordings, 1)
            for index in _draw(rng, wording, self._examples)
        ]

    def units(self, batch: Sequence[int]) -> list[list[int]]:
        """Groups the draws of a batch that must stay on one process: those of one instruction, or of one group."""
        units = defaultdict(list)
        for index in batch:
            record = self._record(index)
            units[(record.instruction, record.demonstrations) if self._by == "task" else record.group].append(index)
        return list(units.values())

    def _record(self, index: int) -> Record:
        return self._records[index]


class StreamBatchSampler(TaskBatchSampler):
    """Samples batches of records as `TaskBatchSampler` does, from a stream's kept records, which it renews as it goes.

    After each batch it reads further records: as many as the batch had, or if that is more, as many as it takes to
    read the whole split over all steps. Each replaces a random kept record of its wording.

    If all records of a wording are kept, they stay: a stream that fits into memory gives the batches that a list
    would. A step's batch depends on the seed, the stream and the number of steps; to resume at a step, the sampler
    reads again what was read before it.

    Args:
        stream: What to draw from.
        args, kwargs: As for `TaskBatchSampler`.
    """

    def __init__(self, stream: RecordStream, *args, **kwargs):
        super().__init__(stream, *args, **kwargs)
        self._places = defaultdict(list)
        for place, record in enumerate(stream):
            self._places[wording_of(record)].append(place)

    def __iter__(self) -> Iterator[list[Record]]:
        stream, kept = self._records, list(self._records)
        fresh, share = stream.fresh(), math.ceil(stream.size / self._steps)
        for step in range(self._steps):
            batch = self.batch(step)
            yield [kept[place] for place in batch]
            rng = random.Random(f"{self._seed} {step} read")
            for record in islice(fresh, max(len(batch), share)):
                wording = wording_of(record)
                if wording not in stream.counts:
                    raise ValueError(
                        f"the train split was changed while it was read: task {record.task!r} has the new instruction "
                        f"{record.instruction[:80]!r}; start anew"
                    )
                if stream.counts[wording] > stream.keep:
                    kept[rng.choice(self._places[wording])] = record

    def _record(self, index: Record) -> Record:
        return index


class TextBatchSampler(Sampler[list[tuple[int, int]]]):
    """Samples batches of (passage, draw) pairs; `draw` seeds how the passage is cut.

    Args:
        passages: Number of passages to draw from.
        batch_size: Passages a batch.
        steps: Number of batches.
        seed: Seeds the draws.
    """

    def __init__(self, passages: int, batch_size: int, steps: int, seed: int = 0):
        if passages < 1:
            raise ValueError("there are no passages to draw batches from")
        self._passages, self._batch_size, self._steps, self._seed = passages, batch_size, steps, seed

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self._steps):
            rng = random.Random(f"{self._seed} {step}")
            chosen = _draw(rng, range(self._passages), self._batch_size)
            yield [(passage, rng.getrandbits(32)) for passage in chosen]


class BatchShards(Sampler[list]):
    """Splits each batch of a sampler into `number` shards, which accelerate deals out to as many processes.

    Together the processes have the batch that a single one would have.

    Args:
        sampler: Yields the batches. Its `units(batch)`, if it has that method, says which draws stay together.
        number: Shards of each batch. If a batch has fewer units, each shard is the whole batch, for none may be empty.
    """

    def __init__(self, sampler, number: int):
        self._sampler, self._number = sampler, number

    def __len__(self) -> int:
        return len(self._sampler) * self._number

    def __iter__(self) -> Iterator[list]:
        for batch in self._sampler:
            units = self._sampler.units(batch) if hasattr(self._sampler, "units") else [[draw] for draw in batch]
            bounds = [len(units) * place // self._number for place in range(self._number + 1)]
            for start, end in zip(bounds, bounds[1:]):
                yield list(batch) if len(units) < self._number else sum(units[start:end], [])


class Drawn(Dataset):
    """Serves what a batch sampler draws: records by number or, without records, the draws themselves."""

    def __init__(self, records=None):
        self.records = records

    def __getitem__(self, draw):
        return self.records[draw] if self.records is not None else draw

    def __len__(self):
        return len(self.records) if self.records is not None else 0


def fewer_tasks(records: Sequence[Record], number: int, seed: int = 0) -> list[Record]:
    """Returns the records of `number` tasks, drawn by `seed` as evenly over the groups as their sizes allow.

    The tasks of a smaller number are among those of a larger one.

    Raises:
        ValueError: if there are not so many tasks.
    """
    by_group = defaultdict(dict)
    for record in records:
        by_group[record.group][record.task] = None
    rng = random.Random(seed)
    queues = [rng.sample(list(tasks), len(tasks)) for tasks in by_group.values()]
    rng.shuffle(queues)
    layers = max(map(len, queues), default=0)
    order = [queue[layer] for layer in range(layers) for queue in queues if layer < len(queue)]
    if number > len(order):
        raise ValueError(f"train_tasks is {number}, but the train split has {len(order)} tasks; give at most that")
    chosen = set(order[:number])
    return [record for record in records if record.task in chosen]


def _draw(rng: random.Random, items: Sequence, number: int, weights: Optional[Sequence[float]] = None) -> list:
    if weights is not None and len(items) >= number:
        # without replacement, each next one by its weight among the rest: Efraimidis and Spirakis, 2006
        keys = [rng.random() ** (1 / weight) for weight in weights]
        return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__, reverse=True)[:number]]
    if len(items) >= number:
        return rng.sample(items, number)
    return rng.choices(items, k=number)
