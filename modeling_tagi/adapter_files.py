"""Adapters on disk: writes and reads a standard PEFT folder, plus two files that PEFT ignores; refuses bad ones."""

import json
import math
import os
from pathlib import Path
from typing import Any, Callable, Optional, Union

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import is_peft_available, logging

from .hub import GUARDS, STALE, filling, require_folder_for, said_in_one_line

if is_peft_available():
    from peft import LoraConfig

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MEMORY_FILE = "tagi_memory.safetensors"
PROVENANCE_FILE = "tagi_adapter.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PEFT_PREFIX = "base_model.model."
_MEND = "save the adapter there again, or copy its folder again"
# Fields of a PEFT configuration that do not change what the stored factors do. Any other must be unset.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "r", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Initialisations that leave the backbone's weights as they are. Others, such as PiSSA, subtract the initial product.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# Field of a PEFT configuration -> what it must be, in words and as a test.
_FIELDS = {
    "r": ("a whole number of at least 1", lambda x: type(x) is int and x >= 1),
    "lora_alpha": ("a number above 0", lambda x: type(x) in (int, float) and 0 < x < math.inf),
    "base_model_name_or_path": ("a name or a folder, or null", lambda x: isinstance(x, (str, type(None)))),
    "revision": ("a text or null", lambda x: isinstance(x, (str, type(None)))),
    "task_type": ("a text or null", lambda x: isinstance(x, (str, type(None)))),
    "fan_in_fan_out": ("true or false", lambda x: isinstance(x, (bool, type(None)))),
}
# What an instruction memory may hold beside `mask`: name -> number of axes, and which of them is that of the tokens.
_MEMORY = {"states": (3, 1), "keys": (5, 3), "values": (5, 3), "prefix_keys": (5, 3), "prefix_values": (5, 3)}
_PAIRS = ("keys", "values"), ("prefix_keys", "prefix_values")


# Writing


