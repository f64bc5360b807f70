"""The stages of a run: each reads and writes plain folders, is passed over when done and taken up when cut off."""

import json
import os
import shutil
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    set_seed,
)

from ..banks.adapter_bank import AdapterBank
from ..banks.stored import StoredAdapters
from ..common.processes import from_main, is_main, say, wait
from ..common.randomness import derived_seed
from ..common.writing import reading, replacing
from ..configuration_tagi import TagiConfig
from ..data.collate import RecordCollator, TextCollator
from ..data.records import Record
from ..data.sampling import StreamBatchSampler, TaskBatchSampler, TextBatchSampler
from ..data.streams import RecordStream
from ..data.tokenizer import train_tokenizer
from ..fit import fingerprint
from ..instructions import OUTPUT_HEAD, instruction_text, prompt_text
from ..modeling_tagi import TagiModel
from ..tokens import Tokens
from .backbones import backbone_config
from .run import BANK_FOLDER, Run, Stage
from .settings import RunSettings
from .sharding.sharded import in_shares, require_possible_shares
from .stage_keys import KEY_FILE, digest_of_records, digest_of_text
from .stage_training import Pushes, Scores, train_stage
from .task_adapters import AdapterTuner
from .teacher_cache import Kept, TeacherCache
from .trainer import Drawn, NotFinite, Teacher, frozen_copy, not_finite

TEACHER_FOLDER = "teacher"


def read_tokenizer(settings: RunSettings, train: Sequence[Record], text: Sequence[str]):
    """The pretrained backbone's tokenizer; from scratch, a vocabulary of the train split and the text."""
    backbone = settings.backbone
    if backbone.name is not None:
        return AutoTokenizer.from_pretrained(backbone.name, revision=backbone.revision, trust_remote_code=False)
    made = Path(settings.output_dir) / "tokenizer"
    key = tokenizer_key(settings, digest_of_records(train), digest_of_text(text))
    # as often as training will read them, so that the words of instructions become pieces
    between = " " if backbone_config(settings, backbone.vocab_size).is_encoder_decoder else OUTPUT_HEAD
    texts = [f"{prompt_text(r.instruction, r.input, r.demonstrations)}{between}{r.targets[0]}" for r in train]
    return from_main(
        lambda: _kept_tokenizer(made) if _is_made_of(made, key)
        else train_tokenizer([*texts, *text], backbone.vocab_size)
    )


def tokenizer_key(settings: RunSettings, records: str, text: str) -> dict:
    """What a vocabulary that the run makes depends on; the data by their digests."""
    family = settings.backbone.config.get("model_type")
    return {"vocab_size": settings.backbone.vocab_size, "model_type": family, "records": records, "text": text}


def _is_made_of(folder: Path, key: dict) -> bool:
    """Whether the tokenizer is there and made of this; one that does not say was made by an earlier version."""
    file = folder / KEY_FILE
    return folder.is_dir() and (not file.is_file() or file.read_text(encoding="utf-8") == json.dumps(key))


def _kept_tokenizer(folder: Path):
    with reading(folder, "delete it: it is made again of the same data"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check_model(settings: RunSettings, tokenizer, splits: dict[str, list[Record]], text: Sequence[str] = ()):
    """Refuses, before any long work, what a stage would refuse late: a model that cannot be built, instructions that
    it cannot read whole, a stage of text without text, task adapters that are not there.

    Raises:
        ValueError: naming the field, or the longest instruction.
        FileNotFoundError: for a missing bank.
    """
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs, but one process: start train.py by accelerate launch or "
            "torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
        )
    require_possible_shares(settings)
    for name in ("text", "pretraining"):
        if getattr(settings, name).steps and not text:
            raise ValueError(f"{name}.steps is above 0, but there is no text; give --data.text, or --{name}.steps 0")
    config = TagiConfig(backbone_config(settings, len(tokenizer)), **settings.tagi)
    objective = settings.finetuning.objective()
    bank = _given_bank(settings)
    if bank is not None:
        _kind_of(bank.numbers(), splits["train"])
        taught = settings.backbone.name is None or settings.text.steps or settings.prompted.steps
        bank.require_backbone(None if taught else settings.backbone.name, settings.backbone.revision)
        with torch.device("meta"):
            model = TagiModel(config)
        bank.require_like(model, ranks=objective.needs_teacher and objective.alignment == "factors")
    tokens = Tokens.of(tokenizer, config, settings.max_input_length, settings.max_target_length)
    texts = {(r.instruction, r.demonstrations): r for records in splits.values() for r in records}
    lengths = {key: len(tokens.instruction(instruction_text(*key))) for key in texts}
    longest = max(lengths, key=lengths.get)
    if lengths[longest] > config.max_instruction_length:
        raise ValueError(
            f"the instruction of task {texts[longest].task!r} has {lengths[longest]} tokens, but tagi."
            f"max_instruction_length is {config.max_instruction_length}; raise it, or use fewer demonstrations"
        )


