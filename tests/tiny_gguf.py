"""Tiny random models in GGUF files, with a byte-level tokenizer of their own."""

from pathlib import Path
from typing import Union

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.pytorch_utils import Conv1D

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
PIECES = [*SPECIAL, *sorted(ByteLevel.alphabet()), "th", "Ġt"]
ARCHITECTURES = {"gpt_neox": "gptneox"}  # of those whose name differs from their model type


def write_tiny_gguf(path: Union[str, Path], seed: int = 0, architecture: str = "llama", tokenizer: bool = True):
    """Writes a Llama and returns the file's path; without `tokenizer` it has weights alone."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(PIECES), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return write_gguf_of(AutoModelForCausalLM.from_config(config), path, architecture, tokenizer)


def write_gguf_of(model, path: Union[str, Path], architecture: str = "", tokenizer: bool = True) -> Path:
    """Writes a model of a few families as llama.cpp's converter does, and returns the file's path."""
    from gguf import MODEL_ARCH_NAMES, GGUFWriter, TokenType, get_tensor_name_map

    config, kind = model.config, model.config.model_type
    known = ARCHITECTURES.get(kind, kind)
    writer = GGUFWriter(str(path), architecture or known)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    writer.add_vocab_size(config.vocab_size)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    rope = getattr(config, "rope_parameters", None)
    if rope is not None:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    if kind == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if tokenizer:
        pieces = PIECES[: config.vocab_size]
        kinds = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(pieces) - len(SPECIAL))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(pieces)
        writer.add_token_types(kinds)
        writer.add_token_merges(["t h", "Ġ t"] if len(pieces) == len(PIECES) else [])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template(TEMPLATE)
    (key,) = (key for key, name in MODEL_ARCH_NAMES.items() if name == known)
    names = get_tensor_name_map(key, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Conv1D) and tensor.ndim == 2:
            tensor = tensor.T
        if kind.startswith("gemma") and "norm" in name:
            tensor = tensor + 1
        found = names.get_name(name, (".weight", ".bias"))
        writer.add_tensor(found, rows(config, name, tensor).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def rows(config, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor as llama.cpp orders its rows: a Llama's rotary pairs lie side by side in queries and keys, and
    GPT-NeoX has queries, keys and values each together."""
    module = name.split(".")[-2]
    if config.model_type == "llama" and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        split = tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
        return split.swapaxes(1, 2).reshape(tensor.shape)
    if module == "query_key_value":
        heads = config.num_attention_heads
        split = tensor.reshape(heads, 3, len(tensor) // heads // 3, *tensor.shape[1:])
        return split.swapaxes(0, 1).reshape(tensor.shape)
    return tensor
