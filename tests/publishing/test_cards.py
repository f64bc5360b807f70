import json
import re

import pytest
from hub_stand_in import metadata_errors
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from modeling_tagi.publishing.cards import (
    adapter_card,
    checkpoint_card,
    fenced,
    is_edited,
    renamed,
    written,
)

PLACES = {"backbone_name_or_path": "user/stock", "backbone_revision": "abc"}


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def save_adapter(make_model, tokenizer, tmp_path):
    """`save_adapter(family, fusion, instruction, **config fields)`: the folder of one made by user/generator."""

    def save(family, fusion="none", instruction="say yes", **fields):
        model = make_model(family, fusion, **{**PLACES, **fields})
        model.tokenizer, model.name_or_path, model._revision = tokenizer, "user/generator", "def"
        model.generate_adapter(instruction).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return save


# Whose a card is


def test_a_card_that_was_written_here_is_told_from_an_edited_one():
    text = written(ModelCardData(tags=["tagi"]), ["# one", 'AutoModel.from_pretrained("a/b")'])
    assert not is_edited(text) and not is_edited(renamed(text, "user/other"))
    assert '"user/other"' in renamed(text, "user/other") and '"a/b"' not in renamed(text, "user/other")
    changes = text.replace("# one", "# One"), text.replace("- tagi", "- tagi\n- mine"), text + "more", text[:-30]
    assert all(map(is_edited, (*changes, "# by hand")))
    for nothing in (None, "", "---\nlicense: mit\n---\n"):  # the last as the Hub's site makes it
        assert not is_edited(nothing)


def test_no_text_can_end_its_block():
    assert fenced("a ``` b\n````").startswith("`````\n")


# The Hub's checks


def broken(**fields):
    return f"---\n{ModelCardData(**fields).to_yaml()}\n---\n# x\n"


RESULT = {"task_type": "text-generation", "dataset_type": "sni", "dataset_name": "SNI", "metric_type": "rouge"}


@pytest.mark.parametrize(
    "card, message",
    [
        (broken(license="no-such"), "license"),
        (broken(license="other"), "license_name"),
        (broken(base_model="/home/me/model"), "base_model"),
        (broken(pipeline_tag="adapters"), "pipeline_tag"),
        ("---\n- a\n- list\n---\n# x\n", "mapping"),
        ("---\na: b: c\n---\n# x\n", "not YAML"),
        ("---\nmodel-index:\n- name: x\n  results: []\n---\n# x\n", "results"),
        ("---\nmodel-index:\n- name: x\n  results:\n  - {task: {}, dataset: {}, metrics: []}\n---\n", "dataset.name"),
        (broken(model_name="x", eval_results=[EvalResult(**RESULT, metric_value=[1])]), "value"),
    ],
)
def test_the_stand_ins_check_is_real(card, message):
    errors = metadata_errors(card)
    assert any(message in text for text in errors), errors


def test_the_clients_check_asks_it(hub):
    with pytest.raises(ValueError, match="license"):
        ModelCard(broken(license="no-such")).validate()
    ModelCard(broken(license="mit")).validate()


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("fields", [{}, PLACES, {**PLACES, "backbone_trained": True}])
def test_a_checkpoints_card_is_taken_and_says_what_it_is(make_model, hub, family, fields):
    model = make_model(family, **fields)
    text = checkpoint_card(model.config, "user/one", ["mine"])
    card = ModelCard(text)
    card.validate()
    assert {"tagi", "mine"} <= set(card.data.tags) and card.data.base_model == fields.get("backbone_name_or_path")
    relation = "adapter" if fields == PLACES else None
    assert card.data.to_dict().get("base_model_relation") == relation
    (snippet,) = python_blocks(text)
    compile(snippet, "card", "exec")
    assert '"user/one"' in snippet and ("outputs[:, inputs" in snippet) == (family == "llama")


def test_folders_of_ones_own_are_not_told(make_model, save_adapter, hub):
    mine = {"backbone_name_or_path": "/home/me/backbone", "backbone_revision": None}
    folder = save_adapter("llama", **mine)
    for text in (checkpoint_card(make_model("t5", **mine).config, "user/one"), adapter_card(folder, "user/one")):
        ModelCard(text).validate()
        assert "/home/me" not in text and "a folder that is not on the Hub" in text


# Adapters


