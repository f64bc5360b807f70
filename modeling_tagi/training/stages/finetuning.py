"""Finetuning of the hypernetwork on tasks (eqs 4-6)."""

import math
import shutil
from typing import Optional

from transformers import TrainerCallback

from ...banks.adapter_bank import AdapterBank
from ...banks.stored import KEPT_BYTES, StoredAdapters
from ...common.processes import is_main
from ...costs.work import FLOAT, Disk, TextLengths, Work, size_of
from ...data.collate import RecordCollator
from ...data.reading import READS
from ...data.sampling import TaskBatchSampler
from ...modeling_tagi import TagiModel
from ..objective import Objective
from ..run import Stage
from ..run_state import RunState, start_model
from ..sharding.sharded import weights_are_sharded
from ..stage_costs import RunCosts
from ..stage_training import Pushes, Scores
from ..teacher import Teacher, frozen_copy
from ..teacher_cache import Kept, TeacherCache
from .base import GeneratorStage, device, drawn_from
from .task_adapters import kind_of

TEACHER_FOLDER = "teacher"


class Finetuning(GeneratorStage):
    """Trains the hypernetwork on tasks, with the task adapters as a teacher if the objective needs one."""

    name = "finetuning"
    description = "hypernetwork on tasks (eqs 4-6)"
    depends_on = ("tagi", "text.steps", "instruction_tuning.steps", "task_adapters.steps", "pretraining.steps")

    def batch(self, costs, lengths):
        section = self.section(costs.settings)
        tasks = section.tasks_per_batch
        rows = tasks * section.examples_per_task
        read = lengths.input + (lengths.instruction if READS[section.reads].prompt else 0)
        if not READS[section.reads].adapter:
            return costs.plain(rows, read, lengths.target)
        teacher = flops = 0.0
        if section.distillation_weight:
            taught = min(section.steps, section.distillation_steps or section.steps) / max(1, section.steps)
            teacher = rows * taught * costs.read_with_task_adapter(lengths)
            flops = rows * taught * costs.with_task_adapter(lengths, backbone=1, adapter=1)
        flops += tasks * costs.generated(lengths.task, section.examples_per_task)
        return Work(rows, tasks * lengths.instruction, rows * read, rows * lengths.target, teacher, flops)

    def reads_bank(self, settings):
        return self.section(settings).needs_teacher

    def phases(self, settings):  # a step's cost changes when the teacher ends
        section = self.section(settings)
        ends = {section.distillation_steps, section.alignment_steps} - {None}
        ends = sorted({end for end in ends if 0 < end < section.steps} | {section.steps})
        return [(end - before, end) for before, end in zip([0, *ends], ends)]

    def shorten(self, settings, steps):
        section, phases = self.section(settings), self.phases(settings)
        super().shorten(settings, steps)
        for name in ("distillation_steps", "alignment_steps"):
            lasting = sum(end <= (getattr(section, name) or math.inf) for _, end in phases)
            setattr(section, name, steps * lasting if lasting < len(phases) else None)
        section.teacher_cache = None  # the teacher reads all the same

    def device_memory(self, costs, lengths):
        section, further = self.section(costs.settings), 0
        if section.needs_teacher:
            # no more of the bank than `StoredAdapters` keeps, and what a batch asks for
            a_batch = section.tasks_per_batch * costs.adapter_size
            further += min(costs.adapters * costs.adapter_size, max(KEPT_BYTES // FLOAT, a_batch))
            if section.train != "generator":  # the teacher is a copy of the backbone as it was
                further += size_of(costs.model.backbone)
        logits = 5 if section.distillation_weight else 3  # the teacher's too
        return costs.model_memory(section, self.batch(costs, lengths), further, logits)

    def disk(self, costs, lengths):
        saved = FLOAT * size_of(costs.model)
        optimizer = self.device_memory(costs, lengths).optimizer
        return Disk.of(saved, saved, optimizer, self._teacher_cache(costs, lengths))

    def _teacher_cache(self, costs: RunCosts, lengths: TextLengths) -> float:
        """Returns the bytes on disk of the teacher's answers, one for each record that is drawn."""
        section = self.section(costs.settings)
        if section.teacher_cache is None or not section.distillation_weight:
            return 0.0
        drawn = section.steps * self.work(costs, lengths).rows
        records = drawn if costs.records is None else min(drawn, costs.records)
        width = costs.model.config.backbone_config.get_text_config().hidden_size
        a_token = FLOAT * width if section.teacher_cache == "states" else 2 * FLOAT * section.teacher_cache
        return records * lengths.target * a_token

    def before(self, state: RunState):
        found = super().before(state)
        if state.settings.pretraining.steps:
            found["pretrained model"] = state.run.folder / "stages" / "pretraining" / "model"
        if self._bank(state) is not None:
            found["bank of task adapters"] = state.settings.task_adapters.given_loras() or state.bank.folder
        return found

    def _bank(self, state: RunState) -> Optional[AdapterBank]:
        """Returns the teacher's task adapters; `None` if no teacher is needed."""
        return state.bank if self.reads_bank(state.settings) else None

    def made(self, state: RunState, folder: Stage, model: TagiModel) -> dict:
        section, bank = self.section(state.settings), self._bank(state)
        teacher = _teacher(state, model, bank) if bank is not None else None
        numbers, by = (bank.numbers(), kind_of(bank.numbers(), state.train)) if bank is not None else (None, "group")
        self.standardise(state, model)
        self.set_trainable(state, model)
        reads = bank.reads if bank is not None else "prompt"
        collator = RecordCollator(state.tokens, section.reads, numbers, by, reads)
        sampler = self.task_sampler(state.settings, state.train)
        if section.teacher_cache is not None and section.distillation_weight:
            self._answer_ahead(state, folder, teacher, collator, sampler)
        facts = self.trained(
            state,
            folder,
            model,
            collator,
            sampler,
            drawn_from(state.train),
            objective=Objective.of(section),
            teacher=teacher,
            rows_by_length=section.rows_by_length,
            callbacks=self._callbacks(state, folder),
        )
        self.save_model(state, folder, model)
        return facts

    def _answer_ahead(
        self, state: RunState, folder: Stage, teacher: Teacher, collator: RecordCollator, sampler: TaskBatchSampler
    ):
        """Writes the teacher's answers to all records that will be drawn to disk, where the collator reads them."""
        section = self.section(state.settings)
        drawn = sorted({index for batch in sampler for index in batch})
        collator.answers = TeacherCache.filled(
            folder.folder / TEACHER_FOLDER,
            teacher,
            collator,
            [state.train[index] for index in drawn],
            Kept.of(section.teacher_cache, section.temperature),
            batch_size=section.tasks_per_batch * section.examples_per_task,
            label=f"{folder.label}: the teacher reads",
        )
        teacher.backbone = None  # frees a copy, but for its head, which `states` need

    def _callbacks(self, state: RunState, folder: Stage) -> list[TrainerCallback]:
        settings, found = state.settings, []
        if state.scores is not None:
            found.append(Scores(folder, settings.evaluation.every, state.scores))
        if state.push is not None:
            found.append(Pushes(settings.push_every, state.push))
        return found

    def hand_on(self, state: RunState, folder: Stage):
        if is_main():
            shutil.rmtree(folder.folder / TEACHER_FOLDER, ignore_errors=True)
            (folder.folder / f"{TEACHER_FOLDER}.lock").unlink(missing_ok=True)
        super().hand_on(state, folder)


def _teacher(state: RunState, model: TagiModel, bank: AdapterBank) -> Teacher:
    """Returns a teacher with `bank` and the backbone as it was before the hypernetwork was trained.

    It shares the model's backbone if that is frozen and not sharded, and has a copy otherwise.
    """
    settings, start = state.settings.finetuning, model
    if state.settings.pretraining.steps and settings.train != "generator":
        start = start_model(state.run, model.config.backbone_name_or_path, model.config.backbone_revision)
    bank.require_like(start, ranks=settings.alignment == "factors")
    apart = settings.train != "generator" or weights_are_sharded()
    backbone = frozen_copy(start.backbone) if apart else start.backbone
    return Teacher(backbone.to(device()), StoredAdapters(bank, device()), state.settings.bf16)
