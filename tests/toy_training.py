"""Fixtures of tests that train: toy records, their tokenizer, tiny backbones and generators on them."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration

from modeling_tagi import TagiAdapter, TagiModel
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.tokens import Tokens

# The fixtures, which the folders of tests that train take with `from toy_training import *`.
__all__ = ["records", "tokenizer", "backbones", "make_model", "make_tokens", "make_bank", "training_arguments"]

WORDS = "red green blue one two three four apple pear plum cat dog".split()
INSTRUCTIONS = {
    "first": "say the first word",
    "last": "say the last word",
    "both": "say the first word and the last word",
    "swap": "say the two words in the other order",
}


def _answer(task, words):
    return {
        "first": words[0], "last": words[-1], "both": f"{words[0]} {words[-1]}", "swap": f"{words[1]} {words[0]}"
    }[task]  # fmt: skip


@pytest.fixture(scope="session")
def records():
    """4 tasks of 6 records in 2 groups, the tasks taking turns; targets of 1 and 2 words."""
    made = []
    for number in range(6):
        for task, instruction in INSTRUCTIONS.items():
            words = [WORDS[(number * 2 + len(task)) % 12], WORDS[(number * 5 + 1) % 12]]
            group = "one" if task in ("first", "last") else "two"
            made.append(Record(task, instruction, " ".join(words), (_answer(task, words),), group))
    return made


@pytest.fixture(scope="session")
def tokenizer(records):
    return train_tokenizer([*WORDS, *(f"{r.instruction} {r.input} Input:" for r in records)], 60)


@pytest.fixture(scope="session")
def backbones(tokenizer, tmp_path_factory):
    """Folders of tiny backbones by family and dropout."""
    made = {}

    def folder(family="t5", dropout=0.0):
        if (family, dropout) not in made:
            torch.manual_seed(0)
            special = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(tokenizer)}
            if family == "t5":
                model = T5ForConditionalGeneration(T5Config(
                    d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=dropout,
                    decoder_start_token_id=0, tie_word_embeddings=False, **special,
                ))  # fmt: skip
            else:
                model = LlamaForCausalLM(LlamaConfig(
                    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=2, attention_dropout=dropout, max_position_embeddings=128,
                    tie_word_embeddings=False, bos_token_id=None, **special,
                ))  # fmt: skip
            path = tmp_path_factory.mktemp(f"{family}-{dropout}")
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[family, dropout] = str(path)
        return made[family, dropout]

    return folder


@pytest.fixture
def make_model(backbones):
    """A generator on a tiny backbone, the same one at every call; with `trained=True` it changes something."""

    def make(family="t5", dropout=0.0, trained=False, **fields):
        folder = backbones(family, dropout)
        torch.manual_seed(1)
        fields = {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4, **fields}
        model = TagiModel.from_backbone(folder, dtype=torch.float32, **fields)
        if trained:
            for stack in model.hypernetwork.stacks:
                for weight in stack.output_weights:
                    torch.nn.init.normal_(weight, std=0.3)
        return model

    return make


@pytest.fixture
def make_tokens(tokenizer):
    def make(family="t5", **lengths):
        return Tokens(tokenizer, family == "t5", **{"max_input_length": 48, "max_target_length": 8, **lengths})

    return make


@pytest.fixture
def make_bank():
    """Task adapters that start from the model's A, with a random B."""

    def make(model, tasks=2):
        generator = torch.Generator().manual_seed(3)
        a = {path: x.detach().expand(tasks, -1, -1).clone() for path, x in model.hypernetwork.shared_factors().items()}
        b = {}
        for path, x in a.items():
            d_out = model.backbone.get_submodule(path).out_features
            b[path] = torch.randn(tasks, d_out, x.shape[1], generator=generator) * 0.3
        return TagiAdapter(a, b, model.config.lora_alpha)

    return make


@pytest.fixture
def training_arguments(tmp_path):
    def make(**fields):
        defaults = {
            "output_dir": str(tmp_path / "trainer"), "max_steps": 1, "per_device_train_batch_size": 1,
            "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0, "logging_steps": 1,
            "save_strategy": "no", "report_to": [], "remove_unused_columns": False, "label_names": ["labels"],
            "dataloader_pin_memory": False, "disable_tqdm": True, "use_cpu": True,
        }  # fmt: skip
        return Seq2SeqTrainingArguments(**{**defaults, **fields})

    return make
