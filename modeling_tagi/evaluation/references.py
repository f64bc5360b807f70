"""References that tell what a number means: an instruction that says nothing, and the nearest stored task adapter."""

import random
from typing import Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..banks.adapter_bank import AdapterBank
from ..common.randomness import derived_seed, unchanged_randomness
from ..configuration_tagi import TagiConfig
from ..data.records import Record
from ..hypernetwork import masked_mean
from ..instructions import instruction_text
from ..lora import applied
from ..modeling_tagi import TagiModel, evaluating
from ..tokens import Tokens, pad
from .predict import Answering


def random_word_instructions(records: Sequence[Record], seed: int = 0) -> dict[str, str]:
    """For each task as many words as its instruction has, none of them its own, drawn by `seed` from the words of all
    the others. A task is left out if no other has a word that is not also its own."""
    own: dict[str, set[str]] = {}
    lengths: dict[str, int] = {}
    for record in records:
        own.setdefault(record.task, set()).update(record.instruction.split())
        lengths.setdefault(record.task, len(instruction_text(record.instruction, record.demonstrations).split()))
    vocabulary = sorted(set().union(*own.values()))
    drawn = {}
    for task in sorted(own):
        plain = {word.lower() for word in own[task]}
        foreign = [word for word in vocabulary if word.lower() not in plain]
        if foreign:
            # by the task's name, so that a task has the same words whatever else is evaluated beside it
            drawn[task] = " ".join(random.Random(derived_seed(seed, task)).choices(foreign, k=lengths[task]))
    return drawn


def nearest_adapters(
    start: Answering,
    bank: AdapterBank,
    train: Sequence[Record],
    records: Sequence[Record],
    config: Optional[TagiConfig] = None,
    reads: Optional[str] = None,
) -> Answering:
    """Answers with the stored task adapter whose instruction is nearest, by the cosine of encoded instructions.

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
    """For each of `queries [queries, d_model]` the number of the candidate `[candidates, d_model]` with the highest
    cosine."""
    cosine = F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T  # [queries, candidates]
    return cosine.argmax(-1).tolist()


@torch.no_grad()
def encode_instructions(model: nn.Module, tokens: Tokens, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """The backbone's states of each text as the hypernetwork pools them: `[texts, d_model]`, fp32, on the CPU.

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


def adaptable(model: nn.Module, like: Optional[TagiConfig] = None, seed: int = 0) -> TagiModel:
    """A backbone as it is, to which adapters can be given, with a start for the A of new ones.

    Args:
        model: A backbone, or a [`TagiModel`] whose backbone is taken; its weights are shared, not copied.
        like: The rank, scale and target modules (the last if its backbone is of the same family) of new adapters.
        seed: Of A, which is uniform as PEFT's.
    """
    backbone = model.backbone if isinstance(model, TagiModel) else model
    fields = {}
    if like is not None:
        fields = {"r": like.r, "lora_alpha": like.lora_alpha}
        if like.backbone_config is not None and like.backbone_config.model_type == backbone.config.model_type:
            fields["target_modules"] = like.target_modules
    config = TagiConfig(
        backbone_config=backbone.config, fusion="none", **fields,
        generator="shared", generator_hidden_size=1, generator_index_size=1,  # it is never run: as small as can be
    )  # fmt: skip
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        tensor._is_hf_initialized = True  # else transformers would initialise the backbone anew
    with unchanged_randomness():
        torch.manual_seed(seed)
        made = TagiModel(config, backbone=backbone)
    made.generation_config = backbone.generation_config
    return made.to(backbone.device).eval()
