"""The backbone that a run starts from: a pretrained one by its name, or one made from scratch."""

import difflib
import inspect
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    set_seed,
)

from ..common.seeds import derived_seed
from ..common.yaml_files import shown_name
from ..hub import GUARDS, is_gguf, readable
from ..named_backbone import load_language_model
from .setting_fields import RunSettings

# Fields beyond those of its class that every config knows, or that earlier versions wrote.
_OF_EVERY_CONFIG = {
    "attn_implementation", "bos_token_id", "decoder_start_token_id", "dtype", "eos_token_id", "forced_eos_token_id",
    "is_encoder_decoder", "model_type", "pad_token_id", "rope_scaling", "rope_theta", "tie_word_embeddings",
    "torch_dtype", "use_cache",
}  # fmt: skip


def backbone_config(settings: RunSettings, vocab_size: int) -> PretrainedConfig:
    """Returns the config of the run's backbone: the named model's, or one made from the fields in the settings.

    Raises:
        FileNotFoundError: if the named model cannot be found.
        ValueError: if the named model cannot be used, there is neither a name nor a `model_type`, or a field is wrong.
    """
    backbone = settings.backbone
    if backbone.name is not None:
        return _named_config(backbone.name, backbone.revision)
    if "model_type" not in backbone.config:
        raise ValueError(
            "backbone has neither a name nor a config with a model_type; name a pretrained one, or say what to make"
        )
    return made_config({"vocab_size": vocab_size, **backbone.config})


def load_backbone_to_train(settings: RunSettings, source: str, revision: Optional[str], vocab_size: int) -> nn.Module:
    """Loads the backbone at `source` in fp32, or initialises one from scratch if `source` has a vocabulary alone."""
    set_seed(derived_seed(settings.seed, "backbone", "weights"))
    if settings.backbone.name is not None or (Path(source) / "config.json").is_file():
        source = readable(source, revision)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        GUARDS[-1](source, revision)
        return load_language_model(auto, source, revision=revision, dtype=torch.float32)
    config = backbone_config(settings, vocab_size)
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    if settings.backbone.embedding_std is not None:
        nn.init.normal_(model.get_input_embeddings().weight, std=settings.backbone.embedding_std)
    return model


def made_config(fields: dict, section: str = "config") -> PretrainedConfig:
    """Builds a backbone's config from its fields, which include `model_type`.

    Raises:
        ValueError: for an unknown family or field, or a value that is not allowed.
    """
    kind = fields["model_type"]
    if kind not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "such as 't5' or 'llama'"
        raise ValueError(f"backbone.{section}.model_type is {kind!r}, but must be a family of transformers; {hint}")
    _require_known(CONFIG_MAPPING[kind], fields, f"backbone.{section}")
    try:
        known = dict(pad_token_id=0, eos_token_id=1, bos_token_id=3)
        config = AutoConfig.for_model(**{**known, **fields})
    except Exception as error:  # each family's config raises errors of its own
        raise ValueError(f"backbone.{section} is not one of {kind!r}: {' '.join(str(error).split())}") from error
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    return config


def require_place(name: str):
    """Refuses a backbone's name that is a file, a folder without a model, or the path of a folder that is not there.

    Raises:
        ValueError, FileNotFoundError: with the name.
    """
    if is_gguf(name):
        return
    place = Path(name).expanduser()
    if place.is_file():
        raise ValueError(f"backbone.name is {name!r}, which is a file; name the folder that its config.json is in")
    if place.is_dir() and not (place / "config.json").is_file():
        raise FileNotFoundError(f"backbone.name is {name!r}, a folder without a config.json; name a model's folder")
    if not place.is_dir() and (place.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"backbone.name is {name!r}, but there is no such folder")


def _named_config(name: str, revision) -> PretrainedConfig:
    require_place(name)
    place = Path(name).expanduser()
    read = readable(name, revision)
    try:
        kind = PretrainedConfig.get_config_dict(read, revision=revision)[0].get("model_type")
        if kind == "tagi":
            raise ValueError("it is a TAGI checkpoint, and a generator is made for a plain language model")
        return AutoConfig.from_pretrained(read, revision=revision, trust_remote_code=False)
    except OSError as error:
        where = "cannot be read" if place.is_dir() else "is no folder here, and cannot be had from the Hub"
        raise FileNotFoundError(f"backbone.name is {name!r}, which {where}: {str(error).splitlines()[0]}") from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"backbone.name is {name!r}, which cannot be used: {str(error).splitlines()[0]}") from error


def _require_known(kind: type, fields: dict[str, Any], section: str):
    """Refuses fields that the config's class does not have, and sizes that no model has."""
    try:
        defaults = vars(kind())
    except Exception:  # a class that needs the configs of its parts
        return
    known = {name for name in defaults if not name.startswith("_")} | {*kind.attribute_map, *_OF_EVERY_CONFIG}
    known |= {name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")}
    for name, value in fields.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"did you mean {close[0]}?" if close else f"it knows {', '.join(sorted(known - _OF_EVERY_CONFIG))}"
            shown = shown_name(f"{section}.{name}")
            raise ValueError(f"unknown field {shown} of a {kind.model_type!r} backbone; {hint}")
        default = defaults.get(kind.attribute_map.get(name, name))
        if name.endswith(("_id", "_ids")) or value is None or isinstance(value, bool):
            continue
        counts = type(default) is int and default > 0 or default is None and type(value) is int
        if counts and (type(value) is not int or value < 1):
            raise ValueError(f"{section}.{name} is {value!r}, but must be a whole number of 1 or more")
        if "drop" in name and isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"{section}.{name} is {value!r}, but must be a share from 0 to 1")
