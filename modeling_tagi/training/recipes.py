"""Recipes: the fields that a run's YAML file gives, and the files in `hub_configs/`, which a wheel has inside."""

import copy
from pathlib import Path
from typing import Any, Optional, Union

from ..common.methods import METHODS
from ..common.yaml_files import parse_fields, read_recipe

_PACKAGE = Path(__file__).parents[1]
FOLDER = next((x for x in (_PACKAGE / "hub_configs", _PACKAGE.parent / "hub_configs") if x.is_dir()), None)


def recipes() -> list[str]:
    """Returns the names of the recipes for single runs."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml")) if FOLDER is not None else []


def recipe_file(name: str) -> Path:
    """Returns the path of a YAML file, or else of the recipe of that name, such as `quickstart` or `studies/builtin`.

    Raises:
        FileNotFoundError: if there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if FOLDER is not None and not path.is_absolute():
        place = FOLDER / (name if path.suffix == ".yaml" else f"{name}.yaml")
        if place.is_file() and place.resolve().is_relative_to(FOLDER.resolve()):
            return place
    raise FileNotFoundError(
        f"there is no configuration {name}; give a YAML file, or the name of a recipe: {', '.join(recipes())}"
    )


def recipe_fields(path: Union[str, Path], overrides: Optional[dict[str, str]] = None) -> dict:
    """Returns the nested fields of a run's YAML file and of its `base`, with overrides given as texts.

    Raises:
        FileNotFoundError: if the file, or its `base`, is missing.
        ValueError: if it is a study's, or something cannot be read.
    """
    values = read_recipe(path)
    if {"config", "methods"} <= set(values):
        raise ValueError(f"{path} is a study of several runs; start it with: tagi study {path}")
    return with_overrides(values, parse_fields(overrides))


def with_overrides(values: dict, overrides: Optional[dict[str, Any]] = None) -> dict:
    """Returns a copy of nested fields with overrides by dotted name, of which `"method"` is applied first.

    Raises:
        ValueError: for an unknown method, or a dotted name that goes into a field without fields of its own.
    """
    values, overrides = copy.deepcopy(values), dict(overrides or {})
    method = overrides.pop("method", None)
    if method is not None:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, but must be one of {', '.join(METHODS)}")
        overrides = {"label": method, **METHODS[method].fields, **overrides}
    for name, value in overrides.items():
        *sections, last = name.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ValueError(f"--{name}: {section!r} has no fields of its own")
        place[last] = value
    return values
