"""The stored task adapter whose instruction is nearest to the one that is given."""

from typing import Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..banks.adapter_bank import AdapterBank
from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..hypernetwork import masked_mean
from ..lora import applied, evaluating
from ..modeling_tagi import TagiModel
from ..tokens import Tokens, instruction_text, pad
from .backbones import adaptable
from .predict import Answering


def nearest_adapters(
    start: Answering,
    bank: AdapterBank,
    train: Sequence[Record],
    records: Sequence[Record],
    config: Optional[TagiConfig] = None,
    reads: Optional[str] = None,
) -> Answering:
    """Returns answers by the stored task adapter whose instruction is nearest, by the cosine of encoded instructions.

    Args:
        start: The backbone that the adapters were tuned on, and its tokens.
        bank: The adapters, by task or by group.
        train: The records that they were tuned on; all wordings of an instruction are compared with.
        records: What is to be answered.
        config: As in `adaptable`.
        reads: `"prompt"` or `"input"`; `None` is what the adapters were tuned to read.

    Raises:
        FileNotFoundError: if the bank has no adapters.
        ValueError: if none of them is of a task or group of `train`, or they do not fit the backbone.
    """
    numbers, known = bank.numbers(), {}
    for record in train:
        number = numbers.get(record.task, numbers.get(record.group))
        if number is not None:
            known.setdefault(instruction_text(record.instruction, record.demonstrations), number)
    adapters = bank.load()
    if not known:
        raise ValueError(
            f"{bank.folder} has adapters of {', '.join(list(numbers)[:3])}, …; none is a task or group of the train "
            "split, so no instruction is known to look them up by: give the data that they were tuned on"
        )
    own = list(dict.fromkeys(instruction_text(r.instruction, r.demonstrations) for r in records))
    encoded = encode_instructions(start.model, start.tokens, [*own, *known], start.batch_size)
    nearest = nearest_rows(encoded[: len(own)], encoded[len(own):])
    candidates = list(known.values())
    row = {text: candidates[place] for text, place in zip(own, nearest)}
    return Answering(
        adaptable(start.model, config),
        start.tokens,
        reads or bank.reads,
        start.batch_size,
        adapters=adapters,
        row_of=lambda record: row[instruction_text(record.instruction, record.demonstrations)],
    )


def nearest_rows(queries: Tensor, candidates: Tensor) -> list[int]:
    """Returns for each query the number of the candidate with the highest cosine.

    Args:
        queries: `[queries, d_model]`.
        candidates: `[candidates, d_model]`.
    """
    cosine = F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T  # [queries, candidates]
    return cosine.argmax(-1).tolist()


@torch.no_grad()
def encode_instructions(model: nn.Module, tokens: Tokens, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Returns the backbone's states of each text as the hypernetwork pools them: `[texts, d_model]`, fp32, on the CPU.

    Args:
        model: A backbone, or a [`TagiModel`] whose backbone is taken.
        tokens: How texts become tokens.
        texts: `instruction_text`'s.
        batch_size: Texts at once.
    """
    backbone = model.backbone if isinstance(model, TagiModel) else model
    encoder = backbone.get_encoder() if tokens.is_encoder_decoder else backbone.base_model
    pooled = []
    with evaluating(backbone), applied(None):
        for start in range(0, len(texts), batch_size):
            ids, mask = pad([tokens.instruction(text) for text in texts[start: start + batch_size]], tokens.pad)
            ids, mask = ids.to(backbone.device), mask.to(backbone.device)
            pooled.append(masked_mean(encoder(input_ids=ids, attention_mask=mask)[0], mask).float().cpu())
    return torch.cat(pooled)
