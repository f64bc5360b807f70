"""Adapters on disk: a standard PEFT folder, with two files beside that PEFT ignores."""

import json
import os
from pathlib import Path
from typing import Callable, Optional, Union

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import is_peft_available, logging

from .folders import filling, require_folder_for
from .hub_errors import said_in_one_line

if is_peft_available():
    from peft import LoraConfig

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MEMORY_FILE = "tagi_memory.safetensors"
PROVENANCE_FILE = "tagi_adapter.json"
_PEFT_PREFIX = "base_model.model."


def write_adapter(adapter, folder: Union[str, os.PathLike]):
    """Writes the one task of a [`TagiAdapter`]. See its `save_pretrained`.

    Raises:
        ValueError: if `folder` is a file, or holds something else.
        ImportError: if PEFT is not installed.
    """
    if not is_peft_available():
        raise ImportError("saving an adapter as a PEFT folder needs PEFT: pip install peft")
    target = require_folder_for("adapter", folder)
    with filling(target, last=CONFIG_FILE, stale=(WEIGHTS_FILE, MEMORY_FILE, PROVENANCE_FILE)) as beside:
        _write(adapter, beside)
    if adapter.memory is not None:
        logger.warning(
            f"{target} is a PEFT adapter without the instruction memory that this generator's fusion attends to "
            f"({MEMORY_FILE}, which PEFT ignores): PEFT alone answers differently from model.generate(adapter=…)"
        )


def read_adapter(
    name_or_folder: Union[str, os.PathLike],
    revision: Optional[str] = None,
    device: Union[str, torch.device] = "cpu",
    token: Optional[Union[str, bool]] = None,
) -> dict:
    """The fields of a [`TagiAdapter`] from a folder or a repository; `memory` as its tensors. See `from_pretrained`.

    Raises:
        FileNotFoundError: if a file of the folder is missing.
        HubError: an OSError that says in one line why it could not be downloaded.
        ValueError: if it is another kind of adapter.
    """
    locate = _locator(name_or_folder, revision, token)
    config = json.loads(locate(CONFIG_FILE).read_text())
    _require_plain_lora(config, name_or_folder)
    tensors = _read(locate(WEIGHTS_FILE), device)
    lora_a, lora_b = {}, {}
    for key in sorted(tensors):
        path, _, part = key.removeprefix(_PEFT_PREFIX).partition(".lora_")
        if part not in ("A.weight", "B.weight"):
            raise ValueError(f"{name_or_folder}: {WEIGHTS_FILE} holds {key!r}, which is no LoRA factor")
        (lora_a if part == "A.weight" else lora_b)[path] = tensors[key].unsqueeze(0)
    if not lora_a or lora_a.keys() != lora_b.keys():
        raise ValueError(f"{name_or_folder}: {WEIGHTS_FILE} does not hold an A and a B for every module")
    provenance_file = locate(PROVENANCE_FILE, optional=True)
    described = json.loads(provenance_file.read_text()) if provenance_file else {}
    provenance = described.get("provenance") or {
        "backbone": config.get("base_model_name_or_path"), "backbone_revision": config.get("revision")
    }  # fmt: skip
    memory_file = locate(MEMORY_FILE, optional=not described.get("needs_memory"))
    return {
        "lora_a": lora_a,
        "lora_b": lora_b,
        "lora_alpha": config["lora_alpha"],
        "memory": _read(memory_file, device) if memory_file else None,
        "provenance": (provenance,),
        "peft_config": {name: config[name] for name in ("task_type", "fan_in_fan_out") if config.get(name)},
    }


def _write(adapter, folder: Path):
    provenance = dict(adapter.provenance[0]) if adapter.provenance else {}
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.lora_alpha) if float(adapter.lora_alpha).is_integer() else adapter.lora_alpha,
        target_modules=sorted(adapter.lora_a),
        inference_mode=True,
        base_model_name_or_path=provenance.get("backbone"),
        revision=provenance.get("backbone_revision"),
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


def _require_plain_lora(config: dict, name):
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{name} is a PEFT adapter of type {kind!r}; a TagiAdapter is LORA")
    unsupported = [
        option
        for option in ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
        if config.get(option)
    ]
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if unsupported:
        raise ValueError(f"{name} uses {', '.join(unsupported)}; a TagiAdapter is plain LoRA of one rank and scale")


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


def _read(path: Path, device) -> dict[str, Tensor]:
    with safe_open(path, framework="pt", device=str(device)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}
