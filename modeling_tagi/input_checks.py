"""Refusals of what is no instruction, no input or no index, in words, before anything is computed with it."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor
from transformers import PreTrainedModel

_CLOSE_LOOK = 8192  # tokens; the attention of fewer fits everywhere
_NO_LIST = (str, bytes, bytearray, Mapping, set, frozenset)


def instruction_list(instruction: Any) -> Union[list[str], list[list[int]]]:
    """Returns the texts, or the rows of token ids, that are given as `generate_adapter` takes them.

    Raises:
        TypeError: for anything else.
        ValueError: if there is none.
    """
    if isinstance(instruction, str):
        return [instruction]
    if hasattr(instruction, "tolist"):
        if isinstance(instruction, Tensor) and (instruction.is_floating_point() or instruction.ndim not in (1, 2)):
            raise TypeError(
                f"the instruction is a tensor of {instruction.dtype} and shape {list(instruction.shape)}, but token "
                "ids are whole numbers, [seq] or [tasks, seq]; give these, a text, or a list of texts"
            )
        instruction = instruction.tolist()
    if not isinstance(instruction, Iterable) or isinstance(instruction, _NO_LIST):
        raise TypeError(
            f"the instruction is {_shown(instruction)}, but must be a text, a list of texts, or token ids"
        )
    instruction = list(instruction)
    if not instruction:
        raise ValueError("generate_adapter got no instruction; give a text, a list of texts, or token ids")
    if all(map(_is_id, instruction)):
        return [instruction]
    if isinstance(instruction[0], str):  # `instruction_text` refuses those that are none
        return instruction
    rows = [one.tolist() if hasattr(one, "tolist") else one for one in instruction]
    for number, row in enumerate(rows):
        if not isinstance(row, (list, tuple)) or not all(map(_is_id, row)):
            raise TypeError(
                f"instruction {number} is {_shown(row)}, but all must be texts, or all lists of token ids (whole "
                "numbers)"
            )
    return [list(row) for row in rows]


def input_list(inputs: Any) -> list[str]:
    """Returns the input texts that are given as one text, or as texts one after the other.

    Raises:
        TypeError: if they are no texts.
        ValueError: if there is none, or one is not Unicode.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    if not isinstance(inputs, Iterable) or isinstance(inputs, _NO_LIST):
        raise TypeError(f"the inputs are {_shown(inputs)}, but must be a text, or a list of texts")
    inputs = list(inputs)
    if not inputs:
        raise ValueError("encode_inputs got no inputs; give a text, or a list of at least one")
    for number, text in enumerate(inputs):
        if not isinstance(text, str):
            raise TypeError(f"input {number} is {_shown(text)}, but must be a text")
        require_unicode(text, f"input {number}")
    return inputs


def require_unicode(text: str, what: str):
    """Refuses a text with half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has {text[error.start]!r} at character {error.start + 1}, a lone surrogate, which is no Unicode "
            "text; read the text as UTF-8, or leave the character out"
        ) from None


def require_known_ids(rows: Sequence[Sequence[int]], size: Optional[int]):
    """Refuses instructions with token ids that a vocabulary of `size` tokens does not have."""
    for number, row in enumerate(rows):
        strange = next((token for token in row if token < 0 or size is not None and token >= size), None)
        if strange is not None:
            raise ValueError(
                f"instruction {number} has the token id {strange}, but the vocabulary of this model has ids from 0 to "
                f"{'…' if size is None else size - 1}; tokenize the text with this model's tokenizer (model.tokenizer)"
            )


def checked_index(task_index: Any, tasks: int, device: torch.device) -> Optional[Tensor]:
    """Returns `task_index [batch]` as a tensor on `device`; `None` if there is none.

    Raises:
        TypeError: if it holds other things than whole numbers.
        ValueError: if it names an adapter that is not there, or is not a list of numbers.
    """
    if task_index is None:
        return None
    if not isinstance(task_index, Tensor):
        if not isinstance(task_index, (list, tuple, range)) or not all(map(_is_id, task_index)):
            raise TypeError(
                f"task_index is {_shown(task_index)}, but must be a tensor or list of whole numbers [batch]"
            )
        task_index = torch.tensor(task_index, dtype=torch.long)
    if task_index.is_floating_point() or task_index.dtype == torch.bool or task_index.ndim != 1:
        raise TypeError(
            f"task_index is a tensor of {task_index.dtype} and shape {list(task_index.shape)}, but must be one of "
            "whole numbers [batch]"
        )
    if not torch.compiler.is_compiling() and len(task_index):  # a graph knows no values
        first, last = task_index.min().item(), task_index.max().item()
        if first < 0 or last >= tasks:
            raise ValueError(
                f"task_index names adapter {first if first < 0 else last}, but there are {tasks}: it takes 0 to "
                f"{tasks - 1}"
            )
    return task_index.to(device)


def require_room(model: PreTrainedModel, rows: int, length: int):
    """Refuses inputs that are so long that their attention cannot fit into the memory there is."""
    if length <= _CLOSE_LOOK or torch.compiler.is_compiling():
        return
    memory = _memory_of(model.device)
    config = model.backbone.config
    # a bias for each head, or the mask alone where kernels make no scores
    heads = config.num_attention_heads if config.is_encoder_decoder else 1
    each = rows * heads * (model.dtype.itemsize if config.is_encoder_decoder else 1)
    if memory is not None and each * length**2 > memory:
        raise ValueError(
            f"the input has {length:,} tokens, whose attention takes {each * length**2 / 1e9:,.0f} GB of memory, but "
            f"{model.device} has {memory / 1e9:,.0f} GB; {rows} inputs of at most {int((memory / each) ** 0.5):,} "
            "tokens would fit: cut the input (encode_inputs takes max_length)"
        )


def _memory_of(device: torch.device) -> Optional[int]:
    """Returns the bytes that a device has; `None` where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.60})"
