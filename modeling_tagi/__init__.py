"""TAGI: adapters for language models, generated from instructions."""

import importlib
from typing import TYPE_CHECKING, Any

from . import publishing  # noqa: F401  (gives push_to_hub its cards)
from .common import gguf_files  # noqa: F401  (reads backbones from GGUF files)
from .common import given_files  # noqa: F401  (looks at what is loaded before it is used)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .adapter import TagiAdapter
    from .common.saved_functions import load_function
    from .configuration_tagi import TagiConfig
    from .modeling_tagi import TagiModel

_HOMES = {"TagiAdapter": ".adapter", "TagiConfig": ".configuration_tagi", "TagiModel": ".modeling_tagi",
          "load_function": ".common.saved_functions"}  # fmt: skip

__all__ = ["TagiAdapter", "TagiConfig", "TagiModel", "load_function"]


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: torch takes seconds, which `tagi --help` can do without."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
