import pytest
import torch
from toy_generator import LinearGenerator

from modeling_tagi import TagiAdapter, TagiConfig, TagiModel
from modeling_tagi.costs.flops import Lengths, TaskFlops
from modeling_tagi.hypernetwork import GENERATORS, Hypernetwork, masked_mean
from modeling_tagi.lora import find_targets


def test_masked_mean_is_over_the_tokens():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 7.0], [100.0, 100.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(masked_mean(states, mask), torch.tensor([[2.0, 4.0], [5.0, 7.0]]))


def test_masked_mean_counts_past_256_in_bfloat16():
    states = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    assert torch.equal(masked_mean(states, torch.ones(1, 1000)), torch.ones(1, 2, dtype=torch.bfloat16))
    assert torch.equal(masked_mean(states, torch.ones(1, 1000, dtype=torch.long)), torch.ones(1, 2).bfloat16())


def golden(hidden_size: int) -> Hypernetwork:
    """One layer with two equal targets q and v: one MLP, whose hidden units are all the same."""
    targets = {"layer.0.q": (2, 2), "layer.0.v": (2, 2)}
    network = Hypernetwork(targets, d_model=2, rank=1, hidden_size=hidden_size, index_size=1)
    with torch.no_grad():
        network.shared_a["layer-0-q"].copy_(torch.tensor([[10.0, 20.0]]))
        network.shared_a["layer-0-v"].copy_(torch.tensor([[30.0, 40.0]]))
        (stack,) = network.stacks
        stack.index.copy_(torch.tensor([[1.0], [-1.0]]))
        stack.hidden_weight.copy_(torch.tensor([1.0, 2.0, 0.5])[None, :, None].expand(1, 3, hidden_size))
        stack.hidden_bias.fill_(0.1)
        (weight,) = stack.output_weights
        weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, hidden_size, 4))
    return network


def test_equation_2_by_hand():
    # pooled [1, 3] has mean 2 and variance 1, so its layer norm is [-1, 1].
    # hidden of q = relu(-1 * 1 + 1 * 2 + 0.5 * 1 + 0.1) = 1.6, of v (index -1) = relu(-1 + 2 - 0.5 + 0.1) = 0.6.
    # Output weights 1, 2 make A beside its shared part, 3, 4 make B.
    a, b = golden(1)(torch.tensor([[1.0, 3.0]]))
    close = {"rtol": 0, "atol": 1e-4}  # layer_norm's eps
    torch.testing.assert_close(a["layer.0.q"], torch.tensor([[[10 + 1.6, 20 + 3.2]]]), **close)
    torch.testing.assert_close(b["layer.0.q"], torch.tensor([[[4.8], [6.4]]]), **close)
    torch.testing.assert_close(a["layer.0.v"], torch.tensor([[[30 + 0.6, 40 + 1.2]]]), **close)
    torch.testing.assert_close(b["layer.0.v"], torch.tensor([[[1.8], [2.4]]]), **close)


@pytest.mark.parametrize("autocast", [False, True])
def test_factors_are_the_same_without_gradients(autocast):
    network, pooled = golden(1), torch.tensor([[1.0, 3.0], [2.0, -1.0]])
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = network(pooled)
        with torch.no_grad():
            found = network(pooled)
    for factors, others in zip(expected, found):
        assert all(torch.equal(x, others[path]) and x.dtype == others[path].dtype for path, x in factors.items())
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())


