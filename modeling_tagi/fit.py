"""Refuses, before anything is computed, invalid instructions, inputs and indices, and adapters that do not fit.

It reads the fields of a [`TagiAdapter`] without importing the class, and so needs no other module of the model.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_accelerate_available

from .families import positions_of
from .lora import needed_index

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
        raise ValueError("there are no inputs; give a text, or a list of at least one")
    for number, text in enumerate(inputs):
        if not isinstance(text, str):
            raise TypeError(f"input {number} is {_shown(text)}, but must be a text")
        require_unicode(text, f"input {number}")
    return inputs


def require_unicode(text: str, what: str):
    """Refuses a text with a lone surrogate, which no tokenizer takes."""
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
    there = _bytes_of(model.device)
    config = model.backbone.config
    # a bias for each head, or the mask alone where fused kernels keep no scores
    heads = config.num_attention_heads if config.is_encoder_decoder else 1
    each = rows * heads * (model.dtype.itemsize if config.is_encoder_decoder else 1)
    if there is not None and each * length**2 > there:
        raise ValueError(
            f"the input has {length:,} tokens, whose attention takes {each * length**2 / 1e9:,.0f} GB of memory, but "
            f"{model.device} has {there / 1e9:,.0f} GB; {rows} inputs of at most {int((there / each) ** 0.5):,} "
            "tokens would fit: cut the input (encode_inputs takes max_length)"
        )


def _bytes_of(device: torch.device) -> Optional[int]:
    """Returns the bytes that a device has; `None` where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_fit(adapter, model: PreTrainedModel):
    """Refuses an adapter that was made for another backbone."""
    backbones = sorted({str(source.get("backbone")) for source in adapter.provenance}) or ["None"]
    whose = f"the adapter was made for the backbone {', '.join(backbones)}"
    mend = f"generate it with a generator for this model's backbone, {model.adapter_base()['backbone']!r}"
    for path, a in adapter.lora_a.items():
        try:
            module = model.backbone.get_submodule(path)
        except AttributeError:
            raise ValueError(f"{whose} and changes {path!r}, which this model does not have; {mend}") from None
        d_in, d_out = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        if hasattr(module, "in_features"):  # quantised weights lie packed
            d_in, d_out = module.in_features, module.out_features
        if (a.shape[2], adapter.lora_b[path].shape[1]) != (d_in, d_out):
            raise ValueError(
                f"{whose}: its update of {path!r} is {adapter.lora_b[path].shape[1]} × {a.shape[2]}, the module's "
                f"weight here {d_out} × {d_in}; {mend}"
            )
    if adapter.memory is not None:
        for name, (what, theirs, here) in _memory_shapes(adapter, model).items():
            if theirs != here:
                raise ValueError(
                    f"the adapter's instruction memory ({name}) is for {what} {_times(theirs)}, this model has "
                    f"{_times(here)} (fusion={model.config.fusion!r}); {mend}"
                )
    known = {tuple(source.get("backbone_fingerprint") or ()) for source in adapter.provenance} - {()}
    ours = fingerprint(adapter, model.backbone) if known and not torch.compiler.is_compiling() else None
    if ours is not None and not all(alike(theirs, ours) for theirs in known):
        raise ValueError(f"{whose}, whose weights are not this model's; {mend}")


def _memory_shapes(adapter, model: PreTrainedModel) -> dict[str, tuple[str, tuple, tuple]]:
    """Returns for each part of the memory what it is, its shape without tasks and tokens, and the model's shape."""
    memory, shapes = adapter.memory, {}
    config = model.config.backbone_config.get_text_config()
    if memory.states is not None:
        shapes["states"] = ("an encoder's states of width", (memory.states.shape[-1],), (config.hidden_size,))
    if memory.keys is not None:
        _, layers, heads, _, d_head = memory.keys.shape
        here = [(layer.heads, layer.d_head) for layer in model.fusion]
        ours = (len(here), *here[0]) if here else ()
        shapes["keys"] = ("cross-attention of layers × heads × width", (layers, heads, d_head), ours)
    if memory.prefix_keys is not None:
        _, layers, heads, _, d_head = memory.prefix_keys.shape
        ours = (config.num_hidden_layers, *_key_heads(config))
        shapes["prefix_keys"] = ("self-attention of layers × key heads × width", (layers, heads, d_head), ours)
    return shapes


def _key_heads(config) -> tuple[int, int]:
    """Returns the number of a causal backbone's key heads, and their width."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _times(shape: tuple) -> str:
    return " × ".join(map(str, shape)) or "none"


def require_positions(
    model: PreTrainedModel, input_ids: Tensor, mask: Optional[Tensor], adapter
):
    """Refuses inputs that have more tokens than the backbone has positions; a causal one's instruction counts too."""
    prefix = adapter.memory.mask if adapter.memory is not None and adapter.memory.prefix_keys is not None else None
    limit, longest = positions_of(model.backbone.config), input_ids.shape[1]
    if limit is None or longest + (0 if prefix is None else prefix.shape[1]) <= limit or torch.compiler.is_compiling():
        return
    if prefix is not None:  # what is padding has no position in a causal backbone
        longest = int((mask.sum(1).max() if mask is not None else longest) + prefix.sum(1).max())
    if longest > limit:
        whose = "instruction and input together have" if prefix is not None else "the input has"
        raise ValueError(
            f"{whose} {longest} tokens, but this backbone ({model.backbone.config.model_type}) has positions for "
            f"{limit}; cut the input (encode_inputs takes max_length)"
        )


