import copy

import pytest
import torch
from transformers import DynamicCache, T5Config
from transformers.modeling_outputs import BaseModelOutput

from modeling_tagi import TagiAdapter, TagiConfig, TagiModel
from modeling_tagi.adapter import instruction_hash
from modeling_tagi.modeling_tagi import prediction_loss

SEQ2SEQ = ["t5", "t5_v1_1", "mt5"]
CAUSAL = ["llama", "qwen2", "qwen3", "gpt2"]
FUSIONS = ["none", "concat", "cross_attention"]
every_family = pytest.mark.parametrize("family", SEQ2SEQ + CAUSAL)
both_kinds = pytest.mark.parametrize("family", ["t5", "llama"])
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def batch_for(model, random_ids, rows=2, seed=0):
    batch = {"input_ids": random_ids(rows, 6, seed), "attention_mask": torch.ones(rows, 6, dtype=torch.long)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = random_ids(rows, 4, seed + 1)
    return batch


def labels_for(model, random_ids, rows=2, seed=0):
    labels = random_ids(rows, 4 if model.config.is_encoder_decoder else 6, seed + 1)
    labels[0, :2] = -100
    return labels


def pad_rows(rows, left=False):
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


# A fresh model


@every_family
@every_fusion
@pytest.mark.parametrize("generator", ["per_layer", "per_module", "shared"])
def test_fresh_generator_changes_nothing_yet_has_a_gradient(make_model, random_ids, family, fusion, generator):
    model = make_model(family, fusion, generator, awake=False)
    instruction, batch = random_ids(2, 5, seed=9), batch_for(model, random_ids)
    adapter = model.generate_adapter(instruction)
    assert not any(b.any() for b in adapter.lora_b.values()) and all(a.any() for a in adapter.lora_a.values())

    with torch.no_grad():  # torch has other attention kernels for gradients
        ours, expected = model(**batch, adapter=adapter).logits, by_hand(model, instruction, batch)
    # to the bit, but where the decoder's keys of the memory are a product of their own
    shared = fusion != "none" and model.config.is_encoder_decoder
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 if shared else 0)

    model(**batch, labels=labels_for(model, random_ids), instruction_input_ids=instruction).loss.backward()
    outputs = [weight for stack in model.hypernetwork.stacks for weight in stack.output_weights]
    assert all(weight.grad.any() for weight in outputs)
    assert all(layer.gate.grad.any() for layer in model.fusion)


def by_hand(model, instruction, batch):
    """The bare backbone's logits, given the same memory: `(I_x ; encoded input)`, or a cache of the instruction."""
    backbone, ones = model.backbone, torch.ones_like(instruction)
    if model.config.fusion == "none":
        return backbone(**batch).logits
    if model.config.is_encoder_decoder:
        memory = backbone.encoder(input_ids=instruction, attention_mask=ones)[0]
        states = backbone.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        return backbone(
            encoder_outputs=BaseModelOutput(torch.cat([memory, states], 1)),
            attention_mask=torch.cat([ones, batch["attention_mask"]], 1),
            decoder_input_ids=batch["decoder_input_ids"],
        ).logits
    cache = backbone(input_ids=instruction, past_key_values=DynamicCache(), use_cache=True).past_key_values
    return backbone(
        input_ids=batch["input_ids"],
        attention_mask=torch.cat([ones, batch["attention_mask"]], 1),
        past_key_values=cache,
    ).logits


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_fresh_causal_model_answers_as_if_prompted(make_model, random_ids, family, fusion):
    model = make_model(family, fusion, awake=False)
    instruction, batch = random_ids(2, 5, seed=9), batch_for(model, random_ids)
    logits = model(**batch, adapter=model.generate_adapter(instruction)).logits
    prompted = model.backbone(input_ids=torch.cat([instruction, batch["input_ids"]], 1)).logits[:, 5:]
    torch.testing.assert_close(logits, prompted, rtol=0, atol=1e-5)


@every_family
def test_without_adapter_the_model_is_the_bare_backbone(make_model, random_ids, family):
    model = make_model(family)
    batch = batch_for(model, random_ids)
    assert torch.equal(model(**batch).logits, model.backbone(**batch).logits)


