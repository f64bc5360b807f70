"""Answers of a model: by generation and by rank classification, with an adapter, a prompt or neither."""

from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from ..adapter import TagiAdapter
from ..common.console import progress_bar
from ..common.processes import gathered, of_this_process
from ..data.reading import READS
from ..data.records import Record
from ..function import score_rows
from ..lora import evaluating
from ..tokens import Tokens, generation_tensors, instruction_text


class Answering:
    """Answers records with one model in one way.

    Args:
        model: A [`TagiModel`] for `"adapter"`; any language model otherwise.
        tokens: How texts become tokens.
        reads: `"adapter"`: the input, with the instruction's adapter. `"prompt"`: instruction and input. `"input"`.
        batch_size: Rows at once.
        instructions: The instruction to use instead of a task's own, by task; see `other_instructions`.
        adapters: Given adapters to apply to the prompt or the input, for a [`TagiModel`].
        row_of: Gives the number of a record's adapter among these.

    Raises:
        ValueError: for an unknown way of reading, or for given adapters where they are to be generated.
    """

    def __init__(
        self,
        model,
        tokens: Tokens,
        reads: str,
        batch_size: int = 64,
        instructions: Optional[dict[str, str]] = None,
        adapters: Optional[TagiAdapter] = None,
        row_of: Optional[Callable[[Record], int]] = None,
    ):
        if reads not in READS:
            raise ValueError(f"reads is {reads!r}, but must be one of {', '.join(map(repr, READS))}")
        if adapters is not None and (READS[reads].adapter or row_of is None):
            raise ValueError(
                f"adapters were given with reads={reads!r} and row_of={row_of!r}, but go with 'prompt' or 'input' and "
                "a function from a record to the number of its adapter"
            )
        self.model, self.tokens, self.reads, self.batch_size = model, tokens, reads, batch_size
        self.instructions, self.adapters, self.row_of = instructions or {}, adapters, row_of

    @torch.no_grad()
    def generate(self, records: Sequence[Record], progress: str = "") -> list[str]:
        """Returns a greedy answer to each record; the records are split over processes, and each gets all answers."""
        answers: list[tuple[int, str]] = []
        with evaluating(self.model):
            adapters, row_of = self._adapters(records)
            for rows in self._batches(records, progress):
                chosen = [records[row] for row in rows]
                batch = self._to_device(generation_tensors(self.tokens, [self._input(r) for r in chosen]))
                if adapters is not None:
                    batch["adapter"] = adapters[[row_of(r) for r in chosen]]
                if self.tokens.input_format == "chat":  # also for a stock backbone, which knows nothing of it
                    batch["eos_token_id"] = self.tokens.ends(self.model.generation_config.eos_token_id)
                limit = self.tokens.max_target_length
                output = self.model.generate(**batch, max_new_tokens=limit, do_sample=False, num_beams=1)
                if not self.tokens.is_encoder_decoder:
                    output = output[:, batch["input_ids"].shape[1]:]
                texts = self.tokens.tokenizer.batch_decode(output, skip_special_tokens=True)
                answers += [(row, text.strip()) for row, text in zip(rows, texts)]
        return [text for _, text in sorted(gathered(answers))]

    def rank(self, records: Sequence[Record], progress: str = "") -> list[tuple[str, list[tuple[float, int]], int]]:
        """Returns of each record the task, each option's (log-likelihood, tokens) and the number of the right one."""
        found: list[tuple[int, list[tuple[float, int]]]] = []
        with evaluating(self.model):
            adapters, row_of = self._adapters(records)
            for rows in self._batches(records, progress):
                chosen = [records[row] for row in rows]
                inputs = [self._input(record) for record in chosen]
                options = [[self.tokens.target(option) for option in record.options] for record in chosen]
                adapter, index = None, None
                if adapters is not None:
                    numbers = [row_of(record) for record in chosen]
                    unique = list(dict.fromkeys(numbers))
                    adapter, index = adapters[unique], [unique.index(number) for number in numbers]
                scored = score_rows(self.model, self.tokens, inputs, options, adapter, index, self.batch_size)
                found += zip(rows, scored)
        scores = dict(gathered(found))
        return [
            (record.task, scores[row], record.options.index(record.targets[0])) for row, record in enumerate(records)
        ]

    def _instruction(self, record: Record) -> str:
        if record.task in self.instructions:
            return self.instructions[record.task]
        return instruction_text(record.instruction, record.demonstrations)

    def _input(self, record: Record) -> list[int]:
        if READS[self.reads].prompt:
            return self.tokens.prompt(self._instruction(record), record.input)
        return self.tokens.input(record.input)

    def _adapters(self, records) -> tuple[Optional[TagiAdapter], Optional[Callable[[Record], int]]]:
        """Returns the given adapters, or one for each distinct instruction; and a record's number among them."""
        if not READS[self.reads].adapter:
            given = self.adapters.to(self.model.device) if self.adapters is not None else None
            return given, self.row_of
        unique = list(dict.fromkeys(self._instruction(record) for record in records))
        number = {text: number for number, text in enumerate(unique)}
        made = self.model.adapter_from_rows([self.tokens.instruction(text) for text in unique], self.batch_size)
        return made, lambda record: number[self._instruction(record)]

    def _batches(self, records, progress: str):
        order = sorted(range(len(records)), key=lambda row: len(self._input(records[row])))
        batches = [order[start: start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return progress_bar(of_this_process(batches), desc=progress, disable=not progress)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}
