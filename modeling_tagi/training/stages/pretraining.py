"""Pretraining of the hypernetwork on text (eq. 3)."""

from ...costs.work import Work
from ...data.collate import TextCollator
from ...data.sampling import Drawn
from ..run import Stage
from ..run_state import RunState
from .base import GeneratorStage, ReadsText


class Pretraining(ReadsText, GeneratorStage):
    """Trains the hypernetwork on passages cut into a, b and c: it reads a, the backbone reads b and predicts c."""

    name = "pretraining"
    description = "hypernetwork on text (eq. 3)"
    depends_on = ("tagi", "text.steps", "instruction_tuning.steps", "finetuning.train", "finetuning.freeze")

    def batch(self, costs, lengths):
        section = self.section(costs.settings)
        cut, rows = lengths.with_passages_of(section.max_length).cut, section.batch_size
        flops = rows * costs.generated(cut, 1)
        return Work(rows, rows * cut.instruction, rows * cut.input, rows * cut.target, flops=flops)

    def made(self, state: RunState, folder: Stage, model) -> dict:
        settings = state.settings
        self.standardise(state, model)
        self.set_trainable(state, model)
        collator = TextCollator(state.tokens, state.text, settings.pretraining.max_length, to_hypernetwork=True)
        facts = self.trained(state, folder, model, collator, self.text_sampler(settings, collator), Drawn())
        self.save_model(state, folder, model)
        return facts