@every_family
@every_fusion
def test_awake_generator_changes_the_answer_with_the_instruction(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    batch = batch_for(model, random_ids)
    bare = model(**batch).logits
    one, two = (model(**batch, adapter=model.generate_adapter(random_ids(1, 5, seed))).logits for seed in (1, 2))
    assert (one - bare).abs().max() > 1e-3 and (one - two).abs().max() > 1e-3


# The loss


@both_kinds
def test_loss_is_the_cross_entropy_of_the_targets(make_model, random_ids, family):
    model = make_model(family)
    batch, labels = batch_for(model, random_ids), labels_for(model, random_ids)
    batch.pop("decoder_input_ids", None)
    adapter = model.generate_adapter(random_ids(1, 5))
    output = model(**batch, labels=labels, adapter=adapter)
    if model.config.is_encoder_decoder:
        shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), labels[:, :-1].clamp_min(0)], 1)
        logits = model(**batch, decoder_input_ids=shifted, adapter=adapter).logits
    else:
        logits, labels = model(**batch, adapter=adapter).logits[:, :-1], labels[:, 1:]
    picked = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)
    torch.testing.assert_close(output.loss, -picked[labels != -100].mean())
    in_three = model(**batch, labels=labels_for(model, random_ids), adapter=adapter, num_items_in_batch=3).loss
    torch.testing.assert_close(in_three, -picked[labels != -100].sum() / 3)


def test_prediction_loss_by_hand():
    # p = 3/4 and 1/4 for the right tokens: -ln(3/4) - ln(1/4) = 0.287682 + 1.386294; the third is left out
    logits = torch.tensor([[[3.0, 1.0]], [[3.0, 1.0]], [[1.0, 1.0]]]).log()
    labels = torch.tensor([[0], [1], [-100]])
    torch.testing.assert_close(prediction_loss(logits, labels), torch.tensor((0.287682 + 1.386294) / 2))
    torch.testing.assert_close(prediction_loss(logits, labels, 4), torch.tensor((0.287682 + 1.386294) / 4))
    assert prediction_loss(logits, torch.full((3, 1), -100)).item() == 0


# Batches


