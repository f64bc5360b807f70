"""Banks of task adapters: folders with an index, or a collection of any PEFT LoRAs from folders and the Hub."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence, Union

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from torch.nn import functional as F

from ..adapter import TagiAdapter
from ..common.names import file_name
from ..common.writing import drop_left_over
from ..fit import require_fit
from ..hub import require_folder_for
from .index import ADDED_FILE, INDEX_FILE, BankIndex


class AdapterBank:
    """Reads and writes task adapters by name: a PEFT folder each, and an index file.

    Args:
        folder: The folder of the adapters, which need not exist yet.
        index: Name -> the index's entry for that adapter; `None` reads the folder's index.

    Raises:
        ValueError: if the folder's index is damaged, or names folders outside of the bank.
    """

    def __init__(self, folder, index: Optional[dict[str, dict]] = None):
        self.folder = Path(folder)
        self._index = BankIndex(self.folder) if index is None else dict(index)

    @classmethod
    def open(cls, name: Union[str, os.PathLike]) -> "AdapterBank":
        """Opens an existing bank: a folder, or a repository on the Hub, `user/name` or `user/name@revision`.

        Raises:
            FileNotFoundError: if there is no such bank.
        """
        bank = cls(name)
        if not bank.folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[^@]+)?", str(name)):
            repository, _, revision = str(name).partition("@")
            files = [INDEX_FILE, ADDED_FILE, "*/adapter_*", "*/tagi_*"]
            try:
                bank = cls(snapshot_download(repository, revision=revision or None, allow_patterns=files))
            except (HfHubHTTPError, OSError) as error:
                raise FileNotFoundError(
                    f"there is no folder of task adapters {name}, and it cannot be had from the Hub: {error}"
                ) from error
        if not bank._index:
            raise FileNotFoundError(
                f"{name} has no {INDEX_FILE} with task adapters; run the stage task_adapters first, or name "
                "adapters one by one with task_adapters.given"
            )
        return bank

    @classmethod
    def of(cls, sources: Mapping[str, str], reads: str = "prompt") -> "AdapterBank":
        """Returns a bank of LoRAs that others have tuned, without reading them yet.

        Args:
            sources: Task (or group) -> a PEFT LoRA folder, or a repository `user/name` or `user/name@revision`.
            reads: What the adapters were tuned to read, `"prompt"` or `"input"`.
        """
        index = {name: {"source": str(source), "reads": reads} for name, source in sources.items()}
        return cls("task_adapters.given", index)  # the setting's name, for messages; there is no such folder

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def names(self) -> list[str]:
        return list(self._index)

    @property
    def reads(self) -> str:
        """Returns what the adapters were tuned to read: `"prompt"` or `"input"`."""
        kinds = {entry.get("reads", "prompt") for entry in self._index.values()}
        if len(kinds) > 1:
            raise ValueError(f"{self.folder}: some adapters read the prompt and some the input; keep them apart")
        return kinds.pop() if kinds else "prompt"

    def folders(self) -> list[Path]:
        """Returns the folders of the bank's own adapters, in the order of its index."""
        return [self.folder / entry["folder"] for entry in self._index.values() if "folder" in entry]

    def numbers(self) -> dict[str, int]:
        """Returns the position of each name in `load()`, and in a [`StoredAdapters`]."""
        return {name: number for number, name in enumerate(self._index)}

    def add(self, names: Sequence[str], adapters: TagiAdapter, details: Optional[Sequence[dict]] = None):
        """Writes adapters to folders of their own, then names them all in the index."""
        require_folder_for("bank", self.folder)
        for leftover in self.folder.glob(".*-*"):  # of a process that was killed while it wrote an adapter
            drop_left_over(leftover)
        entries = {}
        for number, name in enumerate(names):
            folder = file_name(name)
            adapters[number].save_pretrained(self.folder / folder)
            entries[name] = {"folder": folder, **(details[number] if details else {})}
        self._index.add(entries)

    def noted(self, field: str) -> list:
        """Returns what the index says of each adapter in a field of its details, of those that have it."""
        return [entry[field] for entry in self._index.values() if field in entry]

    def write_index(self):
        """Writes the whole index to one file; banks to which the same was added are the same files then."""
        self._index.write()

    def load(self, names: Optional[Sequence[str]] = None) -> TagiAdapter:
        """Reads the named adapters, or all, stacked into one; those of lower rank are padded with zeros.

        Raises:
            FileNotFoundError: if there is none, or an adapter is missing.
            ValueError: if an adapter is not plain LoRA, or they differ in their modules.
        """
        if not self._index:
            raise FileNotFoundError(
                f"{self.folder} has no {INDEX_FILE} with task adapters; run the stage task_adapters first"
            )
        return joined([self.read(name) for name in (self.names if names is None else names)])

    def one_by_one(self, check_finite: bool = True) -> Iterator[tuple[str, TagiAdapter]]:
        """Yields a text that identifies an adapter, and the adapter, one at a time; see `read`."""
        for name, entry in self._index.items():
            where = f"the task adapter of {name!r} ({entry.get('source') or self.folder / entry['folder']})"
            yield where, self.read(name, check_finite=check_finite)

    def require_like(self, model: nn.Module, ranks: bool):
        """Refuses adapters that do not fit a generator.

        An adapter does not fit if its modules, its shapes or (if `ranks`) its rank differ, or if it was made for
        other weights than the backbone's, as far as that is known and the weights are there.

        Raises:
            ValueError: naming the adapter, what arrived and what was expected.
        """
        ours = {path: tuple(a.shape) for path, a in model.hypernetwork.shared_factors().items()}
        for where, adapter in self.one_by_one():
            if adapter.memory is not None:
                raise ValueError(f"{where} has an instruction memory, which a teacher would lose; give plain LoRA")
            theirs = {path: tuple(a.shape[1:]) for path, a in adapter.lora_a.items()}
            kept = slice(None) if ranks else slice(1, None)
            for path in (*ours, *theirs):
                if path not in theirs or path not in ours or theirs[path][kept] != ours[path][kept]:
                    raise ValueError(f"{where}: {_difference(path, theirs.get(path), ours.get(path))}")
            try:
                require_fit(adapter, model)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    def require_backbone(self, name: Optional[str], revision: Optional[str] = None):
        """Refuses adapters that name another backbone, before the backbone is loaded.

        Adapters with a fingerprint of the weights are left to `require_like`.

        Args:
            name, revision: The backbone to be used. A `name` of `None` stands for one that the run makes or trains,
                which no adapter from elsewhere fits.

        Raises:
            ValueError: naming the adapter, its backbone and the one that is used.
        """
        for where, adapter in self.one_by_one(check_finite=False):
            source = adapter.provenance[0]
            theirs, their_revision = source.get("backbone"), source.get("backbone_revision")
            if theirs is None or source.get("backbone_fingerprint"):
                continue
            if name is None:
                raise ValueError(
                    f"{where} is for the backbone {theirs!r} as it is, but this run makes or teaches its own; name "
                    "that backbone, and set text.steps and instruction_tuning.steps to 0"
                )
            if not _same_backbone(theirs, name):
                raise ValueError(
                    f"{where} is for the backbone {theirs!r}, but this run uses {name!r}; use one of both"
                )
            if revision and their_revision and revision != their_revision:
                raise ValueError(
                    f"{where} is for revision {their_revision} of {theirs!r}, but this run uses {revision}; use one "
                    "of both"
                )

    def read(
        self, name: str, device: Union[str, torch.device] = "cpu", check_finite: bool = True
    ) -> TagiAdapter:
        """Reads one adapter as it was saved; on a CPU its file is memory-mapped.

        Args:
            check_finite: Whether to read all of its numbers, and to refuse NaN and infinity.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it is not plain LoRA, or damaged.
        """
        entry = self._index[name]
        options = {"device": device, "check_finite": check_finite}
        if "folder" in entry:
            return TagiAdapter.from_pretrained(self.folder / entry["folder"], **options)
        source, revision = entry["source"], None
        if not Path(source).is_dir():
            source, _, revision = source.partition("@")
        try:
            return TagiAdapter.from_pretrained(source, revision=revision or None, **options)
        except (HfHubHTTPError, OSError) as error:
            raise FileNotFoundError(f"the task adapter of {name!r} ({entry['source']}): {error}") from error
        except ValueError as error:
            raise ValueError(f"the task adapter of {name!r} ({entry['source']}): {error}") from error


