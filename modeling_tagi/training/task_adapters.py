"""Training with instances (section 3.2.2): one LoRA per task group, many of them tuned together over one backbone."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Optional, Sequence

from torch import Tensor, nn

from ..adapter import TagiAdapter
from ..adapter_tuning import AdapterParameters, summed_task_losses, zero_b
from ..lora import Application, applied

INDEX_FILE = "index.json"


class AdapterTuner(AdapterParameters):
    """A frozen backbone and the factors of several task adapters, as one model to train.

    Args:
        backbone: With the LoRA hooks of a [`TagiModel`].
        names: Of the tasks.
        shared_a: Path -> A `[rank, d_in]`, where every adapter starts. B starts at 0.
        lora_alpha: Scale, `lora_alpha / rank`.
    """

    def __init__(self, backbone: nn.Module, names: Sequence[str], shared_a: dict[str, Tensor], lora_alpha: float):
        a = {path: shared.detach().float().expand(len(names), -1, -1) for path, shared in shared_a.items()}
        super().__init__(a, zero_b(backbone, a), lora_alpha)
        self.names = list(names)
        self.config = backbone.config
        self._backbone = [backbone]  # in a list: its weights are no part of this model's

    def train(self, mode: bool = True):
        self._backbone[0].train(mode)  # for its dropout
        return super().train(mode)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, adapter_index: Tensor, **unused):
        """
        Args:
            input_ids, attention_mask, labels: As for the backbone.
            adapter_index: `[batch]`, the task of each row.
        """
        backbone = self._backbone[0]
        both = backbone.config.is_encoder_decoder
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if both:
            inputs["decoder_input_ids"] = backbone.prepare_decoder_input_ids_from_labels(labels=labels)
        with applied(Application.of(self.adapter(), backbone, adapter_index)):
            logits = backbone(**inputs).logits
        loss = summed_task_losses(logits, labels, adapter_index, len(self.names), shifted=not both)
        return {"loss": loss, "logits": logits}


class AdapterBank:
    """Task adapters on disk: a PEFT folder each, and an index file.

    Args:
        folder: Where they are, or are to be.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._index: dict[str, dict] = {}
        if (self.folder / INDEX_FILE).is_file():
            self._index = json.loads((self.folder / INDEX_FILE).read_text())["adapters"]

    @property
    def names(self) -> list[str]:
        return list(self._index)

    @property
    def reads(self) -> str:
        """What the adapters were tuned to read: `"prompt"` or `"input"`."""
        kinds = {entry.get("reads", "prompt") for entry in self._index.values()}
        if len(kinds) > 1:
            raise ValueError(f"{self.folder}: some adapters read the prompt and some the input; keep them apart")
        return kinds.pop() if kinds else "prompt"

    def numbers(self) -> dict[str, int]:
        """Position of each name in `load()`."""
        return {name: number for number, name in enumerate(self._index)}

    def add(self, names: Sequence[str], adapters: TagiAdapter, details: Optional[Sequence[dict]] = None):
        """Writes adapters to folders of their own, then names them all in the index."""
        for number, name in enumerate(names):
            folder = _folder_name(name)
            adapters[number].save_pretrained(self.folder / folder)
            self._index[name] = {"folder": folder, **(details[number] if details else {})}
        beside = self.folder / f".{INDEX_FILE}"
        beside.write_text(json.dumps({"adapters": self._index}, indent=2, ensure_ascii=False) + "\n")
        os.replace(beside, self.folder / INDEX_FILE)

    def load(self) -> TagiAdapter:
        """All of them as one.

        Raises:
            FileNotFoundError: if the folder has no index, or an adapter of the index is missing.
        """
        if not self._index:
            raise FileNotFoundError(
                f"{self.folder} has no {INDEX_FILE} with task adapters; run the stage task_adapters first"
            )
        loaded = [TagiAdapter.from_pretrained(self.folder / entry["folder"]) for entry in self._index.values()]
        return TagiAdapter.stack(loaded)


def _folder_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
