import pytest
import torch
from toy_batches import CAUSAL, batch_for, both_kinds, every_family, every_fusion, labels_for, pad_rows
from transformers import DynamicCache, T5Config
from transformers.modeling_outputs import BaseModelOutput

from modeling_tagi import TagiConfig, TagiModel
from modeling_tagi.modeling_tagi import prediction_loss

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
