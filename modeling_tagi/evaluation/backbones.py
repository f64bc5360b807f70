"""Backbones as references use them: prompted as they are, or with adapters of their own."""

from typing import Optional

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..common.randomness import unchanged_randomness
from ..configuration_tagi import TagiConfig
from ..hub import GUARDS, readable
from ..modeling_tagi import TagiModel
from ..named_backbone import auto_class, load_language_model


def load_backbone(name: str, revision: Optional[str] = None) -> PreTrainedModel:
    """Returns a language model of either kind, in fp32 and eval mode, on the GPU if there is one."""
    name = readable(name, revision)
    GUARDS[-1](name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    model = load_language_model(auto_class(config), name, revision=revision, dtype=torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def adaptable(model: nn.Module, like: Optional[TagiConfig] = None, seed: int = 0) -> TagiModel:
    """Returns a backbone as it is, to which adapters can be given, and the A that new ones start from.

    Args:
        model: A backbone, or a [`TagiModel`] whose backbone is taken; its weights are shared, not copied.
        like: The rank, scale, target modules and layers (these if its backbone is of the same family) of new adapters.
        seed: Seeds A, which is uniform as PEFT's.
    """
    backbone = model.backbone if isinstance(model, TagiModel) else model
    fields = {}
    if like is not None:
        fields = {"r": like.r, "lora_alpha": like.lora_alpha}
        if like.backbone_config is not None and like.backbone_config.model_type == backbone.config.model_type:
            fields.update(target_modules=like.target_modules, layers_to_transform=like.layers_to_transform)
    config = TagiConfig(
        backbone_config=backbone.config, fusion="none", **fields,
        generator="shared", generator_hidden_size=1, generator_index_size=1,  # it is never run: as small as can be
    )  # fmt: skip
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor._is_hf_initialized = True  # else transformers would initialise the backbone anew
    with unchanged_randomness():
        torch.manual_seed(seed)
        made = TagiModel(config, backbone=backbone)
    made.generation_config = backbone.generation_config
    return made.to(backbone.device).eval()
