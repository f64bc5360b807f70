"""A run's model on the meta device: shapes without weights."""

from typing import Union

import torch

from ..configuration_tagi import TagiConfig
from ..costs.flops import TaskFlops
from ..costs.work import UnknownFlops
from ..families import family_of
from ..modeling_tagi import TagiModel


def built_on_meta(config: TagiConfig) -> TagiModel:
    """Builds the model on the meta device.

    Raises:
        ValueError: if it cannot be built, with the reason.
    """
    try:
        with torch.device("meta"):
            return TagiModel(config)
    except ValueError:
        raise
    except Exception as error:  # backbones check their sizes where they use them
        raise ValueError(
            f"no {config.backbone_config.model_type!r} backbone can be built of these sizes "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); correct backbone.config"
        ) from error


def flops_of(config: TagiConfig) -> Union[TaskFlops, UnknownFlops]:
    """Returns the formula of the model's FLOPs; for a family that no table lists, one that says `nan`."""
    if family_of(config.backbone_config) is None:
        return UnknownFlops(built_on_meta(config))
    return TaskFlops(config)
