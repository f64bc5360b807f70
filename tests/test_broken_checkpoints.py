"""Checkpoints that are broken, and what is no checkpoint at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_checkpoints import drop

from modeling_tagi import TagiModel


@pytest.mark.parametrize(
    "gone",
    [
        ["hypernetwork.stacks.0.index"],
        ["hypernetwork.shared_a.encoder-block-0-layer-0-SelfAttention-q", "fusion.0.gate"],
        ["backbone.encoder.final_layer_norm.weight"],
        ["backbone.shared.weight"],
    ],
)
def test_missing_tensors_are_an_error_that_names_them(make_model, tmp_path, gone):
    make_model("t5").save_pretrained(tmp_path / "broken")
    drop(tmp_path / "broken", *gone)
    with pytest.raises(ValueError, match="broken lacks .* of the model's tensors") as error:
        TagiModel.from_pretrained(tmp_path / "broken")
    assert all(name in str(error.value) for name in gone) and "\n" not in str(error.value)


def test_a_config_of_another_generator_is_an_error(make_model, tmp_path):
    make_model("t5", "concat").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "fusion": "cross_attention"}))
    with pytest.raises(ValueError, match="lacks 10 of the model's tensors: fusion.0.gate.* and 2 more; save"):
        TagiModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(make_model, tmp_path, name):
    make_model("t5").save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match=f"{tmp_path}.*{name}|{name}.*{tmp_path}"):
        TagiModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["truncated", "empty", "random"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_broken_file_of_weights_is_named(make_model, tmp_path, content, sharded):
    make_model("t5").save_pretrained(tmp_path, **({"max_shard_size": "60KB"} if sharded else {}))
    broken = sorted(tmp_path.glob("*.safetensors"))[-1]
    whole = broken.read_bytes()
    broken.write_bytes({"truncated": whole[:-100], "empty": b"", "random": b"?" * 500}[content])
    with pytest.raises(ValueError, match=f"{broken} is broken .*save the checkpoint again") as error:
        TagiModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_index_of_shards_is_named(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path, max_shard_size="60KB")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/model.safetensors.index.json is broken"):
        TagiModel.from_pretrained(tmp_path)


def test_a_pickle_is_not_read(make_model, tmp_path):
    model = make_model("t5")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=f"{tmp_path} holds its weights as pytorch_model.bin, a pickle.* is refused"):
        TagiModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["hypernetwork.stacks.0.hidden_bias", "backbone.shared.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(make_model, tmp_path, name, value):
    make_model("t5").save_pretrained(tmp_path)
    tensors = {key: x.clone() for key, x in load_file(tmp_path / "model.safetensors").items()}
    tensors[name].view(-1)[3] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 tensors with numbers that are not finite: {name}.*earlier checkpoint"):
        TagiModel.from_pretrained(tmp_path)


def test_other_shapes_are_one_message(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "generator_hidden_size": 24}))
    with pytest.raises(ValueError, match="other shapes than its config.json says: hypernetwork.stacks") as error:
        TagiModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and "the config says" in str(error.value)


# What is no checkpoint, and no backbone


def test_a_plain_model_is_no_checkpoint_but_may_be_a_backbone(make_backbone, tmp_path):
    make_backbone("t5").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no TAGI checkpoint but a model of type 't5'; .*from_backbone.'{tmp_path}'"):
        TagiModel.from_pretrained(tmp_path)


def test_an_adapters_folder_says_how_it_is_loaded(make_model, random_ids, tmp_path):
    make_model("t5", "none").save_pretrained(tmp_path / "model")
    model = TagiModel.from_pretrained(tmp_path / "model")
    model.config.backbone_trained = True
    model.generate_adapter(random_ids(1, 4)).save_pretrained(tmp_path / "adapter")
    given = {"_adapter_model_path": str(tmp_path / "adapter")}  # as AutoModel finds it
    with pytest.raises(ValueError, match=f"{tmp_path}/adapter is an adapter, .*adapter_class.from_pretrained"):
        TagiModel.from_pretrained(tmp_path / "model", adapter_kwargs=given)
    (tmp_path / "model" / "adapter_config.json").write_bytes((tmp_path / "adapter/adapter_config.json").read_bytes())
    with pytest.raises(ValueError, match="holds an adapter's adapter_config.json beside the checkpoint's files; move"):
        TagiModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", [None, "", " ", 7, "a\0b"])
def test_what_names_nothing_is_refused(name):
    for load, what in ((TagiModel.from_pretrained, "checkpoint"), (TagiModel.from_backbone, "backbone")):
        with pytest.raises(ValueError, match=f"the {what} is named .* folder or a repository"):
            load(name)


def test_a_backbone_that_is_none_is_refused_in_one_line(make_model, tmp_path):
    make_model("t5").save_pretrained(tmp_path)
    for name, why in ((tmp_path / "nowhere", "there is no folder"), (tmp_path / "config.json", "there is no folder"),
                      (tmp_path, "is a TAGI checkpoint, which has a generator")):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=f"{name}.* {why}|{why} {name}") as error:
            TagiModel.from_backbone(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, "half a byte"])
def test_a_precision_that_nothing_computes_in_is_refused(make_model, tmp_path, dtype):
    make_model("t5").save_pretrained(tmp_path)
    for load in (TagiModel.from_pretrained, TagiModel.from_backbone):
        with pytest.raises(ValueError, match="dtype is .* computes in one of float64, float32, bfloat16, float16"):
            load(tmp_path, dtype=dtype)


def test_a_backbones_own_code_is_not_run(make_backbone, tmp_path):
    make_backbone("t5").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForSeq2SeqLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **code}))
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):  # and not asked for from inside
        TagiModel.from_backbone(tmp_path)


def test_no_file_tells_where_it_was_made(apart, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "backbone")
    model = apart("t5")
    model.tokenizer = type(tokenizer).from_pretrained(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "again", include_backbone=False)
    told = [path.name for path in (tmp_path / "again").iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert told == ["config.json"]  # where the backbone has to be found, and nothing else
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config.pop("backbone_name_or_path") == str(tmp_path / "backbone")
    assert str(tmp_path) not in json.dumps(config)
    model.save_pretrained(tmp_path / "whole")
    assert not [path for path in (tmp_path / "whole").iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert model.config.backbone_name_or_path == str(tmp_path / "backbone")
