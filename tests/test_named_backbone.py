import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_tagi.named_backbone import backbone_hash, differs_from_stored


@pytest.fixture
def saved(make_backbone, tmp_path):
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_it_is_of_the_weights_and_not_of_how_they_are_cut_up(make_backbone, saved, tmp_path):
    expected = backbone_hash(str(saved))
    assert len(expected) == 64 and expected == backbone_hash(str(saved))
    make_backbone("llama").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert backbone_hash(str(tmp_path / "sharded")) == expected


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_another_seed_or_another_precision_is_another_hash(make_backbone, tmp_path, family):
    found = set()
    for name, model in (("one", make_backbone(family)), ("two", make_backbone(family, seed=7)),
                        ("half", make_backbone(family).to(torch.bfloat16))):  # fmt: skip
        model.save_pretrained(tmp_path / name)
        found.add(backbone_hash(str(tmp_path / name)))
    assert len(found) == 3


def test_a_step_of_training_on_any_matrix_or_vector_is_seen(saved):
    expected, stored = backbone_hash(str(saved)), load_file(saved / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in stored.items()}  # older safetensors map the file written below
    for name, tensor in tensors.items():
        changed = {**tensors, name: tensor + 1e-3 * torch.randn_like(tensor)}
        save_file(changed, saved / "model.safetensors")
        assert backbone_hash(str(saved)) != expected, name
    save_file(tensors, saved / "model.safetensors")
    assert backbone_hash(str(saved)) == expected


def test_tensors_of_every_shape_are_read(tmp_path):
    tensors = {"scalar": torch.tensor(1.0), "experts": torch.randn(3, 4, 5), "empty": torch.zeros(0, 4),
               "whole": torch.arange(5)}  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    found = set()
    for change in (None, "scalar", "experts", "whole"):
        changed = {name: tensor + 1 if name == change else tensor for name, tensor in tensors.items()}
        save_file(changed, tmp_path / "model.safetensors")
        found.add(backbone_hash(str(tmp_path)))
    assert len(found) == 4


def test_there_is_none_without_safetensors(saved):
    (saved / "model.safetensors").unlink()
    assert backbone_hash(str(saved)) is None and backbone_hash(str(saved / "nowhere")) is None


@pytest.mark.parametrize("family", ["t5", "mt5", "llama", "gpt2"])
def test_weights_differ_from_the_stored_ones_if_a_single_number_does(make_backbone, tmp_path, family):
    model = make_backbone(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    base = model.base_model_prefix
    assert differs_from_stored(model.state_dict(), str(tmp_path), base=base) is False
    bare = {key.removeprefix(f"{base}."): x for key, x in model.state_dict().items()}  # as GPT-2's files are
    assert differs_from_stored(bare, str(tmp_path), base=base) is False
    for name, parameter in model.named_parameters():
        kept = parameter.data.flatten()[-1].clone()
        parameter.data.view(-1)[-1] += 1e-6 + 1e-6 * kept.abs()
        assert differs_from_stored(model.state_dict(), str(tmp_path), base=base) is True, name
        parameter.data.view(-1)[-1] = kept


def test_it_cannot_be_told_without_the_files_or_with_tensors_of_other_names(make_backbone, saved):
    states = make_backbone("llama").state_dict()
    assert differs_from_stored(states, str(saved / "nowhere")) is None
    assert differs_from_stored({**states, "new.weight": torch.ones(3)}, str(saved)) is None
    assert differs_from_stored({name: x.to("meta") for name, x in states.items()}, str(saved)) is None