def require_one_rotation(model: PreTrainedModel, places: int):
    """Refuses sequences behind an instruction that exceed the length where a LongRoPE backbone changes its rotation.

    Phi-3 then rotates earlier tokens differently too. The instruction's keys are cached already, and transformers
    would recompute them from tokens that it does not have.
    """
    rope = getattr(model.backbone.config, "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings")  # also where the config has it beside
    if rope.get("rope_type") == "longrope" and limit and places > limit:
        raise ValueError(
            f"instruction, input and output together are {places} tokens, but behind an instruction "
            f"(fusion={model.config.fusion!r}) this backbone ({model.backbone.config.model_type}) can read {limit}, "
            "where its rotary embedding changes; use fewer tokens, or a generator with fusion='none'"
        )


def require_no_drafts(model: PreTrainedModel, adapter, config: GenerationConfig, assistant_model: Any):
    """Refuses assisted decoding, for which transformers would not count the instruction that lies before the input."""
    if adapter.memory is None or config.get_generation_mode(assistant_model) != GenerationMode.ASSISTED_GENERATION:
        return
    drafts = "an assistant_model" if assistant_model is not None else "assisted decoding (prompt_lookup_num_tokens)"
    raise ValueError(
        f"{drafts} cannot draft behind an adapter with an instruction memory (fusion={model.config.fusion!r}); leave "
        "it out, or use a generator with fusion='none'"
    )


def require_one_place(model: PreTrainedModel):
    """Refuses a model that is split over several devices, between which adapters and instructions are not moved."""
    placed_on = list((getattr(model, "hf_device_map", None) or {}).values())
    devices = sorted({str(place) for place in placed_on} - {"cpu", "disk"})
    away = next(model.hypernetwork.parameters()).device.type == "meta" if placed_on else False
    if len(devices) > 1 or away:
        what = f"lies on devices {', '.join(devices)}" if len(devices) > 1 else "has its hypernetwork offloaded"
        raise ValueError(
            f"this model {what}, but adapters are made and used on one device; load it with device_map={{'': 0}}, "
            "or offload the backbone alone: device_map={'backbone': 'disk', 'hypernetwork': 0, 'fusion': 0}"
        )
    offloaded = "disk" in placed_on or devices and "cpu" in placed_on
    if offloaded and not is_accelerate_available("1.15.0"):  # whose hooks lost tied weights before
        raise ValueError("this model is offloaded, which takes accelerate 1.15: pip install -U accelerate")


def checked_rows(model: PreTrainedModel, adapter, task_index: Any, given: Tensor, mask: Optional[Tensor]):
    """Returns the needed `task_index [batch]`, if any; refuses adapters and inputs that do not go together. What is
    `given` are ids, embeddings or an encoder's states, with their `mask [batch, seq]`, if any."""
    task_index = checked_index(task_index, len(adapter), model.device)
    require_rows(adapter, task_index, len(given))
    require_positions(model, given, mask, adapter)
    require_room(model, *given.shape[:2])
    return needed_index(task_index, len(adapter))


def require_rows(adapter, task_index: Optional[Tensor], rows: int):
    """Refuses adapters that are neither one for all rows nor one for each, and a task_index of other than `rows`."""
    if task_index is not None and len(task_index) != rows:
        raise ValueError(
            f"task_index names the adapters of {len(task_index)} rows, but the batch has {rows}; name one for each row"
        )
    if task_index is None and len(adapter) not in (1, rows):
        raise ValueError(
            f"a batch of {rows} rows was given {len(adapter)} adapters; give one for all rows, one for each, or say "
            "with task_index which row has which"
        )


def fingerprint(adapter, backbone: nn.Module) -> Optional[list[float]]:
    """Returns a few weights that `adapter` changes, to recognise the backbone by; `None` if they cannot be read.

    These are two weights of each of eight modules. Another model has others, and so has this one after full
    finetuning. Training that changes them by less than 2 %, or changes other modules alone, goes unnoticed.
    """
    weights = [backbone.get_submodule(path).weight for path in fingerprinted(adapter)]
    if any(w.device.type == "meta" or not w.is_floating_point() for w in weights):
        return None
    rows = torch.stack([w.detach()[0, :2].float() for w in weights]).flatten()
    return [round(value, 6) for value in rows.tolist()]


def fingerprinted(adapter) -> list[str]:
    """Returns the paths of the modules whose weights are in an adapter's fingerprint."""
    return sorted(adapter.lora_a)[:8]


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Tells whether weights are the same but for their precision: bfloat16 keeps 8 bits, other weights differ by much
    more."""
    return len(one) == len(other) and all(abs(a - b) <= 1e-4 + 0.02 * max(abs(a), abs(b)) for a, b in zip(one, other))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({value!r:.60})"