def joined(adapters: Sequence[TagiAdapter]) -> TagiAdapter:
    """Returns several adapters stacked into one; those of lower rank are padded with zeros.

    Raises:
        ValueError: if they differ in their modules.
    """
    rank = max(adapter.rank for adapter in adapters)
    alpha = next(adapter.lora_alpha for adapter in adapters if adapter.rank == rank)
    return TagiAdapter.stack([
        adapter if (adapter.rank, adapter.lora_alpha) == (rank, alpha) else with_rank(adapter, rank, alpha)
        for adapter in adapters
    ])  # fmt: skip


def with_rank(adapter, rank: int, lora_alpha: float):
    """Returns the same updates in factors of a higher rank, padded with zeros, and with another scale.

    Raises:
        ValueError: if `rank` is below the adapter's.
    """
    missing = rank - adapter.rank
    if missing < 0:
        raise ValueError(f"with_rank got rank {rank}, but the adapter's is {adapter.rank}; combine can truncate")
    scale = adapter.scaling / (lora_alpha / rank)
    return replace(
        adapter,
        lora_a={path: F.pad(a, (0, 0, 0, missing)) for path, a in adapter.lora_a.items()},
        lora_b={path: F.pad(b * scale, (0, missing)) for path, b in adapter.lora_b.items()},
        lora_alpha=lora_alpha,
    )


def _difference(path: str, theirs: Optional[tuple], ours: Optional[tuple]) -> str:
    """Returns how an adapter's A differs from the generator's, and how to mend that, for a message."""
    mend = "set tagi.r and tagi.target_modules as the adapters have them"
    if theirs and ours and theirs[1:] == ours[1:]:
        mend += ", or finetuning.alignment to delta, which takes any rank"
    elif theirs and ours:
        mend = "they were tuned on a backbone of another width: use it, or other adapters"
    return f"its A of {path!r} is {theirs or 'missing'}, the generator's {ours or 'missing'}; {mend}"


def _same_backbone(one: str, other: str) -> bool:
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return True
    # a copy of a repository in a folder of its name
    return os.path.isdir(other) and os.path.basename(one) == os.path.basename(os.path.normpath(other))
