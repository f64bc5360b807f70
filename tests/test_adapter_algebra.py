import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D

from modeling_tagi import TagiAdapter
from modeling_tagi.adapter_algebra import truncated
from modeling_tagi.banks.adapter_bank import with_rank

INSTRUCTIONS = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]


def updates(adapter):
    """ΔW of every module in full, `[tasks, numbers]`."""
    with torch.no_grad():
        return torch.cat([
            (adapter.scaling * adapter.lora_b[path] @ adapter.lora_a[path]).flatten(1)
            for path in sorted(adapter.lora_a)
        ], 1)  # fmt: skip


@pytest.fixture
def three(make_model):
    return make_model("t5", "none").generate_adapter(INSTRUCTIONS)


@pytest.fixture
def fused(make_model):
    return make_model("t5").generate_adapter(INSTRUCTIONS)


# Cosines


def test_similarity_is_the_cosine_of_the_updates_in_full(make_backbone, make_model, three):
    model = make_model("t5", "none", r=3, lora_alpha=7, seed=5, backbone=make_backbone("t5"))
    other = model.generate_adapter([[3, 4], [9, 9, 9]])
    for left, right in ((three, three), (three, other)):
        full = [torch.nn.functional.normalize(updates(adapter)) for adapter in (left, right)]
        torch.testing.assert_close(left.similarity(right), full[0] @ full[1].T, rtol=0, atol=1e-5)
    assert torch.equal(three.similarity(), three.similarity(three))
    torch.testing.assert_close(three.similarity().diagonal(), torch.ones(3))
    assert three.similarity()[0, 1] < 0.999


def test_a_module_that_one_leaves_alone_adds_to_the_others_norm(three):
    half = list(three.lora_a)[::2]
    part = TagiAdapter({p: three.lora_a[p] for p in half}, {p: three.lora_b[p] for p in half}, three.lora_alpha)
    share = updates(part).norm(dim=1) / updates(three).norm(dim=1)
    torch.testing.assert_close(part.similarity(three).diagonal(), share)


def test_an_update_of_zero_is_similar_to_none(make_model, three):
    fresh = make_model("t5", "none").fresh_adapter()
    assert torch.equal(three.similarity(fresh), torch.zeros(3, 1))


def test_another_backbones_adapter_is_refused(make_model, three):
    other = TagiAdapter(
        {path: torch.ones(1, 4, 5) for path in three.lora_a}, {path: torch.ones(1, 5, 4) for path in three.lora_a}, 8
    )
    with pytest.raises(ValueError, match="adapter 1 changes a weight .* of 5 × 5, an earlier one of 32 × 32"):
        three.similarity(other)


# Weighted sums


def test_a_combination_is_the_weighted_sum_of_the_updates(make_model, three):
    other = make_model("t5", "none", r=3, lora_alpha=7).generate_adapter([3, 4])
    made = TagiAdapter.combine([three[0], three[1], other], [0.5, -2, 1.5])
    assert made.rank == 4 + 4 + 3 and len(made) == 1
    expected = 0.5 * updates(three[0]) - 2 * updates(three[1]) + 1.5 * updates(other)
    torch.testing.assert_close(updates(made), expected, rtol=0, atol=1e-6)
    assert updates(made).norm() > 1e-3


def test_a_stack_is_combined_task_by_task(three):
    torch.testing.assert_close(updates(TagiAdapter.combine(three, [1, 1, 1])), updates(three).sum(0, keepdim=True))


def test_a_combination_of_lower_rank_is_the_nearest_there_is(three):
    exact, low = TagiAdapter.combine(three, [1, 2, 3]), TagiAdapter.combine(three, [1, 2, 3], rank=4)
    assert low.rank == 4 and low.scaling == pytest.approx(three.scaling)
    for path in three.lora_a:
        full, near = (
            (adapter.scaling * adapter.lora_b[path] @ adapter.lora_a[path])[0].double() for adapter in (exact, low)
        )
        values = torch.linalg.svdvals(full)
        left_out = values[4:].square().sum().sqrt().item()
        assert left_out > 1e-3 and (full - near).norm().item() == pytest.approx(left_out, rel=1e-4)


def test_a_combination_of_higher_rank_is_filled_with_zeros(three):
    exact, high = TagiAdapter.combine(three, [1, 1, 1]), TagiAdapter.combine(three, [1, 1, 1], rank=40)
    torch.testing.assert_close(updates(high), updates(exact), rtol=0, atol=1e-6)
    assert all(a.shape[1] == 40 for a in high.lora_a.values())


def test_no_weight_is_formed_to_truncate(monkeypatch):
    a, b, largest = torch.randn(1, 6, 900), torch.randn(1, 800, 6), []
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            largest.extend(x.numel() for x in torch.utils._pytree.tree_leaves(made) if isinstance(x, torch.Tensor))
            return made

    with Sizes():
        new_a, new_b = truncated(a, b, 2)
    assert max(largest) <= 6 * 900
    u, s, vh = torch.linalg.svd(b[0] @ a[0])
    torch.testing.assert_close(new_b[0] @ new_a[0], u[:, :2] * s[:2] @ vh[:2], rtol=0, atol=1e-2)


def test_with_rank_changes_nothing_but_the_shape(three):
    wide = with_rank(three, 9, 3.0)
    assert wide.rank == 9 and wide.lora_alpha == 3.0
    torch.testing.assert_close(updates(wide), updates(three), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="rank 3, but the adapter's is 4"):
        with_rank(three, 3, 3.0)


