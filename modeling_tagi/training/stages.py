"""The stages of a run: each reads and writes plain folders, is passed over when done and taken up when cut off."""

import json
import math
from pathlib import Path
from typing import Optional, Sequence

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from ..data.collate import RecordCollator, TextCollator, Tokens
from ..data.records import Record
from ..data.sampling import TaskBatchSampler, TextBatchSampler
from ..data.tokenizer import train_tokenizer
from ..instructions import instruction_text
from ..modeling_tagi import TagiModel
from .run import Run, Stage, replacing, write_text
from .settings import StageSettings
from .task_adapters import AdapterBank, AdapterTuner
from .trainer import Drawn, TagiTrainer, Teacher, frozen_copy

COMPLETE_FILE = "complete"


def make_tokenizer(run: Run, train: Sequence[Record], text: Sequence[str]) -> Path:
    """From scratch: a vocabulary of the train split and the text. Returns the folder that holds it."""
    folder = run.folder / "tokenizer"
    if not folder.is_dir():
        texts = dict.fromkeys(part for r in train for part in (r.instruction, r.input, *r.targets))
        # demonstrations and prompts have words of their own
        texts.update(dict.fromkeys(instruction_text("Input:", r.demonstrations) for r in train))
        with replacing(folder) as beside:
            train_tokenizer([*texts, *text], run.settings.backbone.vocab_size).save_pretrained(beside)
    return folder


def read_tokens(run: Run, tokenizer, is_encoder_decoder: bool) -> Tokens:
    return Tokens(tokenizer, is_encoder_decoder, run.settings.max_input_length, run.settings.max_target_length)


def taught_backbone(run: Run, train: Sequence[Record], text: Sequence[str]) -> tuple[str, Optional[str]]:
    """The backbone that TAGI starts from, as a name or folder and a revision.

    From scratch: made, taught on text and then with instructions in its input. Pretrained: as it is, or taught with
    instructions in its input if `prompted.steps` says so.
    """
    settings, backbone = run.settings, run.settings.backbone
    scratch = backbone.name is None
    source = str(make_tokenizer(run, train, text)) if scratch else backbone.name
    revision = None if scratch else backbone.revision
    for name in ("text", "prompted"):
        stage_settings = getattr(settings, name)
        if not stage_settings.steps and not (scratch and name == "prompted"):
            continue
        stage = run.stage(name)
        if stage.facts is not None:
            stage.skip()
        else:
            stage.start()
            set_seed(settings.seed)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            model = _load_or_make(settings, source, revision, len(tokenizer))
            tokens = read_tokens(run, tokenizer, model.config.is_encoder_decoder)
            facts = {}
            if stage_settings.steps:
                if name == "text":
                    collator = TextCollator(tokens, text, stage_settings.max_length, to_hypernetwork=False)
                    sampler = _text_sampler(stage_settings, collator, settings.seed)
                    dataset = Drawn()
                else:
                    collator, sampler = RecordCollator(tokens, reads="prompt"), _task_sampler(
                        stage_settings, train, settings.seed
                    )
                    dataset = Drawn(train)
                facts = train_stage(run, stage, stage_settings, model, collator, sampler, dataset)
            with replacing(stage.folder / "backbone") as beside:
                model.save_pretrained(beside)
                tokenizer.save_pretrained(beside)
            stage.finish(**facts)
        source, revision = str(stage.folder / "backbone"), None
    return source, revision


def _load_or_make(settings, source: str, revision: Optional[str], vocab_size: int) -> nn.Module:
    if (Path(source) / "config.json").is_file() or settings.backbone.name is not None:
        config = AutoConfig.from_pretrained(source, revision=revision)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto.from_pretrained(source, revision=revision, dtype=torch.float32)
    fields = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "vocab_size": vocab_size}
    config = AutoConfig.for_model(**{**fields, **settings.backbone.config})
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    if settings.backbone.embedding_std is not None:
        nn.init.normal_(model.get_input_embeddings().weight, std=settings.backbone.embedding_std)
    return model


def start_model(run: Run, backbone: str, revision: Optional[str]) -> TagiModel:
    """A fresh generator on the taught backbone."""
    set_seed(run.settings.seed)
    return TagiModel.from_backbone(backbone, revision=revision, dtype=torch.float32, **run.settings.tagi)


