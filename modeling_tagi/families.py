"""What is particular to a family of backbones: one table, by the config's `model_type`."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Family:
    """Holds what is particular to a family of backbones; paths are those of modules inside one layer.

    Args:
        targets: Default target modules. A fused projection (queries, keys and values in one module) is one target, as
            in PEFT: its update reads the module's whole input and writes its whole output.
        fused_behind: In an encoder, the module whose output is the residual stream behind the layer's self-attention,
            the S_l of eq. 1; `""` for the layer itself, where no module has that output. `None` in causal families,
            all of which are fused behind the layer.
        memory: In a decoder, modules that project the encoder's output to keys and values; `{}` stands for k or v.
        limited_positions: Whether positions are absolute and learned or tabulated up to a limit, which no sequence may
            exceed, instead of relative or rotary.
        window: How the self-attention's window, if the config sets one, reaches the layers: `"by_layer"`, a mask for
            each kind of layer, or `"everywhere"`, one for all.
        marks_targets: Whether targets, like inputs, begin with the tokens that the tokenizer puts before a text.
    """

    targets: tuple[str, ...]
    fused_behind: Optional[str] = None
    memory: Optional[str] = None
    limited_positions: bool = False
    window: Optional[str] = None
    marks_targets: bool = False


_T5 = Family(("q", "v"), fused_behind="layer.0", memory="layer.1.EncDecAttention.{}")
_LLAMA = Family(("q_proj", "v_proj"))
_QWEN = _GEMMA = Family(("q_proj", "v_proj"), window="by_layer")

FAMILIES = {
    "t5": _T5,  # T5, v1.1, LM-Adapt, Flan-T5
    "mt5": _T5,
    "umt5": _T5,
    # Normalises behind the residual sum: the norm's output is what the feed-forward part reads, and adds to.
    "bart": Family(
        ("q_proj", "v_proj"), fused_behind="self_attn_layer_norm", memory="encoder_attn.{}_proj",
        limited_positions=True, marks_targets=True,
    ),
    # Normalises before: the sum behind its self-attention is no module's output (behind the attention alone, queries
    # would not see the residual stream; behind the next norm, the residual stream would not get the update).
    "pegasus": Family(
        ("q_proj", "v_proj"), fused_behind="", memory="encoder_attn.{}_proj", limited_positions=True,
    ),
    "llama": _LLAMA,
    "mistral": Family(("q_proj", "v_proj"), window="everywhere"),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Family(("qkv_proj",), window="everywhere"),
    "gpt2": Family(("c_attn",), limited_positions=True),
    "gpt_neox": Family(("query_key_value",)),
}  # fmt: skip

# Models of text and images, by the type of the text model inside.
MULTIMODAL = {"gemma3": "gemma3_text"}


def family_of(config) -> Optional[Family]:
    """Returns the family of a backbone's config; `None` for one that is not in the table."""
    return FAMILIES.get(config.model_type)


def window_of(config) -> Optional[int]:
    """Returns how many tokens, itself included, a token sees in sliding-window layers; `None` without such layers."""
    family = family_of(config)
    window = getattr(config, "sliding_window", None) if family is not None and family.window else None
    if window and family.window == "by_layer" and "sliding_attention" not in config.layer_types:
        return None
    return window


def positions_of(config) -> Optional[int]:
    """Returns the most tokens that a sequence can have, for want of further positions; `None` if there is no limit."""
    family = family_of(config)
    return config.max_position_embeddings if family is not None and family.limited_positions else None
