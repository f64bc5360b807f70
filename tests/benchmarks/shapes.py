"""Models at full-size shapes with random weights, and the alternatives of PEFT: what several benchmarks measure on."""

import torch
from harness import quiet_libraries  # noqa: F401  (first of all: it sets the environment)
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, PretrainedConfig, T5Config

from modeling_tagi import TagiAdapter, TagiConfig, TagiModel
from modeling_tagi.costs.inference import t5_backbone


def backbone_config(name: str) -> PretrainedConfig:
    """`t5-small` to `t5-xxl` (v1.1's shapes), `llama` (about as large as T5-base), `smollm2` (135M), or `tiny-t5`,
    `tiny-llama`."""
    if name == "smollm2":
        return LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    if name == "llama":
        return LlamaConfig(
            vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=14, num_attention_heads=16,
            num_key_value_heads=4, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    if name == "tiny-llama":
        return LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    if name == "tiny-t5":
        return T5Config(
            vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )  # fmt: skip
    return t5_backbone(name)


def tagi(name: str, **fields) -> TagiModel:
    """A TAGI model with random weights on a backbone of that shape, in evaluation mode; `fields` of [`TagiConfig`]."""
    return TagiModel(TagiConfig(backbone_config(name), **fields)).eval()


def random_adapters(model: TagiModel, number: int, std: float = 0.02) -> TagiAdapter:
    """Adapters without a memory whose updates are not zero, of the model's rank and targets."""
    shared = model.hypernetwork.shared_factors()
    a = {path: factor.detach().expand(number, -1, -1).contiguous() for path, factor in shared.items()}
    b = {path: std * torch.randn(number, model.backbone.get_submodule(path).out_features, model.config.r)
         for path in a}  # fmt: skip
    return TagiAdapter(lora_a=a, lora_b=b, lora_alpha=model.config.lora_alpha)


def with_peft(model: TagiModel, backbone, number: int):
    """`backbone` (not the model's own: PEFT changes it) with `number` PEFT adapters "0", "1", … like the model's."""
    config = LoraConfig(r=model.config.r, lora_alpha=model.config.lora_alpha, lora_dropout=0.0,
                        target_modules=list(model.hypernetwork.shared_factors()), init_lora_weights=False)  # fmt: skip
    peft = get_peft_model(backbone, config, adapter_name="0")
    for name in range(1, number):
        peft.add_adapter(str(name), config)
    return peft
