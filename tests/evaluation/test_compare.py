import json

import pytest
import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.evaluation.compare import compare, compare_adapters, shown


def adapter(seed=0, rank=2, size=6, paths=("a.q", "a.v"), **provenance):
    generator = torch.Generator().manual_seed(seed)
    a = {path: torch.randn(1, rank, size, generator=generator) for path in paths}
    b = {path: torch.randn(1, size, rank, generator=generator) for path in paths}
    return TagiAdapter(a, b, 4.0).described(provenance)


def update(adapter, paths=None):
    return torch.cat([
        (adapter.scaling * adapter.lora_b[path][0] @ adapter.lora_a[path][0]).flatten().double()
        for path in paths or sorted(adapter.lora_a)
    ])  # fmt: skip


def test_similarity_and_norms_are_those_of_the_updates():
    first, second = adapter(0), adapter(1, rank=3)
    found = compare_adapters(first, second)
    cosine = torch.nn.functional.cosine_similarity(update(first), update(second), dim=0).item()
    assert found["similarity"] == pytest.approx(cosine, abs=1e-6)
    assert found["norm"] == pytest.approx([update(first).norm().item(), update(second).norm().item()])
    for path, module in found["modules"].items():
        alone = update(first, [path]), update(second, [path])
        cosine = torch.nn.functional.cosine_similarity(*alone, dim=0).item()
        assert module["similarity"] == pytest.approx(cosine, abs=1e-6)
        assert module["norm"] == pytest.approx([x.norm().item() for x in alone])
    assert found["rank"] == [2, 3] and found["only_first"] == found["only_second"] == []


def test_an_adapter_is_like_itself():
    found = compare_adapters(adapter(), adapter())
    assert found["similarity"] == pytest.approx(1) and found["provenance"] == {}


def test_modules_of_one_alone_are_named():
    found = compare_adapters(adapter(paths=("a.q", "a.v")), adapter(paths=("a.q", "a.k")))
    assert list(found["modules"]) == ["a.q"]
    assert (found["only_first"], found["only_second"]) == (["a.v"], ["a.k"])
    assert "only in the first: a.v" in shown({"kind": "adapter", "first": "x", "second": "y", **found})


@pytest.mark.parametrize("one, other, same", [
    ({"backbone_fingerprint": "1", "backbone": "x"}, {"backbone_fingerprint": "1", "backbone": "y"}, True),
    ({"backbone_fingerprint": "1", "backbone": "x"}, {"backbone_fingerprint": "2", "backbone": "x"}, False),
    ({"backbone": "x"}, {"backbone": "x"}, True),
    ({"backbone": "x"}, {"backbone": "y"}, False),
    ({"backbone": "x"}, {}, None),
])  # fmt: skip
def test_the_backbone_is_told_by_its_fingerprint_then_by_its_name(one, other, same):
    found = compare_adapters(adapter(**one), adapter(**other))
    assert found["same_backbone"] is same
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    assert found["provenance"] == {name: [one.get(name), other.get(name)] for name in names}


def test_adapters_of_other_shapes_are_not_alike_but_shown():
    found = compare_adapters(adapter(), adapter(size=8))
    assert found["similarity"] is None and found["same_backbone"] is False and len(found["norm"]) == 2
    text = shown({"kind": "adapter", "first": "x", "second": "y", **found})
    assert "none, they are for backbones of different shapes" in text and "same backbone: no" in text


@pytest.fixture(scope="module")
def folders(make_model, tokenizer, tmp_path_factory):
    """Two checkpoints, and an adapter of each."""
    place = tmp_path_factory.mktemp("compared")
    for name, rank in (("one", 2), ("two", 3)):
        model = make_model("t5", r=rank)
        model.tokenizer = tokenizer
        model.save_pretrained(place / name)
        model.generate_adapter("say " + name).save_pretrained(place / f"{name}-adapter")
    return place


def test_folders_are_told_apart_by_what_is_in_them(folders):
    adapters = compare(str(folders / "one-adapter"), str(folders / "two-adapter"))
    assert adapters["kind"] == "adapter" and adapters["rank"] == [2, 3]
    assert adapters["provenance"]["instruction"] == ["say one", "say two"] and adapters["same_backbone"] is True
    checkpoints = compare(str(folders / "one"), str(folders / "two"))
    assert checkpoints["kind"] == "checkpoint" and checkpoints["config"] == {"r": [2, 3]}
    for found in (adapters, checkpoints):
        assert json.loads(json.dumps(found)) == found and str(folders / "one") in shown(found)
    assert "| r | 2 | 3 |" in shown(checkpoints)
    assert "The configurations are the same." in shown(compare(str(folders / "one"), str(folders / "one")))


def test_two_kinds_are_refused(folders):
    with pytest.raises(ValueError, match="one is a checkpoint and .*two-adapter an adapter; give two of a kind"):
        compare(str(folders / "one"), str(folders / "two-adapter"))


def test_adapters_have_no_scores(folders):
    with pytest.raises(ValueError, match="adapters have no scores without a checkpoint"):
        compare(str(folders / "one-adapter"), str(folders / "one-adapter"), settings=object())
