"""Instructions to adapters: what is read, what is refused, and whose adapters fit."""

import copy

import pytest
import torch
from toy_batches import batch_for, both_kinds, equal_adapters, every_family, every_fusion

from modeling_tagi import TagiAdapter
from modeling_tagi.adapter import instruction_hash


@both_kinds
@every_fusion
def test_text_and_its_tokens_make_the_same_adapter(make_model, tokenizer, family, fusion):
    model = make_model(family, fusion)
    model.tokenizer = tokenizer
    text = "say yes"
    tokens = tokenizer(text)["input_ids"]
    expected = model.generate_adapter(text)
    assert len(expected) == 1
    padded = torch.tensor([[*tokens, 0, 0]])
    for same in ([text], tokens, [tokens], torch.tensor(tokens), torch.tensor([tokens]), padded):
        equal_adapters(model.generate_adapter(same), expected)


@both_kinds
@every_fusion
def test_a_list_of_instructions_makes_what_each_alone_makes(make_model, tokenizer, family, fusion):
    model = make_model(family, fusion)
    model.tokenizer = tokenizer
    texts = ["no", "say yes to it all", "repeat"]
    together = model.generate_adapter(texts)
    for adapter, text in zip(together, texts):
        equal_adapters(adapter, model.generate_adapter(text), atol=1e-5)
        assert adapter.provenance[0]["instruction"] == text


def test_demonstrations_are_read_behind_the_instruction(make_model, tokenizer):
    model = make_model("t5")
    model.tokenizer = tokenizer
    pairs = [("a", "no"), ("b", "yes")]
    adapter = model.generate_adapter("say", demonstrations=pairs)
    text = "say\n\nExample 1: Input: a Output: no\n\nExample 2: Input: b Output: yes"
    equal_adapters(adapter, model.generate_adapter(text))
    equal_adapters(adapter, model.generate_adapter(["say", "x"], demonstrations=[pairs, None])[0], atol=1e-5)
    assert adapter.provenance[0]["instruction"] == text
    assert (adapter.lora_b["encoder.block.0.layer.0.SelfAttention.q"] != model.generate_adapter("say").lora_b[
        "encoder.block.0.layer.0.SelfAttention.q"]).any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("",), "the instruction is ''.*not empty"),
        ((["yes", "  "],), "the instruction is '  '"),
        (([],), "no instruction; give a text, a list of texts, or token ids"),
        (([5, 6, 7] * 4,), "instruction 0 has 12 tokens, but 1 to 10 can be read; shorten it"),
        (([[5], []],), "instruction 1 has 0 tokens, but 1 to 10 can be read; give at least one"),
        (("yes to all of them",), r"instruction 0 has \d\d tokens, but 1 to 10"),
        (("yes", [("a", "b", "c")]), r"demonstration 1 is \('a', 'b', 'c'\)"),
        (("yes", ["ab"]), "demonstration 1 is 'ab'"),
        (("yes", "ab"), "the demonstrations are 'ab'"),
        ((["yes", "no"], [[("a", "b")]]), "2 instructions came with 1 lists of demonstrations"),
        (([5, 6], [("a", "b")]), "demonstrations go with instruction texts"),
        ((["yes", [5, 6]],), r"the instruction is \[5, 6\]"),
    ],
)
def test_what_cannot_be_read_is_refused(make_model, tokenizer, arguments, message):
    model = make_model("t5", max_instruction_length=10)
    model.tokenizer = tokenizer
    with pytest.raises(ValueError, match=message):
        model.generate_adapter(*arguments)


def test_text_without_a_tokenizer_is_refused(make_model):
    with pytest.raises(ValueError, match="no tokenizer.*set model.tokenizer, or pass token ids"):
        make_model("t5").generate_adapter("yes")


def test_provenance_says_where_an_adapter_comes_from(make_model, tokenizer):
    model = make_model("llama", backbone_name_or_path="user/backbone", backbone_revision="abc")
    model.tokenizer = tokenizer
    model.name_or_path, model._revision = "user/generator", "def"
    (source,) = model.generate_adapter("yes").provenance
    assert len(source.pop("backbone_fingerprint")) == 8
    assert source == {
        "instruction": "yes",
        "instruction_sha256": instruction_hash("yes"),
        "generator": "user/generator",
        "generator_revision": "def",
        "backbone": "user/backbone",
        "backbone_revision": "abc",
        "input_format": "plain",
    }
    assert instruction_hash("yes") == "8a798890fe93817163b10b5f7bd2ca4d25d84c52739a645a889c173eee7d9d3d"
    model.config.backbone_trained = True
    (source,) = model.generate_adapter("yes").provenance
    assert (source["backbone"], source["backbone_revision"]) == ("user/generator", "def")