def test_an_adapters_card_says_where_it_comes_from_and_how_it_is_loaded(save_adapter, hub, tmp_path):
    folder = save_adapter("llama", r=12)
    text = adapter_card(folder, "user/adapter")
    ModelCard(text).validate()
    (tmp_path / "README.md").write_text(text)
    assert metadata_load(tmp_path / "README.md") == {
        "library_name": "peft", "base_model": "user/stock", "base_model_relation": "adapter",
        "tags": ["tagi", "hypernetwork", "lora", "peft"],
    }  # fmt: skip
    source = json.loads((folder / "tagi_adapter.json").read_text())["provenance"]
    for part in ("say yes", source["instruction_sha256"], "user/generator", "def", "user/stock", "abc", "rank 12"):
        assert part in text, part
    ours, peft, vllm = python_blocks(text)
    assert "outputs[:, inputs" in ours  # not the input once more
    for snippet in (ours, peft, vllm):
        compile(snippet, "card", "exec")
        assert '"user/adapter"' in snippet
    assert 'from_pretrained("user/generator", revision="def", trust_remote_code=True)' in ours
    assert 'AutoModelForCausalLM.from_pretrained("user/stock", revision="abc")' in peft
    assert "LoRARequest" in vllm and "max_lora_rank=16" in vllm  # the next that vLLM takes
    assert "not all there is" not in text


def test_a_card_says_when_the_adapter_is_not_all_there_is(save_adapter):
    text = adapter_card(save_adapter("t5", "cross_attention"), "user/adapter")
    assert "This adapter is not all there is" in text and "tagi_memory.safetensors" in text
    assert "vLLM's LoRA does not cover encoder-decoder models" in text and "AutoModelForSeq2SeqLM" in text


def test_the_adapter_of_a_trained_backbone_names_the_generators(save_adapter, hub):
    text = adapter_card(save_adapter("llama", backbone_trained=True), "user/adapter")
    card = ModelCard(text)
    card.validate()
    assert card.data.base_model == "user/generator" and "the generator's own" in text
    assert 'AutoModel.from_pretrained("user/generator", revision="def", trust_remote_code=True).backbone' in text
    assert "LoRARequest" not in text


def test_a_card_does_not_say_of_a_tuned_or_combined_adapter_that_it_was_generated_alone(
    make_model, tokenizer, hub, tmp_path
):
    model = make_model("llama", "none", **PLACES)
    model.tokenizer, model.name_or_path = tokenizer, "user/generator"
    yes, no = model.generate_adapter(["say yes", "say no"])
    examples = [("a", "b"), ("c", "d")]
    tuned = yes.tune(examples, steps=3, progress=False)
    for name, adapter, how in (
        ("tuned", tuned, "generated from an instruction** in one pass, then **tuned on 2 examples** (3 steps)."),
        ("combined", yes.combine([tuned, no], [0.7, -2]), "that is a **weighted sum** of 2 others."),
        ("alone", model.fresh_adapter().tune(examples, steps=3, progress=False), "that was **tuned on 2 examples**"),
    ):
        adapter.save_pretrained(tmp_path / name)
        text = adapter_card(tmp_path / name, f"user/{name}")
        ModelCard(text).validate()
        assert how in text and "not tuned on examples" not in text
        instructions = {"tuned": ["say yes"], "combined": ["say yes", "say no"], "alone": []}[name]
        assert re.findall("```text\n(.*)\n```", text) == instructions
    text = adapter_card(tmp_path / "combined", "user/combined")
    assert "With the weight 0.7:" in text and "With the weight -2:" in text


def test_vllm_is_given_inputs_in_the_form_that_the_adapter_was_made_for(save_adapter):
    plain = python_blocks(adapter_card(save_adapter("llama"), "user/adapter"))[-1]
    assert r'llm.generate(["an input of the task\n\nOutput:\n"], ' in plain
    folder = save_adapter("llama", input_format="chat", instruction=[5, 6])
    chat = python_blocks(adapter_card(folder, "user/adapter"))[-1]
    compile(chat, "card", "exec")
    assert 'llm.chat([{"role": "user", "content": "an input of the task"}], ' in chat


def test_an_instruction_is_only_text(save_adapter, hub):
    instruction = "a ``` b <script>alert(1)</script> | c\n---\nlicense: mit\n---"
    text = adapter_card(save_adapter("llama", instruction=instruction), "user/adapter")
    assert ModelCard(text).data.license is None and not metadata_errors(text)
    assert f"````text\n{instruction}\n````" in text


def test_any_peft_adapter_has_a_card(make_backbone, hub, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(make_backbone("llama"), config).save_pretrained(tmp_path)
    text = adapter_card(tmp_path, "user/adapter")
    ModelCard(text).validate()
    assert "A LoRA adapter for one task." in text and "generated from" not in text
