"""A run's settings from one YAML file and overrides from the command line, checked before anything starts."""

from pathlib import Path
from typing import Any, Optional, Union

from ..hub import named_with_file
from .recipes import recipe_fields, with_overrides
from .setting_checks import require_sensible
from .setting_fields import RunSettings, built_settings
from .starting_point import fill_in_start


def load_settings(path: Union[str, Path], overrides: Optional[dict[str, str]] = None) -> RunSettings:
    """Reads settings from a YAML file and its `base`, and applies overrides such as `{"finetuning.steps": "100"}`.

    An override `"method"` applies that method's settings (see `methods.py`), before the other overrides.

    Raises:
        FileNotFoundError: if the file, or its `base`, is missing.
        ValueError: for an unknown field or a value of the wrong kind; the message names field, value and what is
            allowed.
    """
    settings = build_settings(recipe_fields(path, overrides))
    if settings.output_dir is None:
        settings.output_dir = f"outputs/{Path(path).stem}"
    return settings


def build_settings(values: dict, overrides: Optional[dict[str, Any]] = None) -> RunSettings:
    """Builds and checks settings from nested fields and overrides by dotted name, of which `"method"` comes first.

    Raises:
        ValueError: as `load_settings`.
    """
    settings = built_settings(RunSettings, with_overrides(values, overrides))
    backbone = settings.backbone
    if backbone.gguf_file is not None and backbone.name is None:
        raise ValueError(f"backbone.gguf_file is {backbone.gguf_file!r}, but backbone.name says not where it is")
    if backbone.name is not None:  # from here on one name says both
        backbone.name, backbone.gguf_file = named_with_file(backbone.name, backbone.gguf_file), None
    fill_in_start(settings)
    require_sensible(settings)
    return settings
