"""What every stage of a run declares: its name, whether a run has it, what it refuses early, and how it runs."""

from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Sequence, Union

import torch

from ...common.processes import is_main
from ...common.seeds import derived_seed
from ...common.writing import replacing
from ...configuration_tagi import TagiConfig
from ...costs.work import FLOAT, DeviceMemory, Disk, TextLengths, Work, size_of
from ...data.collate import TextCollator
from ...data.records import Record
from ...data.sampling import Drawn, StreamBatchSampler, TaskBatchSampler, TextBatchSampler
from ...data.streams import RecordStream
from ..batch_checks import require_drawn
from ..known_instructions import drawn_instructions
from ..run import Stage
from ..run_state import RunState
from ..saved_models import read_model, require_whole, save_model
from ..setting_fields import RunSettings, StageSettings
from ..sharding.sharded import weights_are_sharded
from ..stage_costs import RunCosts
from ..stage_training import train_stage
from ..trainable import set_trainable


class TrainingStage(ABC):
    """Declares one stage of a run.

    Attributes:
        name: The name of its section in the settings and of its folder, and its name in messages.
        description: What it does, in a few words.
        stream: Names its random numbers, which are derived from it.
        reads: What its batches are drawn from, `records` or `text`.
        depends_on: Fields and sections of the settings, beside its own section and what all stages depend on
            (`stage_keys`), that its result depends on; whether earlier stages take steps is among them. A run resumes
            only with the same.
    """

    name: str
    description: str
    reads = "records"
    depends_on: tuple[str, ...] = ()

    @property
    def stream(self) -> str:
        return self.name

    def section(self, settings: RunSettings) -> StageSettings:
        """Returns the stage's own settings."""
        return getattr(settings, self.name)

    def trains(self, settings: RunSettings) -> bool:
        """Returns whether a run with these settings takes steps in this stage."""
        return self.section(settings).steps > 0

    def wanted(self, settings: RunSettings) -> bool:
        """Returns whether a run with these settings has this stage."""
        return self.trains(settings)

    def require(self, settings: RunSettings, config: TagiConfig, train: Sequence[Record], text: Sequence[str]):
        """Refuses, before any long work, what the stage would refuse late.

        Args:
            settings: The run's settings.
            config: Its model's configuration.
            train, text: What it trains on.

        Raises:
            ValueError: naming the field.
            FileNotFoundError: for something named that is not there.
        """

    def require_batches(self, settings: RunSettings, records_of: dict[str, Counter], passages: int):
        """Refuses batches that the data are too few for.

        Args:
            settings: The run's settings.
            records_of: How many records each `task`, and each `group`, has.
            passages: How many passages of text there are.

        Raises:
            ValueError: naming the field.
        """
        section, tasks = self.section(settings), records_of["task"]
        require_drawn(
            f"{self.name}.examples_per_task", section.examples_per_task, max(tasks.values()),
            "the largest task has {} records",
        )  # fmt: skip
        if section.tasks_per_batch > len(tasks):
            raise ValueError(
                f"{self.name}.tasks_per_batch is {section.tasks_per_batch}, but there are {len(tasks)} tasks to train "
                "on; give at most that"
            )

    def trainings(self, costs: RunCosts) -> int:
        """Returns how many trainings the stage has, one after the other."""
        return 1

    def of_one_training(self, settings: RunSettings, train: Sequence[Record]) -> Sequence[Record]:
        """Returns the records that its first training reads."""
        return train

    def reads_bank(self, settings: RunSettings) -> bool:
        """Returns whether it reads the task adapters."""
        return False

    def phases(self, settings: RunSettings) -> list[tuple[int, int]]:
        """Returns length and end, in steps, of each part of a training within which all steps cost alike."""
        steps = self.section(settings).steps
        return [(steps, steps)]

    def shorten(self, settings: RunSettings, steps: int):
        """Shortens each phase of the stage to `steps` steps, in place, for a trial that saves nothing on the way."""
        section = self.section(settings)
        section.steps, section.save_every = steps * len(self.phases(settings)), 10**9

    def steps(self, costs: RunCosts) -> int:
        """Returns the optimizer steps of all its trainings."""
        return self.section(costs.settings).steps * self.trainings(costs)

    def work(self, costs: RunCosts, lengths: TextLengths) -> Work:
        """Returns the work of one optimizer step, with texts of these lengths."""
        return self.batch(costs, lengths).times(self.section(costs.settings).accumulation)

    @abstractmethod
    def batch(self, costs: RunCosts, lengths: TextLengths) -> Work:
        """Returns the work of a batch, on the average."""

    def largest_batch(self, costs: RunCosts, lengths: TextLengths) -> Work:
        """Returns the work of the batch with most rows."""
        return self.batch(costs, lengths)

    @abstractmethod
    def device_memory(self, costs: RunCosts, lengths: TextLengths) -> DeviceMemory:
        """Returns the bytes that it needs on its device, with texts of these lengths."""

    @abstractmethod
    def disk(self, costs: RunCosts, lengths: TextLengths) -> Disk:
        """Returns the bytes that it writes."""

    def run(self, state: RunState):
        """Does the stage if the run has it and it is not done, and hands on what it made."""
        if not self.wanted(state.settings):
            return
        folder = state.run.stage(self.name, **self.before(state))
        self.check_folder(state, folder)
        if folder.facts is not None:
            folder.skip()
        else:
            model = self.model(state)
            folder.start()
            folder.finish(**self.made(state, folder, model))
        self.hand_on(state, folder)

    @abstractmethod
    def before(self, state: RunState) -> dict[str, Union[str, Path, dict]]:
        """Returns what the stage reads of what was there before it, by what that is."""

    def model(self, state: RunState):
        """Returns what the stage trains, where that is there before it starts."""
        return state.model

    @abstractmethod
    def made(self, state: RunState, folder: Stage, model) -> dict:
        """Trains, saves the result in the stage's folder, and returns facts about it, such as its `loss`."""

    def check_folder(self, state: RunState, folder: Stage):
        """Refuses what an earlier attempt at the stage left, if it is damaged."""

    @abstractmethod
    def hand_on(self, state: RunState, folder: Stage):
        """Leaves the stage's result in `state`."""

    def seed(self, settings: RunSettings, purpose: str, part: str = "") -> int:
        """Returns the seed of the stage's random numbers for a purpose: its batches, or its training."""
        return derived_seed(settings.seed, self.stream, purpose, part)

    def trained(self, state: RunState, folder: Stage, model, collator, sampler, dataset, part="", **options) -> dict:
        """Trains `model` in place; see `train_stage`."""
        seed = self.seed(state.settings, "training", part)
        section = self.section(state.settings)
        return train_stage(state.run, folder, section, model, collator, sampler, dataset, seed, part=part, **options)

    def text_sampler(self, settings: RunSettings, collator: TextCollator) -> TextBatchSampler:
        """Returns the draws of every batch of passages."""
        section = self.section(settings)
        steps = section.steps * section.accumulation
        return TextBatchSampler(len(collator.passages), section.batch_size, steps, self.seed(settings, "batches"))

    def task_sampler(self, settings: RunSettings, train: Sequence[Record]) -> TaskBatchSampler:
        """Returns the draws of every batch of tasks."""
        section = self.section(settings)
        steps, seed = section.steps * section.accumulation, self.seed(settings, "batches")
        kind = StreamBatchSampler if isinstance(train, RecordStream) else TaskBatchSampler
        return kind(train, section.tasks_per_batch, section.examples_per_task, steps, seed)


