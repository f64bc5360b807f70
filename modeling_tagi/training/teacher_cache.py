"""A cache on disk of the teacher's answers for each record's target, so that they are computed once."""

import hashlib
import json
import os
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence, Union

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..common.console import progress_bar
from ..data.collate import RecordCollator
from ..data.records import Record
from . import losses
from .teacher import Teacher

KEPT = ("states", "top_k")  # what may be kept of a teacher's answers
_SHARD = 256  # records a file; a run that was killed computes at most so many again


@dataclass(frozen=True)
class Kept:
    """Says what the cache keeps for each target token.

    Args:
        kind: `"states"`: the inputs of the output head, d_model numbers. L_kl is exact at any temperature, and costs
            one product with the head. `"top_k"`: see `losses.top_k`; L_kl is a lower bound, the looser the more
            probability lies beyond the k tokens, as it does at high temperatures.
        k: Tokens that `"top_k"` keeps.
        temperature: Temperature of `"top_k"`.
    """

    kind: str = "states"
    k: int = 64
    temperature: float = 1.0

    @classmethod
    def of(cls, setting: Union[int, str], temperature: float) -> "Kept":
        """Returns the `Kept` for a value of `finetuning.teacher_cache`: `"states"`, or a number of tokens."""
        return cls("states") if setting == "states" else cls("top_k", setting, temperature)

    def __post_init__(self):
        if self.kind not in KEPT:
            raise ValueError(f"kind is {self.kind!r}, but must be one of {', '.join(map(repr, KEPT))}")