@every_family
@every_fusion
def test_padding_changes_neither_adapter_nor_answer(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    instructions = [random_ids(1, n, n)[0] for n in (3, 9, 5)]
    inputs = [random_ids(1, n, 50 + n)[0] for n in (7, 2, 4)]
    targets = random_ids(3, 4, 77)
    ids, mask = pad_rows(inputs)
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = targets
    padded, padded_mask = pad_rows(instructions)
    output = model(**batch, instruction_input_ids=padded, instruction_attention_mask=padded_mask)
    for row in range(3):
        alone = model.generate_adapter(instructions[row])
        for path in alone.lora_a:
            torch.testing.assert_close(output.adapter.lora_a[path][row], alone.lora_a[path][0], rtol=0, atol=1e-5)
            torch.testing.assert_close(output.adapter.lora_b[path][row], alone.lora_b[path][0], rtol=0, atol=1e-5)
        single = {"input_ids": inputs[row][None]}
        if model.config.is_encoder_decoder:
            single["decoder_input_ids"] = targets[row: row + 1]
        logits = model(**single, adapter=alone).logits[0]
        torch.testing.assert_close(output.logits[row, : len(logits)], logits, rtol=0, atol=1e-5)


@every_family
@every_fusion
def test_sixteen_mixed_adapters_equal_each_alone(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    adapters = model.generate_adapter([random_ids(1, 3 + n % 5, n)[0].tolist() for n in range(16)])
    batch = batch_for(model, random_ids, rows=16)
    mixed = model(**batch, adapter=adapters).logits
    for row in range(16):
        single = {name: tensor[row: row + 1] for name, tensor in batch.items()}
        alone = model(**single, adapter=adapters[row]).logits
        torch.testing.assert_close(mixed[row: row + 1], alone, rtol=0, atol=1e-5)


@both_kinds
@every_fusion
def test_task_index_says_which_row_has_which_adapter(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    instructions, index = random_ids(2, 5, seed=3), torch.tensor([1, 0, 1])
    batch = batch_for(model, random_ids, rows=3)
    indexed = model(**batch, instruction_input_ids=instructions, task_index=index).logits
    gathered = model(**batch, adapter=model.generate_adapter(instructions)[index]).logits
    torch.testing.assert_close(indexed, gathered, rtol=0, atol=1e-5)


@both_kinds
@every_fusion
def test_a_number_of_adapters_that_does_not_fit_the_batch_is_refused(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    adapters, batch = model.generate_adapter(random_ids(2, 5)), batch_for(model, random_ids, rows=4)
    with pytest.raises(ValueError, match="4 rows was given 2 adapters.*one for all rows.*task_index"):
        model(**batch, adapter=adapters)
    with pytest.raises(ValueError, match="4 rows was given 2 adapters"):
        model.generate(batch["input_ids"], adapter=adapters)
    with pytest.raises(ValueError, match="task_index names the adapters of 3 rows, but the batch has 4"):
        model(**batch, adapter=adapters, task_index=torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("fusion", ["none", "concat", "cross_attention"])
@pytest.mark.parametrize("family", CAUSAL)
def test_forward_continues_its_own_cache(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    adapter, ids = model.generate_adapter(random_ids(2, 5, seed=9)), random_ids(2, 7)
    whole = model(ids, adapter=adapter).logits
    first = model(ids[:, :4], adapter=adapter, use_cache=True)
    second = model(ids[:, 4:], adapter=adapter, past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=0, atol=1e-5)


# Instructions to adapters


def equal_adapters(one: TagiAdapter, two: TagiAdapter, atol=0.0):
    assert one.lora_a.keys() == two.lora_a.keys()
    for factor in ("lora_a", "lora_b"):
        for path, tensor in getattr(one, factor).items():
            torch.testing.assert_close(tensor, getattr(two, factor)[path], rtol=0, atol=atol)
    assert (one.memory is None) == (two.memory is None)
    for name, tensor in one.memory.tensors().items() if one.memory is not None else ():
        torch.testing.assert_close(tensor, two.memory.tensors()[name], rtol=0, atol=atol)


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


# Ways to run it


def gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@both_kinds
@every_fusion
@pytest.mark.parametrize("scope", ["generator", "all"])
def test_checkpointed_gradients_equal_those_without(make_model, random_ids, family, fusion, scope):
    model = make_model(family, fusion).train()
    model.set_trainable(scope)
    batch = {
        "input_ids": random_ids(3, 6), "attention_mask": torch.ones(3, 6, dtype=torch.long),
        "labels": labels_for(model, random_ids, rows=3), "instruction_input_ids": random_ids(2, 5, seed=4),
        "task_index": torch.tensor([1, 0, 1]),
    }  # fmt: skip
    calls = []
    path = "decoder.block.0.layer.1.EncDecAttention.q" if family == "t5" else "model.layers.0.self_attn.q_proj"
    model.backbone.get_submodule(path).register_forward_hook(lambda *_: calls.append(None))
    loss, expected = gradients(model, batch)
    called = len(calls)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed_loss, checkpointed = gradients(model, batch)
    assert len(calls) > 2 * called  # recomputed
    torch.testing.assert_close(checkpointed_loss, loss, rtol=0, atol=1e-6)
    assert checkpointed.keys() == expected.keys() and any(name.startswith("hypernetwork") for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_reentrant_checkpointing_is_refused(make_model):
    with pytest.raises(ValueError, match=r"use_reentrant=True.*\{'use_reentrant': False\}"):
        make_model("t5").gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


@both_kinds
@every_fusion
def test_autocast_is_finite_and_close(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    batch = {"input_ids": random_ids(2, 6), "labels": labels_for(model, random_ids)}
    batch["instruction_input_ids"] = random_ids(2, 5, seed=4)
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
        made_outside = model(batch["input_ids"], labels=batch["labels"], adapter=expected.adapter)
    output.loss.backward()
    for loss in (output.loss, made_outside.loss):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected.loss, rtol=0.05, atol=0)
    assert all(p.grad.isfinite().all() for p in model.hypernetwork.parameters())


@both_kinds
@every_fusion
def test_the_whole_model_runs_in_bfloat16(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    batch = {"input_ids": random_ids(2, 6), "labels": labels_for(model, random_ids)}
    expected = model(**batch, instruction_input_ids=random_ids(2, 5, seed=4)).loss
    half = copy.deepcopy(model).to(torch.bfloat16)
    output = half(**batch, instruction_input_ids=random_ids(2, 5, seed=4))
    assert output.logits.dtype == torch.bfloat16 and output.adapter.lora_b.popitem()[1].dtype == torch.bfloat16
    torch.testing.assert_close(output.loss, expected, rtol=0.1, atol=0)
    adapter = half.generate_adapter(random_ids(2, 5, seed=4))
    assert half.generate(batch["input_ids"], adapter=adapter, max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize(
    "family, fusion, backend",
    [
        ("llama", "cross_attention", "eager"),
        *(pytest.param("t5", fusion, "eager", marks=pytest.mark.slow) for fusion in FUSIONS),
        *(pytest.param("llama", fusion, "eager", marks=pytest.mark.slow) for fusion in FUSIONS[:2]),
        pytest.param("t5", "cross_attention", "inductor", marks=pytest.mark.slow),
        pytest.param("llama", "cross_attention", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager(make_model, random_ids, family, fusion, backend):
    torch._dynamo.reset()
    model = make_model(family, fusion)
    adapter, batch = model.generate_adapter(random_ids(2, 5, seed=4)), batch_for(model, random_ids)
    with torch.no_grad():
        expected = model(**batch, adapter=adapter).logits
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(**batch, adapter=adapter).logits, expected, rtol=0, atol=1e-5)
        other = model.generate_adapter(random_ids(2, 5, seed=5))
        expected_of_other = model(**batch, adapter=other).logits
        torch.testing.assert_close(compiled(**batch, adapter=other).logits, expected_of_other, rtol=0, atol=1e-5)
    assert (expected - expected_of_other).abs().max() > 1e-3


def test_a_compiled_backbone_sees_each_adapter_in_force(make_model, random_ids):
    from modeling_tagi.lora import Application, applied

    torch._dynamo.reset()
    model, ids = make_model("llama", "none"), random_ids(2, 5)
    compiled = torch.compile(model.backbone, backend="eager")
    adapters = [model.generate_adapter(random_ids(1, 5, seed)) for seed in (1, 2)]
    with torch.no_grad():
        for adapter in (adapters[0], None, adapters[1], adapters[0]):
            application = Application.of(adapter, model.backbone) if adapter is not None else None
            with applied(application):
                torch.testing.assert_close(
                    compiled(ids).logits, model(ids, adapter=adapter).logits, rtol=0, atol=1e-5
                )


@both_kinds
@every_fusion
def test_a_copy_is_independent(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    adapter, batch = model.generate_adapter(random_ids(2, 5, seed=4)), batch_for(model, random_ids)
    expected = model(**batch, adapter=adapter).logits
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(**batch, adapter=adapter).logits, expected)
    equal_adapters(copied.generate_adapter(random_ids(2, 5, seed=4)), adapter)


def test_two_threads_with_two_adapters_get_their_own_answers(make_model, random_ids):
    import threading

    model = make_model("llama")
    batch = batch_for(model, random_ids)
    adapters = [model.generate_adapter(random_ids(1, 5, seed)) for seed in (1, 2)]
    expected = [model(**batch, adapter=adapter).logits.detach() for adapter in adapters]
    barrier, wrong = threading.Barrier(2), []

    def work(number):
        try:
            for _ in range(20):
                barrier.wait(timeout=60)
                if not torch.equal(model(**batch, adapter=adapters[number]).logits, expected[number]):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not torch.equal(*expected)


# What is trained


@every_family
@pytest.mark.parametrize("scope", ["generator", "generator_and_norms", "all"])
def test_scope_says_what_is_trained(make_model, random_ids, family, scope):
    model = make_model(family)
    model.set_trainable("all")
    model.set_trainable(scope)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    generator = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    backbone = trained - generator
    everything = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    assert generator <= trained
    if scope == "generator":
        assert not backbone
    elif scope == "all":
        assert backbone == everything
    else:
        words = ("norm", "ln_", "embed", "shared", "wte", "wpe", "relative_attention_bias")
        assert backbone == {name for name in everything if any(word in name for word in words)}
    labels = labels_for(model, random_ids)
    model(random_ids(2, 6), labels=labels, instruction_input_ids=random_ids(2, 5)).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} <= trained
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith("hypernetwork"))


def test_unknown_scope_is_refused(make_model):
    with pytest.raises(ValueError, match="'everything', but takes one of 'generator', 'generator_and_norms', 'all'"):
        make_model("t5").set_trainable("everything")


# Building


def test_from_backbone_keeps_the_pretrained_weights(make_backbone, random_ids, tmp_path):
    backbone = make_backbone("llama")
    backbone.generation_config.max_new_tokens = 3
    backbone.save_pretrained(tmp_path)
    model = TagiModel.from_backbone(tmp_path, r=2, fusion="none").eval()
    assert model.config.backbone_name_or_path == str(tmp_path) and model.generation_config.max_new_tokens == 3
    ids = random_ids(2, 5)
    assert torch.equal(model(ids, adapter=model.generate_adapter(ids)).logits, backbone(ids).logits)
    assert TagiModel.from_backbone(tmp_path, r=2, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_model_from_its_config_is_fresh(make_config, random_ids):
    model = TagiModel(TagiConfig(backbone_config=make_config("t5"), r=2))
    adapter = model.generate_adapter(random_ids(1, 4))
    assert not any(b.any() for b in adapter.lora_b.values())
    bound = 32**-0.5
    for a in model.hypernetwork.shared_factors().values():
        assert 0.5 * bound < a.abs().max() <= bound


@pytest.mark.parametrize("fusion", ["concat", "none"])
def test_the_shared_a_is_decided_by_the_seed_whatever_the_fusion(fusion):
    made = []
    for kind in ("cross_attention", fusion):
        torch.manual_seed(7)
        backbone = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=20)
        made.append(TagiModel(TagiConfig(backbone, r=2, fusion=kind)).hypernetwork.shared_factors())
    assert all(torch.equal(a, made[1][path]) for path, a in made[0].items())
    assert len({a.sum().item() for a in made[0].values()}) == len(made[0])