def read_tokens(run: Run, tokenizer, config: PretrainedConfig) -> Tokens:
    """How the run's models, whose config (or whose backbone's) is `config`, read its texts."""
    settings = run.settings
    return Tokens.of(
        tokenizer, config, settings.max_input_length, settings.max_target_length, settings.tagi.get("input_format")
    )


def taught_backbone(
    run: Run, tokenizer, train: Sequence[Record], text: Sequence[str]
) -> tuple[str, Optional[str]]:
    """The backbone that TAGI starts from, as a name or folder and a revision.

    From scratch: made, taught on text and then with instructions in its input. Pretrained: as it is, or taught with
    instructions in its input if `prompted.steps` says so.
    """
    settings, backbone = run.settings, run.settings.backbone
    scratch = backbone.name is None
    source, revision = backbone.name, backbone.revision
    if scratch:
        source, revision = str(run.folder / "tokenizer"), None
        key = tokenizer_key(settings, run.read.get("records", ""), run.read.get("text", ""))
        if is_main() and not _is_made_of(Path(source), key):
            with replacing(Path(source)) as beside:
                tokenizer.save_pretrained(beside)
                (beside / KEY_FILE).write_text(json.dumps(key), encoding="utf-8")
        wait()
    for name in ("text", "prompted"):
        stage_settings = getattr(settings, name)
        if not stage_settings.steps and not (scratch and name == "prompted"):
            continue
        stage = run.stage(name, backbone=source)
        if stage.facts is not None:
            _require_whole(stage.folder / "backbone", run.again(name))
            stage.skip()
        else:
            stage.start()
            set_seed(derived_seed(settings.seed, "backbone", "weights"))
            model = _load_or_make(settings, source, revision, len(tokenizer))
            tokens = read_tokens(run, tokenizer, model.config)
            facts = {}
            if stage_settings.steps:
                if name == "text":
                    collator = TextCollator(tokens, text, stage_settings.max_length, to_hypernetwork=False)
                    sampler = _text_sampler(run, stage, stage_settings, collator)
                    dataset = Drawn()
                else:
                    collator = RecordCollator(tokens, reads="prompt")
                    sampler = _task_sampler(run, stage, stage_settings, train)
                    dataset = _drawn(train)
                facts = train_stage(run, stage, stage_settings, model, collator, sampler, dataset)
            if is_main():
                with replacing(stage.folder / "backbone") as beside:
                    model.save_pretrained(beside)
                    tokenizer.save_pretrained(beside)
            stage.finish(**facts)
        source, revision = str(stage.folder / "backbone"), None
    return source, revision


def _load_or_make(settings: RunSettings, source: str, revision: Optional[str], vocab_size: int) -> nn.Module:
    if settings.backbone.name is not None or (Path(source) / "config.json").is_file():
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto.from_pretrained(source, revision=revision, dtype=torch.float32)
    config = backbone_config(settings, vocab_size)
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    if settings.backbone.embedding_std is not None:
        nn.init.normal_(model.get_input_embeddings().weight, std=settings.backbone.embedding_std)
    return model


