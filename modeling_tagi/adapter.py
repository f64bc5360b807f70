"""TagiAdapter: LoRA weights that a generator writes for an instruction, to apply, combine, tune, save and share."""

import hashlib
import os
import weakref
from dataclasses import dataclass, field, replace
from typing import Any, Iterator, Optional, Sequence, Union

import torch
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import PreTrainedModel

from .adapter_algebra import combine, cosine_similarity, merge, require_adapters
from .adapter_files import DTYPES, read_adapter, write_adapter
from .adapter_tuning import tune
from .fusion import InstructionMemory
from .hub import GGUF_WRITER, push_saved


@dataclass(frozen=True)
class TagiAdapter:
    """Holds LoRA factors of one or several tasks, by the path of the module inside the backbone.

    They are applied as in PEFT: `y = W x + (lora_alpha / r) * B A x`.

    Args:
        lora_a: Path -> A, `[tasks, rank, d_in]`.
        lora_b: Path -> B, `[tasks, d_out, rank]`.
        lora_alpha: The update is scaled by `lora_alpha / rank`.
        memory: The encoded instruction, where the generator's fusion needs it.
        provenance: For each task, where it comes from: `instruction`, `instruction_sha256`, `generator`,
            `generator_revision`, `backbone`, `backbone_revision`, `backbone_fingerprint`, and the `input_format` of
            the inputs that it is for. Empty inside training.
        peft_config: What an exported adapter_config.json says beyond the above: `task_type`, `fan_in_fan_out`.
        origin: A weak reference to the model that generated it; neither compared nor saved.
    """

    lora_a: dict[str, Tensor]
    lora_b: dict[str, Tensor]
    lora_alpha: float
    memory: Optional[InstructionMemory] = None
    provenance: tuple[dict, ...] = ()
    peft_config: dict = field(default_factory=dict)
    origin: Optional[weakref.ref] = field(default=None, compare=False, repr=False)

    def __getstate__(self):
        # a generator's factors are views of larger tensors, which would be pickled whole for each
        alone = self._map(lambda x: x.clone() if x.untyped_storage().nbytes() > x.nbytes else x)
        return {**vars(alone), "origin": None}

    def __repr__(self) -> str:
        instructions = [source.get("instruction") for source in self.provenance[:3]]
        parts = [
            f"{len(self)} task{'s' if len(self) > 1 else ''}", f"rank {self.rank}", f"{len(self.lora_a)} modules",
            *([f"an instruction memory of {self.memory.mask.shape[1]} tokens"] if self.memory is not None else []),
            *(repr(text if len(text) <= 60 else text[:59] + "…") for text in instructions if text),
        ]  # fmt: skip
        return f"TagiAdapter({', '.join(parts)}{', …' if len(self.provenance) > 3 else ''})"

    def __len__(self) -> int:
        return next(iter(self.lora_a.values())).shape[0]

    def __getitem__(self, index: Union[int, slice, Sequence[int], Tensor]) -> "TagiAdapter":
        """Returns the adapters of some of the tasks; an int gives an adapter of length 1.

        Raises:
            IndexError: if there is no such task, or none is chosen.
            TypeError: if the index is not made of numbers.
        """
        if isinstance(index, slice):
            index = range(len(self))[index]
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            index = index.nonzero().flatten()
        if isinstance(index, (str, bytes, float)) or index is None:
            raise TypeError(f"an adapter is chosen by its number, or by a list of numbers, but the index is {index!r}")
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
    def nbytes(self) -> int:
        """Returns the bytes of all its tensors."""
        memory = self.memory.tensors().values() if self.memory is not None else ()
        return sum(x.nbytes for x in (*self.lora_a.values(), *self.lora_b.values(), *memory))

    @property
    def device(self) -> torch.device:
        return next(iter(self.lora_a.values())).device

    def to(self, *args: Any, **kwargs: Any) -> "TagiAdapter":
        """Returns the adapter moved and cast as by `Tensor.to`; integer tensors keep their dtype.

        Raises:
            ValueError: for a dtype in which the updates would be rounded away, such as int8 or an 8-bit float.
        """

        def move(x):
            moved = x.to(*args, **kwargs)
            if x.is_floating_point() and moved.dtype not in DTYPES:
                known = ", ".join(str(dtype) for dtype in DTYPES)
                raise ValueError(f"an adapter cannot be cast to {moved.dtype}; its dtypes are {known}")
            return moved if x.is_floating_point() else moved.to(x.dtype)

        return self._map(move)

    def described(self, provenance: Union[dict, Sequence[dict]], peft_config: Optional[dict] = None) -> "TagiAdapter":
        """Returns the adapter with a record of where each task's adapter comes from (one for all, or one each)."""
        each = [provenance] * len(self) if isinstance(provenance, dict) else provenance
        peft_config = dict(peft_config or self.peft_config)
        return replace(self, provenance=tuple(dict(p) for p in each), peft_config=peft_config)

    def detach(self) -> "TagiAdapter":
        return self._map(Tensor.detach)

    def without_memory(self) -> "TagiAdapter":
        """Returns the low-rank updates alone, as PEFT applies them; a generator without fusion writes nothing else."""
        return replace(self, memory=None)

    def similarity(self, other: Optional["TagiAdapter"] = None) -> Tensor:
        """Returns the exact cosines between the updates ΔW of tasks, over all modules; without `other`, among its own.

        The adapters may differ in rank, in scale and in the modules they change; a module that one of them leaves
        alone adds to the other's norm only. An update of zero has the cosine 0 with any.

        Returns:
            `[tasks, tasks of other]`, fp32 on the CPU.

        Raises:
            ValueError: if the adapters are for different backbones, as shapes or fingerprints of the weights tell.
        """
        return cosine_similarity(self, self if other is None else other)

    @classmethod
    def combine(
        cls,
        adapters: Sequence["TagiAdapter"],
        weights: Sequence[float],
        rank: Optional[int] = None,
        memory: Union[int, str, None] = None,
    ) -> "TagiAdapter":
        """Returns the adapter whose updates are `Σ weight * ΔW`.

        Args:
            adapters: One task each, or one object with several tasks. They may differ in rank and scale.
            weights: One for each; any finite numbers.
            rank: The rank of the result, which is then the nearest of that rank to the sum, module by module (a
                singular value decomposition of the low-rank product). `None` is the sum itself, of the sum of ranks.
            memory: What becomes of the encoded instructions that a generator with fusion also attends to, and which
                have no weighted sum. The number of the adapter whose instruction is kept; or `"join"`, all of them,
                without regard to the weights; in a causal backbone each has the positions that it has alone. `None`
                if there are none.

        Raises:
            TypeError: if one is no [`TagiAdapter`].
            ValueError: if numbers of adapters and weights differ, a weight is not finite, the adapters are for
                different backbones or differ in the modules that they change, or there are instruction memories and
                nothing says what becomes of them.
        """
        return combine(adapters, weights, rank, memory)

    def merge_into(self, model: PreTrainedModel) -> PreTrainedModel:
        """Returns a copy of the model's backbone with `W + ΔW` for its weights: a plain transformers model.

        Args:
            model: The [`TagiModel`] whose backbone is copied; it is left as it is.

        Raises:
            ValueError: if there are several adapters, the instruction memory would be lost, the adapter is another
                backbone's, or a weight is quantised or shared with a module that the adapter does not change.
        """
        return merge(self, model)

    def tune(
        self,
        records: Sequence[Any],
        steps: int = 100,
        *,
        model: Optional[PreTrainedModel] = None,
        learning_rate: float = 1e-3,
        batch_size: int = 8,
        max_input_length: Optional[int] = None,
        max_target_length: Optional[int] = None,
        seed: int = 0,
        progress: bool = True,
    ) -> "TagiAdapter":
        """Tunes the adapter on examples by AdamW, with a learning rate that falls linearly to 0; returns a new one.

        The backbone is frozen, and used without dropout. An instruction memory is used and kept as it is.

        Args:
            records: Examples, as dicts `{"input": …, "target": …}`, pairs (input, target), or objects with an `input`
                and `targets`, of which the first is taken. For an adapter of several tasks a list of such lists, one
                for each; they are tuned side by side, each as it would be alone.
            steps: Optimizer steps.
            model: The TagiModel to tune with; `None` is the one that generated the adapter, if it is still in memory.
            learning_rate: The highest rate.
            batch_size: Examples of each task in a step; all of them where there are no more.
            max_input_length, max_target_length: Tokens kept of each; `None` is all.
            seed: Seeds the draws of examples. The same seed gives the same adapter; no other randomness is used or
                changed.
            progress: Whether a bar is shown.

        Raises:
            ValueError: if no model is known, the adapter is another backbone's, there is no example, or one cannot be
                read; if tuning diverges.
        """
        lengths = max_input_length, max_target_length
        return tune(self, records, steps, model, learning_rate, batch_size, lengths, seed, progress)

    def _map(self, function) -> "TagiAdapter":
        return replace(
            self,
            lora_a={path: function(x) for path, x in self.lora_a.items()},
            lora_b={path: function(x) for path, x in self.lora_b.items()},
            memory=self.memory.map(function) if self.memory is not None else None,
        )

    @classmethod
    def stack(cls, adapters: Sequence["TagiAdapter"]) -> "TagiAdapter":
        """Returns several adapters of one generator as one, in order.

        Raises:
            TypeError: if one is no [`TagiAdapter`].
            ValueError: if there are none, or they differ in modules, shapes, scale or in having a memory.
        """
        adapters = require_adapters("stack", adapters)
        if not adapters:
            raise ValueError("stack got no adapters; give at least one")
        first = adapters[0]
        for number, other in enumerate(adapters[1:], start=1):
            _require_alike(first, other, number)
        memory = None
        if first.memory is not None:
            memory = InstructionMemory.join([adapter.memory for adapter in adapters])
        provenance = tuple(p for adapter in adapters for p in adapter.provenance or ({},) * len(adapter))
        return replace(
            first,
            lora_a={path: torch.cat([adapter.lora_a[path] for adapter in adapters]) for path in first.lora_a},
            lora_b={path: torch.cat([adapter.lora_b[path] for adapter in adapters]) for path in first.lora_b},
            memory=memory,
            provenance=provenance if any(provenance) else (),
        )

    def save_pretrained(
        self, save_directory: Union[str, os.PathLike], base_model: Union[str, os.PathLike, None] = None
    ) -> None:
        """Writes a standard PEFT LoRA folder, and the instruction memory in a file of its own, which PEFT ignores.

        The files are written to a temporary folder, then moved into place, the configuration last: after an
        interruption the folder lacks it and does not load. Other files in the folder are left alone.

        Args:
            save_directory: The folder; absent, empty, or an adapter's.
            base_model: The plain transformers model that PEFT's `AutoPeftModelFor…` is to load, a folder or a
                repository; by default the backbone that the generator's config names. A backbone that training has
                changed is inside the generator's checkpoint alone, where PEFT does not find it: write it to a folder
                of its own with `model.backbone.save_pretrained(folder)`, and name that.

        Raises:
            ValueError: if there is not exactly one task, a number is not finite, or the folder holds anything but an
                adapter.
            ImportError: if PEFT is not installed.
        """
        if len(self) != 1:
            raise ValueError(
                f"save_pretrained writes one adapter to one folder, this object holds {len(self)}; save adapter[0], "
                "adapter[1], … to folders of their own"
            )
        write_adapter(self, save_directory, base_model)

    def save_gguf(
        self,
        file: Union[str, os.PathLike],
        base_model: Union[str, os.PathLike, None] = None,
        name: Optional[str] = None,
    ) -> None:
        """Writes a GGUF LoRA for llama.cpp, without an instruction memory, which llama.cpp does not know.

        It takes an installed modeling_tagi and the package `gguf`. The file is written beside and moved into place.

        Args:
            file: Ends in `.gguf`; absent, or an adapter's.
            base_model: What is asked for architecture and heads, a folder, a repository or a GGUF file (then for
                shapes as well); by default the model that generated the adapter, else the backbone that it names.
            name: Its name in the file's metadata; by default the file's own.

        Raises:
            ValueError: if there is not exactly one task, a number is not finite, llama.cpp has no such architecture
                or weight, the base is another model, or the file is something else.
            ImportError: if the package is not there.
        """
        if len(self) != 1:
            raise ValueError(f"save_gguf writes one adapter to a file, this object holds {len(self)}; save adapter[0]")
        if not GGUF_WRITER:
            raise ImportError("only an installed modeling_tagi writes adapters as GGUF")
        GGUF_WRITER[0](self, file, base_model, name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: Optional[str] = None,
        tag: Optional[str] = None,
        token: Optional[str] = None,
        commit_message: Optional[str] = None,
    ) -> CommitInfo:
        """Uploads what `save_pretrained` writes to a repository of its own, with a card if the package is installed.

        Args:
            repo_id, private: The repository, which is made if there is none, and whether it is private then.
            revision, tag: A branch, which is made if there is none, and a tag for the commit.

        Raises:
            ValueError: if there is not exactly one task, or the repository has such a tag.
            HubError: an OSError that says in one line why the upload failed.
        """
        if len(self) != 1:
            raise ValueError(
                f"push_to_hub puts one adapter into one repository, this object holds {len(self)}; push adapter[0], "
                "adapter[1], … to repositories of their own"
            )
        return push_saved(
            "adapter", self.save_pretrained, repo_id, private=private, revision=revision, tag=tag, token=token,
            commit_message=commit_message,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: Union[str, os.PathLike],
        revision: Optional[str] = None,
        device: Union[str, torch.device] = "cpu",
        token: Optional[Union[str, bool]] = None,
        check_finite: bool = True,
    ) -> "TagiAdapter":
        """Reads what `save_pretrained` wrote, or any PEFT LoRA folder of uniform rank without bias, DoRA and the like.

        Args:
            name_or_folder: A folder, or a repository on the Hub.
            check_finite: Whether to refuse NaN and infinity, for which all numbers are read. Otherwise files are
                mapped on a CPU, and read when they are used.

        Raises:
            FileNotFoundError: if a file of the folder is missing.
            ValueError: if it is another kind of adapter, or a file is damaged.
        """
        fields = read_adapter(name_or_folder, revision, device, token, check_finite)
        memory = fields.pop("memory")
        return cls(**fields, memory=InstructionMemory(**memory) if memory else None)


def instruction_hash(text: str) -> str:
    """Returns the SHA-256 of an instruction text, as adapters record it."""
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
