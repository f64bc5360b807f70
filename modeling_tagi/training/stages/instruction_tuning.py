"""Instruction tuning of the backbone, with the instruction in its input: what TAGI starts from."""

from ...data.collate import RecordCollator
from ..backbones import load_backbone_to_train
from ..run import Stage
from ..run_state import RunState, read_tokens
from ..setting_fields import RunSettings
from .base import BackboneStage, drawn_from


class InstructionTuning(BackboneStage):
    """Trains the backbone to answer with the instruction in its input.

    A backbone from scratch goes through this stage even without steps, which initialises it if none did before.
    """

    name = "instruction_tuning"
    description = "instructions in the input"
    depends_on = ("text.steps", "tagi.input_format")
    stream = "prompted"  # its former name: a seed keeps the batches and the dropout that it had

    def wanted(self, settings: RunSettings) -> bool:
        return self.trains(settings) or settings.backbone.name is None

    def batch(self, costs, lengths):
        section = self.section(costs.settings)
        rows = section.tasks_per_batch * section.examples_per_task
        return costs.plain(rows, lengths.instruction + lengths.input, lengths.target)

    def made(self, state: RunState, folder: Stage, model=None) -> dict:
        model = load_backbone_to_train(state.settings, state.backbone, state.revision, len(state.tokenizer))
        facts = {}
        if self.trains(state.settings):
            collator = RecordCollator(read_tokens(state.run, state.tokenizer, model.config), reads="prompt")
            sampler = self.task_sampler(state.settings, state.train)
            facts = self.trained(state, folder, model, collator, sampler, drawn_from(state.train))
        self.save_backbone(state, folder, model)
        return facts
