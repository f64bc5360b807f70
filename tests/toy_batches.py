"""Random inputs and labels for the tiny models."""

import pytest
import torch

from modeling_tagi import TagiAdapter

SEQ2SEQ = ["t5", "t5_v1_1", "mt5"]
CAUSAL = ["llama", "qwen2", "qwen3", "gpt2"]
FUSIONS = ["none", "concat", "cross_attention"]
every_family = pytest.mark.parametrize("family", SEQ2SEQ + CAUSAL)
both_kinds = pytest.mark.parametrize("family", ["t5", "llama"])
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def batch_for(model, random_ids, rows=2, seed=0):
    batch = {"input_ids": random_ids(rows, 6, seed), "attention_mask": torch.ones(rows, 6, dtype=torch.long)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = random_ids(rows, 4, seed + 1)
    return batch


def labels_for(model, random_ids, rows=2, seed=0):
    labels = random_ids(rows, 4 if model.config.is_encoder_decoder else 6, seed + 1)
    labels[0, :2] = -100
    return labels


def pad_rows(rows, left=False):
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def equal_adapters(one: TagiAdapter, two: TagiAdapter, atol=0.0):
    assert one.lora_a.keys() == two.lora_a.keys()
    for factor in ("lora_a", "lora_b"):
        for path, tensor in getattr(one, factor).items():
            torch.testing.assert_close(tensor, getattr(two, factor)[path], rtol=0, atol=atol)
    assert (one.memory is None) == (two.memory is None)
    for name, tensor in one.memory.tensors().items() if one.memory is not None else ():
        torch.testing.assert_close(tensor, two.memory.tensors()[name], rtol=0, atol=atol)
