"""Checkpoints without their backbone, and backbones that training has changed."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from toy_checkpoints import drop, same_backbone
from transformers import Trainer, TrainingArguments

from modeling_tagi import TagiModel


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "llama", "gpt2"])
@pytest.mark.parametrize("fusion", ["none", "cross_attention"])
def test_a_checkpoint_without_backbone_loads_equal(apart, random_ids, tmp_path, family, fusion):
    model = apart(family, fusion)
    with safe_open(tmp_path / "apart" / "model.safetensors", framework="pt") as file:
        assert file.keys() and not any(key.startswith("backbone.") for key in file.keys())
    assert json.loads((tmp_path / "apart" / "config.json").read_text())["backbone_in_checkpoint"] is False
    assert model.config.backbone_in_checkpoint is True
    loaded = TagiModel.from_pretrained(tmp_path / "apart")
    assert type(loaded) is TagiModel
    ids = random_ids(2, 5)
    expected = model.generate(ids, adapter=model.generate_adapter(ids), max_new_tokens=5)
    assert torch.equal(loaded.generate(ids, adapter=loaded.generate_adapter(ids), max_new_tokens=5), expected)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    buffers = dict(loaded.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())

    loaded.save_pretrained(tmp_path / "again")  # stays apart
    assert (tmp_path / "again" / "model.safetensors").stat().st_size == (
        tmp_path / "apart" / "model.safetensors").stat().st_size
    loaded.save_pretrained(tmp_path / "whole", include_backbone=True)
    (tmp_path / "backbone").rename(tmp_path / "moved")
    whole = TagiModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole.generate(ids, adapter=whole.generate_adapter(ids), max_new_tokens=5), expected)


def test_the_named_backbone_takes_the_checkpoints_dtype(apart, tmp_path):
    apart("t5", dtype=torch.bfloat16)
    for arguments, dtype in (({}, torch.bfloat16), ({"dtype": torch.float32}, torch.float32)):
        loaded = TagiModel.from_pretrained(tmp_path / "apart", **arguments)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_a_backbone_that_is_not_there_is_named_with_its_checkpoint(apart, tmp_path):
    apart("t5")
    (tmp_path / "backbone").rename(tmp_path / "moved")
    with pytest.raises(OSError, match=f"{tmp_path}/apart holds a generator without its backbone.*{tmp_path}/backbone"):
        TagiModel.from_pretrained(tmp_path / "apart")


def test_a_tensor_that_a_backboneless_checkpoint_lacks_is_named(apart, tmp_path):
    apart("t5")
    drop(tmp_path / "apart", "fusion.1.gate")
    with pytest.raises(ValueError, match="apart lacks 1 of the model's tensors: fusion.1.gate"):
        TagiModel.from_pretrained(tmp_path / "apart")


@pytest.mark.parametrize(
    "fields, why",
    [
        ({}, "no backbone_name_or_path says where it is"),
        ({"backbone_name_or_path": "user/stock", "backbone_trained": True}, "training has changed it"),
    ],
)
def test_a_backbone_to_be_had_nowhere_else_is_not_left_out(make_model, tmp_path, fields, why):
    with pytest.raises(ValueError, match=f"cannot be left out.*{why}; use include_backbone=True"):
        make_model("t5", **fields).save_pretrained(tmp_path / "apart", include_backbone=False)
    assert not (tmp_path / "apart").exists()


# A backbone that was trained


def train_all(model, ids):
    model.train().set_trainable("all")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    model(ids, labels=ids, instruction_input_ids=ids).loss.backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_trained_backbone_goes_into_a_checkpoint_that_named_it(apart, random_ids, tmp_path, family):
    apart(family)
    model = train_all(TagiModel.from_pretrained(tmp_path / "apart"), random_ids(2, 5))
    assert model.generate_adapter([5, 6]).provenance[0]["backbone"] is None  # of which nothing has a name yet
    for number in range(2):
        model.save_pretrained(tmp_path / f"trained{number}")
        loaded = TagiModel.from_pretrained(tmp_path / f"trained{number}")
        assert same_backbone(loaded, model) and loaded.config.backbone_trained
        provenance = loaded.generate_adapter([5, 6]).provenance[0]
        assert provenance["backbone"] == str(tmp_path / f"trained{number}")
    with pytest.raises(ValueError, match="cannot be left out.*training has changed it"):
        model.save_pretrained(tmp_path / "refused", include_backbone=False)


def test_a_trainers_checkpoints_have_the_trained_backbone(apart, random_ids, tmp_path):
    apart("t5")
    model = TagiModel.from_pretrained(tmp_path / "apart")
    model.set_trainable("all")
    rows = [{"input_ids": row, "labels": row} for row in random_ids(4, 5)]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    loaded = TagiModel.from_pretrained(tmp_path / "out" / "checkpoint-2")
    assert same_backbone(loaded, model) and loaded.config.backbone_trained
    assert loaded.generate_adapter([5, 6]).provenance[0]["backbone"] == str(tmp_path / "out" / "checkpoint-2")


@pytest.mark.parametrize("start", ["from_backbone", "whole", "apart"])
def test_adapters_of_a_trained_backbone_do_not_name_the_stock_one(apart, random_ids, tmp_path, start):
    model = apart("t5")
    model.save_pretrained(tmp_path / "whole")
    if start != "from_backbone":
        model = TagiModel.from_pretrained(tmp_path / start)
    stock = str(tmp_path / ("whole" if start == "whole" else "backbone"))  # a whole checkpoint has it, and names none
    assert model.generate_adapter([5, 6]).provenance[0]["backbone"] == stock
    train_all(model, random_ids(2, 5))
    for adapter in (model.generate_adapter([5, 6]), model.fresh_adapter()):
        assert adapter.provenance[0]["backbone"] is None
    assert model.config.backbone_trained


@pytest.mark.parametrize("change", [lambda x: x.add_(0.1), lambda x: x[7].add_(1), lambda x: x[3:5].mul_(1.001)])
def test_weights_that_were_changed_by_hand_are_written_too(apart, tmp_path, change):
    apart("t5")
    model = TagiModel.from_pretrained(tmp_path / "apart")
    change(model.backbone.decoder.block[1].layer[1].EncDecAttention.v.weight.data)
    model.save_pretrained(tmp_path / "again")
    assert same_backbone(TagiModel.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize(
    "leave", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.bfloat16().float(), lambda m: m.train()]
)
def test_a_backbone_that_was_only_cast_or_passed_through_is_still_left_out(apart, random_ids, tmp_path, leave):
    apart("t5")
    model = leave(TagiModel.from_pretrained(tmp_path / "apart"))
    model(random_ids(1, 4), labels=random_ids(1, 4))
    model.save_pretrained(tmp_path / "again")
    assert not TagiModel.from_pretrained(tmp_path / "again").config.backbone_in_checkpoint
    assert not model.config.backbone_trained


def test_training_the_generator_alone_leaves_the_backbone_out(apart, random_ids, tmp_path):
    apart("llama")
    model, ids = TagiModel.from_pretrained(tmp_path / "apart").train(), random_ids(2, 5)
    model.set_trainable("generator")
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model(ids, labels=ids, instruction_input_ids=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "again")
    assert not any(key.startswith("backbone.") for key in load_file(tmp_path / "again" / "model.safetensors"))
