"""What a checkpoint's folder holds, and a backbone saved apart from its generator."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modeling_tagi
from modeling_tagi import TagiModel

PACKAGE = Path(modeling_tagi.__file__).parent
CODE = [file.name for file in PACKAGE.glob("*.py") if file.name not in ("__init__.py", "pipeline.py")]
WEIGHTS = ["config.json", "generation_config.json", "model.safetensors"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def apart(make_backbone, make_model, tmp_path):
    """A function that saves a backbone, and a generator without it, and returns the generator's model."""

    def save(family, fusion="cross_attention", dtype=torch.float32, **fields):
        make_backbone(family).save_pretrained(tmp_path / "backbone")
        awake = make_model(family, fusion, **fields)
        model = TagiModel.from_backbone(
            tmp_path / "backbone", fusion=fusion, r=4, lora_alpha=8, generator_hidden_size=16, generator_index_size=4
        ).eval()
        model.load_state_dict(awake.state_dict())
        model.to(dtype).save_pretrained(tmp_path / "apart", include_backbone=False)
        return model

    return save


def same_backbone(one, two):
    states = two.backbone.state_dict()
    return all(torch.equal(x, states[name]) for name, x in one.backbone.state_dict().items())


def drop(folder, *gone):
    tensors = load_file(folder / "model.safetensors")
    for name in gone:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