def start_model(run: Run, backbone: str, revision: Optional[str]) -> TagiModel:
    """A fresh generator on the taught backbone."""
    set_seed(derived_seed(run.settings.seed, "generator", "weights"))

    def made() -> TagiModel:
        return TagiModel.from_backbone(backbone, revision=revision, dtype=torch.float32, **run.settings.tagi)

    folder = Path(backbone)
    if folder.parent.parent != run.folder / "stages":
        return made()
    with reading(folder, run.again(folder.parent.name)):  # of the run's own
        return _finite(made())


def tuned_adapters(run: Run, model: TagiModel, tokens: Tokens, train: Sequence[Record]) -> Optional[AdapterBank]:
    """Training with instances (section 3.2.2): the bank of task adapters, with the instruction in the input.

    `model` is only used, not changed: its backbone, and the A that all adapters start from.
    """
    settings = run.settings.task_adapters
    bank = _given_bank(run.settings)
    if bank is not None:
        bank.require_like(model, ranks=False)  # again, now that there are weights
        return bank
    if not settings.steps:
        return None
    stage = run.stage("task_adapters", backbone=model.config.backbone_name_or_path)
    records_of: dict[str, list[Record]] = {}
    for record in train:
        records_of.setdefault(getattr(record, settings.by), []).append(record)
    with reading(run.folder / BANK_FOLDER, run.again(stage.name)):
        bank = AdapterBank(run.folder / BANK_FOLDER)
        if bank.names and not stage.folder.is_dir():
            raise ValueError("nothing says how its adapters were tuned")
        if stage.facts is not None and (lost := records_of.keys() - bank.numbers().keys()):
            raise ValueError(f"it has no adapter of {min(lost)!r}")
    for folder in bank.folders():
        _require_whole(folder, run.again(stage.name))
    if stage.facts is not None:
        stage.skip()
        return bank
    stage.start()
    model.backbone.to(_device(run))  # the Trainer moves what it trains
    missing = [name for name in records_of if name not in bank]
    model.requires_grad_(False)
    shared_a, losses = model.hypernetwork.shared_factors(), []
    for start in range(0, len(missing), settings.at_once):
        names = missing[start: start + settings.at_once]
        records = [record for name in names for record in records_of[name]]
        tuner = AdapterTuner(model.backbone, names, shared_a, model.config.lora_alpha)
        numbers = {name: number for number, name in enumerate(names)}
        collator = RecordCollator(tokens, settings.reads, numbers, settings.by)
        sampler = TaskBatchSampler(
            records,
            tasks_per_batch=len(names),
            examples_per_task=settings.examples_per_task,
            steps=settings.steps * settings.accumulation,
            seed=_batches(run, stage, names[0]),
            by=settings.by,
            every=True,
        )
        facts = train_stage(run, stage, settings, tuner, collator, sampler, Drawn(records), part=names[0])
        adapters = tuner.adapter().detach().to("cpu")
        details = [{"by": settings.by, "reads": settings.reads, "records": len(records_of[name])} for name in names]
        source = {
            "backbone": model.config.backbone_name_or_path,
            "backbone_revision": model.config.backbone_revision,
            "backbone_fingerprint": fingerprint(adapters, model.backbone),
        }
        if is_main():
            bank.add(names, adapters.described(source, model.peft_config()), details)
        wait()
        bank = AdapterBank(bank.folder)
        losses.append(facts["loss"] / len(names))  # the tuner's is a sum over its tasks
        say(f"{stage.label}: {len(bank.names)} of {len(records_of)} adapters, loss {losses[-1]:.3f}")
    stage.finish(adapters=len(bank.names), loss=sum(losses) / len(losses) if losses else None)
    return bank


