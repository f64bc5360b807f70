import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from modeling_tagi import TagiModel
from modeling_tagi.adapter import TagiAdapter
from modeling_tagi.banks.adapter_bank import AdapterBank
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.evaluation.adapter_map import adapter_map, sketches
from modeling_tagi.tokens import Tokens

GROUPS = {"count": ("count the cats", "count the dogs", "count the plums"),
          "colour": ("say the red word", "say the blue word", "say the green word")}  # fmt: skip
RECORDS = {
    f"{group} {number}": Record(f"{group} {number}", text, "red cat", ("cat",), group)
    for group, texts in GROUPS.items() for number, text in enumerate(texts)
}
SPLITS = {"train": list(RECORDS.values())[:4], "unseen": list(RECORDS.values())[3:]}  # one is in both


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([record.instruction for record in RECORDS.values()] + ["red cat"], 60)


@pytest.fixture(scope="module", params=("t5", "llama"))
def model(request, tokenizer, tmp_path_factory):
    special = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    if request.param == "t5":
        backbone = T5ForConditionalGeneration(T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, **special,
        ))  # fmt: skip
    else:
        backbone = LlamaForCausalLM(LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            bos_token_id=None, **special,
        ))  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    backbone.save_pretrained(folder)
    model = TagiModel.from_backbone(folder, r=2, lora_alpha=6, generator_hidden_size=8, generator_index_size=4)
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            torch.nn.init.normal_(weight, std=1.0)
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def tokens(model, tokenizer):
    return Tokens(tokenizer, model.config.is_encoder_decoder, max_input_length=32, max_target_length=6)


def updates(adapter):
    """ΔW of every module in full, `[tasks, numbers]`."""
    return torch.cat([
        (adapter.scaling * adapter.lora_b[path] @ adapter.lora_a[path]).detach().flatten(1) for path in adapter.lora_a
    ], 1)  # fmt: skip


def test_the_map_is_the_principal_components_of_the_updates(model, tokens):
    found = adapter_map(model, tokens, SPLITS)
    assert json.loads(json.dumps(found)) == found
    points = found["points"]
    assert [p["task"] for p in points] == list(RECORDS)
    assert [p["split"] for p in points] == ["train"] * 4 + ["unseen"] * 2
    assert [p["group"] for p in points] == ["count"] * 3 + ["colour"] * 3
    # d_model is 16, so the sketch is exact
    adapters = TagiAdapter.stack([model.generate_adapter(r.instruction) for r in RECORDS.values()])
    full = updates(adapters).double()
    centred = full - full.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = u[:, :2] * s[:2]
    places = torch.tensor([[p["x"], p["y"]] for p in points], dtype=torch.float64)
    assert torch.allclose(places.abs(), expected.abs(), atol=1e-3 * s[0].item())
    assert torch.allclose(torch.cdist(places, places), torch.cdist(expected, expected), atol=1e-3 * s[0].item())
    assert found["explained"] == pytest.approx((s[:2] ** 2 / (s**2).sum()).tolist(), abs=1e-4)
    assert found["similarity"] is None


def test_a_long_side_is_sketched_and_the_same_for_every_task():
    torch.manual_seed(0)
    paths = [f"layer.{n}" for n in range(40)]
    adapter = TagiAdapter({p: torch.randn(3, 2, 300) for p in paths}, {p: torch.randn(3, 200, 2) for p in paths}, 4)
    for number, path in enumerate(paths):  # the third is the first, turned over; the second has half of its modules
        adapter.lora_a[path][2], adapter.lora_b[path][2] = adapter.lora_a[path][0], -adapter.lora_b[path][0]
        if number % 2:
            adapter.lora_a[path][1], adapter.lora_b[path][1] = adapter.lora_a[path][0], adapter.lora_b[path][0]
    short, full = sketches(adapter), updates(adapter)
    assert short.shape == (3, 40 * 64 * 64) and full.shape == (3, 40 * 300 * 200)
    assert torch.allclose(short[2], -short[0], atol=1e-3)  # threads share out the rows of a product differently
    assert short.square().sum(1) == pytest.approx(full.square().sum(1), rel=0.1)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(full[0], full[1], 0).item() == pytest.approx(0.5, abs=0.1)
    assert cosine(short[0], short[1], 0).item() == pytest.approx(cosine(full[0], full[1], 0).item(), abs=0.05)
    assert torch.allclose(sketches(adapter[[1]]), short[[1]], atol=1e-3)
    assert not torch.allclose(sketches(adapter, seed=1), short, atol=1e-3)


