"""What holds for every model: rows do not matter to each other, and an adapter is the same wherever it lies."""

import tempfile
from dataclasses import dataclass, field

import pytest
import torch
from generated import FEW
from hypothesis import given
from hypothesis import strategies as st

from modeling_tagi import TagiAdapter
from modeling_tagi.configuration_tagi import FUSIONS

SEQ2SEQ = ("t5", "t5_v1_1", "mt5", "bart", "pegasus")
LAYERS = {"t5": "num_layers", "t5_v1_1": "num_layers", "mt5": "num_layers", "bart": "encoder_layers",
          "pegasus": "decoder_layers", "gpt2": "n_layer"}  # fmt: skip
FIXED = ("gemma2", "gemma3_text")  # whose two layers differ
CAUSAL = ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "gpt_neox", "gpt2", *FIXED)
rows_of_ids = st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=9), min_size=1, max_size=4)


@dataclass(frozen=True)
class Drawn:
    """A tiny model by its fields, instructions for it, inputs, and the instruction of each input."""

    family: str
    fields: dict = field(hash=False)
    layers: int
    seed: int
    instructions: list = field(hash=False)
    inputs: list = field(hash=False)
    index: list = field(hash=False)


@st.composite
def drawn(draw, fusions=FUSIONS):
    instructions, inputs = draw(rows_of_ids), draw(rows_of_ids)
    fields = {
        "fusion": draw(st.sampled_from(fusions)),
        "generator": draw(st.sampled_from(["per_layer", "per_module", "shared"])),
        "r": draw(st.integers(1, 5)), "lora_alpha": draw(st.sampled_from([1, 3.5, 8])),
        "pooling": draw(st.sampled_from(["mean", "attention"])),
    }  # fmt: skip
    index = draw(st.lists(st.integers(0, len(instructions) - 1), min_size=len(inputs), max_size=len(inputs)))
    family, layers = draw(st.sampled_from(SEQ2SEQ + CAUSAL)), draw(st.integers(1, 3))
    return Drawn(family, fields, layers, draw(st.integers(0, 3)), instructions, inputs, index)


@pytest.fixture(scope="session")
def made(make_model, make_backbone):
    """Returns a drawn model and the adapters of its instructions."""

    def make(case: Drawn):
        spread = {"init_std": 0.3} if case.family in ("bart", "pegasus") else {"initializer_range": 0.2}
        fields = {} if case.family in ("t5", "t5_v1_1", "mt5") else spread
        if case.family not in FIXED:
            fields[LAYERS.get(case.family, "num_hidden_layers")] = case.layers
        backbone = make_backbone(case.family, case.seed, **fields)
        model = make_model(case.family, backbone=backbone, seed=case.seed, **case.fields)
        return model, model.generate_adapter(case.instructions)

    return make


def logits(model, rows, adapter, index=None, more=0):
    """Returns each row's logits `[seq, vocab]`, of inputs that are padded to the longest and `more`."""
    longest = max(map(len, rows)) + more
    left = not model.config.is_encoder_decoder
    gaps = [[0] * (longest - len(row)) for row in rows]
    ids = torch.tensor([gap + row if left else row + gap for gap, row in zip(gaps, rows)])
    given_ = {"input_ids": ids, "attention_mask": (ids != 0).long(), "adapter": adapter}
    if index is not None:
        given_["task_index"] = torch.tensor(index)
    if model.config.backbone_config.model_type == "gpt2" and model.config.fusion == "none":
        # as of any GPT-2 of transformers: its forward, unlike generate, does not take positions from the mask
        given_["position_ids"] = (given_["attention_mask"].cumsum(1) - 1).clamp_min(0)
    if not left:
        given_["decoder_input_ids"] = torch.tensor([[0, 7, 5, 9]]).expand(len(rows), -1)
    with torch.no_grad():
        found = model(**given_).logits
    return [one[-len(row):] if left else one for one, row in zip(found, rows)]


def alike(one, two):
    for x, y in zip(one, two, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=2e-4)


@FEW
@given(case=drawn())
def test_a_batch_answers_as_each_row_alone(made, case):
    model, adapters = made(case)
    batched = logits(model, case.inputs, adapters, case.index)
    alone = [logits(model, [row], adapters[number])[0] for row, number in zip(case.inputs, case.index)]
    alike(batched, alone)


@FEW
@given(case=drawn(), order=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_instructions_does_not_matter(made, case, order):
    model, adapters = made(case)
    expected = logits(model, case.inputs, adapters, case.index)
    rows, tasks = list(range(len(case.inputs))), list(range(len(case.instructions)))
    order.shuffle(rows), order.shuffle(tasks)
    again = model.generate_adapter([case.instructions[task] for task in tasks])
    index = [tasks.index(case.index[row]) for row in rows]
    alike(logits(model, [case.inputs[row] for row in rows], again, index), [expected[row] for row in rows])


@FEW
@given(case=drawn(), more=st.integers(1, 6))
def test_padding_changes_nothing(made, case, more):
    model, adapters = made(case)
    longest = max(map(len, case.instructions)) + more
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in case.instructions])
    with torch.no_grad():
        padded = model.adapter_from_ids(ids, (ids != 0).long())
    for one, two in ((padded.lora_a, adapters.lora_a), (padded.lora_b, adapters.lora_b)):
        alike(one.values(), two.values())
    expected = logits(model, case.inputs, adapters, case.index)
    alike(logits(model, case.inputs, padded, case.index, more), expected)


@FEW
@given(case=drawn())
def test_an_adapter_that_was_saved_is_read_again_number_for_number(made, case):
    model, adapters = made(case)
    for adapter in adapters:
        with tempfile.TemporaryDirectory() as folder:
            adapter.save_pretrained(folder)
            again = TagiAdapter.from_pretrained(folder)
        assert (again.lora_alpha, again.rank, again.peft_config) == (
            adapter.lora_alpha, adapter.rank, {name: value for name, value in adapter.peft_config.items() if value}
        )  # fmt: skip
        for one, two in ((again.lora_a, adapter.lora_a), (again.lora_b, adapter.lora_b),
                         (_memory(again), _memory(adapter))):  # fmt: skip
            assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        for one, two in zip(logits(model, case.inputs, again), logits(model, case.inputs, adapter), strict=True):
            assert torch.equal(one, two)


@FEW
@given(case=drawn(fusions=["none"]))
def test_a_merged_model_answers_as_the_adapter_that_is_applied(made, case):
    model, adapters = made(case)
    for adapter in adapters:
        merged = adapter.merge_into(model).eval()
        with torch.no_grad():
            expected = logits(model, case.inputs, adapter)
            alike(logits(Plain(merged, model.config), case.inputs, adapter), expected)


class Plain:
    """A plain model that is called as one with adapters.

    Args:
        model: A copy of a backbone.
        config: The config of the model with adapters.
    """

    def __init__(self, model, config):
        self.model, self.config = model, config

    def __call__(self, adapter, **inputs):
        return self.model(**inputs)


def _memory(adapter):
    return adapter.memory.trimmed().tensors() if adapter.memory is not None else {}