def test_four_equal_hidden_units_give_twice_one():
    # the hidden layer is scaled by 1 / sqrt(4), and four units are summed: 4 / 2 = 2
    _, one = golden(1)(torch.tensor([[1.0, 3.0]]))
    _, four = golden(4)(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(four["layer.0.v"], 2 * one["layer.0.v"])


def test_the_hidden_layer_is_rectified():
    # layer norm of [3, 1] is [1, -1]; both hidden units, 1 - 2 + 0.5 + 0.1 and 1 - 2 - 0.5 + 0.1, are below 0
    a, b = golden(1)(torch.tensor([[3.0, 1.0]]))
    assert torch.equal(a["layer.0.q"], torch.tensor([[[10.0, 20.0]]]))
    assert not b["layer.0.q"].any() and not b["layer.0.v"].any()


def test_tasks_do_not_meet():
    network = golden(1)
    pooled = torch.tensor([[1.0, 3.0], [3.0, 1.0], [0.5, 2.0]])
    together = network(pooled)
    for task in range(3):
        for whole, alone in zip(together, network(pooled[task: task + 1])):
            for path in whole:
                torch.testing.assert_close(whole[path][task: task + 1], alone[path])


def mlps(network: Hypernetwork) -> int:
    return sum(stack.hidden_weight.shape[0] for stack in network.stacks)


@pytest.mark.parametrize("generator, count", [("per_layer", 3), ("per_module", 7), ("shared", 1)])
def test_the_generator_says_how_many_mlps_there_are(generator, count):
    # two encoder layers with q and v, and a decoder layer with q and v of wider modules and one more target
    targets = {
        "encoder.block.0.attn.q": (4, 4), "encoder.block.0.attn.v": (4, 4),
        "encoder.block.1.attn.q": (4, 4), "encoder.block.1.attn.v": (4, 4),
        "decoder.block.0.attn.q": (6, 4), "decoder.block.0.attn.v": (6, 4), "decoder.block.0.cross.q": (4, 8),
    }  # fmt: skip
    network = GENERATORS[generator](targets, d_model=4, rank=2, hidden_size=3, index_size=2)
    assert mlps(network) == count
    assert set(network.shared_factors()) == set(targets)


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_target_gets_factors_of_its_shape(generator):
    targets = {"h.0.q": (4, 4), "h.0.v": (4, 6), "h.1.q": (4, 4), "h.1.v": (4, 6), "head": (4, 9)}
    network = GENERATORS[generator](targets, d_model=4, rank=2, hidden_size=3, index_size=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    a, b = network(torch.randn(5, 4))
    assert {path: (tuple(a[path].shape), tuple(b[path].shape)) for path in a} == {
        path: ((5, 2, d_in), (5, d_out, 2)) for path, (d_in, d_out) in targets.items()
    }


def test_a_constant_generator_gives_every_instruction_the_same_lora_which_changes_nothing_at_first(
    make_model, tmp_path, random_ids
):
    model = make_model("llama", "none", "constant", awake=False)
    ids = random_ids(2, 7)
    adapter = model.adapter_from_rows([[5, 6, 7], [8, 9]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids, adapter=adapter).logits)
        for b in model.hypernetwork.b.values():
            b.normal_()
        adapter = model.adapter_from_rows([[5, 6, 7], [8, 9]])
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids, adapter=adapter).logits)
    for factor in (*adapter.lora_a.values(), *adapter.lora_b.values()):
        assert torch.equal(factor[0], factor[1])
    adapter[0].save_pretrained(tmp_path)
    again = TagiAdapter.from_pretrained(tmp_path)
    assert all(torch.equal(again.lora_b[path][0], b[0]) for path, b in adapter.lora_b.items())


def test_gradients_of_all_parts_together_are_those_of_each_alone():
    targets = {"h.0.q": (4, 4), "h.0.v": (4, 6), "h.0.k": (4, 4), "h.1.q": (4, 4), "h.1.v": (4, 6), "h.1.k": (4, 4)}
    network = Hypernetwork(targets, d_model=4, rank=2, hidden_size=3, index_size=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    pooled = torch.randn(2, 4)
    weights = list(network.stacks.parameters())

    def gradients(paths):
        a, b = network(pooled)
        total = sum(place * (a[path].square().sum() + b[path].square().sum()) for place, path in paths)
        return torch.autograd.grad(total, weights, materialize_grads=True)

    together = gradients(enumerate(targets, 1))
    alone = [sum(parts) for parts in zip(*(gradients([pair]) for pair in enumerate(targets, 1)))]
    for ours, theirs in zip(together, alone, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_targets_of_one_mlp_differ_by_their_index():
    network = golden(1)
    a, b = network(torch.tensor([[1.0, 3.0]]))
    assert not torch.equal(b["layer.0.q"], b["layer.0.v"])
    with torch.no_grad():
        network.stacks[0].index.fill_(1.0)
    a, b = network(torch.tensor([[1.0, 3.0]]))
    assert torch.equal(b["layer.0.q"], b["layer.0.v"])


def test_flops_of_eq_2_by_hand():
    # One layer, q and v: the hidden layer of 4 units reads 2 numbers of the instruction once and the index (1 number)
    # of each of the 2 targets: 2 * 4 * (2 + 2 * 1). Each target's output is A and B, 2 + 2 numbers: 2 * 4 * 2 * 4.
    assert golden(4).flops() == 2 * 4 * (2 + 2) + 2 * 4 * 2 * 4


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_new_generator_takes_one_line_of_the_registry(family, monkeypatch, make_model, random_ids, tmp_path):
    with pytest.raises(ValueError, match="generator is 'linear', but must be one of 'per_layer'"):
        TagiConfig(generator="linear")
    monkeypatch.setitem(GENERATORS, "linear", LinearGenerator)
    model = make_model(family, generator="linear", awake=False)
    network, targets = model.hypernetwork, find_targets(model.backbone, model.config.target_modules)
    assert isinstance(network, LinearGenerator)
    torch.testing.assert_close(network.weight, torch.full_like(network.weight, 0.0))  # as its `initialise` says

    ids = random_ids(2, 6)
    given = {"input_ids": ids, "labels": ids, "instruction_input_ids": random_ids(2, 5, seed=1)}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = model(**given).loss
    before.backward()
    optimizer.step()
    assert model(**given).loss < before

    counted = TaskFlops(model.config)
    d_model = network.weight.shape[0]
    assert counted.generator == 2 * d_model * sum(4 * d_out for _, d_out in targets.values())
    assert counted.adapted(Lengths(5, 6, 7), 1)["generator"] == counted.generator
    assert counted.adapter_size == sum(4 * (d_in + d_out) for d_in, d_out in targets.values())

    model.save_pretrained(tmp_path)
    again = TagiModel.from_pretrained(tmp_path)
    assert torch.equal(again(**given).loss, model(**given).loss)
