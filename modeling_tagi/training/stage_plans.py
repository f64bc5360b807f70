"""What each stage that trains computes, holds and writes; `tagi plan` and the checks before a run add it up."""

import math

from ..banks.stored import KEPT_BYTES
from ..costs.work import FLOAT, DeviceMemory, Disk, TextLengths, Work, optimizer_states, size_of
from .setting_fields import RunSettings
from .stage_costs import RunCosts


class StagePlan:
    """Declares the costs of one stage.

    Attributes:
        name: Of the stage, and of its section of the settings.
        reads: What it draws batches from, `text` or `records`.
    """

    name: str
    reads = "records"

    def trains(self, settings: RunSettings) -> bool:
        """Whether a run with these settings has steps of this stage to take."""
        return bool(getattr(settings, self.name).steps)

    def trainings(self, costs: RunCosts) -> int:
        """Returns how many trainings the stage has, one after the other."""
        return 1

    def steps(self, costs: RunCosts) -> int:
        """Returns the optimizer steps of all its trainings."""
        return self.own(costs).steps * self.trainings(costs)

    def own(self, costs: RunCosts):
        """Returns the stage's section of the settings."""
        return getattr(costs.settings, self.name)

    def work(self, costs: RunCosts, lengths: TextLengths) -> Work:
        """Returns the work of one optimizer step."""
        return self.batch(costs, lengths).times(self.own(costs).accumulation)

    def batch(self, costs: RunCosts, lengths: TextLengths) -> Work:
        """Returns the work of a batch, on the average."""
        raise NotImplementedError

    def largest_batch(self, costs: RunCosts, lengths: TextLengths) -> Work:
        """Returns the work of the batch with most rows."""
        return self.batch(costs, lengths)

    def device_memory(self, costs: RunCosts, lengths: TextLengths) -> DeviceMemory:
        """Returns the bytes on the device, with texts of these lengths."""
        raise NotImplementedError

    def disk(self, costs: RunCosts, lengths: TextLengths) -> Disk:
        """Returns the bytes that it writes."""
        raise NotImplementedError


class _Backbone(StagePlan):
    """Declares the costs of a stage that trains the backbone alone."""

    def device_memory(self, costs, lengths):
        return costs.backbone_memory(self.own(costs), self.batch(costs, lengths))

    def disk(self, costs, lengths):
        saved = FLOAT * size_of(costs.model.backbone)
        return Disk.of(saved, saved, self.device_memory(costs, lengths).optimizer)


class Text(_Backbone):
    name, reads = "text", "text"

    def batch(self, costs, lengths):
        own = self.own(costs)
        cut = lengths.with_passages_of(own.max_length).cut
        return costs.plain(own.batch_size, cut.instruction + cut.input, cut.target)


class InstructionTuning(_Backbone):
    name = "instruction_tuning"

    def batch(self, costs, lengths):
        own = self.own(costs)
        rows = own.tasks_per_batch * own.examples_per_task
        return costs.plain(rows, lengths.instruction + lengths.input, lengths.target)


class TaskAdapters(StagePlan):
    name = "task_adapters"

    def trains(self, settings):
        return bool(settings.task_adapters.steps) and not settings.task_adapters.given

    def trainings(self, costs):
        return math.ceil(costs.adapters / self.own(costs).at_once)

    def batch(self, costs, lengths):  # the last group may be smaller
        return self._batch_of(costs.adapters / self.trainings(costs), costs, lengths)

    def largest_batch(self, costs, lengths):
        return self._batch_of(self._at_once(costs), costs, lengths)

    def device_memory(self, costs, lengths):
        trained = costs.adapter_size * self._at_once(costs)
        return DeviceMemory(
            weights=FLOAT * (size_of(costs.model.backbone) + trained),
            gradients=FLOAT * trained,
            optimizer=FLOAT * trained * optimizer_states(self.own(costs).optimizer),
            activations=costs.activations(self.largest_batch(costs, lengths), checkpointing=False),
        )

    def disk(self, costs, lengths):
        memory = self.device_memory(costs, lengths)
        return Disk.of(FLOAT * costs.adapter_size * costs.adapters, memory.gradients, memory.optimizer)

    def _at_once(self, costs) -> int:
        return min(self.own(costs).at_once, costs.adapters)

    def _batch_of(self, adapters: float, costs, lengths) -> Work:
        rows = adapters * self.own(costs).examples_per_task
        flops = rows * costs.with_task_adapter(lengths, backbone=2, adapter=3)
        read = costs.read_with_task_adapter(lengths)
        return Work(rows, backbone=rows * read, target=rows * lengths.target, flops=flops)