def pretrained_model(run: Run, model: TagiModel, tokens: Tokens, text: Sequence[str]) -> TagiModel:
    """Pretraining of the hypernetwork on text (eq. 3)."""
    settings = run.settings.pretraining
    if not settings.steps:
        return model
    stage = run.stage("pretraining", backbone=model.config.backbone_name_or_path)
    if stage.facts is not None:
        stage.skip()
    else:
        stage.start()
        _set_trainable(model, run.settings)
        collator = TextCollator(tokens, text, settings.max_length, to_hypernetwork=True)
        sampler = _text_sampler(run, stage, settings, collator)
        facts = train_stage(run, stage, settings, model, collator, sampler, Drawn())
        _save_trained(run, stage, model)
        stage.finish(**facts)
    return _trained_model(run, stage, model.config)


def finetuned_model(
    run: Run,
    model: TagiModel,
    tokens: Tokens,
    train: Sequence[Record],
    bank: Optional[AdapterBank],
    scores: Optional[Callable[[TagiModel], dict]] = None,
    push: Optional[Callable[[TagiModel, int], None]] = None,
) -> TagiModel:
    """Finetuning of the hypernetwork on tasks (eqs 4-6).

    `scores` of the model are taken every `evaluation.every` steps and written to `scores.jsonl`. Every `push_every`
    steps `push` is called with the model and the step.
    """
    settings = run.settings.finetuning
    if not settings.steps:
        return model
    objective, teacher, numbers, by = settings.objective(), None, None, "group"
    stage = run.stage("finetuning", **_start_of_finetuning(run, model, bank if objective.needs_teacher else None))
    if stage.facts is not None:
        stage.skip()
    else:
        stage.start()
        if objective.needs_teacher:
            teacher, numbers = _teacher(run, model, bank), bank.numbers()
            by = _kind_of(numbers, train)
        _set_trainable(model, run.settings)
        reads = bank.reads if teacher is not None else "prompt"
        collator = RecordCollator(tokens, settings.reads, numbers, by, reads)
        sampler = _task_sampler(run, stage, settings, train)
        if settings.teacher_cache is not None and objective.distillation_weight:
            drawn = sorted({index for batch in sampler for index in batch})
            collator.answers = TeacherCache.filled(
                stage.folder / TEACHER_FOLDER,
                teacher,
                collator,
                [train[index] for index in drawn],
                Kept(settings.teacher_cache, settings.teacher_top_k, settings.temperature),
                batch_size=settings.tasks_per_batch * settings.examples_per_task,
                label=f"{stage.label}: the teacher reads",
            )
            teacher.backbone = None  # but for its head, which `states` need, a copy can go
        callbacks = [Scores(stage, run.settings.evaluation.every, scores)] if scores is not None else []
        callbacks += [Pushes(run.settings.push_every, push)] if push is not None else []
        facts = train_stage(
            run,
            stage,
            settings,
            model,
            collator,
            sampler,
            _drawn(train),
            objective=objective,
            teacher=teacher,
            callbacks=callbacks,
            instruction_dropout=settings.instruction_dropout,
        )
        _save_trained(run, stage, model)
        stage.finish(**facts)
        if is_main():
            shutil.rmtree(stage.folder / TEACHER_FOLDER, ignore_errors=True)
            (stage.folder / f"{TEACHER_FOLDER}.lock").unlink(missing_ok=True)
    return _trained_model(run, stage, model.config)


def _trained_model(run: Run, stage: Stage, before: TagiConfig) -> TagiModel:
    """What a stage has saved, read again. Its backbone is still called what it is in `before`: a checkpoint does not
    name folders."""
    folder = stage.folder / "model"
    _require_whole(folder, run.again(stage.name))
    with reading(folder, run.again(stage.name)):
        model = _finite(TagiModel.from_pretrained(folder, dtype=torch.float32))
    for name in ("backbone_name_or_path", "backbone_revision"):
        setattr(model.config, name, getattr(before, name))
    return model


def _finite(model: TagiModel) -> TagiModel:
    """The model, if all of its weights are finite."""
    name = not_finite(model.named_parameters())
    if name is not None:
        raise NotFinite(f"the weight {name} is not finite")
    return model