def check_instructions(model: TagiModel, tokens: Tokens, splits: dict[str, list[Record]]):
    """Refuses data whose instructions the model cannot read whole, before any long work.

    Raises:
        ValueError: naming the longest one.
    """
    texts = {(r.instruction, r.demonstrations): r for records in splits.values() for r in records}
    lengths = {key: len(tokens.instruction(instruction_text(*key))) for key in texts}
    longest = max(lengths, key=lengths.get)
    if lengths[longest] > model.config.max_instruction_length:
        raise ValueError(
            f"the instruction of task {texts[longest].task!r} has {lengths[longest]} tokens, but tagi."
            f"max_instruction_length is {model.config.max_instruction_length}; raise it, or use fewer demonstrations"
        )


def tuned_adapters(run: Run, model: TagiModel, tokens: Tokens, train: Sequence[Record]) -> Optional[AdapterBank]:
    """Training with instances (section 3.2.2): the bank of task adapters, with the instruction in the input.

    `model` is only used, not changed: its backbone, and the A that all adapters start from.
    """
    settings = run.settings.task_adapters
    if settings.path is not None:
        bank = AdapterBank(settings.path)
        bank.load()
        return bank
    if not settings.steps:
        return None
    bank, stage = AdapterBank(run.folder / "task_adapters"), run.stage("task_adapters")
    if stage.facts is not None:
        stage.skip()
        return bank
    stage.start()
    records_of: dict[str, list[Record]] = {}
    for record in train:
        records_of.setdefault(getattr(record, settings.by), []).append(record)
    missing = [name for name in records_of if name not in bank.names]
    model.requires_grad_(False)
    shared_a = model.hypernetwork.shared_factors()
    for start in range(0, len(missing), settings.at_once):
        names = missing[start: start + settings.at_once]
        records = [record for name in names for record in records_of[name]]
        tuner = AdapterTuner(model.backbone, names, shared_a, model.config.lora_alpha)
        numbers = {name: number for number, name in enumerate(names)}
        collator = RecordCollator(tokens, "prompt", numbers, settings.by)
        sampler = TaskBatchSampler(
            records,
            tasks_per_batch=len(names),
            examples_per_task=settings.examples_per_task,
            steps=settings.steps * settings.accumulation,
            seed=run.settings.seed,
            by=settings.by,
            every=True,
        )
        facts = train_stage(run, stage, settings, tuner, collator, sampler, Drawn(records), part=names[0])
        adapters = tuner.adapter().detach().to("cpu")
        details = [{"by": settings.by, "records": len(records_of[name])} for name in names]
        source = {"backbone": model.config.backbone_name_or_path, "backbone_revision": model.config.backbone_revision}
        bank.add(names, adapters.described(source, model.peft_config()), details)
        print(f"{stage.label}: {len(bank.names)} of {len(records_of)} adapters, loss {facts['loss']:.3f}", flush=True)
    stage.finish(adapters=len(bank.names))
    return bank


def pretrained_model(run: Run, model: TagiModel, tokens: Tokens, text: Sequence[str]) -> TagiModel:
    """Pretraining of the hypernetwork on text (eq. 3)."""
    settings = run.settings.pretraining
    if not settings.steps:
        return model
    stage = run.stage("pretraining")
    if stage.facts is not None:
        stage.skip()
    else:
        stage.start()
        set_seed(run.settings.seed)
        model.set_trainable(run.settings.finetuning.train)
        collator = TextCollator(tokens, text, settings.max_length, to_hypernetwork=True)
        sampler = _text_sampler(settings, collator, run.settings.seed)
        facts = train_stage(run, stage, settings, model, collator, sampler, Drawn())
        _save_trained(run, stage, model)
        stage.finish(**facts)
    return TagiModel.from_pretrained(stage.folder / "model", dtype=torch.float32)


