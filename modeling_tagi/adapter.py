"""TagiAdapter: what a generator makes of an instruction, ready to apply, save and share."""

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterator, Optional, Sequence, Union

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import is_peft_available, logging

if is_peft_available():
    from peft import LoraConfig

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
MEMORY_FILE = "tagi_memory.safetensors"
PROVENANCE_FILE = "tagi_adapter.json"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class InstructionMemory:
    """What fusion attends to. Made once per instruction; padding is at the end, where `mask` is 0.

    Args:
        mask: `[tasks, memory]`, 1 for a token of the instruction.
        states: `[tasks, memory, d_model]`, the encoded instruction I_x; encoder-decoder backbones.
        keys, values: `[tasks, layers, heads, memory, d_head]`, projected for the cross-attention of every layer.
        prefix_keys, prefix_values: `[tasks, layers, kv_heads, memory, d_head]`, the backbone's own keys and values of
            the instruction; causal backbones.
    """

    mask: Tensor
    states: Optional[Tensor] = None
    keys: Optional[Tensor] = None
    values: Optional[Tensor] = None
    prefix_keys: Optional[Tensor] = None
    prefix_values: Optional[Tensor] = None

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def map(self, function) -> "InstructionMemory":
        return InstructionMemory(**{name: function(value) for name, value in self.tensors().items()})

    def trimmed(self) -> "InstructionMemory":
        """Without the positions that are padding for every task."""
        length = max(1, int(self.mask.sum(1).max()))
        return self._resized(lambda x, axis: x.narrow(axis, 0, length))

    def padded(self, length: int) -> "InstructionMemory":
        """With zeros up to `length` positions."""

        def pad(x, axis):
            shape = list(x.shape)
            shape[axis] = length - shape[axis]
            return torch.cat([x, x.new_zeros(shape)], axis)

        return self._resized(pad)

    def _resized(self, function) -> "InstructionMemory":
        axes = {"mask": 1, "states": 1}
        return InstructionMemory(
            **{name: function(x, axes.get(name, -2)).contiguous() for name, x in self.tensors().items()}
        )


