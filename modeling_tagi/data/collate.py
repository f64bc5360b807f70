"""Collators of records and passages: a batch holds each instruction once, and for each row the number of its own."""

import random
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from ..tokens import Tokens, instruction_text, pad, training_tensors
from .reading import READS
from .records import Record
from .text import cut_passage


def instruction_tensors(
    tokens: Tokens, texts: Sequence[str], teachers: Optional[Sequence[int]] = None
) -> dict[str, Tensor]:
    """Returns tensors of the distinct instructions among `texts` (one per row), with the `task_index [batch]` of rows.

    With `teachers` (one per row), a text with two teachers occurs twice, and `teacher_index [tasks]` tells them apart.
    """
    rows = list(zip(texts, teachers if teachers is not None else [-1] * len(texts)))
    position = {row: index for index, row in enumerate(dict.fromkeys(rows))}
    ids, mask = pad([tokens.instruction(text) for text, _ in position], tokens.pad)
    tensors = {
        "instruction_input_ids": ids,
        "instruction_attention_mask": mask,
        "task_index": torch.tensor([position[row] for row in rows]),
    }
    if teachers is not None:
        tensors["teacher_index"] = torch.tensor([teacher for _, teacher in position])
    return tensors


class RecordCollator:
    """Collates records into training batches.

    Args:
        tokens: How texts become tokens.
        reads: `"adapter"`: the model reads the input, the hypernetwork the instruction. `"prompt"`: the model reads
            both in one text. `"input"`: the model reads the input alone. `"adapter_and_prompt"`: the first two.
        bank_index: Task or group name -> number of its task adapter. Where adapters are generated it adds `teacher_*`
            tensors (what the teacher reads) and `teacher_index [tasks]`, -1 for a task without an adapter; else
            `adapter_index [batch]`.
        bank_by: Whether `bank_index` is by `"task"` or by `"group"`.
        teacher_reads: `"prompt"` or `"input"`.

    Attributes:
        answers: Returns the `teacher_*` tensors of records in place of what the teacher would read, such as a
            `TeacherCache`; `None` if the teacher reads every batch.
    """

    def __init__(
        self,
        tokens: Tokens,
        reads: str = "adapter",
        bank_index: Optional[dict[str, int]] = None,
        bank_by: str = "group",
        teacher_reads: str = "prompt",
    ):
        self.tokens, self.reads, self.bank_index, self.bank_by = tokens, reads, bank_index, bank_by
        self.teacher_reads = teacher_reads
        self.answers: Optional[Callable[[Sequence[Record]], dict[str, Tensor]]] = None

    def number(self, record: Record) -> int:
        """Returns the number of the record's task adapter; -1 if there is none."""
        return self.bank_index.get(getattr(record, self.bank_by), -1)

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        tokens, reads = self.tokens, READS[self.reads]
        targets = [tokens.target(record.targets[0]) for record in records]
        inputs = [tokens.input(record.input) for record in records]
        prompts = None
        if reads.prompt or self.bank_index is not None and self.answers is None:
            prompts = [tokens.prompt(instruction_text(r.instruction, r.demonstrations), r.input) for r in records]
        batch = training_tensors(tokens, prompts if reads.prompt else inputs, targets)
        numbers = None
        if self.bank_index is not None:
            numbers = [self.number(record) for record in records]
        if reads.adapter:
            instructions = [instruction_text(r.instruction, r.demonstrations) for r in records]
            batch.update(instruction_tensors(tokens, instructions, numbers))
            if self.answers is not None:
                batch.update(self.answers(records))
            elif numbers is not None:
                read = prompts if self.teacher_reads == "prompt" else inputs
                teacher = training_tensors(tokens, read, targets)
                batch.update({f"teacher_{name}": tensor for name, tensor in teacher.items()})
        elif numbers is not None:
            batch["adapter_index"] = torch.tensor(numbers)
        return batch


class TextCollator:
    """Collates passages of raw text into batches, each passage cut into a, b and c (eq. 3).

    Args:
        tokens: How texts become tokens.
        passages: The texts.
        max_length: Most tokens of a, b and c together.
        to_hypernetwork: If true, `a` is the instruction, `b` the input and `c` the target; else `a` and `b` together
            are the input (plain language modelling with a prefix).
    """

    def __init__(self, tokens: Tokens, passages: Sequence[str], max_length: int, to_hypernetwork: bool):
        self.tokens, self.max_length, self.to_hypernetwork = tokens, max_length, to_hypernetwork
        self.passages = [text for text in passages if len(tokens.plain(text)) >= 3]

    def __call__(self, draws: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        tokens, cuts = self.tokens, []
        for passage, draw in draws:
            cuts.append(cut_passage(tokens.plain(self.passages[passage]), random.Random(draw), self.max_length))
        start, eos = tokens.start, [tokens.tokenizer.eos_token_id] if tokens.is_encoder_decoder else []
        inputs = [start + (b if self.to_hypernetwork else a + b) + eos for a, b, _ in cuts]
        batch = training_tensors(tokens, inputs, [c for _, _, c in cuts])
        if self.to_hypernetwork:
            ids, mask = pad([start + a + eos for a, _, _ in cuts], tokens.pad)
            batch["instruction_input_ids"], batch["instruction_attention_mask"] = ids, mask
            batch["task_index"] = torch.arange(len(cuts))
        return batch
