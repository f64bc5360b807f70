"""What a request's `model` may say, and the instruction that it stands for."""

from pathlib import Path
from typing import Optional, Union

from ..common.yaml_files import read_yaml
from ..tokens import instruction_text
from .adapters_on_disk import AdaptersOnDisk, is_id
from .limits import Refusal

PREFIX = "tagi:"
BACKBONE = "backbone"  # what a backbone without a name of its own is called


class ModelNames:
    """Knows what `model` stands for: the backbone, a short name, an adapter's id, or `tagi:<instruction>`.

    Args:
        backbone: The bare backbone's name.
        names: Instructions by their short names.

    Raises:
        ValueError: if a short name is the backbone's.
    """

    def __init__(self, backbone: str, names: dict[str, str], disk: AdaptersOnDisk):
        if backbone in names:
            raise ValueError(f"the short name {backbone!r} is the backbone's own; choose another name")
        self.backbone, self.names, self.disk = backbone, names, disk

    def instruction_of(self, model: str) -> Optional[str]:
        """Returns the instruction that a name stands for; `None` for the bare backbone.

        Raises:
            Refusal: with status 404 if nothing has that name, or 400 if there is no instruction behind `tagi:`.
        """
        if model == self.backbone:
            return None
        if model in self.names:
            return self.names[model]
        if model.startswith(PREFIX):
            try:
                return instruction_text(model[len(PREFIX):])
            except ValueError as error:
                raise Refusal(400, str(error), "model") from None
        instruction = self.disk.instruction_of(model) if is_id(model) else None
        if instruction is None:
            known = ", ".join(repr(name) for name in [self.backbone, *list(self.names)[:10]])
            raise Refusal(
                404,
                f"there is no model {model[:100]!r}; give 'tagi:<instruction>', the id of an adapter that POST "
                f"/v1/adapters has given, or one of {known}",
                "model",
            )
        return instruction


def read_names(file: Union[str, Path]) -> dict[str, str]:
    """Returns the instructions of a YAML file by their short names.

    A value is an instruction, or `{instruction: …, demonstrations: [[input, output], …]}`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a name or a value is none.
    """
    found = {}
    for name, value in read_yaml(file).items():
        if not isinstance(name, str) or name.startswith(PREFIX) or is_id(name) or not name.strip():
            raise ValueError(f"{file}: {name!r} is no short name; give a text that does not begin with {PREFIX!r}")
        fields = value if isinstance(value, dict) else {"instruction": value}
        if not fields.keys() <= {"instruction", "demonstrations"} or "instruction" not in fields:
            raise ValueError(
                f"{file}: {name} has the fields {', '.join(map(str, fields))}, but takes an instruction, or "
                "instruction and demonstrations"
            )
        try:
            found[name] = instruction_text(fields["instruction"], fields.get("demonstrations"))
        except ValueError as error:
            raise ValueError(f"{file}: {name}: {error}") from None
    return found
