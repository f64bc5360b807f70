"""Backbones in 4 and 8 bits; needs bitsandbytes, which no other part of the package does."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from modeling_tagi import TagiModel

GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": 1}


@pytest.fixture(params=["load_in_4bit", "load_in_8bit"])
def quantization(request):
    pytest.importorskip("bitsandbytes", reason="quantised backbones need bitsandbytes, made for CUDA")
    more = {"bnb_4bit_compute_dtype": torch.float32} if request.param == "load_in_4bit" else {}
    return BitsAndBytesConfig(**{request.param: True}, **more)


@pytest.fixture(params=["t5_v1_1", "llama", "phi3"])
def folder(request, make_backbone, tmp_path):
    wide = {"d_model": 64, "d_kv": 16} if request.param == "t5_v1_1" else {"hidden_size": 64}
    make_backbone(request.param, **wide).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_a_quantized_backbone_has_a_generator_in_float_and_a_checkpoint_without_it(
    folder, quantization, random_ids, tmp_path
):
    fields = {"r": 2, "lora_alpha": 4, "generator_hidden_size": 8, "generator_index_size": 4}
    torch.manual_seed(0)  # of the generator
    model = TagiModel.from_backbone(folder, quantization_config=quantization, dtype=torch.float32, **fields).eval()
    targets = [model.backbone.get_submodule(path) for path in model.hypernetwork.shared_factors()]
    assert not any(module.weight.is_floating_point() for module in targets)
    generator = [*model.hypernetwork.parameters(), *model.fusion.parameters()]
    assert all(p.dtype == torch.float32 and p.device == model.backbone.device for p in generator)

    model.set_trainable("generator")
    with pytest.raises(ValueError, match="this backbone is quantized"):
        model.set_trainable("all")
    ids = random_ids(2, 4).to(model.device)
    instruction = random_ids(1, 5).to(model.device)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        output = model(ids, labels=ids, instruction_input_ids=instruction)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]

    with pytest.raises(ValueError, match="is quantized.*include_backbone=False"):
        model.save_pretrained(tmp_path / "model", include_backbone=True)
    model.save_pretrained(tmp_path / "model")  # without it, by itself
    assert model.backbone.config.quantization_config is not None
    adapter = model.generate_adapter(instruction)
    with torch.no_grad():
        expected = model(ids, labels=ids, adapter=adapter).logits
    again = TagiModel.from_pretrained(tmp_path / "model", quantization_config=quantization, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(ids, labels=ids, adapter=again.generate_adapter(instruction)).logits, expected)
    assert torch.equal(again.generate(ids, adapter=adapter, **GREEDY), model.generate(ids, adapter=adapter, **GREEDY))

    whole = TagiModel.from_pretrained(tmp_path / "model").eval()  # and in float where nothing else is asked for
    assert all(whole.backbone.get_submodule(path).weight.is_floating_point() for path in adapter.lora_a)
    with torch.no_grad():
        exact = whole(ids.cpu(), labels=ids.cpu(), adapter=adapter).logits
    difference = (exact - expected.cpu()).norm() / exact.norm()
    assert 0 < difference < 0.5


def test_a_checkpoint_with_its_backbone_is_not_quantized(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds its backbone.*include_backbone=False"):
        TagiModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
