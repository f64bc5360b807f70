"""What an adapter's files must hold; whatever does not is refused with the file's name and the way to mend it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MEND = "save the adapter there again, or copy its folder again"
# Fields of a PEFT configuration that do not change what the stored factors do. Any other must be unset.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size",
    "r", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Starts that leave the backbone's weights as they are. Others, such as PiSSA, take the factors' start out of them.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
# What an instruction memory may hold beside `mask`: name -> number of axes, and which of them is that of the tokens.
_MEMORY = {"states": (3, 1), "keys": (5, 3), "values": (5, 3), "prefix_keys": (5, 3), "prefix_values": (5, 3)}


def read_object(file: Path) -> dict:
    """The object of a JSON file.

    Raises:
        ValueError: if the file is not JSON in UTF-8, or holds something else than an object.
    """
    try:
        found = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged, it is no JSON in UTF-8 ({error}); {_MEND}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {_kind(found)}, but must hold an object ({{…}}); {_MEND}")
    return found


def read_tensors(file: Path, device) -> dict[str, Tensor]:
    """The tensors of a safetensors file; on a CPU they are mapped, not read.

    Raises:
        ValueError: if the file is none, such as a pickle, which is never opened, or one that was cut off.
    """
    try:
        with safe_open(file, framework="pt", device=str(device)) as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}); {_MEND}") from None


def require_plain_lora(config: dict, file: Path, name):
    """Refuses the configuration of an adapter that does anything but add `lora_alpha / r * B A` to a weight.

    Raises:
        ValueError: naming the fields.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{name} is a PEFT adapter of type {kind!r}; a TagiAdapter is LORA")
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
    for field, good, expected in (
        ("r", lambda x: type(x) is int and x >= 1, "a whole number of at least 1"),
        ("lora_alpha", lambda x: type(x) in (int, float) and 0 < x < math.inf, "a number above 0"),
        ("base_model_name_or_path", lambda x: x is None or isinstance(x, str), "a name or a folder, or null"),
        ("revision", lambda x: x is None or isinstance(x, str), "a text or null"),
        ("task_type", lambda x: x is None or isinstance(x, str), "a text or null"),
        ("fan_in_fan_out", lambda x: x is None or isinstance(x, bool), "true or false"),
    ):
        if field in ("r", "lora_alpha") and field not in config:
            raise ValueError(f"{file} lacks {field}, which must be {expected}; {_MEND}")
        if not good(config.get(field)):
            raise ValueError(f"{file}: {field} is {config[field]!r}, but must be {expected}; {_MEND}")


def require_factors(lora_a: dict[str, Tensor], lora_b: dict[str, Tensor], rank: int, file: Path):
    """Refuses factors, without an axis of tasks, that are no pairs of matrices of `rank` in a floating-point type."""
    for path, a in lora_a.items():
        b = lora_b[path]
        for letter, x in (("A", a), ("B", b)):
            _require_float(x, f"{letter} of {path!r}", file)
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


def require_memory(memory: dict[str, Tensor], file: Path):
    """Refuses the tensors of one instruction's memory if any is missing, unknown, or of another shape or type."""
    unknown = [name for name in memory if name not in ("mask", *_MEMORY)]
    if unknown:
        raise ValueError(f"{file} holds {unknown[0]!r}, which is no part of an instruction memory; {_MEND}")
    pairs = ("keys", "values"), ("prefix_keys", "prefix_values")
    missing = [name for pair in pairs for name in pair if name not in memory and any(x in memory for x in pair)]
    if "mask" not in memory or not ("states" in memory or "prefix_keys" in memory):
        missing += ["mask"] if "mask" not in memory else ["states or prefix_keys"]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)} of an instruction memory; {_MEND}")
    mask = memory["mask"]
    whole = not mask.is_floating_point() and not mask.is_complex()
    if not whole or mask.ndim != 2 or mask.shape[0] != 1 or not mask.any() or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{file}: mask is {_shape(mask)} of {mask.dtype}, but must be 1 × tokens of whole numbers, 1 for a token "
            f"and 0 for padding; {_MEND}"
        )
    for name, x in memory.items():
        if name == "mask":
            continue
        _require_float(x, name, file)
        axes, tokens = _MEMORY[name]
        if x.ndim != axes or x.shape[0] != 1 or x.shape[tokens] != mask.shape[1]:
            raise ValueError(
                f"{file}: {name} is {_shape(x)}, but must have {axes} axes, the first of length 1 and that of the "
                f"tokens of {mask.shape[1]}, as the mask; {_MEND}"
            )
    for one, other in pairs:
        if one in memory and memory[one].shape[:-1] != memory[other].shape[:-1]:
            raise ValueError(
                f"{file}: {one} and {other} are {_shape(memory[one])} and {_shape(memory[other])}, but must have the "
                f"same layers, heads and tokens; {_MEND}"
            )


def require_finite(tensors: dict[str, Tensor], where, mend: str = _MEND):
    """Refuses NaN and infinity.

    Raises:
        ValueError: naming the tensor, after `where`.
    """
    for name, x in tensors.items():
        if x.is_floating_point() and not x.isfinite().all():
            bad = "NaN" if x.isnan().any() else "infinity"
            raise ValueError(f"{where}: {name} holds {bad}, but an adapter's numbers must be finite; {mend}")


def require_provenance(described: dict, file: Path):
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


def _require_float(x: Tensor, what: str, file: Path):
    if x.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"{file}: {what} is of {x.dtype}, but an adapter is of {known}; {_MEND}")


def _shape(x: Tensor) -> str:
    return " × ".join(map(str, x.shape)) or "a single number"


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), "a number")
