"""Writes the answers of a batch in one call of `generate`: each row with its own adapter, draws, length and end."""

from typing import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..adapter import TagiAdapter
from ..modeling_tagi import TagiModel
from ..tokens import pad
from .rows import Row


def write_answers(model: TagiModel, rows: Sequence[Row], padding: int, decode: Callable[[list[int]], str]):
    """Writes the answers of rows that have an adapter each, or all none, and that end with the same tokens.

    Args:
        padding: The token that fills shorter inputs up.
        decode: From an answer's tokens to its text.

    Raises:
        ValueError: as `generate`, such as for an input that is too long.
    """
    rows = sorted(rows, key=lambda row: row.name or "")  # those of one adapter side by side share its products
    ids, mask = pad([row.ids for row in rows], padding, left=not model.config.is_encoder_decoder)
    model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        **_adapters_of(rows, model),
        do_sample=False,  # rows that draw do it by `_Draws`
        num_beams=1,
        max_new_tokens=max(row.max_new_tokens for row in rows),
        eos_token_id=list(rows[0].ends) or None,
        logits_processor=LogitsProcessorList([_Draws(rows)] if any(row.temperature for row in rows) else []),
        stopping_criteria=StoppingCriteriaList([_Writing(rows, decode)]),
    )


def _adapters_of(rows: Sequence[Row], model: TagiModel) -> dict:
    """Returns the arguments of `generate` that give each row its adapter: nothing for the backbone alone."""
    if rows[0].adapter is None:
        return {}
    each = {row.name: row.adapter for row in rows}
    if len(each) == 1:
        return {"adapter": rows[0].adapter}
    if model.kind.one_adapter_a_row:  # it would be gathered by row anyway: copy it once, not twice
        return {"adapter": TagiAdapter.stack([row.adapter for row in rows])}
    numbers = {name: number for number, name in enumerate(each)}
    return {"adapter": TagiAdapter.stack(list(each.values())), "task_index": [numbers[row.name] for row in rows]}


class _Writing(StoppingCriteria):
    """Hands each row its new token, and stops those that have ended."""

    def __init__(self, rows: Sequence[Row], decode: Callable[[list[int]], str]):
        self.rows, self.decode = rows, decode

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        for row, token in zip(self.rows, input_ids[:, -1].tolist()):
            if not row.done:
                row.take(token, self.decode)
        return torch.tensor([row.done for row in self.rows], device=input_ids.device)


class _Draws(LogitsProcessor):
    """Draws the next token of each row that has a temperature, by the row's own random numbers, so that a seed gives
    the same answer in any batch; leaves the others alone."""

    def __init__(self, rows: Sequence[Row]):
        self.rows, self.draws = rows, {}
        for row in rows:
            if row.temperature:
                self.draws[row] = torch.Generator()
                if row.seed is None:
                    self.draws[row].seed()
                else:
                    self.draws[row].manual_seed(row.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for place, row in enumerate(self.rows):
            if row in self.draws and not row.done:
                token = drawn(scores[place].float().cpu(), row.temperature, row.top_p, self.draws[row])
                scores[place] = float("-inf")
                scores[place, token] = 0.0
        return scores


def drawn(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Returns a token drawn from softmax(logits / temperature), of the likeliest that together have `top_p`.

    Args:
        logits: `[vocab]`.
    """
    # the largest becomes 0 first: a small temperature would overflow it
    probabilities = ((logits - logits.max()) / temperature).softmax(0)
    if top_p < 1:
        likeliest, order = probabilities.sort(descending=True)
        likeliest[likeliest.cumsum(0) - likeliest >= top_p] = 0
        return int(order[torch.multinomial(likeliest, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
