"""References: what is scored beside a model, to tell what its scores mean. To add one is a class and a line here."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Optional, Sequence

from ..adapter import TagiAdapter
from ..banks.adapter_bank import AdapterBank
from ..common.methods import METHODS
from ..common.seeds import derived_seed
from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..training.setting_fields import OracleSettings, RunSettings
from .mean_adapter import mean_adapter
from .nearest_adapter import nearest_adapters
from .oracle import oracle, two_folds
from .other_instructions import random_word_instructions, wrong_instructions
from .predict import Answering

RENAMED = {"prompted": "start_prompted", "prompted_start": "start_prompted"}


class LeftOut(Exception):
    """Says why a reference cannot be made for some records; a note of the results."""


@dataclass(frozen=True)
class Compared:
    """Holds what references are made of.

    Args:
        own: How the evaluated model answers; `None` if there is none.
        start: The prompted backbone that it is compared with.
        evaluated: The records of all splits.
        train: The records that the bank's adapters were tuned on, and a source of wrong instructions.
        bank: Task adapters of the start's backbone.
        config: The rank, scale and target modules of adapters that are tuned.
        tuning: How these are tuned.
        seed: Seeds everything that is drawn.
    """

    own: Optional[Answering]
    start: Answering
    evaluated: Sequence[Record]
    train: Sequence[Record] = ()
    bank: Optional[AdapterBank] = None
    config: Optional[TagiConfig] = None
    tuning: OracleSettings = field(default_factory=OracleSettings)
    seed: int = 0


class Reference(ABC):
    """Answers records in a way that shows what a score means.

    Attributes:
        name: What settings and `results.json` call it.
        title: What tables and reports call it.
        above: Whether tables have it above what was trained.
        by_category: Its place among those of which a study plots the first three by category; `None` is not at all.
        beside_own: Whether a run's plot by category has it beside what the run trained.
        asks_trained: Whether the evaluated model answers, with another instruction than the record's own; otherwise
            it is the backbone that it started from.
        needs_bank: Whether it takes stored task adapters.
        tunes: Whether it tunes adapters, as `evaluation.oracle` says.
    """

    name: str
    title: str
    above = False
    by_category: Optional[int] = None
    beside_own = False
    asks_trained = False
    needs_bank = False
    tunes = False

    def __init__(self, compared: Compared):
        self.compared, self.seed = compared, derived_seed(compared.seed, "evaluation", self.name)

    @abstractmethod
    def answering(self, records: Sequence[Record], progress: str) -> Answering:
        """Returns how it answers these records.

        Args:
            records: Records of one split.
            progress: Shown beside the progress bar.

        Raises:
            LeftOut: if it cannot be made for them.
        """


class NoInstruction(Reference):
    """Gives the start the input alone."""

    name, title, above = "no_instruction", "no instruction", True

    def answering(self, records, progress):
        start = self.compared.start
        return Answering(start.model, start.tokens, "input", start.batch_size)


class StartPrompted(Reference):
    """Gives the start the instruction in its input."""

    name, title, above = "start_prompted", "start prompted", True
    by_category, beside_own = 3, True

    def answering(self, records, progress):
        return self.compared.start


class WrongInstruction(Reference):
    """Gives the evaluated model another task's instruction."""

    name, title, asks_trained = "wrong_instruction", "wrong instruction", True

    def __init__(self, compared):
        super().__init__(compared)
        self.instructions = self._drawn(compared)

    def _drawn(self, compared: Compared) -> dict[str, str]:
        found = wrong_instructions([*compared.evaluated, *compared.train], self.seed)
        found.update(wrong_instructions(compared.evaluated, self.seed))  # training's only where there is no other
        return found

    def answering(self, records, progress):
        if any(record.task not in self.instructions for record in records):
            raise LeftOut("some task has no other task's words to take")
        own = self.compared.own
        return Answering(own.model, own.tokens, own.reads, own.batch_size, self.instructions)


class RandomWords(WrongInstruction):
    """Gives the evaluated model as many random words as the instruction has."""

    name, title = "random_words", "random words"

    def _drawn(self, compared):
        return random_word_instructions([*compared.evaluated, *compared.train], self.seed)


