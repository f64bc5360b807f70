"""Reads functions that were saved."""

import json
import os
from pathlib import Path
from typing import Any, Optional, Union

from ..fit import require_fit
from ..function import FUNCTION_FILE, IF_FAR, SAVED, TagiFunction, require_choices
from ..modeling_tagi import TagiModel
from ..named_backbone import ACCESS, file_of
from ..tokens import instruction_text
from .given_files import require_own_files

_MOST_NEW_TOKENS = 2**16  # of a saved function, which may come from anyone


def load_function(
    name_or_folder: Union[str, os.PathLike], model: Optional[TagiModel] = None, **loading: Any
) -> TagiFunction:
    """Returns a function that `save` wrote to a folder, or that lies in a repository on the Hub.

    Args:
        model: The model that it was made from; `None` loads that from where it was then.
        loading: Arguments of `TagiModel.from_pretrained`, such as `device_map` or `token`.

    Raises:
        FileNotFoundError: if there is no function.json.
        ValueError: if it is damaged, names no place of its model, or the model is another than it was made for.
    """
    if os.path.isdir(name_or_folder):
        require_own_files(Path(name_or_folder))
    access = {name: value for name, value in loading.items() if name in ACCESS}
    file = file_of(name_or_folder, FUNCTION_FILE, **access)
    if file is None:
        raise FileNotFoundError(
            f"{name_or_folder} has no {FUNCTION_FILE}, or cannot be reached; name what a function's save wrote (an "
            "adapter alone is read by TagiAdapter.from_pretrained)"
        )
    described = _read(Path(file))
    if model is None:
        source = described["made_from"]
        if not source["generator"]:
            raise ValueError(
                f"{file} names no checkpoint, since its model lay in none; give the model: "
                f"load_function({str(name_or_folder)!r}, model=…)"
            )
        model = TagiModel.from_pretrained(source["generator"], revision=source["generator_revision"], **loading).eval()
    if model.config.input_format != described["input_format"]:
        raise ValueError(
            f"{file} is for inputs in the format {described['input_format']!r}, but the model reads "
            f"{model.config.input_format!r}; give the model that it was made from"
        )
    token = loading.get("token")
    adapter = TagiModel.adapter_class.from_pretrained(name_or_folder, device=model.device, token=token)
    require_fit(adapter, model)
    return TagiFunction(model, adapter, **{name: described[name] for name in SAVED})


def _read(file: Path) -> dict[str, Any]:
    """Returns what a function.json holds.

    Raises:
        ValueError: if that is no function.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        wanted = {**dict.fromkeys((*SAVED, "input_format")), "made_from": ("generator", "generator_revision")}
        missing = [name for name in wanted if name not in found]
        missing += [name for name in wanted["made_from"] if name not in found.get("made_from", ())]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        instruction_text(found["instruction"])
        require_choices(found["options"], max_new_tokens=found["max_new_tokens"])
        if found["max_new_tokens"] > _MOST_NEW_TOKENS:
            raise ValueError(f"max_new_tokens is {found['max_new_tokens']}, more than {_MOST_NEW_TOKENS}")
        if found["how"] not in IF_FAR.values():
            raise ValueError(f"how is {found['how']!r}, but must be one of {', '.join(map(repr, IF_FAR.values()))}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); save the function again") from error
    return found
