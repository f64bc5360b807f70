"""What a run needs, checked before its first step: by `train.py`, by `tagi plan`, and by `tagi study` for its runs."""

import copy
import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

import torch
from transformers import PretrainedConfig, Seq2SeqTrainingArguments, Trainer, get_scheduler

from ..configuration_tagi import TagiConfig
from ..costs.inference import lengths_of
from ..costs.work import TextLengths
from ..data.records import Record, Splits
from ..data.sources import check_source, read_source
from ..data.streams import RecordStream
from ..evaluation.evaluate import spread
from ..evaluation.references import require_references
from ..tokens import Tokens
from ..training.backbones import backbone_config
from ..training.model_checks import check_model
from ..training.setting_fields import RunSettings, StageSettings
from ..training.stages import training_stages
from .device_memory import require_device_memory
from .shapes import built_on_meta

_LOOKED_AT = 200  # records whose lengths are taken for the memory
# Those that need nothing but torch and transformers, and no further fields.
_PLAIN_OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
_PLAIN_SCHEDULES = {"linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
                    "inverse_sqrt"}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Holds a run that somebody asks for, as far as it is known when a check is made.

    Args:
        settings: The run's settings.
        backbone: The config of its backbone.
        splits, text: Its data.
        tokenizer: Its models' tokenizer.
    """

    settings: RunSettings
    backbone: Optional[PretrainedConfig] = None
    splits: Optional[Splits] = None
    text: Sequence[str] = ()
    tokenizer: Any = None

    @property
    def config(self) -> TagiConfig:
        return TagiConfig(self.backbone, **self.settings.tagi)


def check_setup(settings: RunSettings, backbone: PretrainedConfig):
    """Refuses what can be told before the data is read.

    Raises:
        ValueError: naming the field.
    """
    for check in BEFORE_THE_DATA:
        check(Asked(settings, backbone))


def check_data(settings: RunSettings, splits: Splits, text: Sequence[str]):
    """Refuses data in which there is nothing to train on or to evaluate, or too little for a batch.

    Raises:
        ValueError: naming the field or the split.
    """
    for check in OF_THE_DATA:
        check(Asked(settings, splits=splits, text=text))


def check_run(settings: RunSettings, tokenizer, splits: Splits, text: Sequence[str], here: bool = True):
    """Refuses a run that cannot be trained, now that its data and its tokenizer are there.

    Args:
        settings: The run's settings.
        tokenizer, splits, text: What the run reads.
        here: Whether on this machine, into whose memory it must fit.

    Raises:
        ValueError: naming the field, the split or the longest instruction.
        FileNotFoundError: for a missing bank.
    """
    check_data(settings, splits, text)
    asked = Asked(settings, backbone_config(settings, len(tokenizer)), splits, text, tokenizer)
    for check in (*OF_THE_MODEL, *(OF_THIS_MACHINE if here else ())):
        check(asked)


def check_cells(todo: Sequence):
    """Checks the settings and data of all runs of a study before the first of them is trained.

    Data that several runs share is read once.

    Args:
        todo: The `Cell`s, each behind the start that it needs.

    Raises:
        ValueError, FileNotFoundError: as `check_setup` and `check_data`, with the name of the run.
    """
    by_name, read = {cell.name: cell for cell in todo}, {}
    for cell in todo:
        settings = copy.deepcopy(cell.settings)
        if cell.after is not None and not Path(settings.backbone.name or "").exists():  # what the start will make
            settings.backbone = by_name[cell.after].settings.backbone
        key = repr((settings.data, settings.train_tasks, settings.seed if settings.train_tasks is not None else None))
        try:
            config = backbone_config(settings, settings.backbone.vocab_size)
            check_setup(settings, config)
            require_device_memory(settings, TagiConfig(config, **settings.tagi), settings.task_adapters.at_once)
            if key not in read:
                read[key] = read_source(
                    **dataclasses.asdict(settings.data), train_tasks=settings.train_tasks, seed=settings.seed
                )[:2]
            check_data(settings, *read[key])
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{cell.name}: {error}") from error


def _require_references(asked: Asked):
    require_references(asked.settings)


def _require_reader(asked: Asked):
    data = asked.settings.data
    check_source(data.source, data.options, data.streaming)


def _require_optimizers(asked: Asked):
    """Refuses optimizers and schedules that transformers cannot make: for want of a package, or of further fields."""
    for stage in training_stages(asked.settings):
        _require_optimizer(stage.name, stage.section(asked.settings))


def _require_optimizer(name: str, stage: StageSettings):
    if stage.schedule not in _PLAIN_SCHEDULES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        try:
            get_scheduler(stage.schedule, optimizer, num_warmup_steps=0, num_training_steps=max(1, stage.steps))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}.schedule is {stage.schedule!r}, which cannot be used here: {error}") from error
    if stage.optimizer not in _PLAIN_OPTIMIZERS:
        arguments = Seq2SeqTrainingArguments("unused", optim=stage.optimizer, report_to=[],
                                             use_cpu=not torch.cuda.is_available())  # fmt: skip
        try:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
        except Exception as error:  # each package says in its own way that it is missing
            raise ValueError(
                f"{name}.optimizer is {stage.optimizer!r}, which cannot be used here: {' '.join(str(error).split())}"
            ) from error


def _require_shapes(asked: Asked):
    built_on_meta(asked.config)


def _require_records(asked: Asked):
    if not asked.splits["train"]:
        raise ValueError("the train split has no records; check data.path and data.options")


def _require_evaluation(asked: Asked):
    for name, records in evaluated_splits(asked.settings, asked.splits).items():
        if not records:
            raise ValueError(f"the split {name!r} has no records to evaluate; leave it out by evaluation.splits")


def evaluated_splits(settings: RunSettings, splits: Splits) -> Splits:
    """Returns the splits that are scored, each with all of its records.

    Raises:
        ValueError: if there is none, or one that is named is not there.
    """
    wanted = settings.evaluation.splits or [name for name in splits if name != "train"]
    unknown = [name for name in wanted if name not in splits]
    if unknown:
        raise ValueError(f"evaluation.splits names {unknown[0]!r}, but the data has {', '.join(splits)}")
    if not wanted:
        raise ValueError(
            "there is nothing to evaluate on: the data has a train split alone. Give it another split, such as a file "
            "unseen.jsonl with tasks that are not trained on, or name what is to be scored by evaluation.splits"
        )
    return {name: splits[name] for name in wanted}


def _require_batches(asked: Asked):
    records_of = {by: _records_of(asked.splits["train"], by) for by in ("task", "group")}
    for stage in training_stages(asked.settings):
        stage.require_batches(asked.settings, records_of, len(asked.text))


def _records_of(train: Sequence[Record], by: str) -> Counter:
    """Returns how many records each task, or each group, has."""
    if not isinstance(train, RecordStream):
        return Counter(getattr(record, by) for record in train)
    group, found = {record.task: record.group for record in train}, Counter()
    for (task, *_), number in train.counts.items():
        found[task if by == "task" else group[task]] += number
    return found


def _require_vocabulary(asked: Asked):
    tokens, vocabulary = len(asked.tokenizer), asked.backbone.get_text_config().vocab_size
    if vocabulary < tokens:
        raise ValueError(
            f"the tokenizer has {tokens} tokens, but the backbone's vocab_size is {vocabulary}; leave it out of "
            "backbone.config, or give at least that"
        )


def _require_stages(asked: Asked):
    check_model(asked.settings, asked.tokenizer, asked.splits, asked.text)


def _require_memory(asked: Asked):
    settings, config, train = asked.settings, asked.config, asked.splits["train"]
    tokens = Tokens.of(asked.tokenizer, config, settings.max_input_length, settings.max_target_length)
    task = lengths_of(spread(train, _LOOKED_AT), tokens)
    passages = [len(tokens.plain(passage)) for passage in asked.text[:_LOOKED_AT]] or [3]
    lengths = TextLengths(task.instruction, task.input, task.target, sum(passages) / len(passages))
    adapters = len({getattr(record, settings.task_adapters.by) for record in train})
    require_device_memory(settings, config, adapters, lengths)


# What is asked of a run, in order: each refuses in one message what would fail, or train wrongly, later.
BEFORE_THE_DATA = (_require_references, _require_reader, _require_optimizers, _require_shapes)
OF_THE_DATA = (_require_records, _require_evaluation, _require_batches)
OF_THE_MODEL = (_require_vocabulary, _require_stages)
OF_THIS_MACHINE = (_require_memory,)
