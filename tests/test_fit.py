import pytest
import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.evaluation.compare import compare_adapters
from modeling_tagi.fit import require_one_backbone, same_weights


def part(adapter, paths):
    """The adapter of some modules alone, of no known origin."""
    return TagiAdapter(
        {path: adapter.lora_a[path] for path in paths}, {path: adapter.lora_b[path] for path in paths},
        adapter.lora_alpha,
    )  # fmt: skip


def marked(mark, paths=("a", "b")):
    x = torch.ones(1, 2, 3)
    return TagiAdapter({p: x for p in paths}, {p: x.mT for p in paths}, 2.0).described({"backbone_fingerprint": mark})


def test_a_half_precision_twin_is_the_same_backbone_everywhere(make_model, random_ids):
    model, twin = make_model("llama", "none"), make_model("llama", "none").to(torch.bfloat16)
    one, other = model.generate_adapter([5, 6, 7]), twin.generate_adapter([5, 6, 7]).to(torch.float32)
    marks = [adapter.provenance[0]["backbone_fingerprint"] for adapter in (one, other)]
    assert marks[0] != marks[1] and same_weights(one, other) is True
    with torch.no_grad():
        model(random_ids(1, 4), adapter=other)  # fits
    found = compare_adapters(one, other)
    assert found["same_backbone"] is True and found["similarity"] > 0.9
    assert one.similarity(other) > 0.9
    combined = TagiAdapter.combine([one, other], [1, 1])
    assert combined.provenance[0]["backbone_fingerprint"] == marks[0]


def test_another_backbone_is_another_one_everywhere(make_model, random_ids):
    model, stranger = make_model("llama", "none"), make_model("llama", "none", seed=7)
    one, other = model.generate_adapter([5, 6, 7]), stranger.generate_adapter([5, 6, 7])
    assert same_weights(one, other) is False
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        model(random_ids(1, 4), adapter=other)
    found = compare_adapters(one, other)
    assert found["same_backbone"] is False and found["similarity"] is None
    for call in (lambda: one.similarity(other), lambda: TagiAdapter.combine([one, other], [1, 1])):
        with pytest.raises(ValueError, match="adapters 0 and 1 were made for backbones with different weights"):
            call()


def test_fingerprints_are_held_against_each_other_where_modules_are_the_same():
    one = marked([1.0, 2.0, 3.0, 4.0])
    assert same_weights(one, marked([3.01, 4.0, 9.0, 9.0], ("b", "c"))) is True
    assert same_weights(one, marked([3.1, 4.0, 9.0, 9.0], ("b", "c"))) is False
    assert same_weights(one, marked([9.0, 9.0], ("c",))) is None
    assert same_weights(one, marked(None)) is None
    assert same_weights(one, marked([1.0, 2.0])) is False  # not of these modules
    require_one_backbone([marked(None), one, marked(None), one])
    with pytest.raises(ValueError, match="adapters 1 and 3 were made for backbones with different weights"):
        require_one_backbone([marked(None), one, marked(None), marked([1.0, 2.0, 3.0, 5.0])])


def test_a_combination_of_other_modules_is_refused(make_model):
    one = make_model("llama", "none").generate_adapter([5, 6, 7])
    paths = list(one.lora_a)
    with pytest.raises(ValueError, match="adapters 0 and 1 change different modules .* takes adapters for the same"):
        TagiAdapter.combine([one, part(one, paths[:3])], [1, 1])
    assert 0 < one.similarity(part(one, paths[:3])).item() < 1


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(make_model, weight):
    one = make_model("llama", "none").generate_adapter([5, 6, 7])
    with pytest.raises(ValueError, match=f"weight 1 of combine is {weight}, but weights must be finite"):
        TagiAdapter.combine([one, one], [1, weight])
