"""Training with instances (section 3.2.2): the bank of task adapters that finetuning learns from."""

import math
from typing import Optional, Sequence

import torch
from torch import Tensor

from ...banks.adapter_bank import AdapterBank
from ...common.processes import is_main, say, wait
from ...common.writing import reading
from ...costs.work import FLOAT, DeviceMemory, Disk, TextLengths, Work, optimizer_states, size_of
from ...data.collate import RecordCollator
from ...data.records import Record
from ...data.sampling import Drawn, TaskBatchSampler
from ...fit import fingerprint
from ...modeling_tagi import TagiModel
from ..batch_checks import require_drawn
from ..run import BANK_FOLDER, Stage
from ..run_state import RunState
from ..saved_models import require_whole
from ..setting_fields import RunSettings
from ..stage_costs import RunCosts
from ..task_adapters import AdapterTuner
from .base import TrainingStage, device


class TaskAdapters(TrainingStage):
    """Tunes a LoRA for each task or group of tasks, many side by side, over the backbone as trained so far.

    The stage uses the model's backbone, and the A that all adapters start from, and changes neither. If adapters are
    given, it opens and checks them instead.
    """

    name = "task_adapters"
    description = "a LoRA for each task or group of tasks"
    depends_on = ("tagi", "text.steps", "instruction_tuning.steps")

    def trains(self, settings: RunSettings) -> bool:
        return settings.task_adapters.steps > 0 and settings.task_adapters.given is None

    def require(self, settings, config, train, text):
        bank = given_bank(settings)
        if bank is None:
            return
        kind_of(bank.numbers(), train)
        backbone, finetuning = settings.backbone, settings.finetuning
        taught = backbone.name is None or settings.text.steps or settings.instruction_tuning.steps
        bank.require_backbone(None if taught else backbone.name, backbone.revision)
        with torch.device("meta"):
            model = TagiModel(config)
        bank.require_like(model, ranks=finetuning.needs_teacher and finetuning.alignment == "factors")

    def require_batches(self, settings, records_of, passages):
        section = self.section(settings)
        require_drawn(
            f"{self.name}.examples_per_task", section.examples_per_task, max(records_of[section.by].values()),
            f"the largest {section.by} has {{}} records",
        )  # fmt: skip

    def trainings(self, costs):
        return math.ceil(costs.adapters / self.section(costs.settings).at_once)

    def of_one_training(self, settings, train):
        section = self.section(settings)
        chosen = set(list(dict.fromkeys(getattr(record, section.by) for record in train))[:section.at_once])
        return [record for record in train if getattr(record, section.by) in chosen]

    def batch(self, costs, lengths):  # the last group may be smaller
        return self._batch_of(costs.adapters / self.trainings(costs), costs, lengths)

    def largest_batch(self, costs, lengths):
        return self._batch_of(self._at_once(costs), costs, lengths)

    def device_memory(self, costs, lengths):
        tuned = costs.adapter_size * self._at_once(costs)
        return DeviceMemory(
            weights=FLOAT * (size_of(costs.model.backbone) + tuned),
            gradients=FLOAT * tuned,
            optimizer=FLOAT * tuned * optimizer_states(self.section(costs.settings).optimizer),
            activations=costs.activations(self.largest_batch(costs, lengths), checkpointing=False),
        )

    def disk(self, costs, lengths):
        memory = self.device_memory(costs, lengths)
        return Disk.of(FLOAT * costs.adapter_size * costs.adapters, memory.gradients, memory.optimizer)

    def _at_once(self, costs: RunCosts) -> int:
        return min(self.section(costs.settings).at_once, costs.adapters)

    def _batch_of(self, adapters: float, costs: RunCosts, lengths: TextLengths) -> Work:
        rows = adapters * self.section(costs.settings).examples_per_task
        read = costs.read_with_task_adapter(lengths)
        flops = rows * costs.with_task_adapter(lengths, backbone=2, adapter=3)
        return Work(rows, backbone=rows * read, target=rows * lengths.target, flops=flops)

    def run(self, state: RunState):
        if state.settings.task_adapters.given is not None:
            state.bank = given_bank(state.settings)
            state.bank.require_like(state.model, ranks=False)  # again, now that there are weights
            return
        super().run(state)

    def before(self, state: RunState):
        return {"backbone": state.model.config.backbone_name_or_path}

    def check_folder(self, state: RunState, folder: Stage):
        self._kept(state, folder)

    def _kept(self, state: RunState, folder: Stage) -> AdapterBank:
        """Returns the bank of adapters tuned so far, and refuses damaged adapters, or a bank that is not the run's."""
        run, mend = state.run, state.run.again(self.name)
        with reading(run.folder / BANK_FOLDER, mend):
            bank = AdapterBank(run.folder / BANK_FOLDER)
            if bank.names and not folder.folder.is_dir():
                raise ValueError("nothing says how its adapters were tuned")
            if folder.facts is not None and (lost := self._records_of(state).keys() - bank.numbers().keys()):
                raise ValueError(f"it has no adapter of {min(lost)!r}")
        for one in bank.folders():
            require_whole(one, mend)
        return bank

    def _records_of(self, state: RunState) -> dict[str, list[Record]]:
        """Returns the records that each adapter is tuned on, by the adapter's name."""
        found: dict[str, list[Record]] = {}
        for record in state.train:
            found.setdefault(getattr(record, state.settings.task_adapters.by), []).append(record)
        return found

    def made(self, state: RunState, folder: Stage, model: TagiModel) -> dict:
        at_once, records_of, bank = state.settings.task_adapters.at_once, self._records_of(state), self._bank(state)
        model.backbone.to(device())  # the Trainer moves what it trains
        missing = [name for name in records_of if name not in bank]
        model.requires_grad_(False)
        shared_a = model.hypernetwork.shared_factors()
        for start in range(0, len(missing), at_once):
            some = {name: records_of[name] for name in missing[start: start + at_once]}
            loss = self._tuned(state, folder, model, shared_a, some)
            say(f"{folder.label}: {len(self._bank(state).names)} of {len(records_of)} adapters, loss {loss:.3f}")
        if is_main():
            self._bank(state).write_index()  # however often the stage was interrupted, in the same files
        wait()
        bank = self._bank(state)
        losses = bank.noted("loss")  # of those tuned before an interruption too
        return {"adapters": len(bank.names), "loss": sum(losses) / len(losses) if losses else None}

    def _tuned(
        self,
        state: RunState,
        folder: Stage,
        model: TagiModel,
        shared_a: dict[str, Tensor],
        records_of: dict[str, list[Record]],
    ) -> float:
        """Tunes one adapter for each entry side by side, adds them to the bank, and returns their mean loss."""
        settings, names = state.settings.task_adapters, list(records_of)
        records = [record for name in names for record in records_of[name]]
        tuner = AdapterTuner(model.backbone, names, shared_a, model.config.lora_alpha)
        numbers = {name: number for number, name in enumerate(names)}
        collator = RecordCollator(state.tokens, settings.reads, numbers, settings.by)
        sampler = TaskBatchSampler(
            records,
            tasks_per_batch=len(names),
            examples_per_task=settings.examples_per_task,
            steps=settings.steps * settings.accumulation,
            seed=self.seed(state.settings, "batches", names[0]),
            by=settings.by,
            every=True,
        )
        facts = self.trained(state, folder, tuner, collator, sampler, Drawn(records), part=names[0])
        adapters = tuner.adapter().detach().to("cpu")
        loss = facts["loss"] / len(names)  # the tuner's is a sum over its tasks
        details = [{"by": settings.by, "reads": settings.reads, "records": len(records_of[name]), "loss": loss}
                   for name in names]  # fmt: skip
        source = {
            "backbone": model.config.backbone_name_or_path,
            "backbone_revision": model.config.backbone_revision,
            "backbone_fingerprint": fingerprint(adapters, model.backbone),
        }
        if is_main():
            self._bank(state).add(names, adapters.described(source, model.peft_config()), details)
        wait()
        return loss

    def hand_on(self, state: RunState, folder: Stage):
        state.bank = self._bank(state)

    def _bank(self, state: RunState) -> AdapterBank:
        return AdapterBank(state.run.folder / BANK_FOLDER)


def given_bank(settings: RunSettings) -> Optional[AdapterBank]:
    """Returns the bank of given task adapters; `None` if they are to be tuned, or not needed."""
    section = settings.task_adapters
    loras = section.given_loras()
    if loras is not None:
        return AdapterBank.of(loras, section.reads)
    return AdapterBank.open(section.given) if section.given is not None else None


def kind_of(numbers: dict[str, int], train: Sequence[Record]) -> str:
    """Returns `"task"` or `"group"`, whichever field of these records holds a bank's names."""
    found = {by: len({getattr(record, by) for record in train} & numbers.keys()) for by in ("group", "task")}
    if not any(found.values()):
        raise ValueError(
            f"the bank's adapters are for {', '.join(list(numbers)[:3])}, …; none of them is a task or group of the "
            "train split: check task_adapters"
        )
    return max(found, key=found.get)