def write_adapter(adapter, folder: Union[str, os.PathLike], base_model: Union[str, os.PathLike, None] = None):
    """Writes the one task of a [`TagiAdapter`]. See its `save_pretrained`.

    Raises:
        ValueError: if `folder` is a file or holds something else, or the adapter has numbers that are not finite.
        ImportError: if PEFT is not installed.
    """
    if not is_peft_available():
        raise ImportError("saving an adapter as a PEFT folder needs PEFT: pip install peft")
    target = require_folder_for("adapter", folder)
    memory = adapter.memory.trimmed().tensors() if adapter.memory is not None else {}
    factors = {**{f"A of {path!r}": a for path, a in adapter.lora_a.items()},
               **{f"B of {path!r}": b for path, b in adapter.lora_b.items()}}  # fmt: skip
    require_finite({**factors, **memory}, f"no adapter was written to {target}", "make it anew")
    provenance = dict(adapter.provenance[0]) if adapter.provenance else {}
    with filling(target, last=CONFIG_FILE, stale=STALE["adapter"]) as beside:
        _write_config(adapter, beside, provenance, base_model)
        weights = {f"{path}.lora_A.weight": a[0] for path, a in adapter.lora_a.items()}
        weights |= {f"{path}.lora_B.weight": b[0] for path, b in adapter.lora_b.items()}
        _write_tensors({f"{_PEFT_PREFIX}{key}": x for key, x in weights.items()}, beside / WEIGHTS_FILE)
        if memory:
            _write_tensors(memory, beside / MEMORY_FILE)
        described = {"provenance": provenance, "needs_memory": bool(memory)}
        (beside / PROVENANCE_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    if memory:
        logger.warning_once(  # a bank has thousands
            f"an adapter was saved with the instruction memory that its generator's fusion attends to ({MEMORY_FILE}, "
            "which PEFT ignores): in PEFT alone it answers differently from model.generate(adapter=…)"
        )


def _write_config(adapter, folder: Path, provenance: dict, base_model: Union[str, os.PathLike, None]):
    base, revision = provenance.get("backbone"), provenance.get("backbone_revision")
    if base_model is not None:
        base, revision = os.fspath(base_model), None
        base = os.path.abspath(base) if os.path.isdir(base) else base
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.lora_alpha) if float(adapter.lora_alpha).is_integer() else adapter.lora_alpha,
        target_modules=sorted(adapter.lora_a),
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
        **adapter.peft_config,
    )
    config.save_pretrained(folder)
    # PEFT holds target_modules as a set; sorted, equal adapters are equal files.
    written = json.loads((folder / CONFIG_FILE).read_text())
    written["target_modules"] = sorted(written["target_modules"])
    (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def _write_tensors(tensors: dict[str, Tensor], file: Path):
    save_file({key: x.detach().cpu().contiguous() for key, x in tensors.items()}, file, metadata={"format": "pt"})


# Reading


def read_adapter(
    name_or_folder: Union[str, os.PathLike],
    revision: Optional[str] = None,
    device: Union[str, torch.device] = "cpu",
    token: Optional[Union[str, bool]] = None,
    check_finite: bool = True,
) -> dict:
    """Returns the fields of a [`TagiAdapter`] that a folder or a repository holds; `memory` as its tensors.

    Raises:
        FileNotFoundError: if a file of the folder is missing, or the adapter is saved anew while it is read.
        HubError: an OSError that says in one line why it could not be downloaded.
        ValueError: if it is another kind of adapter, or a file is damaged; the message names the file and a remedy.
    """
    if os.path.isdir(name_or_folder):
        GUARDS[-1](name_or_folder)
    locate = _locator(name_or_folder, revision, token)
    config_file = locate(CONFIG_FILE)
    written, config = config_file.stat(), _read_object(config_file)  # the first to go and the last to come in a save
    _require_plain_lora(config, config_file, name_or_folder)
    weights_file = locate(WEIGHTS_FILE)
    tensors = _read_tensors(weights_file, device)
    lora_a, lora_b = _factors_of(tensors, name_or_folder)
    _require_factors(lora_a, lora_b, config["r"], weights_file)
    provenance_file = locate(PROVENANCE_FILE, optional=True)
    described = _read_object(provenance_file) if provenance_file else {}
    _require_provenance(described, provenance_file)
    memory_file = locate(MEMORY_FILE, optional=not described.get("needs_memory"))
    memory = _read_tensors(memory_file, device) if memory_file else None
    if memory is not None:
        _require_memory(memory, memory_file)
    if check_finite:
        require_finite(tensors, weights_file)
        require_finite(memory or {}, memory_file)
    if (now := config_file.stat()).st_ino != written.st_ino or now.st_mtime_ns != written.st_mtime_ns:
        raise FileNotFoundError(f"{name_or_folder} was written anew while it was read; read it again")
    base = {"backbone": config.get("base_model_name_or_path"), "backbone_revision": config.get("revision")}
    return {
        "lora_a": {path: x.unsqueeze(0) for path, x in lora_a.items()},
        "lora_b": {path: x.unsqueeze(0) for path, x in lora_b.items()},
        "lora_alpha": config["lora_alpha"],
        "memory": memory,
        "provenance": (described.get("provenance") or base,),
        "peft_config": {name: config[name] for name in ("task_type", "fan_in_fan_out") if config.get(name)},
    }


def _locator(name_or_folder, revision, token) -> Callable[..., Optional[Path]]:
    """Returns a function from a file's name to its path: in the folder if there is one, else downloaded."""
    folder = Path(name_or_folder)

    def locate(name: str, optional: bool = False) -> Optional[Path]:
        if folder.is_dir():
            path = folder / name
            if optional or path.is_file():
                return path if not optional or path.is_file() else None
            raise FileNotFoundError(
                f"{folder} has no {name}; an adapter folder holds {CONFIG_FILE}, {WEIGHTS_FILE} and, if its generator "
                f"fuses the instruction, {MEMORY_FILE}: save the adapter there again"
            )
        with said_in_one_line(str(name_or_folder), "load"):
            try:
                return Path(hf_hub_download(str(name_or_folder), name, revision=revision, token=token))
            except EntryNotFoundError as error:
                if optional and not isinstance(error, LocalEntryNotFoundError):
                    return None
                raise

    return locate


def _read_object(file: Path) -> dict:
    try:
        found = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, it is no JSON in UTF-8 ({error}); {_MEND}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {_kind(found)}, but must hold an object ({{…}}); {_MEND}")
    return found


def _read_tensors(file: Path, device) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, and opens no pickle; on a CPU they are mapped, not read."""
    try:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); {_MEND}") from None


def _factors_of(tensors: dict[str, Tensor], name) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    factors: dict[str, dict[str, Tensor]] = {"A.weight": {}, "B.weight": {}}
    for key in sorted(tensors):
        path, _, part = key.removeprefix(_PEFT_PREFIX).partition(".lora_")
        if part not in factors:
            raise ValueError(f"{name}: {WEIGHTS_FILE} holds {key!r}, which is no LoRA factor")
        if path in factors[part]:
            raise ValueError(f"{name}: {WEIGHTS_FILE} holds two tensors for {part[0]} of {path!r}")
        factors[part][path] = tensors[key]
    lora_a, lora_b = factors.values()
    if not lora_a or lora_a.keys() != lora_b.keys():
        raise ValueError(f"{name}: {WEIGHTS_FILE} does not hold an A and a B for every module")
    return lora_a, lora_b


# What is refused


def _require_plain_lora(config: dict, file: Path, name):
    """Refuses the configuration of an adapter that does anything but add `lora_alpha / r * B A` to a weight."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{name} is a PEFT adapter of type {config.get('peft_type')!r}; a TagiAdapter is LORA")
    unsupported = [field for field, value in config.items() if value and field not in _NEUTRAL]
    if config.get("bias") not in (None, "none"):
        unsupported.append("bias")
    start, mend = config.get("init_lora_weights"), ""
    if start not in _PLAIN_STARTS:
        unsupported.append(f"init_lora_weights={start!r}")
        mend = (
            " (it started from a part of the backbone's weights; PEFT's save_pretrained turns it into plain LoRA if "
            "it is given path_initial_model_for_weight_conversion)"
        )
    if unsupported:
        raise ValueError(
            f"{name} uses {', '.join(unsupported)}; a TagiAdapter is plain LoRA of one rank and scale{mend}"
        )
    for field, (expected, is_good) in _FIELDS.items():
        if field in ("r", "lora_alpha") and field not in config:
            raise ValueError(f"{file} lacks {field}, which must be {expected}; {_MEND}")
        if not is_good(config.get(field)):
            raise ValueError(f"{file}: {field} is {config[field]!r}, but must be {expected}; {_MEND}")


