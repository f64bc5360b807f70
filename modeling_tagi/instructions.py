"""From instructions to adapters, and an index of the instructions that a generator was finetuned on, which tells when
a new one is far from them all.

The index compares instructions by the mean of their tokens' input embeddings. The encoded states that the hypernetwork
reads are of no use here: an encoder that was trained on few kinds of tasks maps anything to something known.

What is written goes wherever the checkpoint goes. A vector of one instruction gives its words away to whoever has the
embeddings, though not their order; a mean over several instructions tells which words are frequent in them together.
"""

import json
import math
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from .adapter import TagiAdapter, instruction_hash
from .adapter_tuning import base_of, fresh_adapter
from .fit import require_one_place
from .fusion import InstructionMemory
from .lora import evaluating
from .named_backbone import file_of
from .tokens import alike_in_length, pad, read_instructions

logger = logging.get_logger(__name__)

VECTORS_FILE = "instruction_index.safetensors"
TEXTS_FILE = "instruction_index.json"
_NAMED = 3
_UNREAD = object()

TokenIds = Union[Tensor, Sequence[int], Sequence[Sequence[int]]]


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
        files = [file_of(name_or_folder, name, revision, **given) for name in (VECTORS_FILE, TEXTS_FILE)]
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


class InstructionsMixin:
    """Reads instructions with a [`TagiModel`]'s encoder, and writes adapters for them with its hypernetwork."""

    _instruction_index: Any = _UNREAD

    def generate_adapter(
        self,
        instruction: Union[str, Sequence[str], TokenIds],
        demonstrations: Optional[Sequence] = None,
    ) -> TagiAdapter:
        """Reads instructions once and writes an adapter for each.

        The model does not keep the adapter: hold on to it, in memory or with `save_pretrained`, to use it again.

        Args:
            instruction: A text, a list of texts, or token ids (`[seq]`, `[tasks, seq]` or a list of lists). A tensor's
                padding, on the right, is left out.
            demonstrations: Worked examples `[(input, output), …]` of the instruction; for several instructions a list
                of such lists.

        Returns:
            As many adapters as instructions.

        Raises:
            TypeError: if it is none of these.
            ValueError: if an instruction is empty or longer than `config.max_instruction_length` tokens, or has tokens
                that are not in the vocabulary.
        """
        texts, ids = read_instructions(self, instruction, demonstrations)
        adapter = self.adapter_from_rows(ids)
        if self.instruction_index is not None:
            names = [text if text is not None else f"of tokens {tuple(row)}" for text, row in zip(texts, ids)]
            self.instruction_index.warn_of_far(mean_embeddings(self.get_input_embeddings(), ids), names)
        self.note_training_of_backbone()
        source = {
            "generator": self.name_or_path or None, "generator_revision": self._revision, **base_of(adapter, self)
        }  # fmt: skip
        provenance = []
        for text, tokens in zip(texts, ids):
            hashed = text if text is not None else " ".join(map(str, tokens))
            provenance.append({"instruction": text, "instruction_sha256": instruction_hash(hashed), **source})
        return replace(adapter.described(provenance, self.peft_config()), origin=weakref.ref(self))

    def fresh_adapter(self, tasks: int = 1, seed: int = 0) -> TagiAdapter:
        """Returns adapters that change nothing, to tune from scratch; see [`adapter_tuning.fresh_adapter`]."""
        self.note_training_of_backbone()
        return fresh_adapter(self, tasks, seed)

    def peft_config(self) -> dict:
        """Returns what an exported adapter_config.json says of the backbone."""
        fan = any(isinstance(self.backbone.get_submodule(path), Conv1D) for path in self._target_paths())
        return {"task_type": self.kind.task_type, "fan_in_fan_out": fan}

    def adapter_from_ids(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> TagiAdapter:
        """Returns the adapters of instructions, with gradients: the differentiable core of `generate_adapter`.

        Args:
            input_ids: `[tasks, instruction_len]`, padded on the right.
            attention_mask: `[tasks, instruction_len]`; `None` if nothing is padding.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.adapter_from_states(*self._read(input_ids, attention_mask))

    @torch.no_grad()
    def adapter_from_rows(self, rows: Sequence[Sequence[int]], at_most: Optional[int] = None) -> TagiAdapter:
        """Returns the adapters of instructions given as token ids of any lengths, without gradients. The encoder reads
        those of similar length together, for little padding; the hypernetwork writes all adapters at once.

        Args:
            rows: Token ids of each instruction.
            at_most: How many the encoder may read at once.

        Raises:
            ValueError: if there are none.
        """
        if not rows:
            raise ValueError("adapter_from_rows got no instructions; give at least one")
        pooled, memory = None, None
        with evaluating(self):
            for group, states, mask, read in self._read_rows(rows, at_most):
                read = read.clear_padding_() if read is not None else None
                if len(group) == len(rows):
                    return self.adapter_from_states(states, mask, read)
                of_group = self._pooled(states, mask)
                if pooled is None:
                    pooled = of_group.new_empty(len(rows), of_group.shape[1])
                    memory = read.blank(len(rows), max(map(len, rows))) if read is not None else None
                pooled[group] = of_group
                if memory is not None:
                    memory.put_(group, read)
            return self._written(pooled, memory)

    @torch.no_grad()
    def states_from_rows(self, rows: Sequence[Sequence[int]], at_most: int = 32) -> list[Tensor]:
        """Returns what the generator reads of instructions given as token ids, `[seq, d_model]` of each, before it is
        standardised, without gradients: all states or, where it pools to their mean alone, a sequence of one. The
        encoder reads `at_most` at once."""
        found: list[Any] = [None] * len(rows)
        with evaluating(self):
            for group, states, mask, _ in self._read_rows(rows, at_most):
                for number, one, length in zip(group, states, mask.sum(1).tolist()):
                    found[number] = one[:length].clone()
        return found

    def pooled_from_rows(self, rows: Sequence[Sequence[int]], at_most: int = 32) -> Tensor:
        """Returns the mean states of instructions given as token ids, `[instructions, d_model]`, not standardised,
        without gradients; the encoder reads `at_most` at once."""
        return torch.stack([states.mean(0) for states in self.states_from_rows(rows, at_most)])

    def _read_rows(
        self, rows: Sequence[Sequence[int]], at_most: Optional[int]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Optional[InstructionMemory]]]:
        """Yields the numbers of rows that are read together, and what `_read` returns for them."""
        for group in alike_in_length([len(row) for row in rows], at_most, on_cpu=self.device.type == "cpu"):
            padded, mask = pad([list(rows[number]) for number in group], 0)
            yield group, *self._read(padded.to(self.device), mask.to(self.device))

    def _read(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Optional[InstructionMemory]]:
        """Encodes instructions: returns what the generator reads of their states, `[tasks, seq, d_model]` with its
        mask, and the memory that fusion attends to."""
        require_one_place(self)
        with self._keeping_caches():  # an instruction's prefix is read from one
            states, read = self.kind.read(self, input_ids, attention_mask)
        memory = None
        if self.config.fusion != "none":
            if len(self.fusion):
                projected = [layer.project(states) for layer in self.fusion]
                read["keys"], read["values"] = (torch.stack(tensors, 1) for tensors in zip(*projected))
            memory = InstructionMemory(attention_mask, **read)
        return *self.hypernetwork.pooling.kept(states, attention_mask), memory

    def adapter_from_states(
        self, states: Tensor, mask: Tensor, memory: Optional[InstructionMemory] = None
    ) -> TagiAdapter:
        """Returns the adapters for what the generator reads of instructions, with gradients.

        Args:
            states: `[tasks, seq, d_model]`, those of `states_from_rows` padded on the right.
            mask: `[tasks, seq]`.
            memory: What fusion attends to.
        """
        return self._written(self._pooled(states, mask), memory)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.standardised is not None:
            states = self.standardised(states)
        return self.hypernetwork.pooling(states, mask)

    def _written(self, pooled: Tensor, memory: Optional[InstructionMemory]) -> TagiAdapter:
        a, b = self.hypernetwork(pooled)
        return TagiAdapter(lora_a=a, lora_b=b, lora_alpha=self.config.lora_alpha, memory=memory)

    def _target_paths(self) -> list[str]:
        return list(self.hypernetwork.shared_factors())

    @property
    def instruction_index(self) -> Optional[InstructionIndex]:
        """Returns the index of finetuning's instructions, to which new ones are compared; `None` if there is none. It
        belongs to the weights as they were then: set it to `None`, or to a new one, after further training."""
        if self._instruction_index is _UNREAD:
            name = self.name_or_path
            self._instruction_index = InstructionIndex.find(name, self._revision) if name else None
        return self._instruction_index

    @instruction_index.setter
    def instruction_index(self, index: Optional[InstructionIndex]):
        self._instruction_index = index
