import pytest
import torch

from modeling_tagi.fusion import InstructionCrossAttention, concat_memory, fused_modules


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
    assert fused_modules(backbone, True) == [block.layer[0] for block in backbone.encoder.block]


@pytest.mark.parametrize("family, layers", [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_a_causal_model_is_fused_behind_its_layers(make_backbone, family, layers):
    backbone = make_backbone(family)
    assert fused_modules(backbone, False) == list(backbone.get_submodule(layers))


def test_an_encoder_whose_layers_are_not_known_is_refused():
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="fusion='cross_attention'.*'bart'.*use fusion='concat' or 'none'"):
        fused_modules(BartForConditionalGeneration(config), True)