def _require_factors(lora_a: dict[str, Tensor], lora_b: dict[str, Tensor], rank: int, file: Path):
    """Refuses factors that are not pairs of floating-point matrices of `rank`."""
    for path, a in lora_a.items():
        b = lora_b[path]
        _require_float({f"A of {path!r}": a, f"B of {path!r}": b}, file)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.numel() or not b.numel():
            raise ValueError(
                f"{file}: A and B of {path!r} are {_shape(a)} and {_shape(b)}, but must be rank × inputs and outputs "
                f"× rank; {_MEND}"
            )
        if a.shape[0] != rank:
            raise ValueError(
                f"{file}: the factors of {path!r} are of rank {a.shape[0]}, but adapter_config.json says r is {rank}; "
                f"{_MEND}"
            )


def _require_memory(memory: dict[str, Tensor], file: Path):
    """Refuses the tensors of one instruction's memory if any is missing, unknown, or of another shape or type."""
    unknown = [name for name in memory if name not in ("mask", *_MEMORY)]
    if unknown:
        raise ValueError(f"{file} holds {unknown[0]!r}, which is no part of an instruction memory; {_MEND}")
    missing = [name for pair in _PAIRS for name in pair if name not in memory and any(x in memory for x in pair)]
    if "mask" not in memory or not ("states" in memory or "prefix_keys" in memory):
        missing += ["mask"] if "mask" not in memory else ["states or prefix_keys"]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)} of an instruction memory; {_MEND}")
    parts = dict(memory)
    mask = parts.pop("mask")
    whole = not mask.is_floating_point() and not mask.is_complex()
    if not whole or mask.ndim != 2 or mask.shape[0] != 1 or not mask.any() or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{file}: mask is {_shape(mask)} of {mask.dtype}, but must be 1 × tokens of whole numbers, 1 for a token "
            f"and 0 for padding; {_MEND}"
        )
    _require_float(parts, file)
    for name, x in parts.items():
        axes, tokens = _MEMORY[name]
        if x.ndim != axes or x.shape[0] != 1 or x.shape[tokens] != mask.shape[1]:
            raise ValueError(
                f"{file}: {name} is {_shape(x)}, but must have {axes} axes, the first of length 1 and that of the "
                f"tokens of {mask.shape[1]}, as the mask; {_MEND}"
            )
    for one, other in _PAIRS:
        if one in memory and memory[one].shape[:-1] != memory[other].shape[:-1]:
            raise ValueError(
                f"{file}: {one} and {other} are {_shape(memory[one])} and {_shape(memory[other])}, but must have the "
                f"same layers, heads and tokens; {_MEND}"
            )


def _require_provenance(described: dict, file: Optional[Path]):
    """Refuses a record of an adapter's origin whose fields are of other types than they are written in."""
    provenance, needed = described.get("provenance"), described.get("needs_memory")
    if not isinstance(provenance, (dict, type(None))):
        raise ValueError(f"{file}: provenance is {_kind(provenance)}, but must be an object; {_MEND}")
    if not isinstance(needed, (bool, type(None))):
        raise ValueError(f"{file}: needs_memory is {needed!r}, but must be true or false; {_MEND}")
    mark = (provenance or {}).get("backbone_fingerprint")
    numbers = isinstance(mark, list) and all(type(x) in (int, float) and math.isfinite(x) for x in mark)
    if mark is not None and not numbers:
        raise ValueError(f"{file}: backbone_fingerprint is {mark!r:.60}, but must be a list of numbers; {_MEND}")


def require_finite(tensors: dict[str, Tensor], where, mend: str = _MEND):
    """Refuses tensors that hold NaN or infinity."""
    for name, x in tensors.items():
        if x.is_floating_point() and not x.isfinite().all():
            bad = "NaN" if x.isnan().any() else "infinity"
            raise ValueError(f"{where}: {name} holds {bad}, but an adapter's numbers must be finite; {mend}")


def _require_float(tensors: dict[str, Tensor], file: Path):
    for name, x in tensors.items():
        if x.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{file}: {name} is of {x.dtype}, but an adapter is of {known}; {_MEND}")


def _shape(x: Tensor) -> str:
    return " × ".join(map(str, x.shape)) or "a single number"


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), "a number")
