"""Saves and reads the models of stages, and refuses damaged files and weights that are not finite."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from ..common.processes import is_main
from ..common.writing import reading, replacing
from ..configuration_tagi import TagiConfig
from ..modeling_tagi import TagiModel
from .finite import NotFinite, not_finite


def save_model(model: TagiModel, folder: Path, backbone_trained: bool):
    """Writes a trained model, whose config then says whether its backbone was trained too."""
    model.config.backbone_trained = backbone_trained
    if is_main():
        with replacing(folder) as beside:
            model.save_pretrained(beside)


def read_model(folder: Path, mend: str, before: TagiConfig) -> TagiModel:
    """Reads a model that a stage has saved.

    Args:
        folder: The model's folder.
        mend: What to do if it is damaged, for the message.
        before: The config with the name of its backbone, since a checkpoint does not name folders.

    Raises:
        ValueError: if it is damaged, or a weight is not finite.
    """
    require_whole(folder, mend)
    with reading(folder, mend):
        model = require_finite(TagiModel.from_pretrained(folder, dtype=torch.float32))
    for name in ("backbone_name_or_path", "backbone_revision"):
        setattr(model.config, name, getattr(before, name))
    return model


def require_finite(model: TagiModel) -> TagiModel:
    """Returns the model, and refuses one with a weight that is not finite."""
    name = not_finite(model.named_parameters())
    if name is not None:
        raise NotFinite(f"the weight {name} is not finite")
    return model


def require_whole(folder: Path, mend: str):
    """Refuses a folder of weights with a missing, truncated or invalid safetensors file; it reads only the headers."""
    with reading(folder, mend):
        files = set(folder.glob("*.safetensors"))
        for index in folder.glob("*.safetensors.index.json"):
            files |= {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        if not files:
            raise FileNotFoundError("there are no weights")
        for file in sorted(files):
            with reading(file, mend), safe_open(file, "pt"):
                pass