class Pretraining(StagePlan):
    name, reads = "pretraining", "text"

    def batch(self, costs, lengths):
        own = self.own(costs)
        cut, rows = lengths.with_passages_of(own.max_length).cut, own.batch_size
        flops = rows * costs.generated(cut, 1)
        return Work(rows, rows * cut.instruction, rows * cut.input, rows * cut.target, flops=flops)

    def device_memory(self, costs, lengths):
        return costs.model_memory(self.own(costs), self.batch(costs, lengths))

    def disk(self, costs, lengths):
        saved = FLOAT * size_of(costs.model)
        return Disk.of(saved, saved, self.device_memory(costs, lengths).optimizer)


class Finetuning(StagePlan):
    name = "finetuning"

    def batch(self, costs, lengths):
        own = self.own(costs)
        tasks = own.tasks_per_batch
        rows = tasks * own.examples_per_task
        if own.reads != "adapter":
            read = lengths.input + (lengths.instruction if own.reads == "prompt" else 0)
            return costs.plain(rows, read, lengths.target)
        teacher = flops = 0.0
        if own.distillation_weight:
            taught = min(own.steps, own.distillation_steps or own.steps) / max(1, own.steps)
            teacher = rows * taught * costs.read_with_task_adapter(lengths)
            flops = rows * taught * costs.with_task_adapter(lengths, backbone=1, adapter=1)
        flops += tasks * costs.generated(lengths.task, own.examples_per_task)
        return Work(rows, tasks * lengths.instruction, rows * lengths.input, rows * lengths.target, teacher, flops)

    def device_memory(self, costs, lengths):
        own, further = self.own(costs), 0
        if own.needs_teacher:
            # no more of the bank than `StoredAdapters` keeps, and what a batch asks for
            a_batch = own.tasks_per_batch * costs.adapter_size
            further += min(costs.adapters * costs.adapter_size, max(KEPT_BYTES // FLOAT, a_batch))
            if own.train != "generator":  # the teacher is a copy of the backbone as it was
                further += size_of(costs.model.backbone)
        logits = 5 if own.distillation_weight else 3  # the teacher's, and those divided by the temperature
        return costs.model_memory(own, self.batch(costs, lengths), further, logits)

    def disk(self, costs, lengths):
        saved = FLOAT * size_of(costs.model)
        optimizer = self.device_memory(costs, lengths).optimizer
        return Disk.of(saved, saved, optimizer, self._teacher_cache(costs, lengths))

    def _teacher_cache(self, costs, lengths) -> float:
        """Returns the bytes of the teacher's answers to the records that are drawn, each once."""
        own = self.own(costs)
        if own.teacher_cache is None or not own.distillation_weight:
            return 0.0
        drawn = own.steps * self.work(costs, lengths).rows
        records = drawn if costs.records is None else min(drawn, costs.records)
        width = costs.model.config.backbone_config.get_text_config().hidden_size
        a_token = FLOAT * width if own.teacher_cache == "states" else 2 * FLOAT * own.teacher_cache
        return records * lengths.target * a_token


STAGES = (Text(), InstructionTuning(), TaskAdapters(), Pretraining(), Finetuning())


def stages_that_train(settings: RunSettings) -> list[StagePlan]:
    """Returns the stages of a run that have steps to take, in order."""
    return [stage for stage in STAGES if stage.trains(settings)]
