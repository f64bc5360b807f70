"""What is particular to causal backbones: keys and values of the instruction are a prefix to those of the input."""

from functools import partial
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, StaticCache
from transformers.masking_utils import create_causal_mask

from .families import family_of, window_of
from .fit import require_no_drafts, require_one_rotation
from .fusion import InstructionMemory, layers_of
from .lora import CACHE_NAMES, Application, applied, arguments_pre_hook, pre_hook_once, take_rows


class Causal:
    """Reads instructions and inputs with a causal backbone. `model` is the [`TagiModel`] around it."""

    task_type = "CAUSAL_LM"  # PEFT's
    one_adapter_a_row = True  # in `generate`: a prefix is each row's own

    def fused_modules(self, backbone: nn.Module) -> list[nn.Module]:
        """Returns the modules behind which cross-attention to the instruction goes: the layers, since no module's
        output is the residual stream behind the self-attention."""
        return list(layers_of(backbone.base_model))

    def hook(self, backbone: nn.Module):
        """Registers the hook that `apply_memory` needs, which is for backbones with sliding windows alone."""
        if window_of(backbone.config) is not None:
            pre_hook_once(backbone.base_model, arguments_pre_hook)

    def read(self, model, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns an instruction's states `[tasks, seq, d_model]`, and the prefix for its memory, if it has one."""
        cache = DynamicCache() if model.config.fusion != "none" else None
        # tokens are counted and not places, as in `arguments`: some that are masked may lie between others
        places = {} if cache is None else {"position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0)}
        with applied(Application(new_cache=lambda: cache, checkpointing=False) if cache is not None else None):
            states = model.backbone.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=cache is not None,
                **{model.cache_name: cache},
                **places,
            )[0]
        if cache is None:
            return states, {}
        return states, {
            f"prefix_{name}": torch.stack([getattr(layer, name) for layer in cache.layers], 1)
            for name in ("keys", "values")
        }

    def apply_memory(self, backbone: nn.Module, application: Application, memory: InstructionMemory):
        """Lets a backbone with a sliding window count it in tokens, not in places of the cache."""
        if memory.prefix_keys is not None and window_of(backbone.config) is not None:
            stack = backbone.base_model
            application.arguments[stack] = partial(windowed_masks, stack)

    def arguments(
        self, model, application, adapter, task_index: Optional[Tensor], labels: Optional[Tensor], given: dict
    ) -> dict:
        """Returns the arguments of the backbone's `forward`, from those `given` to the model's, which this changes."""
        given.pop("decoder_input_ids")
        if adapter is None or adapter.memory is None:
            return given
        input_ids, mask, cache = given["input_ids"], given["attention_mask"], given[model.cache_name]
        inputs = input_ids if input_ids is not None else given.get("inputs_embeds")
        if inputs is None:
            raise ValueError("forward got an adapter, but no inputs; give input_ids or inputs_embeds")
        rows, length = inputs.shape[:2]
        application.new_cache = lambda: prefix_cache(adapter.memory, rows, model.dtype, task_index)
        if cache is None or not cache.get_seq_length():
            cache = application.new_cache()
        prefix_mask = take_rows(adapter.memory.mask, rows, task_index)
        if mask is None:
            seen = cache.get_seq_length() - prefix_mask.shape[1]
            mask = prefix_mask.new_ones(rows, seen + length)
        if input_ids is not None:
            mask = without_start(mask, input_ids, _hidden_start(model), cache)
        mask = torch.cat([prefix_mask.to(mask.dtype), mask], 1)
        require_one_rotation(model, mask.shape[1])
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
        return {**given, "attention_mask": mask, "position_ids": positions, model.cache_name: cache}

    def predicted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and labels, aligned: the logits for a token are at the token before it."""
        return logits[:, :-1], labels[:, 1:]

    def generate(self, model, input_ids: Optional[Tensor], mask: Tensor, adapter, task_index, config, **kwargs):
        """Returns the output of the backbone's `generate`, with the instruction in its cache.

        The backbone does not get the instruction's tokens; its mask covers instruction and input.
        """
        require_no_drafts(model, adapter, config, kwargs.get("assistant_model"))
        if adapter.memory is None:
            return model.backbone.generate(input_ids, attention_mask=mask, generation_config=config, **kwargs)
        for name in ("inputs_embeds", "cache", "past_key_values"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    f"generate got {name}, which it cannot read behind an instruction (fusion={model.config.fusion!r})"
                    "; give input_ids of the whole input"
                )
        copies = max(config.num_beams or 1, config.num_return_sequences or 1)
        prefix_mask = take_rows(adapter.memory.mask, len(input_ids)).to(mask.dtype)
        cache = _empty_cache(model, config, prefix_mask.shape[1], input_ids.shape[1])
        cache = prefix_cache(adapter.memory, len(input_ids) * copies, model.dtype, cache=cache)
        mask = without_start(mask, input_ids, _hidden_start(model), cache)
        if copies > 1 and _hidden_start(model) is not None:
            cache.starts = cache.starts.repeat_interleave(copies, 0)
        config.use_cache = True  # the prefix lives in the cache
        config.prefill_chunk_size = None  # transformers 5.17 would read chunks as if there were no prefix
        kwargs[model.cache_name] = cache
        return model.backbone.generate(
            input_ids, attention_mask=torch.cat([prefix_mask, mask], 1), generation_config=config, **kwargs
        )


def _empty_cache(model, config, prefix: int, length: int) -> Optional[Cache]:
    """Returns the static cache that a generation config asks for, with room for the `prefix`, or `None`.

    Raises:
        ValueError: if the config asks for another kind, or for more tokens than can be read behind a prefix.
    """
    kind, config.cache_implementation = config.cache_implementation, None
    if kind not in (None, "dynamic", "static", "hybrid"):  # the last, of old files of Gemma's, is now the first
        raise ValueError(
            f"cache_implementation is {kind!r}, but with the instruction as a prefix (fusion="
            f"{model.config.fusion!r}) it must be 'dynamic' or 'static'"
        )
    new = config.max_new_tokens
    longest = prefix + ((config.max_length or length + 20) if new is None else length + new)  # 20: transformers'
    require_one_rotation(model, longest - 1)  # the last token that is written is not read
    if kind != "static":
        return None
    window = window_of(model.config.backbone_config)
    if window is not None and longest > window:
        raise ValueError(
            f"instruction, input and output together may be {longest} tokens, but layers of this backbone see "
            f"{window} at a time, which a static cache does not count beside padding; use "
            "cache_implementation='dynamic', or fewer tokens"
        )
    return StaticCache(model.config.backbone_config, max_cache_len=longest)


def _hidden_start(model) -> Optional[int]:
    """Returns the token that begins a text if inputs behind an instruction hide it; else `None`."""
    return model.config.backbone_config.bos_token_id if model.config.continued else None


def prefix_cache(
    memory: InstructionMemory,
    rows: int,
    dtype: torch.dtype,
    task_index: Optional[Tensor] = None,
    cache: Optional[Cache] = None,
) -> Cache:
    """Returns a new cache, or the empty one that is given, with the instruction's keys and values for every row.

    A new one holds them all, also in sliding-window layers: otherwise the padding of shorter instructions, up to the
    batch's longest, would push out their tokens.
    """
    cache = cache if cache is not None else DynamicCache()
    for layer, (keys, values) in enumerate(zip(memory.prefix_keys.unbind(1), memory.prefix_values.unbind(1))):
        cache.update(
            take_rows(keys, rows, task_index).to(dtype), take_rows(values, rows, task_index).to(dtype), layer
        )
    return cache


def without_start(mask: Tensor, ids: Tensor, start: Optional[int], cache: Cache) -> Tensor:
    """Returns the mask of rows behind an instruction, with their beginning-of-text token, if any, masked like padding,
    since the instruction has begun with it already.

    The masked places are noted in the cache, since later calls do not get the ids.

    Args:
        mask: `[batch, seen + seq]`, of the rows' tokens in the cache and of the new ones.
        ids: `[batch, seq]`, the new tokens.
        start: The token; `None` leaves the mask as it is.
        cache: What the rows are read with.
    """
    if start is None:
        return mask
    seen = mask.shape[1] - ids.shape[1]
    first = (mask[:, seen:] != 0) & (mask.cumsum(1)[:, seen:] == 1)
    known = getattr(cache, "starts", mask.new_zeros(len(mask), 0, dtype=torch.bool))[:, :seen]
    known = F.pad(known, (0, seen - known.shape[1]))
    cache.starts = torch.cat([known, first & (ids == start)], 1)
    return mask.masked_fill(cache.starts, 0)


def windowed_masks(stack: nn.Module, arguments: dict) -> dict:
    """Returns the arguments of a causal backbone's stack of layers, with masks whose window is counted in tokens.

    transformers counts it in places of the cache, padding between a row's instruction and its input included, so a
    row would see less of its instruction in a batch than alone.

    Args:
        stack: The backbone's `base_model`, of a family with a window.
        arguments: What it is called with, an `attention_mask [batch, places]` over the cache among them.

    Raises:
        ValueError: for an attention that takes no mask of its own.
    """
    mask, window = arguments["attention_mask"], window_of(stack.config)
    # without padding there may be none; for a static cache, which ends within the window, it is made already
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] <= window:
        return arguments
    if "flash" in stack.config._attn_implementation:
        raise ValueError(
            f"instruction and input together are {mask.shape[1]} tokens, but layers of this backbone see {window} "
            "at a time, and flash attention cannot count these beside padding; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )
    token = mask.cumsum(1)

    def within(batch, head, query, key):
        return token[batch, query] - token[batch, key] < window

    ids = arguments["input_ids"] if arguments.get("input_ids") is not None else arguments["inputs_embeds"]
    like = torch.empty(*ids.shape[:2], 1, dtype=stack.dtype, device=ids.device)  # shape and type are all that is read
    cache = [arguments[name] for name in CACHE_NAMES if name in arguments][0]
    masks = partial(create_causal_mask, stack.config, like, mask, cache)
    windowed = masks(and_mask_function=within)
    if family_of(stack.config).window == "by_layer":
        windowed = {"full_attention": masks(), "sliding_attention": windowed}
    return {**arguments, "attention_mask": windowed}
