import pytest
import torch
from transformers.utils import is_accelerate_available

from modeling_tagi import TagiModel

OFFLOADING = pytest.mark.skipif(
    not is_accelerate_available("1.15.0"), reason="offloading takes accelerate 1.15, and is refused before"
)


@OFFLOADING
@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("llama", "concat"), ("gpt2", "none")])
def test_an_offloaded_backbone_answers_as_one_in_memory(make_model, random_ids, tmp_path, family, fusion):
    model, ids = make_model(family, fusion), random_ids(2, 5, 3)
    model.save_pretrained(tmp_path / "model")
    places = {"backbone": "disk", "hypernetwork": "cpu", "fusion": "cpu"}
    away = TagiModel.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "away").eval()
    assert next(away.backbone.parameters()).device.type == "meta" and away.device.type == "cpu"
    both = away, model
    found, expected = (each(ids, labels=ids, adapter=each.generate_adapter([5, 6, 7])).logits for each in both)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    tokens = (each.generate(ids, adapter=each.generate_adapter([5, 6]), max_new_tokens=3) for each in both)
    assert torch.equal(*tokens)


def test_a_model_on_several_devices_is_refused(make_model, random_ids):
    model, ids = make_model("t5"), random_ids(2, 5, 3)
    adapter = model.generate_adapter([5, 6])
    model.hf_device_map = {"backbone.encoder": 0, "backbone.decoder": 1, "hypernetwork": 0, "fusion": 0}
    for call in (lambda: model.generate_adapter([7]), lambda: model.generate(ids, adapter=adapter)):
        with pytest.raises(ValueError, match=r"lies on devices 0, 1, .*one device; load it with device_map=\{'': 0\}"):
            call()
    with pytest.raises(ValueError, match="its hypernetwork offloaded"):
        model.hf_device_map = {"backbone": "cpu", "hypernetwork": "disk"}
        model.hypernetwork.to("meta")
        model.generate_adapter([7])


@pytest.mark.parametrize(
    "places", [{"backbone": "disk", "hypernetwork": "cpu"}, {"backbone": "cpu", "hypernetwork": 0}]
)
def test_offloading_by_an_accelerate_that_loses_tied_weights_is_refused(make_model, monkeypatch, places):
    model = make_model("t5")
    monkeypatch.setattr("modeling_tagi.fit.is_accelerate_available", lambda version: False)
    model.generate_adapter([7])
    model.hf_device_map = {"": "cpu"}
    model.generate_adapter([7])
    model.hf_device_map = places
    with pytest.raises(ValueError, match="takes accelerate 1.15"):
        model.generate_adapter([7])
