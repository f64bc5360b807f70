"""What the stages of a run read, compute and hold: the sums behind `tagi plan`.

FLOPs are those of `TaskFlops`, times the passes that training makes: 3 for what is trained (forward, and twice as much
backward, for the states and for the weights), 2 for what is frozen but lies behind something trained, 1 for what is
only run; one more where gradient checkpointing runs it again.
"""

import math
from dataclasses import asdict, dataclass
from typing import Optional

from torch import nn

from ..banks.stored import KEPT_BYTES
from ..training.settings import RunSettings
from .flops import Lengths, TaskFlops

FLOAT = 4  # bytes: weights, gradients and optimizer states are fp32, also where bf16 computes
_KEPT_CHECKPOINTS = 2
_STATES = {"adamw": 2, "adam": 2, "sgd": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}  # numbers for each weight


@dataclass(frozen=True)
class TextLengths:
    """Tokens of the texts that a run reads, special ones included: `instruction`, `input` and `target` of a task, and
    `passage`, a, b and c of eq. 3 together."""

    instruction: float
    input: float
    target: float
    passage: float

    @property
    def task(self) -> Lengths:
        return Lengths(self.instruction, self.input, self.target)

    @property
    def cut(self) -> Lengths:
        """Of a passage cut at random: a third for each part, on the average."""
        return Lengths(*[max(1.0, self.passage / 3)] * 3)


@dataclass(frozen=True)
class Work:
    """Of one optimizer step (or, by `times`, of many).

    Args:
        rows: Examples.
        hypernetwork: Tokens of instructions that the hypernetwork reads.
        backbone: Tokens of inputs (or prompts) that the trained model reads.
        target: Tokens that are predicted.
        teacher: Tokens of prompts that the teacher reads.
        flops: Of it all.
    """

    rows: float = 0.0
    hypernetwork: float = 0.0
    backbone: float = 0.0
    target: float = 0.0
    teacher: float = 0.0
    flops: float = 0.0

    def times(self, number: float) -> "Work":
        return Work(**{name: value * number for name, value in asdict(self).items()})