def bank_of(model, folder, names, adapter):
    bank = AdapterBank(folder)
    bank.add(names, adapter.described({"backbone": None, "backbone_revision": None}, model.peft_config()))
    return AdapterBank(folder)


@pytest.mark.parametrize("by", ["task", "group"])
def test_similarity_to_tuned_adapters(model, tokens, tmp_path, by):
    names = list(RECORDS) if by == "task" else list(GROUPS)
    rows = [next(r for r in RECORDS.values() if name in (r.task, r.group)) for name in names]
    tuned = TagiAdapter.stack([model.generate_adapter(r.instruction) for r in rows]).detach()
    tuned = TagiAdapter(tuned.lora_a, {p: b + 0.3 * b.roll(1, 1) for p, b in tuned.lora_b.items()}, tuned.lora_alpha)
    found = adapter_map(model, tokens, SPLITS, bank_of(model, tmp_path, names, tuned))["similarity"]

    adapters = TagiAdapter.stack([model.generate_adapter(r.instruction) for r in RECORDS.values()])
    ours, theirs = (torch.nn.functional.normalize(updates(a)) for a in (adapters, tuned))
    own, others = [], []
    for i, record in enumerate(RECORDS.values()):
        for j, row in enumerate(rows):
            cosine = (ours[i] @ theirs[j]).item()
            if names[j] in (record.task, record.group):
                own.append(cosine)
            elif row.group != record.group:
                others.append(cosine)
    assert (len(own), len(others)) == ((6, 18) if by == "task" else (6, 6))
    pairs = ours @ ours.T
    expected = {
        "own": sum(own) / len(own), "others": sum(others) / len(others),
        "generated": ((pairs.sum() - len(ours)) / (len(ours) * (len(ours) - 1))).item(),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert found["ratio"] == pytest.approx(expected["own"] / expected["others"], rel=1e-2)
    assert expected["others"] < expected["own"] < 1 and -1 < found["tuned"] < 1


def test_what_there_is_no_pair_for_is_left_open(model, tokens, tmp_path):
    lone = list(RECORDS)[0]
    adapter = model.generate_adapter(RECORDS[lone].instruction).detach()
    bank = bank_of(model, tmp_path, [lone], adapter)
    found = adapter_map(model, tokens, {"train": [RECORDS[lone]]}, bank)
    assert found["points"] == [{"task": lone, "group": "count", "split": "train", "x": 0.0, "y": 0.0}]
    assert found["explained"] == [0.0, 0.0]
    assert found["similarity"]["own"] == pytest.approx(1, abs=1e-4)
    assert [found["similarity"][name] for name in ("others", "generated", "tuned", "ratio")] == [None] * 4


def test_most_limits_the_tasks_and_the_seed_draws_them(model, tokens):
    drawn = [[p["task"] for p in adapter_map(model, tokens, SPLITS, most=3, seed=s)["points"]] for s in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and all(len(tasks) == 3 for tasks in drawn)
    assert len({tuple(tasks) for tasks in drawn}) > 1


def test_a_strangers_adapters_are_nobodys_own(model, tokens, tmp_path):
    adapter = TagiAdapter.stack([model.generate_adapter(text) for text in GROUPS["count"][:2]]).detach()
    bank = bank_of(model, tmp_path, ["strange", "stranger"], adapter)
    found = adapter_map(model, tokens, SPLITS, bank)["similarity"]
    assert [found[name] for name in ("own", "others", "ratio")] == [None] * 3
    assert -1 < found["tuned"] < 1 and -1 < found["generated"] < 1


def test_nothing_to_show_is_refused(model, tokens):
    with pytest.raises(ValueError, match="no records to generate adapters for; give at least one"):
        adapter_map(model, tokens, {"train": []})
