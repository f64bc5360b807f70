"""Configurations in YAML files: fields and their values, of which one file may build on another."""

import copy
from pathlib import Path
from typing import Any, Optional, Union

import yaml

BASE = "base"


class _UniqueKeys(yaml.SafeLoader):
    """Loads YAML, but refuses a field that is given twice, of which plain YAML keeps the last."""

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in lines:
                    raise yaml.constructor.ConstructorError(
                        None, None,
                        f"{key.value!r} is given twice, first in line {lines[key.value]}; take one of them out",
                        key.start_mark,
                    )  # fmt: skip
                if isinstance(key, yaml.ScalarNode):
                    lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        ValueError: if it is not YAML, with the line and what is wrong there, or if a field is given twice.
    """
    try:
        return yaml.load(text, _UniqueKeys)  # nosec B506 # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that no YAML has
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def read_yaml(path: Union[str, Path]) -> dict:
    """Reads the fields of a YAML file, without those of its `base`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not YAML, or holds no fields.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}; see hub_configs/ for those that come along")
    try:
        values = load_yaml(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not YAML: line {line} is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, but must hold fields and their values")
    return values


def read_recipe(path: Union[str, Path], _below: tuple[Path, ...] = ()) -> dict:
    """Reads the fields of a YAML file on top of those of its `base`, a path relative to the file's own folder.

    Fields with fields of their own are merged field by field; any other value replaces the base's.

    Raises:
        FileNotFoundError: if the file or a base is missing.
        ValueError: if one of them cannot be read, or a file is its own base.
    """
    path = Path(path)
    values = read_yaml(path)
    base = values.pop(BASE, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: base is {base!r}, but must be the name of one YAML file")
    chain = (*_below, path.resolve())
    place = path.parent / base
    if place.resolve() in chain:
        files = " -> ".join(file.name for file in (*chain, place.resolve()))
        raise ValueError(f"{path}: a configuration cannot be its own base ({files}); take the line `base: {base}` out")
    if not place.is_file():
        raise FileNotFoundError(f"{path} names the base {base}, but there is no {place}; mend the line `base: {base}`")
    return joined(read_recipe(place, chain), values)


def joined(below: dict, above: dict) -> dict:
    """Merges nested fields; if both have a value, that of `above` is taken.

    A model's config replaces one of another `model_type` as a whole, since it does not know that one's fields.
    """
    if "model_type" in above and above["model_type"] != below.get("model_type"):
        return copy.deepcopy(above)
    made = copy.deepcopy(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(made.get(name), dict)
        made[name] = joined(made[name], value) if both else copy.deepcopy(value)
    return made


def parse_fields(texts: Optional[dict[str, str]]) -> dict[str, Any]:
    """Parses the values of fields given as texts, such as `{"finetuning.steps": "100"}`.

    Raises:
        ValueError: for a text that is not YAML.
    """
    parsed = {}
    for name, text in (texts or {}).items():
        try:
            parsed[name] = load_yaml(text)
        except ValueError as error:
            raise ValueError(
                f"--{shown_name(name)} is {text!r}, which is not YAML ({error}); put quotes around a text"
            ) from None
    return parsed


def shown_name(name: Any) -> str:
    """Returns a field's name as a message shows it: in one line, and not too long."""
    name = str(name)
    return f"{name if name.isprintable() else repr(name):.200}"


def flat(values: dict, prefix: str = "") -> dict:
    """Flattens nested fields into one dict by dotted name."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
