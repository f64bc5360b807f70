"""The model of a run as it is published: whose backbone it has, its index of instructions, its tokenizer."""

from pathlib import Path

from ..common.processes import is_main
from ..common.writing import replacing
from ..modeling_tagi import TagiModel
from ..training.known_instructions import index_instructions
from ..training.run_state import RunState
from .cards import CARD_FILE, is_edited


def save_run_model(state: RunState):
    """Writes the run's `model/` anew, but keeps a card that a person has edited."""
    settings, model = state.settings, state.model
    _name_backbone(model.config, state)
    model.tokenizer = state.tokenizer
    if settings.finetuning.makes_adapters:
        model.instruction_index = index_instructions(
            model, state.tokens, state.train, publish=settings.publish_instructions
        )
    if not is_main():
        return
    folder = state.run.folder / "model"
    card = folder / CARD_FILE
    before = card.read_text(encoding="utf-8") if card.is_file() else None
    with replacing(folder) as beside:
        model.save_pretrained(beside)
        if is_edited(before):
            (beside / CARD_FILE).write_text(before, encoding="utf-8")


def save_on_the_way(state: RunState, model: TagiModel, folder: Path):
    """Writes a model to be published before its training ends, and leaves its configuration as it was."""
    model.tokenizer, kept = state.tokenizer, dict(vars(model.config))
    _name_backbone(model.config, state)
    try:
        model.save_pretrained(folder)
    finally:
        vars(model.config).update(kept)


def _name_backbone(config, state: RunState):
    """Records in the config whether the backbone was trained, and forgets its name if only this run has it."""
    finetuning = state.settings.finetuning
    finetuned = finetuning.steps and finetuning.train != "generator"
    config.backbone_trained = config.backbone_trained or state.made_backbone or bool(finetuned)
    if state.made_backbone:  # the checkpoint's own, which is nowhere else
        config.backbone_name_or_path = config.backbone_revision = config.backbone_sha256 = None
