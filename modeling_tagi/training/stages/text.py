"""Language modelling on text: what a backbone from scratch learns first."""

from ...data.collate import TextCollator
from ...data.sampling import Drawn
from ..backbones import load_backbone_to_train
from ..run import Stage
from ..run_state import RunState, read_tokens
from .base import BackboneStage, ReadsText


class Text(ReadsText, BackboneStage):
    """Trains the backbone to continue passages of text."""

    name = "text"
    description = "language modelling on text"

    def batch(self, costs, lengths):
        section = self.section(costs.settings)
        cut = lengths.with_passages_of(section.max_length).cut
        return costs.plain(section.batch_size, cut.instruction + cut.input, cut.target)

    def made(self, state: RunState, folder: Stage, model=None) -> dict:
        settings = state.settings
        model = load_backbone_to_train(settings, state.backbone, state.revision, len(state.tokenizer))
        tokens = read_tokens(state.run, state.tokenizer, model.config)
        collator = TextCollator(tokens, state.text, settings.text.max_length, to_hypernetwork=False)
        facts = self.trained(state, folder, model, collator, self.text_sampler(settings, collator), Drawn())
        self.save_backbone(state, folder, model)
        return facts