class RunWork:
    """The work and memory of a run's stages.

    Args:
        settings: Of the run.
        formula: Of its model.
        adapters: Task adapters that are tuned or loaded; `None` if that is not known, and taken for as many as are
            tuned at once.
        records: Of the train split; `None` if that is not known, and taken for as many as are drawn.
    """

    def __init__(
        self,
        settings: RunSettings,
        formula: TaskFlops,
        adapters: Optional[int] = None,
        records: Optional[int] = None,
    ):
        self.settings, self.formula, self.records = settings, formula, records
        self.adapters = adapters if adapters is not None else settings.task_adapters.at_once
        self.adapter = formula.adapter_size
        self.scope = settings.finetuning.train
        self.backbone_trained = self.scope == "all" and "backbone" not in settings.finetuning.freeze

    # Work of one optimizer step

    def step(self, stage: str, lengths: TextLengths) -> Work:
        settings = getattr(self.settings, stage)
        return getattr(self, f"_{stage}")(settings, lengths).times(settings.accumulation)

    def steps(self, stage: str) -> int:
        """Optimizer steps; of task adapters, those of all groups that are tuned one after the other."""
        settings = getattr(self.settings, stage)
        if stage == "task_adapters":
            return settings.steps * math.ceil(self.adapters / settings.at_once)
        return settings.steps

    def _text(self, settings, lengths: TextLengths) -> Work:
        cut, rows = lengths.cut, settings.batch_size
        read = cut.instruction + cut.input
        flops = self._passes(True) * self.formula.forward(read, cut.target, rows)
        return Work(rows, backbone=rows * read, target=rows * cut.target, flops=flops)

    def _prompted(self, settings, lengths: TextLengths) -> Work:
        rows = settings.tasks_per_batch * settings.examples_per_task
        return self._plain(rows, lengths.instruction + lengths.input, lengths.target)

    def _plain(self, rows: int, read: float, target: float) -> Work:
        flops = self._passes(True) * self.formula.forward(read, target, rows)
        return Work(rows, backbone=rows * read, target=rows * target, flops=flops)

    def _task_adapters(self, settings, lengths: TextLengths) -> Work:
        groups = math.ceil(self.adapters / settings.at_once)
        rows = self.adapters / groups * settings.examples_per_task  # the last group may be smaller
        read = self._teacher_reads(lengths)
        flops = 2 * self.formula.forward(read, lengths.target, 1) + 3 * self._low_rank(read, lengths.target)
        return Work(rows, backbone=rows * read, target=rows * lengths.target, flops=rows * flops)

    def _pretraining(self, settings, lengths: TextLengths) -> Work:
        cut, rows = lengths.cut, settings.batch_size
        return Work(
            rows, rows * cut.instruction, rows * cut.input, rows * cut.target, flops=rows * self._adapted(cut, 1)
        )

    def _finetuning(self, settings, lengths: TextLengths) -> Work:
        tasks = settings.tasks_per_batch * settings.wordings_per_task
        rows = tasks * settings.examples_per_task
        if settings.reads != "adapter":
            read = lengths.input + (lengths.instruction if settings.reads == "prompt" else 0)
            return self._plain(rows, read, lengths.target)
        teacher = flops = 0.0
        if settings.distillation_weight:
            taught = min(settings.steps, settings.distillation_steps or settings.steps) / max(1, settings.steps)
            read = self._teacher_reads(lengths)
            teacher = rows * taught * read
            one = self.formula.forward(read, lengths.target, 1) + self._low_rank(read, lengths.target)
            flops = rows * taught * one
        flops += tasks * self._adapted(lengths.task, settings.examples_per_task)
        return Work(rows, tasks * lengths.instruction, rows * lengths.input, rows * lengths.target, teacher, flops)

    def _teacher_reads(self, lengths: TextLengths) -> float:
        prompt = self.settings.task_adapters.reads == "prompt"
        return lengths.input + (lengths.instruction if prompt else 0)

    def _low_rank(self, read: float, target: float) -> float:
        return self.formula.low_rank(read, target, targets_given=True)

    def _adapted(self, lengths: Lengths, inputs: int) -> float:
        parts = self.formula.adapted(lengths, inputs, targets_given=True)
        again = int(self.settings.gradient_checkpointing)
        # a gradient reaches the instruction's encoding where the embeddings below it are trained
        encoding = 3 + again if self.backbone_trained else 2 + again if self.scope == "generator_and_norms" else 1
        passes = {
            "instruction": encoding,
            "generator": 3,
            "lora": 3 + again,
            "fusion": 3 + again,
            **dict.fromkeys(("input", "output", "memory"), self._passes(self.backbone_trained)),
        }
        return sum(passes[part] * flops for part, flops in parts.items())

    def _passes(self, trained: bool) -> int:
        return (3 if trained else 2) + int(self.settings.gradient_checkpointing)

    # Memory, in bytes

    def memory(self, stage: str, limits: TextLengths) -> dict[str, float]:
        """On the device, with texts as long as `limits` says: `weights`, `gradients`, `optimizer`, `activations`."""
        settings, module = getattr(self.settings, stage), self._module(stage)
        weights = _size(module)
        if stage == "task_adapters":
            trained = self.adapter * min(settings.at_once, self.adapters)
            weights += trained
            states = trained * _states_of(settings.optimizer)
        else:
            whole = module is self.formula.model
            parameters = trained_parameters(module, self.settings) if whole else list(module.parameters())
            trained = sum(x.numel() for x in parameters)
            states = _optimizer_numbers(settings.optimizer, parameters)
        if stage == "finetuning" and settings.objective().needs_teacher:
            # no more of the bank than `StoredAdapters` keeps, and what a batch asks for
            a_batch = settings.tasks_per_batch * settings.wordings_per_task * self.adapter
            weights += min(self.adapters * self.adapter, max(KEPT_BYTES // FLOAT, a_batch))
            if self.scope != "generator":  # the teacher is a copy of the backbone as it was
                weights += self.formula.parameters
        return {
            "weights": FLOAT * weights,
            "gradients": FLOAT * trained,
            "optimizer": FLOAT * states,
            "activations": self._activations(stage, limits),
        }

    def disk(self, stage: str, limits: TextLengths) -> dict[str, float]:
        """`checkpoints` to resume from, which go when the stage is done (as what the teacher has said does), and
        `kept`, its result."""
        memory = self.memory(stage, limits)
        kept = saved = FLOAT * _size(self._module(stage))
        if stage == "task_adapters":
            kept, saved = FLOAT * self.adapter * self.adapters, memory["gradients"]
        said = self._teacher_cache(limits) if stage == "finetuning" else 0
        return {"checkpoints": _KEPT_CHECKPOINTS * (saved + memory["optimizer"]) + said, "kept": kept}

    def _teacher_cache(self, limits: TextLengths) -> float:
        """Bytes of what the teacher has said of the records that are drawn, each once."""
        settings = self.settings.finetuning
        if settings.teacher_cache is None or not settings.distillation_weight:
            return 0.0
        drawn = settings.steps * self.step("finetuning", limits).rows
        records = drawn if self.records is None else min(drawn, self.records)
        width = self.formula.model.config.backbone_config.get_text_config().hidden_size
        a_token = FLOAT * width if settings.teacher_cache == "states" else 2 * FLOAT * settings.teacher_top_k
        return records * limits.target * a_token

    def _module(self, stage: str) -> nn.Module:
        """What is in memory whole."""
        model = self.formula.model
        return model.backbone if stage in ("text", "prompted", "task_adapters") else model

    def _activations(self, stage: str, limits: TextLengths) -> float:
        """Roughly: what goes into and comes out of every product, the scores of attention, and the logits with their
        softmax and gradient."""
        settings, formula, config = getattr(self.settings, stage), self.formula, self.formula.model.config
        work = self.step(stage, limits).times(1 / settings.accumulation)
        rows = work.rows or 1
        if stage == "task_adapters":
            rows = min(settings.at_once, self.adapters) * settings.examples_per_task
            work = work.times(rows / work.rows)
        read, target = work.backbone / rows, work.target / rows
        number = 2 if self.settings.bf16 else FLOAT
        text_config = config.backbone_config.get_text_config()
        heads, layers = text_config.num_attention_heads, formula.layers
        if formula.is_encoder_decoder:
            wide = (formula.width["read"] + formula.width["memory"]) * read + formula.width["write"] * target
            seen = layers * read * read + formula.decoder_layers * target * (target + read)
            scored, tokens = target, read + target
        else:
            wide, seen = formula.width["read"] * (read + target), layers * (read + target) ** 2
            scored, tokens = read + target, read + target
        stored = rows * number * (wide + 2 * heads * seen)
        if self.settings.gradient_checkpointing and stage != "task_adapters":
            depth = layers + (formula.decoder_layers if formula.is_encoder_decoder else 0)
            stored = stored / depth + rows * tokens * depth * text_config.hidden_size * FLOAT
        copies = 3 if not (stage == "finetuning" and settings.distillation_weight) else 5
        return stored + copies * FLOAT * rows * scored * text_config.vocab_size


def trained_parameters(model, settings: RunSettings) -> list:
    """Those that the stages of the hypernetwork change."""
    model.set_trainable(settings.finetuning.train)
    frozen = {id(x) for name in settings.finetuning.freeze for x in getattr(model, name).parameters()}
    return [x for x in model.parameters() if x.requires_grad and id(x) not in frozen]


def _size(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters())


def _states_of(optimizer: str) -> int:
    family = optimizer.split("_")[0]
    return _STATES.get(family, 2)


def _optimizer_numbers(optimizer: str, parameters: list) -> int:
    """Numbers that the optimizer keeps; Adafactor has a row and a column for each matrix."""
    if optimizer == "adafactor":
        return sum(
            x.numel() // x.shape[-1] + x.numel() // x.shape[-2] if x.dim() > 1 else x.numel() for x in parameters
        )
    return sum(x.numel() for x in parameters) * _states_of(optimizer)


def stages_that_train(settings: RunSettings) -> list[str]:
    """The stages of a run with steps to take, in order."""
    names = ("text", "prompted", "task_adapters", "pretraining", "finetuning")
    found = [name for name in names if getattr(settings, name).steps]
    return [name for name in found if name != "task_adapters" or not settings.task_adapters.given]
