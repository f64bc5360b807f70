"""What a generator was finetuned on: an index of encoded instructions, to tell when a new one is far from them all."""

import json
import os
from pathlib import Path
from typing import Optional, Sequence, Union

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

VECTORS_FILE = "instruction_index.safetensors"
TEXTS_FILE = "instruction_index.json"
_NAMED = 3


class InstructionIndex:
    """Encoded instructions of training, and how far from the nearest of them an instruction may be.

    Encoded instructions of one model all point one way; what tells them apart is how they differ from their mean. The
    distance is 1 - cosine, between differences from the mean.

    Args:
        vectors: `[instructions, d_model]`, pooled states as the hypernetwork reads them.
        texts: Of each.
        threshold: A distance beyond which an instruction is far.
        centre: `[d_model]`, the mean; `None` is that of `vectors`.
        notes: How the threshold was found, for people.
    """

    def __init__(
        self,
        vectors: Tensor,
        texts: Sequence[str],
        threshold: float,
        centre: Optional[Tensor] = None,
        notes: Optional[dict] = None,
    ):
        if len(vectors) != len(texts) or not len(texts):
            raise ValueError(f"the index got {len(vectors)} vectors and {len(texts)} texts; give one for each")
        self.vectors, self.texts, self.threshold = vectors, list(texts), float(threshold)
        self.notes = dict(notes or {})
        self.centre = self._levelled(vectors).mean(0) if centre is None else centre
        self._directions = self._direction(vectors)
        self._told: set[str] = set()

    def distances(self, pooled: Tensor) -> Tensor:
        """`[queries, instructions]` of `pooled [queries, d_model]`, on the CPU."""
        return 1 - self._direction(pooled) @ self._directions.T

    def nearest(self, pooled: Tensor, number: int = _NAMED) -> list[list[tuple[float, str]]]:
        """For each of `pooled [queries, d_model]` the nearest instructions: (distance, text), the nearest first."""
        found = self.distances(pooled).topk(min(number, len(self.texts)), largest=False)
        return [
            [(distance, self.texts[place]) for distance, place in zip(row, places)]
            for row, places in zip(found.values.tolist(), found.indices.tolist())
        ]

    def warn_of_far(self, pooled: Tensor, names: Sequence[str]):
        """Logs a warning for each instruction that is farther than the threshold, once for each name."""
        for name, nearest in zip(names, self.nearest(pooled)):
            if nearest[0][0] <= self.threshold or name in self._told:
                continue
            self._told.add(name)
            known = "; ".join(f"{text[:100]!r} ({distance:.2f})" for distance, text in nearest)
            logger.warning(
                f"the instruction {name[:100]!r} is far from all that this generator was finetuned on, and its "
                f"adapter may be of no use: distances above {self.threshold:.2f} are rare for tasks of that kind. "
                f"Nearest: {known}"
            )

    def save(self, folder: Union[str, os.PathLike]):
        """Writes both files, beside and then into place."""
        tensors = {"vectors": self.vectors.half().contiguous(), "centre": self.centre.float().contiguous()}
        described = {"threshold": self.threshold, **self.notes, "texts": self.texts}
        beside = {name: Path(folder) / f".{name}.{os.getpid()}" for name in (VECTORS_FILE, TEXTS_FILE)}
        save_file(tensors, beside[VECTORS_FILE], metadata={"format": "pt"})
        beside[TEXTS_FILE].write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        for name, path in beside.items():
            os.replace(path, Path(folder) / name)

    @classmethod
    def load(cls, vectors_file, texts_file) -> "InstructionIndex":
        """Reads what `save` wrote."""
        tensors, described = load_file(vectors_file), json.loads(Path(texts_file).read_text())
        texts, threshold = described.pop("texts"), described.pop("threshold")
        return cls(tensors["vectors"].float(), texts, threshold, tensors["centre"], described)

    @classmethod
    def find(cls, name_or_folder: str, revision: Optional[str] = None) -> Optional["InstructionIndex"]:
        """The index of a checkpoint, from its folder or the Hub; `None` if it has none."""
        quiet = ("missing_entries", "connection_errors", "gated_repo")
        options = {"revision": revision, **{f"_raise_exceptions_for_{what}": False for what in quiet}}
        try:
            files = [cached_file(name_or_folder, name, **options) for name in (VECTORS_FILE, TEXTS_FILE)]
        except OSError:  # no such repository
            return None
        return cls.load(*files) if all(files) else None

    @staticmethod
    def _levelled(pooled: Tensor) -> Tensor:
        pooled = pooled.detach().float().cpu()
        return F.layer_norm(pooled, pooled.shape[-1:])  # as the hypernetwork does

    def _direction(self, pooled: Tensor) -> Tensor:
        return F.normalize(self._levelled(pooled) - self.centre, dim=-1)
