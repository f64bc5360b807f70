import json
import math

import pytest
import torch

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.families import FAMILIES
from modeling_tagi.hypernetwork import GENERATORS


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "mt5", "llama", "qwen2", "qwen3", "gpt2"])
def test_saved_config_reloads_with_equal_fields(make_config, tmp_path, family):
    config = TagiConfig(
        backbone_config=make_config(family),
        r=3,
        lora_alpha=1.5,
        fusion="concat",
        generator="shared",
        generator_hidden_size=7,
        generator_index_size=5,
        max_instruction_length=99,
        backbone_name_or_path="user/backbone",
        backbone_revision="abc",
        backbone_trained=True,
    )
    config.save_pretrained(tmp_path)
    loaded = TagiConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()
    assert type(loaded.backbone_config) is type(config.backbone_config)
    assert TagiConfig(**json.loads((tmp_path / "config.json").read_text())).to_dict() == config.to_dict()


def test_defaults_survive_the_round_trip(make_config, tmp_path):
    config = TagiConfig(backbone_config=make_config("t5"))
    assert (config.r, config.fusion, config.generator) == (32, "cross_attention", "per_layer")
    config.save_pretrained(tmp_path)
    assert TagiConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert TagiConfig(**config.to_dict()).to_dict() == config.to_dict()


def test_unscaled_decoder_outputs_of_t5_v1_1_survive_two_reloads(make_model, random_ids, tmp_path):
    model = make_model("t5_v1_1", "none")
    assert model.backbone.config.scale_decoder_outputs is False
    model.save_pretrained(tmp_path / "once")
    once = TagiModel.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    twice = TagiModel.from_pretrained(tmp_path / "twice")
    inputs = {"input_ids": random_ids(2, 5), "decoder_input_ids": random_ids(2, 3)}
    expected = model(**inputs).logits
    for loaded in (once, twice):
        assert loaded.config.backbone_config.scale_decoder_outputs is False
        assert torch.equal(loaded(**inputs).logits, expected)


@pytest.mark.parametrize(
    "family, expected",
    [("t5", ["q", "v"]), ("mt5", ["q", "v"]), ("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])],
)
def test_target_modules_default_to_the_family(make_config, family, expected):
    assert TagiConfig(backbone_config=make_config(family)).target_modules == expected


def test_a_family_without_default_targets_is_asked_for_them(make_config):
    from transformers import MBartConfig

    with pytest.raises(ValueError, match=r"target_modules is None.*'mbart'.*q_proj") as error:
        TagiConfig(backbone_config=MBartConfig())
    assert all(name in str(error.value) for name in FAMILIES)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("fusion", "adder", "'cross_attention', 'concat', 'none'"),
        ("fusion_heads", 0, "at least 1"),
        ("generator", "per_task", ", ".join(map(repr, GENERATORS))),
        ("r", 0, "at least 1"),
        ("r", 2.0, "whole number"),
        ("r", True, "whole number"),
        ("lora_alpha", 0, "above 0"),
        ("lora_alpha", "64", "number"),
        ("lora_alpha", math.nan, "above 0"),
        ("lora_alpha", math.inf, "above 0"),
        ("generator_hidden_size", -1, "at least 1"),
        ("generator_index_size", None, "whole number"),
        ("max_instruction_length", -5, "at least 1"),
        ("target_modules", [], "at least one"),
        ("target_modules", ["q.*"], "module names"),
        ("target_modules", [3], "module names"),
        ("backbone_in_checkpoint", 1, "true or false"),
        ("backbone_trained", "no", "true or false"),
    ],
)
def test_error_names_the_field_the_value_and_what_is_allowed(make_config, field, value, allowed):
    with pytest.raises(ValueError) as error:
        TagiConfig(backbone_config=make_config("t5"), **{field: value})
    message = str(error.value)
    assert field in message and repr(value) in message and allowed in message and "\n" not in message


def test_unknown_field_is_refused_with_the_closest_one(make_config):
    with pytest.raises(ValueError, match=r"unknown field 'lora_alhpa' \(value 3\); did you mean 'lora_alpha'\?"):
        TagiConfig(backbone_config=make_config("t5"), lora_alhpa=3)


def test_unknown_field_without_a_close_one_lists_the_fields(make_config):
    with pytest.raises(ValueError, match="unknown field 'xyzzy'.*the fields are backbone_config, r, lora_alpha"):
        TagiConfig(backbone_config=make_config("t5"), xyzzy=1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_more_instruction_than_the_backbone_has_positions_is_refused(make_config, family):
    backbone = make_config(family)
    assert TagiConfig(backbone_config=backbone).max_instruction_length == 128
    assert TagiConfig(backbone_config=backbone, max_instruction_length=128).max_instruction_length == 128
    with pytest.raises(ValueError, match="max_instruction_length is 129.*positions for 128"):
        TagiConfig(backbone_config=backbone, max_instruction_length=129)


def test_a_backbone_without_a_limit_reads_the_papers_length(make_config):
    assert TagiConfig(backbone_config=make_config("t5")).max_instruction_length == 1024


@pytest.mark.parametrize("wrong", ["google/t5", {"d_model": 3}])
def test_backbone_config_must_be_a_config(wrong):
    with pytest.raises(ValueError, match=r"backbone_config is .*'model_type'.*from_backbone"):
        TagiConfig(backbone_config=wrong)


def test_scaling_is_pefts(make_config):
    assert TagiConfig(backbone_config=make_config("t5"), r=4, lora_alpha=6).scaling == 1.5


def test_generation_reads_the_backbones_ids(make_config):
    config = TagiConfig(backbone_config=make_config("t5"))
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (0, 1, 0)
    assert config.is_encoder_decoder and config.get_text_config() is config.backbone_config


def test_a_model_without_a_backbone_is_refused():
    with pytest.raises(ValueError, match="backbone_config.*from_backbone"):
        TagiModel(TagiConfig())