@both_kinds
def test_generate_adapter_leaves_no_trace(make_backbone, make_model, random_ids, family):
    dropout = {"dropout_rate": 0.5} if family == "t5" else {"attention_dropout": 0.5}
    model = make_model(family, backbone=make_backbone(family, **dropout))
    ids = random_ids(2, 5)
    expected = model.generate_adapter(ids)
    model.train()
    model.backbone.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for _ in range(2):
        equal_adapters(model.generate_adapter(ids), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    layer = model.backbone.get_submodule(next(iter(expected.lora_a)))
    broken = layer.register_forward_pre_hook(lambda *_: {}["an error while reading"])
    with pytest.raises(KeyError):
        model.generate_adapter([[50]])
    broken.remove()
    assert [module.training for module in model.modules()] == modes
    assert not any(a.requires_grad for a in expected.lora_a.values())


# Another backbone's adapter


def test_an_adapter_of_other_modules_is_refused(make_model, random_ids):
    adapter = make_model("qwen2").generate_adapter(random_ids(1, 5))
    model = make_model("t5", backbone_name_or_path="user/mine")
    with pytest.raises(ValueError, match=r"changes 'model\.layers.*does not have.*generate it with.*'user/mine'"):
        model(random_ids(1, 3), decoder_input_ids=random_ids(1, 2), adapter=adapter)


def test_an_adapter_of_other_shapes_is_refused(make_backbone, make_model, random_ids):
    other = make_model("llama", backbone=make_backbone("llama", hidden_size=48, head_dim=8))
    adapter = other.generate_adapter(random_ids(1, 5))
    with pytest.raises(ValueError, match=r"its update of 'model\.layers\.0.*q_proj' is 32 × 48.*weight here 32 × 32"):
        make_model("llama")(random_ids(1, 3), adapter=adapter)


def test_an_adapter_for_other_weights_is_refused(make_model, random_ids):
    adapter = make_model("llama", backbone_name_or_path="user/theirs").generate_adapter(random_ids(1, 5))
    model = make_model("llama", seed=7)
    with pytest.raises(ValueError, match="made for the backbone user/theirs, whose weights are not this model's"):
        model(random_ids(1, 3), adapter=adapter)
    both = TagiAdapter.stack([model.generate_adapter(random_ids(1, 5)), adapter])
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        model.generate(random_ids(2, 3), adapter=both)


@every_family
def test_an_adapter_fits_its_backbone_in_bfloat16_and_beside_another_generator(make_model, random_ids, family):
    model = make_model(family, "none")
    adapter = model.generate_adapter(random_ids(1, 5))
    batch = batch_for(model, random_ids)
    expected = model(**batch, adapter=adapter).logits
    for generator in ("per_module", "shared"):
        other = make_model(family, "none", generator, backbone=copy.deepcopy(model.backbone))
        assert torch.equal(other(**batch, adapter=adapter).logits, expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(**batch, adapter=adapter).logits.isfinite().all()
    model(**batch, adapter=half.generate_adapter(random_ids(1, 5)))


def test_a_memory_for_other_cross_attention_is_refused(make_model, random_ids):
    adapter = make_model("t5").generate_adapter(random_ids(1, 5))
    with pytest.raises(ValueError, match=r"layers × heads × width 2 × 4 × 8, this model has none \(fusion='none'\)"):
        make_model("t5", "none")(random_ids(1, 3), decoder_input_ids=random_ids(1, 2), adapter=adapter)


def test_what_is_no_adapter_is_refused(make_model, random_ids):
    model = make_model("llama")
    with pytest.raises(TypeError, match="adapter is a dict, but must be a TagiAdapter"):
        model(random_ids(1, 3), adapter={})
    with pytest.raises(ValueError, match="both an adapter and instruction_input_ids"):
        ids = random_ids(1, 5)
        model(ids, adapter=model.generate_adapter(ids), instruction_input_ids=ids)