def test_the_instructions_of_a_combination_need_a_decision(fused, make_model, random_ids):
    with pytest.raises(ValueError, match="no weighted sum, and memory is None: give the number of .*0 to 2"):
        TagiAdapter.combine(fused, [1, 1, 1])
    with pytest.raises(ValueError, match="memory is 3"):
        TagiAdapter.combine(fused, [1, 1, 1], memory=3)
    kept = TagiAdapter.combine(fused, [1, 1, 1], memory=1)
    assert torch.equal(kept.memory.states, fused[1].memory.states)
    joined = TagiAdapter.combine(fused, [1, 1, 1], memory="join").memory
    assert joined.mask.tolist() == [[1] * 9]
    assert torch.equal(joined.states, torch.cat([one.memory.states for one in fused], 1))
    assert joined.keys.shape[-2] == 9
    bare = TagiAdapter.combine([one.without_memory() for one in fused], [1, 1, 1])
    assert bare.memory is None


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_combination_with_all_its_weight_on_one_does_what_that_does(make_model, random_ids, family):
    model = make_model(family)
    two = model.generate_adapter(INSTRUCTIONS[:2])
    made = TagiAdapter.combine(two, [1, 0], memory=0)
    ids = random_ids(2, 5)
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if family == "t5" else {"input_ids": ids}
    with torch.no_grad():
        expected, got = (model(**inputs, adapter=adapter).logits for adapter in (two[0], made))
        joined = model(**inputs, adapter=TagiAdapter.combine(two, [1, 0], memory="join")).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert joined.isfinite().all() and not torch.allclose(joined, expected, atol=1e-3)


def test_a_combination_says_what_it_is_made_of_and_saves(three, tmp_path):
    made = TagiAdapter.combine(three[[0, 1]], [0.25, 0.75], rank=4)
    source = made.provenance[0]
    assert [part["weight"] for part in source["combined"]] == [0.25, 0.75]
    assert [p["instruction_sha256"] for p in source["combined"]] == [
        p["instruction_sha256"] for p in three.provenance[:2]
    ]
    assert source["backbone_fingerprint"] == three.provenance[0]["backbone_fingerprint"]
    made.save_pretrained(tmp_path)
    torch.testing.assert_close(updates(TagiAdapter.from_pretrained(tmp_path)), updates(made))


def test_what_cannot_be_combined_is_named(make_model, three):
    with pytest.raises(ValueError, match="3 adapters and 2 weights"):
        TagiAdapter.combine(three, [1, 2])
    with pytest.raises(ValueError, match="adapter 0 holds 3; choose by"):
        TagiAdapter.combine([three], [1])
    with pytest.raises(ValueError, match="rank is 0, but must be a whole number of at least 1"):
        TagiAdapter.combine(three, [1, 1, 1], rank=0)
    stranger = make_model("t5", "none", seed=9).generate_adapter([5, 6])
    with pytest.raises(ValueError, match="adapters 0 and 1 were made for backbones with different weights"):
        TagiAdapter.combine([three[0], stranger], [1, 1])


# Merging


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_merging_is_pefts_merge_and_unload(make_model, random_ids, tmp_path, family):
    model = make_model(family, "none")
    model.backbone.save_pretrained(tmp_path / "backbone")
    adapter = model.generate_adapter([5, 6, 7])
    adapter.save_pretrained(tmp_path / "adapter")
    before = copy.deepcopy(model.state_dict())
    merged = adapter.merge_into(model)
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    stock = auto.from_pretrained(tmp_path / "backbone").eval()
    theirs = PeftModel.from_pretrained(stock, tmp_path / "adapter").merge_and_unload()
    assert type(merged) is type(stock) and merged.state_dict().keys() == theirs.state_dict().keys()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight, rtol=0, atol=1e-5)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in merged.modules())
    ids = random_ids(2, 5)
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if family == "t5" else {"input_ids": ids}
    with torch.no_grad():
        expected, bare = model(**inputs, adapter=adapter).logits, model(**inputs).logits
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(bare, expected, atol=1e-2)
    if family == "gpt2":
        assert any(isinstance(module, Conv1D) for module in merged.modules())


def test_a_merged_backbone_saves_and_loads_as_any(make_model, random_ids, tmp_path):
    model = make_model("t5", "none")
    merged = model.generate_adapter([5, 6, 7]).merge_into(model)
    merged.save_pretrained(tmp_path)
    again, ids = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(), random_ids(2, 5)
    with torch.no_grad():
        one, two = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (merged, again))
    assert torch.equal(one, two)


def test_what_a_weight_cannot_hold_is_not_merged(make_model, three, fused):
    model = make_model("t5", "none")
    with pytest.raises(ValueError, match="this object holds 3; choose by"):
        three.merge_into(model)
    with pytest.raises(ValueError, match="instruction memory.*Merge adapter.without_memory"):
        fused[0].merge_into(make_model("t5"))
    fused[0].without_memory().merge_into(make_model("t5"))
    with pytest.raises(ValueError, match="takes the TagiModel whose backbone is merged"):
        three[0].merge_into(model.backbone)
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        three[0].merge_into(make_model("t5", "none", seed=7))
    path = next(iter(three.lora_a))
    bare = three[0].described({})
    module = model.backbone.get_submodule(path)
    module.weight = torch.nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="is quantised .torch.int8., and a sum with it would be rounded away"):
        bare.merge_into(model)


def test_a_weight_that_others_share_is_not_merged(make_model, make_backbone):
    model = make_model("gpt2", "none", target_modules=["lm_head"])
    with pytest.raises(ValueError, match="lm_head shares its weight .*wte"):
        model.generate_adapter([5, 6]).merge_into(model)
