"""An index of the instructions that a generator was finetuned on, which tells when a new one is far from them all.

Instructions are compared by the mean of their tokens' input embeddings. The encoded states that the hypernetwork reads
are of no use here: an encoder that was trained on few kinds of tasks maps anything to something known.

What is written goes wherever the checkpoint goes. A vector of one instruction gives its words away to whoever has the
embeddings, though not their order; a mean over several instructions tells which words are frequent in them together.
"""

import json
import math
import os
from pathlib import Path
from typing import Optional, Sequence, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

VECTORS_FILE = "instruction_index.safetensors"
TEXTS_FILE = "instruction_index.json"
_NAMED = 3


@torch.no_grad()
def mean_embeddings(embeddings: nn.Module, instructions: Sequence[Sequence[int]]) -> Tensor:
    """Returns the mean input embedding of each instruction's tokens, `[instructions, d_model]`, fp32 on the CPU."""
    device = next(embeddings.parameters()).device
    rows = [embeddings(torch.tensor(ids, device=device)).float().mean(0) for ids in map(list, instructions)]
    return torch.stack(rows).cpu()


class InstructionIndex:
    """Holds vectors of training instructions, or means over groups of them, and the distance beyond which one is far.

    Args:
        vectors: `[instructions, d_model]`, their `mean_embeddings`; or means of these over groups of instructions.
        texts: Of each instruction, to be named in a warning; `None` keeps them private.
        threshold: A Euclidean distance; beyond it an instruction is far.
        notes: How the threshold was found, for people.
    """

    def __init__(
        self, vectors: Tensor, texts: Optional[Sequence[str]], threshold: float, notes: Optional[dict] = None
    ):
        if texts is not None and len(vectors) != len(texts):
            raise ValueError(f"the index got {len(vectors)} vectors and {len(texts)} texts; give one for each")
        if vectors.ndim != 2 or not len(vectors) or not vectors.isfinite().all() or not math.isfinite(threshold):
            raise ValueError(
                f"the index got vectors of shape {tuple(vectors.shape)} and the threshold {threshold!r}, but needs "
                "[instructions, d_model], at least one, and finite numbers"
            )
        self.vectors, self.texts, self.threshold = vectors, None if texts is None else list(texts), float(threshold)
        self.notes = dict(notes or {})
        self._told: set[str] = set()

    def distances(self, vectors: Tensor) -> Tensor:
        """Returns the Euclidean distances `[queries, instructions]` of `vectors [queries, d_model]`."""
        return torch.cdist(vectors, self.vectors)

    def nearest(self, vectors: Tensor, number: int = _NAMED) -> list[list[tuple[float, Optional[str]]]]:
        """Returns the nearest (distance, text) for each of `vectors [queries, d_model]`, the nearest first."""
        found = self.distances(vectors).topk(min(number, len(self.vectors)), largest=False)
        return [
            [(distance, None if self.texts is None else self.texts[place]) for distance, place in zip(row, places)]
            for row, places in zip(found.values.tolist(), found.indices.tolist())
        ]

    def warn_of_far(self, vectors: Tensor, names: Sequence[str]):
        """Logs a warning for each instruction that is farther than the threshold, once for each name."""
        for name, nearest in zip(names, self.nearest(vectors)):
            distance = nearest[0][0]
            if distance <= self.threshold or name in self._told:
                continue
            self._told.add(name)
            known = "" if self.texts is None else " Nearest: " + "; ".join(repr(text[:100]) for _, text in nearest)
            logger.warning(
                f"the instruction {name[:100]!r} is far from all that this generator was finetuned on "
                f"({distance / self.threshold:.1f} times the distance that is usual for new tasks), and its adapter "
                f"may be of no use.{known}"
            )

    def save(self, folder: Union[str, os.PathLike]):
        """Writes both files under temporary names, then moves them into place."""
        beside = {name: Path(folder) / f".{name}.{os.getpid()}" for name in (VECTORS_FILE, TEXTS_FILE)}
        save_file({"vectors": self.vectors.contiguous()}, beside[VECTORS_FILE], metadata={"format": "pt"})
        described = {"threshold": self.threshold, **self.notes}
        if self.texts is not None:
            described["texts"] = self.texts
        beside[TEXTS_FILE].write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, path in beside.items():
            os.replace(path, Path(folder) / name)

    @classmethod
    def find(cls, name_or_folder: str, revision: Optional[str] = None, **given) -> Optional["InstructionIndex"]:
        """Reads the index of a checkpoint from its folder or the Hub; returns `None` if it has none. `given`: `token`,
        `cache_dir` and `local_files_only`, as everywhere in transformers.

        Raises:
            ValueError: if its files are broken.
        """
        quiet = ("missing_entries", "connection_errors", "gated_repo")
        options = {"revision": revision, **given, **{f"_raise_exceptions_for_{what}": False for what in quiet}}
        try:
            files = [cached_file(name_or_folder, name, **options) for name in (VECTORS_FILE, TEXTS_FILE)]
        except OSError:  # no such repository
            return None
        if not all(files):
            return None
        try:
            described = json.loads(Path(files[1]).read_text(encoding="utf-8"))
            texts, threshold = described.pop("texts", None), described.pop("threshold")
            return cls(load_file(files[0])["vectors"], texts, threshold, described)
        except (ValueError, TypeError, AttributeError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{files[1]} or {VECTORS_FILE} beside it is broken ({type(error).__name__}: {error}); put them back "
                "as they were saved, or delete both to go without the warning of instructions that are far"
            ) from error
