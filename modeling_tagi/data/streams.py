"""A training split too large for memory: read as a stream, with a few records of each instruction kept."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Union

from .records import Record, record_bytes

MOST_INSTRUCTIONS = 100_000
Wording = tuple[str, str, tuple]


class RecordStream(list):
    """Holds a sample of a split that is read as a stream: at most `keep` records of each wording of each task.

    The sample is drawn evenly from the whole split. This list holds all tasks and instructions of the split, but not
    all of its records. The constructor reads the split once from beginning to end; memory grows with the number of
    wordings alone.

    Args:
        sources: Each opens a part of the split from its beginning.
        keep: Records of each wording to keep.
        seed: Seeds their choice.

    Raises:
        ValueError: if there are no records, or too many wordings to keep records of each.
    """

    def __init__(self, sources: Sequence[Callable[[], Iterable[Record]]], keep: int = 64, seed: int = 0):
        self.sources, self.keep, self.seed = list(sources), keep, seed
        rng, kept, digest = random.Random(seed), {}, hashlib.sha256()
        self.counts: dict[Wording, int] = {}
        for record in self.all():
            name = wording_of(record)
            number = self.counts.get(name, 0)
            self.counts[name] = number + 1
            digest.update(record_bytes(record))
            if number < keep:
                kept.setdefault(name, []).append(record)
            elif (place := rng.randrange(number + 1)) < keep:
                kept[name][place] = record
            if len(kept) > MOST_INSTRUCTIONS:
                raise ValueError(
                    f"the train split has more than {MOST_INSTRUCTIONS} instructions (with their demonstrations), and "
                    "streaming keeps records of each: what changes from record to record belongs into the input; or "
                    "set data.streaming to null"
                )
        if not kept:
            raise ValueError("the train split has no records to stream; give at least one")
        super().__init__(chain.from_iterable(kept.values()))
        self.digest = digest.hexdigest()  # of the whole split

    @property
    def size(self) -> int:
        """Returns the number of records of the whole split."""
        return sum(self.counts.values())

    def all(self) -> Iterator[Record]:
        """Yields every record of the split, once."""
        return chain.from_iterable(open_part() for open_part in self.sources)

    def fresh(self) -> Iterator[Record]:
        """Yields records without end: the parts take turns, and each starts over when it ends."""
        heads = [self._again(open_part) for open_part in self.sources]
        return (record for head in cycle(heads) for record in islice(head, 1))

    def of_tasks(self, tasks: set[str]) -> "RecordStream":
        """Returns a stream of the same split with the records of some tasks alone."""
        def only(open_part):
            return lambda: (record for record in open_part() if record.task in tasks)

        return RecordStream([only(open_part) for open_part in self.sources], self.keep, self.seed)

    @staticmethod
    def _again(open_part: Callable[[], Iterable[Record]]) -> Iterator[Record]:
        found = True
        while found:  # a part without any is left out
            found = False
            for record in open_part():
                found = True
                yield record


def wording_of(record: Record) -> Wording:
    """Returns the fields that records must share to stand side by side in a batch."""
    return record.task, record.instruction, record.demonstrations


def everything(records: Iterable[Record]) -> Iterable[Record]:
    """Returns all records; of a stream, also those that it does not keep."""
    return records.all() if isinstance(records, RecordStream) else records


def number_of(records: Union[RecordStream, Sequence[Record]]) -> int:
    """Returns the number of records; of a stream, also those that it does not keep."""
    return records.size if isinstance(records, RecordStream) else len(records)
