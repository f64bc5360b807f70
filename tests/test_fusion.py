import pytest
import torch
from transformers import (
    MBartConfig,
    MBartForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from modeling_tagi.causal import Causal
from modeling_tagi.fusion import InstructionCrossAttention, layers_of
from modeling_tagi.seq2seq import Seq2Seq, concat_memory, memory_projections

MBART = MBartConfig(
    vocab_size=100, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
    decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
)  # fmt: skip


def identity_attention(gate) -> InstructionCrossAttention:
    layer = InstructionCrossAttention(d_model=2, heads=1, d_head=2)
    with torch.no_grad():
        for linear in (layer.q, layer.k, layer.v, layer.o):
            linear.weight.copy_(torch.eye(2))
        layer.gate.copy_(torch.tensor(gate))
    return layer


def test_equation_1_by_hand():
    # Root mean squares: of the state [3, 4] sqrt(12.5), so the query is [0.848528, 1.131371]; of [1, 1] and [1, -1]
    # it is 1, so they are keys and values as they are.
    # Scores over sqrt(2): (0.848528 + 1.131371) / sqrt(2) = 1.4 and (0.848528 - 1.131371) / sqrt(2) = -0.2.
    # softmax: 1 / (1 + exp(-1.6)) = 0.832018 and 0.167982; attended [1, 0.832018 - 0.167982] = [1, 0.664037].
    # With the gate [1, 0.5]: [3 + 1, 4 + 0.332018].
    layer = identity_attention([1.0, 0.5])
    keys, values = layer.project(torch.tensor([[[1.0, 1.0], [1.0, -1.0], [7.0, 3.0]]]))
    fused = layer(torch.tensor([[[3.0, 4.0]]]), keys, values, mask=torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(fused, torch.tensor([[[4.0, 4.332018]]]), rtol=0, atol=1e-5)


def test_a_zero_gate_is_an_identity_to_the_bit():
    layer = identity_attention([0.0, 0.0])
    states = torch.randn(3, 5, 2)
    keys, values = layer.project(torch.randn(3, 4, 2))
    assert torch.equal(layer(states, keys, values, torch.ones(3, 4)), states)


def test_heads_attend_apart():
    torch.manual_seed(0)
    both, memory, states = InstructionCrossAttention(4, heads=2, d_head=3), torch.randn(1, 5, 4), torch.randn(1, 6, 4)
    torch.nn.init.ones_(both.gate)
    expected = states.clone()
    for head in range(2):
        one = InstructionCrossAttention(4, heads=1, d_head=3)
        rows = slice(3 * head, 3 * head + 3)
        with torch.no_grad():
            one.gate.fill_(1.0)
            for name in "qkv":
                getattr(one, name).weight.copy_(getattr(both, name).weight[rows])
            one.o.weight.copy_(both.o.weight[:, rows])
        expected = expected + one(states, *one.project(memory), torch.ones(1, 5)) - states
    torch.testing.assert_close(both(states, *both.project(memory), torch.ones(1, 5)), expected)


def test_each_row_attends_to_its_own_task():
    torch.manual_seed(0)
    layer = InstructionCrossAttention(4, heads=2, d_head=2)
    torch.nn.init.normal_(layer.gate)
    memory, mask, states = torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.randn(4, 5, 4)
    index = torch.tensor([1, 0, 0, 1])
    fused = layer(states, *layer.project(memory), mask, index)
    for row, task in enumerate(index.tolist()):
        length = int(mask[task].sum())
        keys, values = layer.project(memory[task: task + 1, :length])
        alone = layer(states[row: row + 1], keys, values, torch.ones(1, length))
        torch.testing.assert_close(fused[row: row + 1], alone)


def test_memory_comes_before_the_input():
    memory, mask = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1, 0]])
    states = torch.tensor([[[3.0]], [[4.0]]])
    joined, joined_mask = concat_memory(memory, mask, states)
    assert joined.squeeze(-1).tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]]
    assert joined_mask.tolist() == [[1, 0, 1], [1, 0, 1]]
    _, joined_mask = concat_memory(memory, mask, states, torch.tensor([[0], [1]]))
    assert joined_mask.tolist() == [[1, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_an_encoder_is_fused_behind_its_self_attention(make_backbone, family):
    backbone = make_backbone(family)
    assert Seq2Seq().fused_modules(backbone) == [block.layer[0] for block in backbone.encoder.block]


@pytest.mark.parametrize("family, layers", [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_a_causal_model_is_fused_behind_its_layers(make_backbone, family, layers):
    backbone = make_backbone(family)
    assert Causal().fused_modules(backbone) == list(backbone.get_submodule(layers))


def test_layers_one_module_deeper_are_found_and_those_that_cannot_be_told_are_refused():
    config = OPTConfig(vocab_size=100, hidden_size=8, word_embed_proj_dim=8, ffn_dim=8, num_hidden_layers=2,
                       num_attention_heads=1)  # fmt: skip
    backbone = OPTForCausalLM(config)
    assert Causal().fused_modules(backbone) == list(backbone.model.decoder.layers)
    two = torch.nn.Module()
    two.first, two.second = torch.nn.ModuleList(), torch.nn.ModuleList()
    for stack in (two, torch.nn.Module()):
        with pytest.raises(ValueError, match="modules of Module are its layers; cross-attention and FLOPs need them"):
            layers_of(stack)


def test_an_encoder_whose_layers_are_not_known_is_refused():
    with pytest.raises(ValueError, match="fusion='cross_attention'.*'mbart'.*use fusion='concat' or 'none'"):
        Seq2Seq().fused_modules(MBartForConditionalGeneration(MBART))


# The decoder's keys and values of the memory, once a task instead of once a row


@pytest.fixture
def concatenated(monkeypatch):
    """`concatenated(function)`: what it gives where every row's keys and values are made of `(I_x ; F)`."""

    def run(function):
        with monkeypatch.context() as patched:
            patched.setattr("modeling_tagi.seq2seq.memory_projections", lambda backbone: [])
            return function()

    return run


@pytest.fixture
def make(make_model):
    """As `make_model`, with UMT5 as well."""

    def build(family, fusion, targets=("q", "v")):
        backbone = None
        if family == "umt5":
            torch.manual_seed(0)
            backbone = UMT5ForConditionalGeneration(UMT5Config(
                vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
                decoder_start_token_id=0, relative_attention_num_buckets=8,
            )).eval()  # fmt: skip
        return make_model(family, fusion, backbone=backbone, target_modules=list(targets))

    return build


def padded(ids, *lengths):
    """Two fields of a batch: `ids` with padding behind the first tokens of each row, and its mask."""
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


# Which of the tasks each of three rows has: by index, fewer rows than tasks, one task for all, one for each
ROWS = {"indexed": (2, [1, 0, 1]), "many": (4, [3, 0, 3]), "one": (1, None), "each": (3, None)}
every_row = pytest.mark.parametrize("tasks, index", ROWS.values(), ids=ROWS)
every_target = pytest.mark.parametrize("targets", [["q", "v"], ["q", "k", "v", "o"]], ids="".join)


@pytest.mark.parametrize("family, fusion", [
    ("t5", "concat"), ("t5", "cross_attention"), ("t5_v1_1", "cross_attention"), ("mt5", "concat"), ("umt5", "concat"),
])  # fmt: skip
@every_target
@every_row
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_loss_and_gradients_equal_those_of_concatenation(
    make, concatenated, random_ids, family, fusion, targets, tasks, index, checkpointing
):
    model = make(family, fusion, targets).train()
    model.set_trainable("all")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids, mask = padded(random_ids(3, 6), 6, 2, 4)
    instruction, instruction_mask = padded(random_ids(tasks, 9, seed=1), *[9, 3, 6, 5][:tasks])
    labels = random_ids(3, 4, seed=2)
    labels[0, 2:] = -100

    def trained():
        model.zero_grad()
        output = model(ids, mask, labels, task_index=None if index is None else torch.tensor(index),
                       instruction_input_ids=instruction, instruction_attention_mask=instruction_mask)  # fmt: skip
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {"logits": output.logits.detach(), "loss": output.loss.detach(), **gradients}

    expected, once = concatenated(trained), trained()
    assert once.keys() == expected.keys() and "backbone.decoder.block.0.layer.1.EncDecAttention.k.weight" in once
    for name, value in expected.items():
        torch.testing.assert_close(once[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("t5_v1_1", "concat"), ("umt5", "concat")])
@every_target
@every_row
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
def test_generated_scores_equal_those_of_concatenation(
    make, concatenated, random_ids, family, fusion, targets, tasks, index, beams, use_cache
):
    model = make(family, fusion, targets)
    adapter = model.generate_adapter([random_ids(1, n)[0].tolist() for n in [9, 3, 6, 5][:tasks]])
    ids, mask = padded(random_ids(3, 6, seed=1), 6, 2, 4)

    def generated():
        return model.generate(ids, attention_mask=mask, adapter=adapter, use_cache=use_cache, num_beams=beams,
                              task_index=None if index is None else torch.tensor(index), num_return_sequences=beams,
                              max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True,
                              return_dict_in_generate=True)  # fmt: skip

    expected, once = concatenated(generated), generated()
    assert torch.equal(once.sequences, expected.sequences) and len(once.sequences) == 3 * beams
    torch.testing.assert_close(torch.stack(once.logits), torch.stack(expected.logits), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tasks, index, worked_on", [(1, None, 1), (2, [1, 0, 1], 2), (4, [3, 0, 3], 3)])
def test_keys_and_values_of_the_memory_are_made_once_a_task(make, random_ids, tasks, index, worked_on):
    model = make("t5", "concat")
    index = None if index is None else torch.tensor(index)
    adapter, ids = model.generate_adapter(random_ids(tasks, 7, seed=1)), random_ids(3, 5)
    shapes = []
    for module in memory_projections(model.backbone):
        forward = module.forward  # by a call or without one
        module.forward = lambda x, forward=forward: (shapes.append(tuple(x.shape[:2])), forward(x))[1]
    model(ids, adapter=adapter, task_index=index, decoder_input_ids=ids)
    assert len(shapes) == 2 * 2 * 2 and set(shapes) == {(3, 5), (worked_on, 7)}
    shapes.clear()
    model.generate(ids, adapter=adapter, task_index=index, num_beams=2, max_new_tokens=4, min_new_tokens=4)
    assert len(shapes) == 2 * 2 * 2 and set(shapes) == {(6, 5), (worked_on, 7)}  # and not in every step


def test_an_adapter_with_other_targets_changes_them_in_the_memory_too(make, make_model, concatenated, random_ids):
    narrow = make("t5", "concat", ["q"])
    wide = make_model("t5", "concat", backbone=narrow.backbone, target_modules=["q", "k", "v"])
    adapter, ids = wide.generate_adapter(random_ids(2, 7)), random_ids(2, 5)

    def logits():
        return narrow(ids, adapter=adapter, decoder_input_ids=ids).logits

    torch.testing.assert_close(logits(), concatenated(logits), rtol=0, atol=1e-5)


def test_where_the_projections_are_not_known_the_memory_is_concatenated(make_model, random_ids):
    torch.manual_seed(0)
    backbone = MBartForConditionalGeneration(MBART).eval()
    assert memory_projections(backbone) == []
    model = make_model("bart", "concat", backbone=backbone, target_modules=["q_proj", "v_proj"], awake=False)
    instruction, ids = random_ids(1, 7), random_ids(2, 5, seed=1)
    memory, states = (backbone.get_encoder()(input_ids=x)[0] for x in (instruction, ids))
    joined, mask = concat_memory(memory, torch.ones_like(instruction), states)
    expected = backbone(encoder_outputs=BaseModelOutput(joined), attention_mask=mask, decoder_input_ids=ids).logits
    adapter = model.generate_adapter(instruction)
    torch.testing.assert_close(model(ids, adapter=adapter, decoder_input_ids=ids).logits, expected)
    assert model.generate(ids, adapter=adapter, num_beams=2, max_new_tokens=3, min_new_tokens=3).shape == (2, 4)


def test_fewer_heads_of_cross_attention_are_a_smaller_model(make_model, random_ids):
    model, smaller = make_model("t5", fusion="cross_attention"), make_model("t5", "cross_attention", fusion_heads=1)
    assert [layer.heads for layer in smaller.fusion] == [1] * len(model.fusion)
    assert sum(p.numel() for p in smaller.fusion.parameters()) < sum(p.numel() for p in model.fusion.parameters())
    adapter = smaller.generate_adapter(random_ids(1, 5))
    assert adapter.memory.keys.shape[2] == 1
    assert smaller(random_ids(2, 4), labels=random_ids(2, 3), adapter=adapter).logits.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("mask", [[1, 0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1, 0, 1]], ids=str)
def test_dropped_instruction_tokens_are_as_if_they_were_not_there(make_model, random_ids, family, mask):
    model = make_model(family, "concat", awake=False)  # the prefix is all that differs from the bare backbone
    instruction, ids, mask = random_ids(1, 8, 3), random_ids(1, 5, 4), torch.tensor([mask])
    found = model(ids, instruction_input_ids=instruction, instruction_attention_mask=mask).logits
    kept = model.backbone(torch.cat([instruction[:, mask[0].bool()], ids], 1)).logits[:, -5:]
    torch.testing.assert_close(found, kept, rtol=0, atol=1e-5)
