"""What transformers' models take and return in `forward` beside ids and logits, with an adapter."""

import copy

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

FUSIONS = ["none", "concat", "cross_attention"]
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
FAMILIES = ["t5", "llama", "gpt2", "mistral"]


@pytest.fixture
def made(make_model, random_ids):
    def make(family, fusion):
        model = make_model(family, fusion)
        ids = random_ids(2, 15, 9)
        return model, model.generate_adapter([[5, 6, 7], [8]]), ids

    return make


@pytest.mark.parametrize("family", FAMILIES)
@every_fusion
def test_embedded_inputs_are_read_as_their_ids(made, family, fusion):
    model, adapters, ids = made(family, fusion)
    labels, embedded = {"labels": ids}, model.get_input_embeddings()(ids)
    found = model(inputs_embeds=embedded, adapter=adapters, task_index=torch.tensor([1, 0]), **labels)
    expected = model(ids, adapter=adapters, task_index=torch.tensor([1, 0]), **labels)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="2 rows was given 3 adapters"):
        model(inputs_embeds=embedded, adapter=adapters[[0, 1, 1]], **labels)


@pytest.mark.parametrize("family", FAMILIES)
@every_fusion
def test_hidden_states_and_attentions_are_returned_where_asked(made, family, fusion):
    model, adapters, ids = made(family, fusion)
    model.set_attn_implementation("eager")
    assert not any("hidden" in name or "attentions" in name for name in model(ids, labels=ids, adapter=adapters))
    output = model(ids, labels=ids, adapter=adapters, output_hidden_states=True, output_attentions=True)
    if not model.config.is_encoder_decoder:
        assert len(output.hidden_states) == 3 and len(output.attentions) == 2
        torch.testing.assert_close(model.get_output_embeddings()(output.hidden_states[-1]), output.logits)
        return
    assert len(output.decoder_hidden_states) == len(output.encoder_hidden_states) == 3
    assert len(output.cross_attentions) == len(output.decoder_attentions) == len(output.encoder_attentions) == 2
    assert output.encoder_hidden_states[-1].shape[1] == 15  # the encoder's own, without the instruction
    generated = model.generate(ids, adapter=adapters, max_new_tokens=2, return_dict_in_generate=True,
                               output_hidden_states=True)  # fmt: skip
    torch.testing.assert_close(generated.encoder_hidden_states[-1], output.encoder_hidden_states[-1])


@every_fusion
def test_an_encoders_output_that_is_given_is_not_made_again(made, fusion):
    model, adapters, ids = made("t5", fusion)
    states = []
    watch = model.backbone.encoder.register_forward_hook(lambda module, args, output: states.append(output[0]))
    expected = model(ids, labels=ids, adapter=adapters).logits
    given = BaseModelOutput(states[-1][:, -15:])
    found = model(encoder_outputs=given, labels=ids, adapter=adapters).logits
    watch.remove()
    assert len(states) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_tuple_is_returned_where_asked(made):
    model, adapters, ids = made("t5", "none")
    expected = model(ids, labels=ids, adapter=adapters)
    found = model(ids, labels=ids, adapter=adapters, return_dict=False)
    assert isinstance(found, tuple) and torch.equal(found[0], expected.loss) and torch.equal(found[1], expected.logits)


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
@pytest.mark.parametrize("name", ["inputs_embeds", "past_key_values", "cache"])
def test_generate_refuses_what_it_cannot_read_behind_an_instruction(made, fusion, name):
    model, adapters, ids = made("llama", fusion)
    embedded = model.get_input_embeddings()(ids)
    options = {"inputs_embeds": embedded} if name == "inputs_embeds" else {"input_ids": ids, name: object()}
    with pytest.raises(ValueError, match=f"generate got {name}, .*{fusion}.*give input_ids of the whole input"):
        model.generate(adapter=adapters, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@every_fusion
@torch.no_grad()
def test_a_cache_is_returned_and_taken_by_either_of_its_names(made, family, fusion):
    model, adapters, ids = made(family, fusion)
    expected = model(ids, adapter=adapters).logits[:, 11:]
    first = model(ids[:, :11], adapter=adapters, use_cache=True)
    assert first.cache.get_seq_length() and first.cache is first["cache"] is first.past_key_values
    with pytest.raises(ValueError, match="both cache and past_key_values"):
        model(ids[:, 11:], adapter=adapters, cache=first.cache, past_key_values=first.cache)
    for name in ("cache", "past_key_values"):
        found = model(ids[:, 11:], adapter=adapters, **{name: copy.deepcopy(first.cache)}).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@every_fusion
@torch.no_grad()
def test_a_decoders_cache_is_taken_by_either_of_its_names(made, fusion):
    model, adapters, ids = made("t5", fusion)
    expected = model(ids, decoder_input_ids=ids, adapter=adapters).logits[:, 11:]
    first = model(ids, decoder_input_ids=ids[:, :11], adapter=adapters, use_cache=True)
    for name in ("cache", "past_key_values"):
        cache = {name: copy.deepcopy(first.cache)}
        found = model(ids, decoder_input_ids=ids[:, 11:], adapter=adapters, **cache).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("t5", "none"), ("llama", "none")])
def test_generate_reads_embedded_inputs(made, family, fusion):
    model, adapters, ids = made(family, fusion)
    embedded = model.get_input_embeddings()(ids)
    found = model.generate(inputs_embeds=embedded, adapter=adapters, max_new_tokens=4)
    expected = model.generate(ids, adapter=adapters, max_new_tokens=4)
    assert torch.equal(found, expected if family == "t5" else expected[:, 15:])


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2", "gpt_neox", "gemma3_text"])
@every_fusion
@torch.no_grad()
def test_without_gradients_a_model_that_checkpoints_answers_as_one_that_does_not(made, random_ids, family, fusion):
    model, adapters, ids = made(family, fusion)
    parts = [{"input_ids": ids[:, :11]}, {"input_ids": ids[:, 11:]}]
    if family == "t5":
        parts = [{"input_ids": ids, "decoder_input_ids": part["input_ids"]} for part in parts]
    model.train()

    def answers():
        first = model(**parts[0], adapter=adapters, use_cache=True)
        second = model(**parts[1], adapter=adapters, cache=first.cache, use_cache=True)
        made = model(ids, labels=ids, instruction_input_ids=random_ids(2, 5, 4))
        generated = model.generate(ids, adapter=adapters, max_new_tokens=5), model.generate(ids, max_new_tokens=5)
        return first.logits, second.logits, made.logits, *generated

    expected = answers()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for found, wanted in zip(answers(), expected):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert model.training and model.is_gradient_checkpointing
