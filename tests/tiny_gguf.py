"""A tiny random Llama in a GGUF file, with a byte-level tokenizer of its own."""

from pathlib import Path
from typing import Union

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def write_tiny_gguf(path: Union[str, Path], seed: int = 0, architecture: str = "llama", tokenizer: bool = True):
    """Writes the file and returns its path; without `tokenizer` it has weights alone."""
    from gguf import GGUFWriter, TokenType

    pieces = [*SPECIAL, *sorted(ByteLevel.alphabet()), "th", "Ġt"]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    writer = GGUFWriter(str(path), architecture)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(pieces))
    if tokenizer:
        kinds = [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(pieces) - len(SPECIAL))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(pieces)
        writer.add_token_types(kinds)
        writer.add_token_merges(["t h", "Ġ t"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_name(name), _rows(name, tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _name(name: str) -> str:
    """Returns a tensor's name in GGUF."""
    parts = {
        "model.layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    }  # fmt: skip
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


def _rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor as llama.cpp orders its rows: rotary pairs lie side by side in queries and keys."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return split.swapaxes(1, 2).reshape(tensor.shape).contiguous()