class MeanAdapter(Reference):
    """Gives the evaluated model the mean of the adapters that it writes for training instructions."""

    name, title, asks_trained = "mean_adapter", "mean adapter", True

    def __init__(self, compared):
        super().__init__(compared)
        self.mean: Optional[TagiAdapter] = None  # the same for all splits

    def answering(self, records, progress):
        own = self.compared.own
        if self.mean is None:
            self.mean = mean_adapter(own.model, own.tokens, self.compared.train, self.seed, own.batch_size)
        return Answering(
            own.model, own.tokens, "input", own.batch_size, adapters=self.mean, row_of=lambda record: 0
        )


class NearestAdapter(Reference):
    """Gives the start the task adapter whose instruction is nearest."""

    name, title, needs_bank = "nearest_adapter", "nearest adapter", True

    def answering(self, records, progress):
        compared = self.compared
        return nearest_adapters(compared.start, compared.bank, compared.train, records, compared.config)


class Oracle(Reference):
    """Gives the start a LoRA tuned on other instances of the evaluated task."""

    name, title, tunes = "oracle", "oracle", True
    beside_own = True

    def answering(self, records, progress):
        try:
            two_folds(records, self.seed)
        except ValueError as error:
            raise LeftOut(str(error)) from None
        return oracle(
            self.compared.start, records, **vars(self.compared.tuning), seed=self.seed, config=self.compared.config,
            progress=progress,
        )  # fmt: skip


# in the order of tables
REFERENCES: dict[str, type[Reference]] = {
    reference.name: reference
    for reference in (
        NoInstruction,
        StartPrompted,
        WrongInstruction,
        RandomWords,
        MeanAdapter,
        NearestAdapter,
        Oracle,
    )
}


def in_order(methods) -> list[str]:
    """Returns the names of methods and references as tables have them."""
    above = [name for name, reference in REFERENCES.items() if reference.above]
    trained = [name for name, method in METHODS.items() if method.among_references]
    below = [name for name, reference in REFERENCES.items() if not reference.above]
    known = [*above, *trained, *below]
    return [*(name for name in known if name in methods), *(name for name in methods if name not in known)]


def shown_by_category() -> list[str]:
    """Returns the methods and references that a study plots by category, the most telling first."""
    places = {name: one.by_category for name, one in {**METHODS, **REFERENCES}.items() if one.by_category is not None}
    return sorted(places, key=places.get)


def shown_beside_own() -> list[str]:
    """Returns the methods and references that a run's plot by category has beside what the run trained."""
    return in_order([name for name, one in {**METHODS, **REFERENCES}.items() if one.beside_own])


def title_of(name: str) -> str:
    """Returns what tables call a method or a reference."""
    return REFERENCES[name].title if name in REFERENCES else name.replace("_", " ")


def require_names(names: Sequence[str], field: str = "evaluation.references"):
    """Refuses names that are no reference's.

    Raises:
        ValueError: naming the field, the first of them and those that there are.
    """
    for name in names:
        if isinstance(name, str) and name in REFERENCES:
            continue
        if isinstance(name, str) and name in RENAMED:
            raise ValueError(f"{field} has {name!r}, which is called {RENAMED[name]!r} now: give that")
        raise ValueError(f"{field} has {name!r}, but knows {', '.join(map(repr, REFERENCES))}")


def require_references(settings: RunSettings):
    """Refuses references that a run with these settings cannot make.

    Raises:
        ValueError: naming the field and what is missing.
    """
    evaluation, tuned = settings.evaluation, settings.task_adapters
    require_names(evaluation.references)
    for name in evaluation.references:
        if REFERENCES[name].needs_bank and not tuned.steps and tuned.given is None:
            raise ValueError(
                f"evaluation.references has {name!r}, but there are no task adapters: give task_adapters.steps or "
                "given"
            )
        if REFERENCES[name].tunes and evaluation.oracle.steps < 1:
            raise ValueError(f"evaluation.oracle.steps is 0, but the {name} has to be tuned: give at least 1")