@dataclass(frozen=True)
class TagiAdapter:
    """LoRA factors of one or several tasks, by the path of the module inside the backbone.

    `y = W x + (lora_alpha / r) * B A x`, as PEFT has it.

    Args:
        lora_a: Path -> A, `[tasks, rank, d_in]`.
        lora_b: Path -> B, `[tasks, d_out, rank]`.
        lora_alpha: The update is scaled by `lora_alpha / rank`.
        memory: The encoded instruction, where the generator's fusion needs it.
        provenance: For each task, where it comes from: `instruction`, `instruction_sha256`, `generator`,
            `generator_revision`, `backbone`, `backbone_revision`, `backbone_fingerprint`. Empty inside training.
        peft_config: What an exported adapter_config.json says beyond the above: `task_type`, `fan_in_fan_out`.
        origin: The model that generated it, while that lives; neither compared nor saved.
    """

    lora_a: dict[str, Tensor]
    lora_b: dict[str, Tensor]
    lora_alpha: float
    memory: Optional[InstructionMemory] = None
    provenance: tuple[dict, ...] = ()
    peft_config: dict = field(default_factory=dict)
    origin: Optional[weakref.ref] = field(default=None, compare=False, repr=False)

    def __getstate__(self):
        return {**vars(self), "origin": None}

    def __len__(self) -> int:
        return next(iter(self.lora_a.values())).shape[0]

    def __getitem__(self, index: Union[int, slice, Sequence[int], Tensor]) -> "TagiAdapter":
        """The adapters of some of the tasks; an int gives an adapter of length 1.

        Raises:
            IndexError: if there is no such task, or none is chosen.
        """
        if isinstance(index, slice):
            index = range(len(self))[index]
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            index = index.nonzero().flatten()
        index = torch.as_tensor(index if isinstance(index, (int, Tensor)) else list(index)).reshape(-1)
        if not len(index):
            raise IndexError(f"no adapter was chosen of {len(self)}; choose at least one")
        if index.device.type == "cpu" and not all(-len(self) <= i < len(self) for i in index.tolist()):
            raise IndexError(f"adapter {index.tolist()} of {len(self)}; the last is {len(self) - 1}")
        chosen = self._map(lambda x: x[index.to(x.device)])
        memory = chosen.memory.trimmed() if chosen.memory is not None else None
        provenance = tuple(self.provenance[i] for i in index.tolist()) if self.provenance else ()
        return replace(chosen, memory=memory, provenance=provenance)

    def __iter__(self) -> Iterator["TagiAdapter"]:
        return (self[i] for i in range(len(self)))

    @property
    def rank(self) -> int:
        return next(iter(self.lora_a.values())).shape[1]

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.rank

    @property
    def device(self) -> torch.device:
        return next(iter(self.lora_a.values())).device

    def to(self, *args, **kwargs) -> "TagiAdapter":
        """Moves and casts as `Tensor.to`; whole numbers keep their dtype."""

        def move(x):
            moved = x.to(*args, **kwargs)
            return moved if x.is_floating_point() else moved.to(x.dtype)

        return self._map(move)

    def described(self, provenance: Union[dict, Sequence[dict]], peft_config: Optional[dict] = None) -> "TagiAdapter":
        """With a record of where each task's adapter comes from (one for all, or one each)."""
        each = [provenance] * len(self) if isinstance(provenance, dict) else provenance
        peft_config = dict(peft_config or self.peft_config)
        return replace(self, provenance=tuple(dict(p) for p in each), peft_config=peft_config)

    def detach(self) -> "TagiAdapter":
        return self._map(Tensor.detach)

    def without_memory(self) -> "TagiAdapter":
        """The low-rank updates alone: what PEFT applies, and all there is if the generator has no fusion."""
        return replace(self, memory=None)

    def similarity(self, other: Optional["TagiAdapter"] = None) -> Tensor:
        """Cosines of the updates ΔW over all modules, exact: `[tasks, tasks of other]`; without `other`, to itself.

        Raises:
            ValueError: if the two are for backbones of different shapes.
        """
        from .adapter_algebra import cosine_similarity

        return cosine_similarity(self, self if other is None else other)

    @classmethod
    def combine(
        cls,
        adapters: Sequence["TagiAdapter"],
        weights: Sequence[float],
        rank: Optional[int] = None,
        memory: Union[int, str, None] = None,
    ) -> "TagiAdapter":
        """The adapter whose updates are `Σ weight * ΔW`: exactly, or the nearest of `rank`; see
        [`adapter_algebra.combine`]. `memory` says what becomes of instruction memories: a number, or `"join"`."""
        from .adapter_algebra import combine

        return combine(adapters, weights, rank, memory)

    def merge_into(self, model):
        """A copy of the model's backbone with `W + ΔW` for its weights, a plain transformers model; see
        [`adapter_algebra.merge`]. The model stays as it is.

        Raises:
            ValueError: if the weights cannot hold what the adapter does, such as an instruction memory.
        """
        from .adapter_algebra import merge

        return merge(self, model)

    def tune(self, records: Sequence, steps: int = 100, **options) -> "TagiAdapter":
        """A few gradient steps on examples, from this adapter: a new one, of the same shape; see
        [`adapter_tuning.tune`]. One that was read from disk takes `model=`."""
        from .adapter_tuning import tune

        return tune(self, records, steps, **options)

    def _map(self, function) -> "TagiAdapter":
        return replace(
            self,
            lora_a={path: function(x) for path, x in self.lora_a.items()},
            lora_b={path: function(x) for path, x in self.lora_b.items()},
            memory=self.memory.map(function) if self.memory is not None else None,
        )

    @classmethod
    def stack(cls, adapters: Sequence["TagiAdapter"]) -> "TagiAdapter":
        """Several adapters of one generator as one, in order.

        Raises:
            ValueError: if there are none, or they differ in modules, shapes, scale or in having a memory.
        """
        adapters = list(adapters)
        if not adapters:
            raise ValueError("stack got no adapters; give at least one")
        first = adapters[0]
        for number, other in enumerate(adapters[1:], start=1):
            _require_alike(first, other, number)
        memory = None
        if first.memory is not None:
            length = max(adapter.memory.mask.shape[1] for adapter in adapters)
            padded = [adapter.memory.padded(length).tensors() for adapter in adapters]
            memory = InstructionMemory(**{name: torch.cat([p[name] for p in padded]) for name in padded[0]})
        provenance = tuple(p for adapter in adapters for p in adapter.provenance or ({},) * len(adapter))
        return replace(
            first,
            lora_a={path: torch.cat([adapter.lora_a[path] for adapter in adapters]) for path in first.lora_a},
            lora_b={path: torch.cat([adapter.lora_b[path] for adapter in adapters]) for path in first.lora_b},
            memory=memory,
            provenance=provenance if any(provenance) else (),
        )

    def save_pretrained(self, save_directory: Union[str, os.PathLike]) -> None:
        """Writes a standard PEFT LoRA folder, and the instruction memory in a file of its own, which PEFT ignores.

        The files are written beside, then moved into place, the configuration last: a folder that was cut off in
        between has none and does not load, rather than be a mixture. Other files in the folder are left alone.

        Raises:
            ValueError: if there is not exactly one task.
            ImportError: if PEFT is not installed.
        """
        if len(self) != 1:
            raise ValueError(
                f"save_pretrained writes one adapter to one folder, this object holds {len(self)}; save adapter[0], "
                "adapter[1], … to folders of their own"
            )
        if not is_peft_available():
            raise ImportError("saving an adapter as a PEFT folder needs PEFT: pip install peft")
        target = Path(save_directory)
        if target.exists() and not target.is_dir():
            raise ValueError(f"{target} is a file; save_pretrained needs a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write(beside)
            target.mkdir(exist_ok=True)
            (target / CONFIG_FILE).unlink(missing_ok=True)
            for name in (MEMORY_FILE, WEIGHTS_FILE, PROVENANCE_FILE, CONFIG_FILE):
                if (beside / name).exists():
                    os.replace(beside / name, target / name)
                else:
                    (target / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if self.memory is not None:
            logger.warning(
                f"{target} is a PEFT adapter without the instruction memory that this generator's fusion attends to "
                f"({MEMORY_FILE}, which PEFT ignores): PEFT alone answers differently from model.generate(adapter=…)"
            )

    def _write(self, folder: Path):
        provenance = dict(self.provenance[0]) if self.provenance else {}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=int(self.lora_alpha) if float(self.lora_alpha).is_integer() else self.lora_alpha,
            target_modules=sorted(self.lora_a),
            inference_mode=True,
            base_model_name_or_path=provenance.get("backbone"),
            revision=provenance.get("backbone_revision"),
            **self.peft_config,
        )
        config.save_pretrained(folder)
        # PEFT holds target_modules as a set; sorted, equal adapters are equal files.
        written = json.loads((folder / CONFIG_FILE).read_text())
        written["target_modules"] = sorted(written["target_modules"])
        (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        weights = {}
        for path in self.lora_a:
            weights[f"{_PEFT_PREFIX}{path}.lora_A.weight"] = self.lora_a[path][0].detach().cpu().contiguous()
            weights[f"{_PEFT_PREFIX}{path}.lora_B.weight"] = self.lora_b[path][0].detach().cpu().contiguous()
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        if self.memory is not None:
            memory = {name: x.detach().cpu().contiguous() for name, x in self.memory.trimmed().tensors().items()}
            save_file(memory, folder / MEMORY_FILE, metadata={"format": "pt"})
        described = {"provenance": provenance, "needs_memory": self.memory is not None}
        (folder / PROVENANCE_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: Union[str, os.PathLike],
        revision: Optional[str] = None,
        device: Union[str, torch.device] = "cpu",
        token: Optional[Union[str, bool]] = None,
    ) -> "TagiAdapter":
        """Reads what `save_pretrained` wrote, or any PEFT LoRA folder of uniform rank without bias, DoRA and the like.

        Args:
            name_or_folder: A folder, or a repository on the Hub.

        Raises:
            FileNotFoundError: if a file of the folder is missing.
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
        memory = None
        memory_file = locate(MEMORY_FILE, optional=not described.get("needs_memory"))
        if memory_file:
            memory = InstructionMemory(**_read(memory_file, device))
        return cls(
            lora_a=lora_a,
            lora_b=lora_b,
            lora_alpha=config["lora_alpha"],
            memory=memory,
            provenance=(provenance,),
            peft_config={name: config[name] for name in ("task_type", "fan_in_fan_out") if config.get(name)},
        )


def instruction_hash(text: str) -> str:
    """SHA-256 of an instruction text, as adapters record it."""
    return hashlib.sha256(text.encode()).hexdigest()


def _require_alike(first: TagiAdapter, other: TagiAdapter, number: int):
    def shapes(adapter):
        return {path: (a.shape[1:], adapter.lora_b[path].shape[1:]) for path, a in adapter.lora_a.items()}

    if shapes(first) != shapes(other):
        raise ValueError(
            f"adapters 0 and {number} differ in their modules or shapes; only adapters for one backbone, of one rank, "
            "can be stacked"
        )
    if first.lora_alpha != other.lora_alpha:
        raise ValueError(f"adapters 0 and {number} differ in lora_alpha: {first.lora_alpha} and {other.lora_alpha}")
    memories = [set(a.memory.tensors()) if a.memory is not None else None for a in (first, other)]
    if memories[0] != memories[1]:
        one, two = memories
        raise ValueError(f"adapters 0 and {number} differ in their instruction memory: {one} and {two}")


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


def _locator(name_or_folder, revision, token):
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
        if folder.is_absolute() or str(name_or_folder).count("/") > 1:
            raise FileNotFoundError(f"there is no folder {folder}, and it is no repository name (user/name) either")
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
