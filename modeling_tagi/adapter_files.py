"""Adapters on disk: a standard PEFT folder, with two files beside that PEFT ignores."""

import json
import os
from pathlib import Path
from typing import Callable, Optional, Union

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers.utils import is_peft_available, logging

from .adapter_checks import (
    read_object,
    read_tensors,
    require_factors,
    require_finite,
    require_memory,
    require_plain_lora,
    require_provenance,
)
from .hub import STALE, filling, require_folder_for, said_in_one_line

if is_peft_available():
    from peft import LoraConfig

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MEMORY_FILE = "tagi_memory.safetensors"
PROVENANCE_FILE = "tagi_adapter.json"
_PEFT_PREFIX = "base_model.model."


def write_adapter(adapter, folder: Union[str, os.PathLike], base_model: Union[str, os.PathLike, None] = None):
    """Writes the one task of a [`TagiAdapter`]. See its `save_pretrained`.

    Raises:
        ValueError: if `folder` is a file or holds something else, or the adapter has numbers that are not finite.
        ImportError: if PEFT is not installed.
    """
    if not is_peft_available():
        raise ImportError("saving an adapter as a PEFT folder needs PEFT: pip install peft")
    target = require_folder_for("adapter", folder)
    factors = {**{f"A of {path!r}": a for path, a in adapter.lora_a.items()},
               **{f"B of {path!r}": b for path, b in adapter.lora_b.items()}}  # fmt: skip
    memory = adapter.memory.tensors() if adapter.memory is not None else {}
    require_finite({**factors, **memory}, f"no adapter was written to {target}", "make it anew")
    with filling(target, last=CONFIG_FILE, stale=STALE["adapter"]) as beside:
        _write(adapter, beside, None if base_model is None else os.fspath(base_model))
    if adapter.memory is not None:
        logger.warning_once(  # a bank has thousands
            f"an adapter was saved with the instruction memory that its generator's fusion attends to ({MEMORY_FILE}, "
            "which PEFT ignores): in PEFT alone it answers differently from model.generate(adapter=…)"
        )


def read_adapter(
    name_or_folder: Union[str, os.PathLike],
    revision: Optional[str] = None,
    device: Union[str, torch.device] = "cpu",
    token: Optional[Union[str, bool]] = None,
    check_finite: bool = True,
) -> dict:
    """The fields of a [`TagiAdapter`] from a folder or a repository; `memory` as its tensors. See `from_pretrained`.

    Raises:
        FileNotFoundError: if a file of the folder is missing.
        HubError: an OSError that says in one line why it could not be downloaded.
        ValueError: if it is another kind of adapter, or a file is damaged.
    """
    locate = _locator(name_or_folder, revision, token)
    config_file = locate(CONFIG_FILE)
    config = read_object(config_file)
    require_plain_lora(config, config_file, name_or_folder)
    weights_file = locate(WEIGHTS_FILE)
    tensors = read_tensors(weights_file, device)
    lora_a, lora_b = {}, {}
    for key in sorted(tensors):
        path, _, part = key.removeprefix(_PEFT_PREFIX).partition(".lora_")
        if part not in ("A.weight", "B.weight"):
            raise ValueError(f"{name_or_folder}: {WEIGHTS_FILE} holds {key!r}, which is no LoRA factor")
        factors = lora_a if part == "A.weight" else lora_b
        if path in factors:
            raise ValueError(f"{name_or_folder}: {WEIGHTS_FILE} holds two tensors for {part[0]} of {path!r}")
        factors[path] = tensors[key]
    if not lora_a or lora_a.keys() != lora_b.keys():
        raise ValueError(f"{name_or_folder}: {WEIGHTS_FILE} does not hold an A and a B for every module")
    require_factors(lora_a, lora_b, config["r"], weights_file)
    provenance_file = locate(PROVENANCE_FILE, optional=True)
    described = read_object(provenance_file) if provenance_file else {}
    require_provenance(described, provenance_file)
    provenance = described.get("provenance") or {
        "backbone": config.get("base_model_name_or_path"), "backbone_revision": config.get("revision")
    }  # fmt: skip
    memory_file = locate(MEMORY_FILE, optional=not described.get("needs_memory"))
    memory = read_tensors(memory_file, device) if memory_file else None
    if memory is not None:
        require_memory(memory, memory_file)
    if check_finite:
        require_finite(tensors, weights_file)
        require_finite(memory or {}, memory_file)
    return {
        "lora_a": {path: x.unsqueeze(0) for path, x in lora_a.items()},
        "lora_b": {path: x.unsqueeze(0) for path, x in lora_b.items()},
        "lora_alpha": config["lora_alpha"],
        "memory": memory,
        "provenance": (provenance,),
        "peft_config": {name: config[name] for name in ("task_type", "fan_in_fan_out") if config.get(name)},
    }


def _write(adapter, folder: Path, base_model: Optional[str]):
    provenance = dict(adapter.provenance[0]) if adapter.provenance else {}
    base, revision = provenance.get("backbone"), provenance.get("backbone_revision")
    if base_model is not None:
        base, revision = os.path.abspath(base_model) if os.path.isdir(base_model) else base_model, None
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
    weights = {}
    for path in adapter.lora_a:
        weights[f"{_PEFT_PREFIX}{path}.lora_A.weight"] = adapter.lora_a[path][0].detach().cpu().contiguous()
        weights[f"{_PEFT_PREFIX}{path}.lora_B.weight"] = adapter.lora_b[path][0].detach().cpu().contiguous()
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if adapter.memory is not None:
        memory = {name: x.detach().cpu().contiguous() for name, x in adapter.memory.trimmed().tensors().items()}
        save_file(memory, folder / MEMORY_FILE, metadata={"format": "pt"})
    described = {"provenance": provenance, "needs_memory": adapter.memory is not None}
    (folder / PROVENANCE_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def _locator(name_or_folder, revision, token) -> Callable[..., Optional[Path]]:
    """A function from a file's name to its path: in the folder if there is one, else downloaded from the Hub."""
    folder = Path(name_or_folder)

    def locate(name: str, optional: bool = False) -> Optional[Path]:
        if folder.is_dir():
            path = folder / name
            if path.is_file():
                return path
            if optional:
                return None
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
