import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_tagi import TagiModel
from modeling_tagi.hypernetwork import Standardised

ROWS = [[5, 6, 7], [8, 9], [5, 9, 3, 4, 6, 2, 8], [7, 7, 8, 3]]


@pytest.fixture(params=["t5", "llama"])
def model(request, make_model):
    return make_model(request.param, fusion="none", standardise=True)


def factors(adapter):
    return [*adapter.lora_a.values(), *adapter.lora_b.values()]


def test_statistics_by_hand():
    standardised = Standardised(3)
    pooled = torch.tensor([[1.0, 100.0, 5.0], [3.0, 300.0, 5.0]])
    assert torch.equal(standardised(pooled), pooled) and not standardised.is_set
    standardised.set(pooled)
    assert standardised.is_set
    # the last feature never differs, so that its scale stays
    assert torch.equal(standardised(pooled), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]))


def test_without_statistics_it_is_the_model_without_the_field(make_model):
    plain, fresh = (make_model("llama", fusion="none", standardise=on) for on in (False, True))
    assert set(fresh.state_dict()) - set(plain.state_dict()) == {"standardised.mean", "standardised.std"}
    pairs = zip(factors(plain.adapter_from_rows(ROWS)), factors(fresh.adapter_from_rows(ROWS)))
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_generator_reads_standardised_instructions(model):
    before = factors(model.adapter_from_rows(ROWS))
    pooled = model.pooled_from_rows(ROWS, at_most=3)
    model.standardised.set(pooled)
    read = model.standardised(pooled)
    torch.testing.assert_close(read.mean(0), torch.zeros(read.shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(read.std(0, correction=0), torch.ones(read.shape[1]), rtol=0, atol=1e-4)
    a, b = model.hypernetwork(read)
    after = factors(model.adapter_from_rows(ROWS, at_most=2))
    for found, expected in zip(after, [*a.values(), *b.values()]):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not any(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(before, after))
    alone = factors(model.adapter_from_ids(torch.tensor(ROWS[:1])))
    for found, expected in zip(alone, after):
        torch.testing.assert_close(found, expected[:1], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_holds_the_statistics(model, tmp_path):
    model.standardised.set(model.pooled_from_rows(ROWS))
    model.save_pretrained(tmp_path)
    loaded = TagiModel.from_pretrained(tmp_path)
    assert loaded.standardised.is_set and torch.equal(loaded.standardised.mean, model.standardised.mean)
    pairs = zip(factors(model.adapter_from_rows(ROWS)), factors(loaded.adapter_from_rows(ROWS)))
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("change", ["missing", "width"])
def test_a_checkpoint_with_other_statistics_is_refused(make_model, tmp_path, change):
    make_model("llama", fusion="none", standardise=True).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    mean = tensors.pop("standardised.mean")
    if change == "width":
        tensors["standardised.mean"] = mean[1:].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="standardised.mean"):
        TagiModel.from_pretrained(tmp_path)
