"""What a run needs, checked before its first step: by `train.py`, by `tagi plan`, and by `tagi study` for its runs."""

import copy
import dataclasses
import math
import os
from collections import Counter
from pathlib import Path
from typing import Optional, Sequence

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
from ..training.settings import RunSettings
from ..training.sharding.sharded import in_shares
from ..training.stage_costs import RunCosts
from ..training.stage_plans import stages_that_train
from .shapes import built_on_meta, flops_of

# Small tasks have a record several times in a batch; where even the largest would, more than so often, or in batches
# larger than these, the batch is a mistake.
_REPEATS, _SMALL = 4, 16
_LOOKED_AT = 200  # records whose lengths are taken for the memory
# Those that need nothing but torch and transformers, and no further fields.
_PLAIN_OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
_PLAIN_SCHEDULES = {"linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
                    "inverse_sqrt"}  # fmt: skip


def check_setup(settings: RunSettings, backbone: PretrainedConfig):
    """Accepts what can be told before the data is read: the reader's options, optimizers, and a model that can be
    built on this backbone.

    Raises:
        ValueError: naming the field.
    """
    require_references(settings)
    check_source(settings.data.source, settings.data.options, settings.data.streaming)
    for stage in stages_that_train(settings):
        _require_optimizer(stage.name, getattr(settings, stage.name))
    built_on_meta(TagiConfig(backbone, **settings.tagi))


def check_data(settings: RunSettings, splits: Splits, text: Sequence[str]):
    """Accepts data that there is something to train on in, and to evaluate, in batches of this size.

    Raises:
        ValueError: naming the field or the split.
    """
    train = splits["train"]
    if not train:
        raise ValueError("the train split has no records; check data.path and data.options")
    for name, records in evaluated_splits(settings, splits).items():
        if not records:
            raise ValueError(f"the split {name!r} has no records to evaluate; leave it out by evaluation.splits")
    counted = {by: _records_of(train, by) for by in ("task", "group")}
    for name in (stage.name for stage in stages_that_train(settings)):
        stage = getattr(settings, name)
        if name in ("text", "pretraining"):
            if text:
                _require_drawn(f"{name}.batch_size", stage.batch_size, len(text), "the text has {} passages")
            continue
        by = stage.by if name == "task_adapters" else "task"
        largest = max(counted[by].values())
        _require_drawn(
            f"{name}.examples_per_task", stage.examples_per_task, largest, f"the largest {by} has {{}} records"
        )
        tasks = len(counted["task"])
        if name != "task_adapters" and stage.tasks_per_batch > tasks:
            raise ValueError(
                f"{name}.tasks_per_batch is {stage.tasks_per_batch}, but there are {tasks} tasks to train on; give at "
                "most that"
            )


def evaluated_splits(settings: RunSettings, splits: Splits) -> Splits:
    """The splits that are scored, each with all of its records.

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


def check_memory(settings: RunSettings, config: TagiConfig, adapters: int, lengths: Optional[TextLengths] = None):
    """Accepts a run that may fit into this machine's memory; the estimate is rough, so that only what is beyond doubt
    is refused.

    Args:
        settings: Of the run.
        config: Of its model.
        adapters: Task adapters that there are.
        lengths: Mean lengths of its texts; without them activations are not counted.

    Raises:
        ValueError: with how much is needed, for what, and how much there is.
    """
    if in_shares():  # each process has a part, of which the plan knows nothing
        return
    there, what = memory_there()
    costs = RunCosts(settings, flops_of(config), adapters)
    for stage in stages_that_train(settings):
        needs = dataclasses.asdict(stage.device_memory(costs, lengths or TextLengths(1, 1, 1, 3)))
        activations = needs.pop("activations")
        known = lengths is not None and not math.isnan(activations)
        _require_memory(stage.name, needs, activations if known else 0.0, there, what)


def check_run(settings: RunSettings, tokenizer, splits: Splits, text: Sequence[str], here: bool = True):
    """Accepts a run that can be trained, now that its data and its tokenizer are there.

    Args:
        here: Whether on this machine, into whose memory it must fit.

    Raises:
        ValueError: naming the field, the split or the longest instruction.
        FileNotFoundError: for a missing bank.
    """
    check_data(settings, splits, text)
    backbone = backbone_config(settings, len(tokenizer))
    if backbone.get_text_config().vocab_size < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the backbone's vocab_size is "
            f"{backbone.get_text_config().vocab_size}; leave it out of backbone.config, or give at least that"
        )
    check_model(settings, tokenizer, splits, text)
    if here:
        config = TagiConfig(backbone, **settings.tagi)
        tokens = Tokens.of(tokenizer, config, settings.max_input_length, settings.max_target_length)
        task = lengths_of(spread(splits["train"], _LOOKED_AT), tokens)
        passages = [len(tokens.plain(passage)) for passage in text[:_LOOKED_AT]] or [3]
        lengths = TextLengths(task.instruction, task.input, task.target, sum(passages) / len(passages))
        by = settings.task_adapters.by
        check_memory(settings, config, len({getattr(record, by) for record in splits["train"]}), lengths)


def check_cells(todo: Sequence):
    """Accepts the runs of a study, before the first of them is trained; data that several read is read once.

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
            check_memory(settings, TagiConfig(config, **settings.tagi), settings.task_adapters.at_once)
            if key not in read:
                read[key] = read_source(
                    **dataclasses.asdict(settings.data), train_tasks=settings.train_tasks, seed=settings.seed
                )[:2]
            check_data(settings, *read[key])
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{cell.name}: {error}") from error


def memory_there() -> tuple[int, str]:
    """Bytes of the GPU's memory, or of the memory that this process may use, and what they are called."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "this GPU"
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(file).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():
            there = min(there, int(limit))
    return there, "this machine"


def _require_memory(stage: str, needs: dict[str, float], activations: float, there: int, what: str):
    sure, unit = sum(needs.values()), 2**30
    parts = ", ".join(f"{name} {number / unit:,.1f}" for name, number in needs.items())
    if sure > there:
        raise ValueError(
            f"{stage} needs {sure / unit:,.1f} GiB of memory ({parts}), and {what} has {there / unit:,.1f}: use a "
            "smaller backbone, tagi.r or tagi.generator_hidden_size, or fewer task adapters at_once"
        )
    if sure + activations / 2 > there:  # the estimate of these may be twice what they are
        raise ValueError(
            f"{stage} needs about {(sure + activations) / unit:,.1f} GiB of memory ({parts}, activations "
            f"{activations / unit:,.1f}), and {what} has {there / unit:,.1f}: take fewer rows a batch, and more "
            "accumulation"
        )


def _require_drawn(name: str, number: int, there: int, said: str):
    if number > max(_SMALL, _REPEATS * there):
        raise ValueError(
            f"{name} is {number}, but {said.format(there)}, each of which would be in a batch {number / there:,.0f} "
            f"times; give at most {max(_SMALL, _REPEATS * there)}"
        )


def _records_of(train: Sequence[Record], by: str) -> Counter:
    """How many records each task or group has."""
    if not isinstance(train, RecordStream):
        return Counter(getattr(record, by) for record in train)
    group, found = {record.task: record.group for record in train}, Counter()
    for (task, *_), number in train.counts.items():
        found[task if by == "task" else group[task]] += number
    return found


def _require_optimizer(name: str, stage):
    """Refuses what transformers cannot make: for want of a package, or of fields that a run does not have."""
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
