"""The generator that a run starts from: a fresh one, or a checkpoint's (`start_from`), which it trains further."""

import inspect

import torch

from ..configuration_tagi import TagiConfig
from ..hub import said_in_one_line
from ..modeling_tagi import TagiModel
from ..named_backbone import backbone_hash
from .setting_fields import RunSettings

# The fields of a config that make a generator what it is, and not the place of its backbone.
_FIELDS = [name for name in inspect.signature(TagiConfig.__init__).parameters
           if name not in ("self", "kwargs") and not name.startswith("backbone")]  # fmt: skip


def fill_in_start(settings: RunSettings):
    """Gives the settings the `tagi` fields of the checkpoint that they start from and, if they have no backbone, its.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is none, its backbone is its own, or a field that is given differs from it.
    """
    name = settings.start_from
    if name is None:
        return
    config = _config_of(name)
    for field in _FIELDS:
        given, found = settings.tagi.get(field, getattr(config, field)), getattr(config, field)
        if given != found:
            raise ValueError(
                f"tagi.{field} is {given!r}, but the generator in {name}, which start_from names, has {found!r}; "
                f"leave tagi.{field} out, or start from nothing (start_from: null)"
            )
    settings.tagi = {**settings.tagi, **{field: getattr(config, field) for field in _FIELDS}}
    settings.tagi.setdefault("backbone_in_checkpoint", config.backbone_in_checkpoint)
    backbone = settings.backbone
    if backbone.name is None and not backbone.config:
        backbone.name, backbone.revision = config.backbone_name_or_path, config.backbone_revision
    if backbone.name is None:
        raise ValueError(
            f"the checkpoint {name}, which start_from names, does not say where its backbone is: give it as "
            "backbone.name"
        )
    taught = [stage for stage in ("text", "instruction_tuning") if getattr(settings, stage).steps]
    if taught:
        raise ValueError(
            f"{taught[0]}.steps changes the backbone, but the generator in {name}, which start_from names, was made "
            f"for the backbone as it is; set {taught[0]}.steps to 0"
        )


def _config_of(name: str) -> TagiConfig:
    try:
        with said_in_one_line(name, "load"):
            fields, _ = TagiConfig.get_config_dict(name)
    except OSError as error:
        said = " ".join(str(error).split())
        raise FileNotFoundError(f"start_from is {name!r}, which cannot be read: {said}") from error
    if fields.get("model_type") != "tagi":
        raise ValueError(
            f"start_from is {name!r}, which is no TAGI checkpoint; a plain language model goes in backbone.name"
        )
    config = TagiConfig.from_dict(fields)
    if config.backbone_trained:
        raise ValueError(
            f"start_from is {name!r}, whose backbone was trained with its generator; a run starts from a generator "
            "for a backbone as it is to be had elsewhere"
        )
    return config


def start_generator(settings: RunSettings, backbone: str, revision) -> TagiModel:
    """Returns the model that the first stage trains, in float32: a fresh generator on the backbone, or a checkpoint's.

    Raises:
        ValueError: if the checkpoint's generator was made for another backbone.
    """
    if settings.start_from is None:
        return TagiModel.from_backbone(backbone, revision=revision, dtype=torch.float32, **settings.tagi)
    model = TagiModel.from_pretrained(settings.start_from, dtype=torch.float32)
    wanted, found = model.config.backbone_sha256, backbone_hash(backbone, revision)
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(
            f"the generator in {settings.start_from}, which start_from names, was made for a backbone with the "
            f"SHA-256 {wanted}, but backbone.name is {backbone!r} with {found}; name the right one, or leave it out"
        )
    model.config.backbone_in_checkpoint = settings.tagi["backbone_in_checkpoint"]
    model.config.backbone_name_or_path, model.config.backbone_revision = str(backbone), revision
    return model
