import pytest
import torch

from modeling_tagi.evaluation.backbones import adaptable

FAMILIES = ("t5", "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_is_made_adaptable_without_a_change(make_backbone, make_model, tokenizer, random_ids, family):
    backbone, like = make_backbone(family), make_model(family).config
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    ids = random_ids(2, 5)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if family == "t5" else {})}
    expected = backbone(**inputs).logits
    torch.manual_seed(5)
    made = adaptable(backbone, like, seed=1)
    drawn = torch.rand(1)
    assert made.backbone is backbone and torch.equal(backbone(**inputs).logits, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # the seed is its own
    first, again, other = (adaptable(backbone, like, seed).hypernetwork.shared_factors() for seed in (1, 1, 2))
    for path, a in made.hypernetwork.shared_factors().items():
        assert a.shape[0] == like.r and torch.equal(a, first[path]) and torch.equal(a, again[path])
        assert not torch.equal(a, other[path])
    assert made.config.scaling == like.scaling and made.config.target_modules == like.target_modules
    assert adaptable(make_model(family).backbone).config.r == 32  # PEFT's and the paper's, where nothing else is said


def test_another_familys_target_modules_are_its_own(make_backbone, make_model):
    made = adaptable(make_backbone("llama"), make_model("t5").config)
    assert made.config.r == 4 and "q_proj" in made.config.target_modules
