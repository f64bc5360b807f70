"""What the page computes, without a page."""

import pytest
import torch

from modeling_tagi.demo.answers import MOST_CHARACTERS, MOST_INPUTS, WAYS, lines_of, shown
from modeling_tagi.demo.changes import placed, plot_of_changes, update_norms
from modeling_tagi.instructions import InstructionIndex


@pytest.fixture
def model(make_model, tokenizer):
    made = make_model("t5", "none")
    made.tokenizer = tokenizer
    return made


def test_each_way_answers_as_the_model_does_by_itself(model):
    texts = ["ab", "c d e"]
    found = shown(model, " say ab ", texts, ["yes", "no"])
    own = model.function("say ab", ["yes", "no"])
    assert set(found.answers) == set(WAYS) and found.instruction == "say ab"
    assert [one.text for one in found.answers["adapter"]] == own(texts)
    adapter, prompt, neither = (found.answers[way][0].scores["yes"] for way in WAYS)
    assert len({round(x, 6) for x in (adapter, prompt, neither)}) == 3
    inside = model.tokenizer("yes")["input_ids"]
    ids = torch.tensor([model.tokenizer("ab")["input_ids"]])
    loss = model.backbone(input_ids=ids, labels=torch.tensor([inside])).loss
    assert neither == pytest.approx(-loss.item(), abs=1e-4)


def test_free_answers_have_no_scores(model):
    found = shown(model, "say ab", ["ab"], max_new_tokens=3)
    assert all(answers[0].scores is None and isinstance(answers[0].text, str) for answers in found.answers.values())


def test_the_nearest_instructions_are_shown_where_they_are_published(model):
    assert shown(model, "say ab", ["ab"], max_new_tokens=1).far is None
    width = model.config.backbone_config.d_model
    model.instruction_index = InstructionIndex(torch.zeros(2, width), ["say a", "say b"], 1e9)
    found = shown(model, "say ab", ["ab"], max_new_tokens=1)
    assert found.far.startswith("0.00 times as far") and set(found.nearest) == {"say a", "say b"}
    model.instruction_index = InstructionIndex(torch.ones(2, width), None, 1e-9)
    found = shown(model, "say ab", ["ab"], max_new_tokens=1)
    assert found.far.endswith("its adapter may be of no use") and found.nearest == []


@pytest.mark.parametrize("instruction, inputs, message", [
    (" ", ["a"], "There is no instruction"), ("say", [], "There is no input"),
    ("say", ["a"] * (MOST_INPUTS + 1), f"There are {MOST_INPUTS + 1} inputs"),
    ("say", ["a" * (MOST_CHARACTERS + 1)], "4,001 characters; this page reads 4,000"),
])  # fmt: skip
def test_what_cannot_be_answered_is_told(model, instruction, inputs, message):
    with pytest.raises(ValueError, match=message):
        shown(model, instruction, inputs)


def test_lines():
    assert lines_of(" a \n\n b\n") == ["a", "b"] and lines_of(None) == []


def test_norms_are_those_of_the_whole_updates(model):
    adapter = model.generate_adapter("say ab")
    norms = update_norms(adapter)
    assert norms.keys() == adapter.lora_a.keys()
    for path, norm in norms.items():
        update = adapter.scaling * adapter.lora_b[path][0] @ adapter.lora_a[path][0]
        assert norm == pytest.approx(update.norm().item(), rel=1e-5)


@pytest.mark.parametrize("path, place", [
    ("model.layers.15.self_attn.q_proj", (15, "self_attn.q_proj")),
    ("encoder.block.2.layer.0.SelfAttention.q", (2, "encoder SelfAttention.q")),
    ("decoder.block.0.layer.1.EncDecAttention.v", (0, "decoder EncDecAttention.v")),
    ("transformer.h.3.attn.c_attn", (3, "attn.c_attn")), ("lm_head", (0, "lm_head")),
])  # fmt: skip
def test_modules_have_a_layer_and_a_kind(path, place):
    assert placed(path) == place


def test_the_plot_has_a_row_for_each_kind_and_a_column_for_each_layer(model):
    adapter = model.generate_adapter("say ab")
    (axes, *_) = plot_of_changes(adapter).axes
    kinds = {placed(path)[1] for path in adapter.lora_a}
    layers = {placed(path)[0] for path in adapter.lora_a}
    assert axes.images[0].get_array().shape == (len(kinds), len(layers))
    assert {label.get_text() for label in axes.get_yticklabels()} == kinds