class TeacherCache:
    """Reads the `teacher_*` tensors of records for `RecordCollator.answers`, from files of some hundred records each.

    A file is written beside and moved into place, so that it is always complete. It holds a hash of the weights and
    tokens that it was made of, by which a stale file is found and made again.
    """

    def __init__(self):
        self._places: dict[Record, tuple[str, int, int]] = {}  # file, and from which to which token in it

    @classmethod
    def filled(
        cls,
        folder: Path,
        teacher: Teacher,
        collator: RecordCollator,
        records: Sequence[Record],
        kept: Kept,
        batch_size: int = 16,
        label: str = "teacher",
    ) -> "TeacherCache":
        """Returns the cache of `records`, and computes what `folder` lacks; records without an adapter are left out.

        Args:
            folder: The cache's own folder.
            teacher: The teacher, which runs on the device of its bank.
            collator: Makes the teacher's inputs.
            batch_size: Records the teacher reads at once.
            label: What the progress bar is called.

        Raises:
            ValueError: if `"states"` are to be kept, but the output head alone does not turn them into the logits.
        """
        cache, folder = cls(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {record: collator.number(record) for record in records}
        # similar records side by side: little padding, and few adapters in a batch
        order = sorted((r for r, number in numbers.items() if number >= 0),
                       key=lambda r: (numbers[r], r.instruction, len(r.input), r.input))  # fmt: skip
        shards = [order[start: start + _SHARD] for start in range(0, len(order), _SHARD)]
        files = {folder / f"{number:06}.safetensors": shard for number, shard in enumerate(shards)}
        made_of = _Digests(teacher, {**asdict(kept), "batch_size": batch_size, "bf16": teacher.bf16})
        bar = progress_bar(total=len(order), desc=label, unit="record")
        with FileLock(f"{folder}.lock"):  # of several processes one computes, the others read
            for leftover in set(folder.iterdir()) - set(files):  # of a run that was killed, or of more records
                leftover.unlink()
            for file, shard in files.items():
                batches = [collator(shard[start: start + batch_size]) for start in range(0, len(shard), batch_size)]
                key = made_of(batches)
                lengths = _lengths(file, key)
                if lengths is None:
                    lengths = [length for batch in batches for length in (batch["labels"] != -100).sum(1).tolist()]
                    answers = [_answers(teacher, batch, kept) for batch in batches]
                    _write(file, answers, {"made_of": key, "lengths": json.dumps(lengths)})
                start = 0
                for record, length in zip(shard, lengths, strict=True):
                    cache._places[record] = (str(file), start, start + length)
                    start += length
                bar.update(len(shard))
        bar.close()
        return cache

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Returns the concatenated tensors for the target tokens of `records`; those that were left out have none."""
        parts = defaultdict(list)
        for record in records:
            if record not in self._places:
                continue
            path, start, end = self._places[record]
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    parts[f"teacher_{name}"].append(file.get_slice(name)[start:end])
        return {name: torch.cat(tensors) for name, tensors in parts.items()}


@torch.no_grad()
def _answers(teacher: Teacher, batch: dict[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """Returns the tensors `[tokens, …]` to keep of the teacher's answers to a batch, by name."""
    device, both = teacher.bank.device, teacher.is_encoder_decoder
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    inputs = {name: batch[f"teacher_{name}"] for name in ("input_ids", "attention_mask", "labels")}
    with teacher.precision(), _inputs_of(teacher.head) as seen:
        everyone = torch.ones(len(inputs["labels"]), dtype=torch.bool, device=device)
        logits = teacher.answers(inputs, batch["teacher_index"], batch["task_index"], everyone)
        if kept.kind == "top_k":
            tensors = losses.top_k(logits, kept.k, kept.temperature)._asdict()
        else:
            near = 1e-2 if teacher.bf16 else 1e-3
            states = losses.target_logits(seen[-1], inputs["labels"], both)
            again = teacher.head(states)
            if again.shape != logits.shape or not torch.allclose(again, logits, rtol=near, atol=near):
                raise ValueError(
                    "this backbone's logits are not what its output head makes of its states (it caps or scales them, "
                    "or adapters change the head); keep 'top_k' of them"
                )
            tensors = {"states": states}
    return {name: tensor.cpu() for name, tensor in tensors.items()}


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list that collects the inputs of `module` while the block runs."""
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _write(file: Path, answers: Sequence[dict[str, Tensor]], metadata: dict[str, str]):
    tensors = {name: torch.cat([one[name] for one in answers]).contiguous() for name in answers[0]}
    beside = file.with_name(f".{file.name}")
    save_file(tensors, beside, metadata)
    os.replace(beside, file)


def _lengths(file: Path, key: str) -> Optional[list[int]]:
    """Returns the number of target tokens of each record in `file`; `None` if there is no file with this `key`."""
    try:
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata() or {}
    except (FileNotFoundError, SafetensorError):  # the latter where a disk lost what it had said was written
        return None
    return json.loads(metadata["lengths"]) if metadata.get("made_of") == key else None


class _Digests:
    """Computes hashes of all that a file's tensors depend on: weights, adapters, tokens and how they are computed."""

    def __init__(self, teacher: Teacher, how: dict):
        self.teacher, self._adapters = teacher, {}
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
        for name, tensor in teacher.backbone.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().flatten()
            # some numbers of each: training that reaches a matrix changes them all
            digest.update(_bytes(flat[:: max(1, flat.numel() // 1000)]))
        self._base = digest.digest()

    def __call__(self, batches: Sequence[dict[str, Tensor]]) -> str:
        digest = hashlib.sha256(self._base)
        for batch in batches:
            for name in ("teacher_input_ids", "teacher_attention_mask", "teacher_labels", "task_index"):
                digest.update(f"{tuple(batch[name].shape)}".encode() + _bytes(batch[name]))
            for number in batch["teacher_index"].tolist():
                digest.update(self._adapter(number))
        return digest.hexdigest()

    def _adapter(self, number: int) -> bytes:
        if number not in self._adapters:
            index = torch.tensor([number], device=self.teacher.bank.device)
            one, digest = self.teacher.adapters(index), hashlib.sha256()
            digest.update(str(one.scaling).encode())
            for path in sorted(one.lora_a):
                digest.update(path.encode() + _bytes(one.lora_a[path]) + _bytes(one.lora_b[path]))
            self._adapters[number] = digest.digest()
        return self._adapters[number]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
