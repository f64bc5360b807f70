"""What a generator was finetuned on: an index of instructions, to tell when a new one is far from them all.

Instructions are compared by the mean of their tokens' input embeddings. The encoded states that the hypernetwork reads
are no use for this: an encoder that was trained on few kinds of tasks makes something known of anything.
"""

import json
import os
from pathlib import Path
from typing import Optional, Sequence, Union

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

VECTORS_FILE = "instruction_index.safetensors"
TEXTS_FILE = "instruction_index.json"
_NAMED = 3


@torch.no_grad()
def mean_embeddings(embeddings: nn.Module, instructions: Sequence[Sequence[int]]) -> Tensor:
    """`[instructions, d_model]`, fp32 on the CPU, of instructions as token ids."""
    device = next(embeddings.parameters()).device
    rows = [embeddings(torch.tensor(ids, device=device)).float().mean(0) for ids in map(list, instructions)]
    return torch.stack(rows).cpu()


class InstructionIndex:
    """Instructions of training, and how far from the nearest of them is far.

    Args:
        vectors: `[instructions, d_model]`, their `mean_embeddings`.
        texts: Of each.
        threshold: A Euclidean distance; beyond it an instruction is far.
        notes: How the threshold was found, for people.
    """

    def __init__(self, vectors: Tensor, texts: Sequence[str], threshold: float, notes: Optional[dict] = None):
        if len(vectors) != len(texts) or not len(texts):
            raise ValueError(f"the index got {len(vectors)} vectors and {len(texts)} texts; give one for each")
        self.vectors, self.texts, self.threshold = vectors, list(texts), float(threshold)
        self.notes = dict(notes or {})
        self._told: set[str] = set()

    def distances(self, vectors: Tensor) -> Tensor:
        """`[queries, instructions]` of `vectors [queries, d_model]`."""
        return torch.cdist(vectors, self.vectors)

    def nearest(self, vectors: Tensor, number: int = _NAMED) -> list[list[tuple[float, str]]]:
        """For each of `vectors [queries, d_model]` the nearest instructions: (distance, text), the nearest first."""
        found = self.distances(vectors).topk(min(number, len(self.texts)), largest=False)
        return [
            [(distance, self.texts[place]) for distance, place in zip(row, places)]
            for row, places in zip(found.values.tolist(), found.indices.tolist())
        ]

    def warn_of_far(self, vectors: Tensor, names: Sequence[str]):
        """Logs a warning for each instruction that is farther than the threshold, once for each name."""
        for name, nearest in zip(names, self.nearest(vectors)):
            distance = nearest[0][0]
            if distance <= self.threshold or name in self._told:
                continue
            self._told.add(name)
            known = "; ".join(repr(text[:100]) for _, text in nearest)
            logger.warning(
                f"the instruction {name[:100]!r} is far from all that this generator was finetuned on "
                f"({distance / self.threshold:.1f} times the distance that is usual for new tasks), and its adapter "
                f"may be of no use. Nearest: {known}"
            )

    def save(self, folder: Union[str, os.PathLike]):
        """Writes both files, beside and then into place."""
        beside = {name: Path(folder) / f".{name}.{os.getpid()}" for name in (VECTORS_FILE, TEXTS_FILE)}
        save_file({"vectors": self.vectors.contiguous()}, beside[VECTORS_FILE], metadata={"format": "pt"})
        described = {"threshold": self.threshold, **self.notes, "texts": self.texts}
        beside[TEXTS_FILE].write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        for name, path in beside.items():
            os.replace(path, Path(folder) / name)

    @classmethod
    def find(cls, name_or_folder: str, revision: Optional[str] = None, **given) -> Optional["InstructionIndex"]:
        """The index of a checkpoint, from its folder or the Hub; `None` if it has none. `given`: `token`, `cache_dir`
        and `local_files_only`, as everywhere in transformers."""
        quiet = ("missing_entries", "connection_errors", "gated_repo")
        options = {"revision": revision, **given, **{f"_raise_exceptions_for_{what}": False for what in quiet}}
        try:
            files = [cached_file(name_or_folder, name, **options) for name in (VECTORS_FILE, TEXTS_FILE)]
        except OSError:  # no such repository
            return None
        if not all(files):
            return None
        described = json.loads(Path(files[1]).read_text())
        texts, threshold = described.pop("texts"), described.pop("threshold")
        return cls(load_file(files[0])["vectors"], texts, threshold, described)