def _require_whole(folder: Path, mend: str):
    """Refuses a folder of weights of which a file is missing, cut off or no safetensors; reads their heads alone."""
    with reading(folder, mend):
        files = set(folder.glob("*.safetensors"))
        for index in folder.glob("*.safetensors.index.json"):
            files |= {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        if not files:
            raise FileNotFoundError("there are no weights")
        for file in sorted(files):
            with reading(file, mend), safe_open(file, "pt"):
                pass


def _start_of_finetuning(run: Run, model: TagiModel, bank: Optional[AdapterBank]) -> dict[str, Union[str, Path, dict]]:
    """What finetuning reads of what was there before it, by what that is."""
    before = {"backbone": model.config.backbone_name_or_path}
    if run.settings.pretraining.steps:
        before["pretrained model"] = run.folder / "stages" / "pretraining" / "model"
    if bank is not None:
        collection = run.settings.task_adapters.collection
        sources = run.settings.task_adapters.sources() if collection is not None else {}
        before["bank of task adapters"] = sources or bank.folder
    return before


def _teacher(run: Run, model: TagiModel, bank: AdapterBank) -> Teacher:
    """The backbone as it was before the hypernetwork was trained, with `bank`; the model's own where that stays so."""
    settings, start = run.settings.finetuning, model
    if run.settings.pretraining.steps and settings.train != "generator":
        start = start_model(run, model.config.backbone_name_or_path, model.config.backbone_revision)
    bank.require_like(start, ranks=settings.alignment == "factors")
    apart = settings.train != "generator" or in_shares()
    backbone = frozen_copy(start.backbone) if apart else start.backbone
    return Teacher(backbone.to(_device(run)), StoredAdapters(bank, _device(run)), run.settings.bf16)


def _save_trained(run: Run, stage: Stage, model: TagiModel):
    model.config.backbone_trained = run.settings.finetuning.train != "generator"
    if is_main():
        with replacing(stage.folder / "model") as beside:
            model.save_pretrained(beside)


def _given_bank(settings: RunSettings) -> Optional[AdapterBank]:
    """The task adapters that are there already; `None` if they are to be tuned, or not needed."""
    given = settings.task_adapters
    if given.collection is not None:
        return AdapterBank.of(given.sources(), given.reads)
    return AdapterBank.open(given.path) if given.path is not None else None


def _kind_of(numbers: dict[str, int], train: Sequence[Record]) -> str:
    """Whether a bank's names are tasks or groups of these records."""
    found = {by: len({getattr(record, by) for record in train} & numbers.keys()) for by in ("group", "task")}
    if not any(found.values()):
        raise ValueError(
            f"the bank's adapters are for {', '.join(list(numbers)[:3])}, …; none of them is a task or group of the "
            "train split: check task_adapters"
        )
    return max(found, key=found.get)


def _batches(run: Run, stage: Stage, part: str = "") -> int:
    """The seed of a stage's batches."""
    return derived_seed(run.settings.seed, stage.name, "batches", part)


def _text_sampler(run: Run, stage: Stage, settings, collator: TextCollator) -> TextBatchSampler:
    steps = settings.steps * settings.accumulation
    return TextBatchSampler(len(collator.passages), settings.batch_size, steps, _batches(run, stage))


def _task_sampler(run: Run, stage: Stage, settings, train: Sequence[Record]) -> TaskBatchSampler:
    steps = settings.steps * settings.accumulation
    wordings = getattr(settings, "wordings_per_task", 1)
    kind = StreamBatchSampler if isinstance(train, RecordStream) else TaskBatchSampler
    seed = _batches(run, stage)
    return kind(train, settings.tasks_per_batch, settings.examples_per_task, steps, seed, wordings=wordings)


def _drawn(train: Sequence[Record]) -> Drawn:
    """What the draws of `_task_sampler` are taken from: a stream's are the records themselves."""
    return Drawn() if isinstance(train, RecordStream) else Drawn(train)


def _set_trainable(model: TagiModel, settings: RunSettings):
    model.set_trainable(settings.finetuning.train)
    for name in settings.finetuning.freeze:
        getattr(model, name).requires_grad_(False)


def _device(run: Run) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
