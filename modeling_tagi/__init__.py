"""TAGI: adapters for language models, generated from instructions."""

from .adapter import TagiAdapter
from .configuration_tagi import TagiConfig
from .modeling_tagi import TagiModel

__all__ = ["TagiAdapter", "TagiConfig", "TagiModel"]
