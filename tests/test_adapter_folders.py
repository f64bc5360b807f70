"""Adapters in PEFT folders: written, read back, and refused where they are not whole."""

import json
import logging
import os

import peft
import pytest
import torch
from peft import PeftModel
from toy_adapters import assert_same, names
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils.logging import warning_once

from modeling_tagi import TagiAdapter, TagiModel, adapter_files

PEFT_FILES = ["adapter_config.json", "adapter_model.safetensors", "tagi_adapter.json"]
FAMILIES = ["t5", "t5_v1_1", "mt5", "llama", "qwen2", "qwen3", "gpt2"]


@pytest.fixture
def folder(make_model, tmp_path):
    """A saved adapter without memory."""
    make_model("llama", "none").generate_adapter([5, 6, 7]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_answers_as_the_model_does(make_model, random_ids, tmp_path, family):
    model = make_model(family, "none", backbone_name_or_path=str(tmp_path / "backbone"))
    adapter = model.generate_adapter([5, 6, 7, 8])
    adapter.save_pretrained(tmp_path / "adapter")
    model.backbone.save_pretrained(tmp_path / "backbone")
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    backbone = auto.from_pretrained(tmp_path / "backbone")
    peft = PeftModel.from_pretrained(backbone, tmp_path / "adapter").eval()

    batch = {"input_ids": random_ids(2, 6)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = random_ids(2, 4)
    expected = model(**batch, adapter=adapter).logits
    torch.testing.assert_close(peft(**batch).logits, expected, rtol=0, atol=1e-5)
    merged = peft.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=0, atol=1e-4)
    assert (expected - model.backbone(**batch).logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("fusion", ["none", "concat", "cross_attention"])
def test_a_saved_adapter_reloads_equal(make_model, random_ids, tmp_path, family, fusion):
    model = make_model(family, fusion)
    adapter = model.generate_adapter([5, 6, 7, 8])
    adapter.save_pretrained(tmp_path / "adapter")
    assert names(tmp_path / "adapter") == sorted(PEFT_FILES + ["tagi_memory.safetensors"] * (fusion != "none"))
    loaded = TagiAdapter.from_pretrained(tmp_path / "adapter")
    assert_same(loaded, adapter)
    assert {k: v for k, v in loaded.peft_config.items() if v} == {k: v for k, v in adapter.peft_config.items() if v}
    ids = random_ids(2, 5)
    assert torch.equal(model.generate(ids, adapter=loaded), model.generate(ids, adapter=adapter))
    loaded.save_pretrained(tmp_path / "again")
    assert_bytes_equal(tmp_path / "again", tmp_path / "adapter")


def assert_bytes_equal(one, two):
    assert names(one) == names(two)
    for name in names(one):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_equal_adapters_are_equal_files(make_model, tmp_path):
    for name in ("one", "two"):
        make_model("t5").generate_adapter([5, 6, 7]).save_pretrained(tmp_path / name)
    make_model("t5").generate_adapter([[8, 9, 10, 11, 12], [5, 6, 7]])[1].save_pretrained(tmp_path / "one")
    make_model("t5").generate_adapter([5, 6, 7]).save_pretrained(tmp_path / "one")
    assert_bytes_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("trained", [False, True])
def test_adapter_config_names_the_base_it_fits(make_model, tmp_path, trained):
    model = make_model(
        "gpt2", "none", backbone_name_or_path="user/stock", backbone_revision="abc", backbone_trained=trained
    )
    model.name_or_path = "user/checkpoint"
    model.generate_adapter([5, 6]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ("user/checkpoint" if trained else "user/stock")
    assert config["revision"] == (None if trained else "abc")
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 4, 8)
    assert config["fan_in_fan_out"] and config["inference_mode"] and config["bias"] == "none"
    assert config["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


def test_a_fusion_adapter_warns_once_of_what_peft_lacks(make_model, tmp_path, caplog):
    warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        make_model("t5").generate_adapter([5, 6]).save_pretrained(tmp_path / "fused")
    (record,) = caplog.records
    assert "\n" not in record.message and "tagi_memory.safetensors" in record.message and "PEFT" in record.message


def test_an_adapter_without_memory_warns_of_nothing(make_model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make_model("t5", "none").generate_adapter([5, 6]).save_pretrained(tmp_path / "plain")
    assert not caplog.records and names(tmp_path / "plain") == PEFT_FILES


def test_an_interrupted_save_leaves_the_old_folder(make_model, tmp_path, monkeypatch):
    model = make_model("t5")
    model.generate_adapter([5, 6]).save_pretrained(tmp_path / "adapter")
    before = {name: (tmp_path / "adapter" / name).read_bytes() for name in names(tmp_path / "adapter")}
    calls = []

    def broken(tensors, path, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("the disk is full")
        return save_file(tensors, path, **kwargs)

    save_file = adapter_files.save_file
    monkeypatch.setattr(adapter_files, "save_file", broken)
    with pytest.raises(OSError, match="the disk is full"):
        model.generate_adapter([7, 8, 9]).save_pretrained(tmp_path / "adapter")
    assert names(tmp_path) == ["adapter"]
    assert {name: (tmp_path / "adapter" / name).read_bytes() for name in names(tmp_path / "adapter")} == before


def test_a_move_cut_off_half_way_leaves_a_folder_that_does_not_load(make_model, tmp_path, monkeypatch):
    model = make_model("t5")
    model.generate_adapter([5, 6]).save_pretrained(tmp_path / "adapter")
    replace = os.replace

    def cut_off(source, target):
        if str(target).endswith("adapter_model.safetensors"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(adapter_files.os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        model.generate_adapter([7, 8, 9]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json"):
        TagiAdapter.from_pretrained(tmp_path / "adapter")


def test_saving_over_a_fusion_adapter_leaves_no_stale_memory_and_no_other_file_touched(make_model, tmp_path):
    make_model("t5").generate_adapter([5, 6]).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    make_model("t5", "none").generate_adapter([5, 6]).save_pretrained(tmp_path)
    assert names(tmp_path) == sorted(PEFT_FILES + ["README.md"])
    assert TagiAdapter.from_pretrained(tmp_path).memory is None


def test_a_file_in_the_folders_place_is_refused(make_model, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken is a file; save_pretrained needs a folder"):
        make_model("t5").generate_adapter([5]).save_pretrained(tmp_path / "taken")


def test_a_plain_peft_folder_is_read(make_backbone, make_model, random_ids, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = make_model("llama", "none")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "up_proj"])
    theirs = get_peft_model(make_backbone("llama"), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    adapter = TagiAdapter.from_pretrained(tmp_path)
    assert (len(adapter), adapter.rank, adapter.scaling) == (1, 2, 1.5)
    ids = random_ids(2, 5)
    torch.testing.assert_close(model(ids, adapter=adapter).logits, theirs.eval()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family, auto", [("llama", "AutoPeftModelForCausalLM"), ("t5", "AutoPeftModelForSeq2SeqLM")])
def test_auto_peft_loads_an_adapter_with_its_backbone(make_backbone, make_model, random_ids, tmp_path, family, auto):
    make_backbone(family).save_pretrained(tmp_path / "stock")
    model = TagiModel.from_backbone(
        tmp_path / "stock", fusion="none", r=4, generator_hidden_size=16, generator_index_size=4
    ).eval()
    model.load_state_dict(make_model(family, "none").state_dict())
    model.generate_adapter([5, 6, 7]).save_pretrained(tmp_path / "adapter")

    # a backbone that training has changed is in the checkpoint alone, until it is written out
    with torch.no_grad():
        model.backbone.lm_head.weight.add_(0.1)
    model.config.backbone_trained = True
    model.save_pretrained(tmp_path / "checkpoint")
    changed = TagiModel.from_pretrained(tmp_path / "checkpoint")
    changed.backbone.save_pretrained(tmp_path / "backbone")
    changed.generate_adapter([5, 6, 7]).save_pretrained(tmp_path / "named", base_model=tmp_path / "backbone")

    ids, last = random_ids(2, 5), []
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if family == "t5" else {})}
    stock = TagiModel.from_backbone(tmp_path / "stock", fusion="none", r=4, generator_hidden_size=16,
                                    generator_index_size=4).eval()  # fmt: skip
    for folder, ours in (("adapter", stock), ("named", changed)):
        theirs = getattr(peft, auto).from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            adapter = TagiAdapter.from_pretrained(tmp_path / folder)
            expected = ours(**inputs, adapter=adapter).logits
            torch.testing.assert_close(theirs(**inputs).logits, expected, rtol=0, atol=1e-5)
            assert not torch.allclose(ours(**inputs).logits, expected, atol=1e-3)
        last.append(expected)
    assert not torch.allclose(*last, atol=1e-3)


def test_an_adapter_is_not_loaded_as_a_model(make_model, tokenizer, tmp_path):
    model = make_model("llama", "none")
    model.config.backbone_trained = True
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "model")
    model = TagiModel.from_pretrained(tmp_path / "model")
    model.generate_adapter([5, 6]).save_pretrained(tmp_path / "adapter")
    message = "adapter is an adapter, which is not built into a model: load the model .*adapter_class.from_pretrained"
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    with pytest.raises(ValueError, match=message):
        model.load_adapter(str(tmp_path / "adapter"))


# Folders that cannot be read


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        TagiAdapter.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", PEFT_FILES[:2])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"adapter has no {name}; an adapter folder holds"):
        TagiAdapter.from_pretrained(folder)


def test_a_missing_memory_is_named(make_model, tmp_path):
    make_model("t5").generate_adapter([5, 6]).save_pretrained(tmp_path)
    (tmp_path / "tagi_memory.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no tagi_memory.safetensors"):
        TagiAdapter.from_pretrained(tmp_path)


def test_a_memory_is_not_forgotten_where_provenance_is_missing(make_model, tmp_path):
    adapter = make_model("t5").generate_adapter([5, 6])
    adapter.save_pretrained(tmp_path)
    (tmp_path / "tagi_adapter.json").unlink()
    assert torch.equal(TagiAdapter.from_pretrained(tmp_path).memory.keys, adapter.memory.keys)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"peft_type": "IA3"}, "PEFT adapter of type 'IA3'; a TagiAdapter is LORA"),
        ({"use_dora": True}, "uses use_dora; a TagiAdapter is plain LoRA"),
        ({"use_rslora": True}, "uses use_rslora"),
        ({"bias": "lora_only"}, "uses bias"),
        ({"modules_to_save": ["lm_head"], "rank_pattern": {"q": 2}}, "uses modules_to_save, rank_pattern"),
    ],
)
def test_another_kind_of_adapter_is_refused(folder, fields, message):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(ValueError, match=message):
        TagiAdapter.from_pretrained(folder)


@pytest.mark.parametrize(
    "change, message", [("extra", "'base_model.model.x.bias', which is no LoRA"), ("half", "A and a B")]
)
def test_weights_that_are_no_lora_are_refused(folder, change, message):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    if change == "extra":
        tensors["base_model.model.x.bias"] = torch.zeros(2)
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if "layers.0.self_attn.q_proj.lora_B" not in name}
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=message):
        TagiAdapter.from_pretrained(folder)


def test_the_adapter_of_a_saved_other_backbone_is_refused(make_model, random_ids, folder):
    loaded = TagiAdapter.from_pretrained(folder)
    ids = random_ids(1, 4)
    make_model("llama", "none").to(torch.bfloat16)(ids, adapter=loaded)
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        make_model("llama", "none", seed=5).generate(ids, adapter=loaded)


def test_that_peft_leaves_the_memory_out_is_said_once(make_model, random_ids, tmp_path, caplog):
    warning_once.cache_clear()
    adapters = make_model("t5").generate_adapter(random_ids(2, 4))
    for number, adapter in enumerate(adapters):
        adapter.save_pretrained(tmp_path / str(number))
    assert sum("PEFT alone" in record.getMessage() for record in caplog.records) == 1
