import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling_tagi import TagiModel
from modeling_tagi.hypernetwork import POOLINGS, AttentionPooling
from modeling_tagi.training.step_outputs import KeptInstructions

ROWS = [[5, 6, 7], [8, 9], [5, 9, 3, 4, 6, 2, 8], [7, 7, 8, 3]]


@pytest.fixture(params=["t5", "llama"])
def model(request, make_model):
    made = make_model(request.param, fusion="none", standardise=True, pooling="attention")
    made.standardised.set(made.pooled_from_rows(ROWS))
    return made


def factors(adapter):
    return [*adapter.lora_a.values(), *adapter.lora_b.values()]


def close(found, expected):
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(found, expected))


def test_attention_pooling_by_hand():
    pooling = AttentionPooling(2)  # heads of width 1
    with torch.no_grad():
        pooling.queries.zero_()
        pooling.values.copy_(torch.ones(16, 2, 1))
        pooling.queries[0] = torch.tensor([1e4, -1e4])  # takes the token whose first feature is the larger one
    states = torch.tensor([[[1.0, 3.0], [5.0, 1.0], [9.0, 9.0]]])
    pooled = pooling(states, torch.tensor([[1, 1, 0]]))
    assert pooled.shape == (1, pooling.width) == (1, 18)
    # the mean is [3, 2], its layer norm [1, -1]
    torch.testing.assert_close(pooled[0, :2], torch.tensor([1.0, -1.0]), atol=1e-4, rtol=0)
    # layer norms of the tokens are [-1, 1] and [1, -1]; a head of width 1 is 0 after its own layer norm
    assert not pooled[0, 2:].any()


def test_a_head_finds_one_token_and_padding_counts_for_nothing():
    torch.manual_seed(0)
    pooling = AttentionPooling(32)
    pooling.initialise()
    states = torch.randn(2, 5, 32)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    both, alone = pooling(states, mask), pooling(states[1:, :2], mask[1:, :2])
    torch.testing.assert_close(both[1:], alone)
    with torch.no_grad():
        normal = torch.nn.functional.layer_norm(states[0], (32,))
        pooling.queries.copy_((100 * normal[3]).expand(16, -1))
    expected = torch.einsum("d,hdv->hv", normal[3], pooling.values)
    expected = torch.nn.functional.layer_norm(expected, (2,)).flatten()
    torch.testing.assert_close(pooling(states, mask)[0, 32:], expected, atol=1e-3, rtol=0)


def test_adapters_are_the_same_alone_together_and_from_kept_states(model):
    together = factors(model.adapter_from_rows(ROWS))
    assert close(together, factors(model.adapter_from_rows(ROWS, at_most=2)))
    alone = [model.adapter_from_ids(torch.tensor([row])) for row in ROWS]
    for number, one in enumerate(alone):
        assert close(factors(one), [factor[number:number + 1] for factor in together])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ROWS], batch_first=True)
    mask = (ids != 0).long()
    kept = KeptInstructions()
    model.requires_grad_(False).hypernetwork.requires_grad_(True)
    for _ in range(2):  # read, then kept
        assert close(factors(kept.adapter(model.train(), ids, mask)), together)


def test_words_of_an_instruction_matter_beyond_their_mean(model, make_model):
    """Two instructions whose states have the same mean are one to a generator of means, two to one with attention."""
    states = torch.randn(1, 2, model.config.get_text_config().hidden_size)
    spread = torch.randn_like(states[:, :1])
    states = torch.cat([states, states + torch.cat([spread, -spread], 1)])
    mask = torch.ones(2, 2)
    means = make_model("llama", fusion="none")
    for one, differs in ((means, False), (model, True)):
        torch.nn.init.normal_(one.hypernetwork.stacks[0].output_weights[0])
        made = factors(one.adapter_from_states(states, mask))
        assert any(not torch.allclose(x[0], x[1], rtol=1e-3, atol=1e-4) for x in made) == differs


def test_a_checkpoint_holds_the_heads_and_training_reaches_them(model, tmp_path):
    for stack in model.hypernetwork.stacks:
        for weight in stack.output_weights:
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path)
    loaded = TagiModel.from_pretrained(tmp_path)
    assert loaded.config.pooling == "attention"
    pairs = zip(factors(model.adapter_from_rows(ROWS)), factors(loaded.adapter_from_rows(ROWS)))
    assert all(torch.equal(one, other) for one, other in pairs)
    loaded.set_trainable("generator")
    sum(factor.square().sum() for factor in factors(loaded.adapter_from_ids(torch.tensor(ROWS[2:3])))).backward()
    pooling = loaded.hypernetwork.pooling
    assert pooling.queries.grad.any() and pooling.values.grad.any()


@pytest.mark.parametrize("name", POOLINGS)
def test_flops_are_counted(name):
    with torch.device("meta"):
        pooling = POOLINGS[name](64)
        with FlopCounterMode(display=False) as counter:
            pooling(torch.empty(1, 30, 64), torch.ones(1, 30))
    assert counter.get_total_flops() == pytest.approx(pooling.flops(30), rel=0.1)


def test_another_pooling_is_refused(make_model):
    with pytest.raises(ValueError, match="pooling is 'max', but must be one of 'mean', 'attention'"):
        make_model("llama", pooling="max")