def finetuned_model(
    run: Run, model: TagiModel, tokens: Tokens, train: Sequence[Record], bank: Optional[AdapterBank]
) -> TagiModel:
    """Finetuning of the hypernetwork on tasks (eqs 4-6)."""
    settings = run.settings.finetuning
    if not settings.steps:
        return model
    stage = run.stage("finetuning")
    if stage.facts is not None:
        stage.skip()
    else:
        stage.start()
        set_seed(run.settings.seed)
        objective, teacher, numbers, by = settings.objective(), None, None, "group"
        if objective.needs_teacher:
            source, revision = model.config.backbone_name_or_path, model.config.backbone_revision
            start = model  # the teacher is the backbone as it was before the hypernetwork was trained
            if run.settings.pretraining.steps and settings.train != "generator":
                start = start_model(run, source, revision)
            backbone = start.backbone if settings.train == "generator" else frozen_copy(start.backbone)
            teacher, numbers = Teacher(backbone.to(_device(run)), bank.load().to(_device(run))), bank.numbers()
            by = _kind_of(numbers, train)
        model.set_trainable(settings.train)
        collator = RecordCollator(tokens, "adapter", numbers, by)
        sampler = _task_sampler(settings, train, run.settings.seed)
        facts = train_stage(
            run, stage, settings, model, collator, sampler, Drawn(train), objective=objective, teacher=teacher
        )
        _save_trained(run, stage, model)
        stage.finish(**facts)
    return TagiModel.from_pretrained(stage.folder / "model", dtype=torch.float32)


def train_stage(
    run: Run, stage: Stage, settings: StageSettings, model, collator, sampler, dataset, part: str = "", **trainer_options
) -> dict:
    """Trains `model` in place with the HF Trainer, from the last checkpoint if there is one.

    Returns:
        `loss` (mean over the last tenth of the log) and `steps`; the whole log is written to the stage's folder.
    """
    checkpoints = stage.folder / "checkpoints" / (part or "all")
    args = Seq2SeqTrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # the batch sampler makes the batches
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        optim=settings.optimizer,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=run.settings.bf16,
        logging_steps=max(1, settings.steps // 50),
        save_steps=settings.save_every,
        save_total_limit=2,
        seed=run.settings.seed,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = TagiTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=collator,
        batch_sampler=sampler,
        callbacks=[_Checkpoints(stage)],
        **trainer_options,
    )
    trainer.train(resume_from_checkpoint=_last_complete(checkpoints))
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    name = f"log-{part}.jsonl" if part else "log.jsonl"
    write_text(stage.folder / name.replace("/", "-"), "".join(json.dumps(entry) + "\n" for entry in history))
    last = history[-max(1, len(history) // 10):]
    return {"steps": settings.steps, "loss": sum(entry["loss"] for entry in last) / len(last)}


class _Checkpoints(TrainerCallback):
    """Marks checkpoints as whole, and keeps the stage's clock."""

    def __init__(self, stage: Stage):
        self.stage = stage

    def on_save(self, args, state, control, **kwargs):
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE_FILE).touch()
        self.stage.tick()


def _last_complete(folder: Path) -> Optional[str]:
    """The newest checkpoint that was written whole; the others came of a run that was cut off while saving."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        if (Path(last) / COMPLETE_FILE).is_file():
            return last
        Path(last).rename(Path(last).with_name(f"cut-off-{Path(last).name}"))
    return None


def _save_trained(run: Run, stage: Stage, model: TagiModel):
    model.config.backbone_trained = run.settings.finetuning.train != "generator"
    with replacing(stage.folder / "model") as beside:
        model.save_pretrained(beside)


def _kind_of(numbers: dict[str, int], train: Sequence[Record]) -> str:
    """Whether a bank's names are tasks or groups of these records."""
    found = {by: len({getattr(record, by) for record in train} & numbers.keys()) for by in ("group", "task")}
    if not any(found.values()):
        raise ValueError(
            f"the bank's adapters are for {', '.join(list(numbers)[:3])}, …; none is a task or group of the train split"
        )
    return max(found, key=found.get)


def _text_sampler(settings, collator: TextCollator, seed: int) -> TextBatchSampler:
    steps = settings.steps * settings.accumulation
    return TextBatchSampler(len(collator.passages), settings.batch_size, steps, seed)


def _task_sampler(settings, train: Sequence[Record], seed: int) -> TaskBatchSampler:
    steps = settings.steps * settings.accumulation
    return TaskBatchSampler(train, settings.tasks_per_batch, settings.examples_per_task, steps, seed)


def _device(run: Run) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