class ReadsText(TrainingStage):
    """Declares a stage whose batches are drawn from passages of text."""

    reads = "text"

    def require(self, settings: RunSettings, config: TagiConfig, train: Sequence[Record], text: Sequence[str]):
        if self.trains(settings) and not text:
            raise ValueError(
                f"{self.name}.steps is above 0, but there is no text; give --data.text, or --{self.name}.steps 0"
            )

    def require_batches(self, settings: RunSettings, records_of: dict[str, Counter], passages: int):
        if passages:
            size = self.section(settings).batch_size
            require_drawn(f"{self.name}.batch_size", size, passages, "the text has {} passages")


class BackboneStage(TrainingStage):
    """Declares a stage that teaches the backbone itself, before there is a generator."""

    def device_memory(self, costs: RunCosts, lengths: TextLengths) -> DeviceMemory:
        return costs.backbone_memory(self.section(costs.settings), self.batch(costs, lengths))

    def disk(self, costs: RunCosts, lengths: TextLengths) -> Disk:
        saved = FLOAT * size_of(costs.model.backbone)
        return Disk.of(saved, saved, self.device_memory(costs, lengths).optimizer)

    def before(self, state: RunState) -> dict[str, Union[str, Path, dict]]:
        return {"backbone": state.backbone}

    def model(self, state: RunState):
        return None  # made when the stage has started: it is part of its work

    def check_folder(self, state: RunState, folder: Stage):
        if folder.facts is not None:
            require_whole(folder.folder / "backbone", state.run.again(self.name))

    def save_backbone(self, state: RunState, folder: Stage, model):
        """Writes the taught backbone with its tokenizer."""
        if is_main():
            with replacing(folder.folder / "backbone") as beside:
                model.save_pretrained(beside)
                state.tokenizer.save_pretrained(beside)

    def hand_on(self, state: RunState, folder: Stage):
        state.backbone, state.revision = str(folder.folder / "backbone"), None


class GeneratorStage(TrainingStage):
    """Declares a stage that trains the generator, and what `finetuning.train` names beside it."""

    def device_memory(self, costs: RunCosts, lengths: TextLengths) -> DeviceMemory:
        return costs.model_memory(self.section(costs.settings), self.batch(costs, lengths))

    def disk(self, costs: RunCosts, lengths: TextLengths) -> Disk:
        saved = FLOAT * size_of(costs.model)
        return Disk.of(saved, saved, self.device_memory(costs, lengths).optimizer)

    def before(self, state: RunState) -> dict[str, Union[str, Path, dict]]:
        start = state.settings.start_from
        backbone = {"backbone": state.model.config.backbone_name_or_path}
        return backbone if start is None else {**backbone, "generator": start}

    def set_trainable(self, state: RunState, model):
        """Lets the model's parameters change, or stay, as the settings say."""
        set_trainable(model, state.settings)

    def standardise(self, state: RunState, model):
        """Takes the statistics of the training instructions, if the model is to have them and has none yet."""
        if model.config.standardise and not model.standardised.is_set:
            if model.device.type == "cpu" and not weights_are_sharded():
                model.to(device())
            seed = derived_seed(state.settings.seed, "generator", "standardise")
            model.standardised.set(model.pooled_from_rows(drawn_instructions(state.tokens, state.train, seed)))

    def save_model(self, state: RunState, folder: Stage, model):
        """Writes the trained model."""
        save_model(model, folder.folder / "model", state.settings.finetuning.train != "generator")

    def hand_on(self, state: RunState, folder: Stage):
        state.model = read_model(folder.folder / "model", state.run.again(self.name), state.model.config)


def drawn_from(train: Sequence[Record]) -> Drawn:
    """Returns what a task sampler's draws are taken from: a stream's draws are the records themselves."""
    return Drawn() if isinstance(train, RecordStream) else Drawn(train)


def device() -> torch.device:
    """Returns where the run computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
