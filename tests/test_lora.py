import threading
import time
from functools import partial

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from modeling_tagi import TagiAdapter
from modeling_tagi.lora import (
    Application,
    add_low_rank,
    applied,
    cache_name,
    carry_through_checkpointing,
    find_targets,
    fusion_hook,
    hook_once,
    lora_hook,
    memory_hook,
    memory_pre_hook,
    needed_index,
    take_rows,
)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    module.register_forward_hook(lora_hook)
    return module


def factors(tasks, d_in=5, d_out=3, rank=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, rank, d_in, generator=generator), torch.randn(tasks, d_out, rank, generator=generator)


def test_hook_adds_the_dense_update_to_a_linear(linear):
    a, b = factors(1)
    x = torch.randn(4, 6, 5)
    expected = x @ linear.weight.T + linear.bias + 1.5 * x @ a[0].T @ b[0].T
    with applied(Application(lora={linear: (a, b)}, scaling=1.5)):
        torch.testing.assert_close(linear(x), expected, rtol=0, atol=1e-5)


def test_hook_adds_the_dense_update_to_a_conv1d():
    torch.manual_seed(0)
    module = Conv1D(3, 5)  # five in, three out, its weight lies (in, out)
    module.register_forward_hook(lora_hook)
    a, b = factors(1)
    x = torch.randn(4, 6, 5)
    expected = x @ module.weight + module.bias + 0.5 * x @ (b[0] @ a[0]).T
    with applied(Application(lora={module: (a, b)}, scaling=0.5)):
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", [None, [2, 0, 0, 1]])
def test_mixed_rows_equal_each_alone(linear, index):
    tasks = 4 if index is None else 3
    a, b = factors(tasks)
    x = torch.randn(4, 6, 5)
    task_index = None if index is None else torch.tensor(index)
    with applied(Application(lora={linear: (a, b)}, scaling=2.0, task_index=task_index)):
        mixed = linear(x)
    for row, task in enumerate(index or range(4)):
        with applied(Application(lora={linear: (a[task: task + 1], b[task: task + 1])}, scaling=2.0)):
            torch.testing.assert_close(mixed[row: row + 1], linear(x[row: row + 1]), rtol=0, atol=1e-5)


def row_by_row(output, x, a, b, scaling, tasks):
    """The slow equal: a dense update for each row."""
    return torch.stack([output[row] + scaling * x[row] @ (b[task] @ a[task]).T for row, task in enumerate(tasks)])


CASES = {  # of six rows: the number of tasks, the index, and each row's task
    "one for all": (1, None, [0] * 6), "one each": (6, None, range(6)), "side by side": (3, None, [0, 0, 1, 1, 2, 2]),
    "by index": (2, [1, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1]), "copies by index": (3, [2, 0, 2], [2, 2, 0, 0, 2, 2]),
}  # fmt: skip


@pytest.mark.parametrize("tasks, index, of_row", CASES.values(), ids=CASES)
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "in place"])
def test_one_product_for_the_batch_is_what_each_row_gets_alone(tasks, index, of_row, gradients):
    a, b = factors(tasks)
    x, output, upstream = torch.randn(6, 4, 5), torch.randn(6, 4, 3), torch.randn(6, 4, 3)
    leaves = [x, output, a, b]
    for leaf in leaves:
        leaf.requires_grad_(gradients)
    expected, before = row_by_row(output, x, a, b, 1.5, of_row), output.clone()
    index = None if index is None else torch.tensor(index)
    got = add_low_rank(output, x, a, b, 1.5, index)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got.data_ptr() == output.data_ptr()) is not gradients and torch.equal(output, before) is gradients
    if gradients:
        slow, fast = (torch.autograd.grad(result, leaves, upstream) for result in (expected, got))
        for ours, theirs in zip(fast, slow, strict=True):
            assert theirs.any()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_an_update_of_an_output_that_is_not_contiguous_is_added():
    a, b = factors(2)
    x, output = torch.randn(4, 6, 5), torch.randn(6, 4, 3).transpose(0, 1)
    expected = row_by_row(output, x, a, b, 2.0, [0, 0, 1, 1])
    torch.testing.assert_close(add_low_rank(output, x, a, b, 2.0), expected, rtol=0, atol=1e-5)


def test_factors_in_full_precision_work_on_a_half_precision_layer():
    a, b = factors(2)
    x, output = torch.randn(4, 6, 5).bfloat16(), torch.randn(4, 6, 3).bfloat16()
    expected = row_by_row(output.float(), x.float(), a, b, 2.0, [0, 0, 1, 1])
    got = add_low_rank(output, x, a, b, 2.0)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    "index, tasks, needed",
    [([0, 0, 1, 1], 2, False), ([0, 1, 2, 3], 4, False), ([0, 0, 0], 1, False), ([1, 1, 0, 0], 2, True),
     ([0, 0, 1], 2, True), ([0, 0, 1, 1], 3, True), ([0, 1], 4, True), ([0, 0, 0, 1], 2, True)],
)  # fmt: skip
def test_an_index_is_needed_unless_all_tasks_have_as_many_rows_in_order(index, tasks, needed):
    index = torch.tensor(index)
    assert needed_index(index, tasks) is (index if needed else None)
    assert needed_index(None, tasks) is None


def test_copies_of_a_row_keep_its_task():
    per_task = torch.tensor([[0.0], [1.0], [2.0]])
    assert take_rows(per_task, 6).flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert take_rows(per_task, 4, torch.tensor([2, 0])).flatten().tolist() == [2, 2, 0, 0]
    assert take_rows(per_task[:1], 3).flatten().tolist() == [0, 0, 0]


@pytest.mark.parametrize("index", [None, torch.tensor([0, 1, 1])])
def test_a_wrong_number_of_rows_is_refused(index):
    a, b = factors(3)
    with pytest.raises(ValueError, match="a batch of 4 rows was given 3 adapters; give one for all rows, or one"):
        add_low_rank(torch.randn(4, 6, 3), torch.randn(4, 6, 5), a, b, 1.0, index)


@pytest.mark.parametrize("tasks, index", [(1, None), (1, [0, 0, 0]), (2, [1, 0, 1]), (4, [3, 0, 3]), (3, None)])
@pytest.mark.parametrize("rows", [3, 6])
def test_memory_that_tasks_share_gives_what_it_gives_in_every_row(linear, tasks, index, rows):
    a, b = factors(tasks)
    index = None if index is None else torch.tensor(index)
    memory, x = torch.randn(tasks, 4, 5), torch.randn(rows, 6, 5)
    joined = torch.cat([take_rows(memory, rows, index), x], 1)
    application = Application(lora={linear: (a, b)}, scaling=2.0, task_index=index)
    with applied(application):
        expected = linear(joined)
    application.share(memory, [linear])
    for sharing in (application, application.by_row()):
        with applied(sharing):
            torch.testing.assert_close(linear(joined), expected, rtol=0, atol=1e-5)


def test_updates_gathered_by_row_are_those_of_the_rows_tasks(linear):
    (a, b), index = factors(3), torch.tensor([2, 0, 0, 1])
    application = Application(lora={linear: (a, b)}, task_index=index)
    by_row = application.by_row()
    assert by_row.task_index is None and all(map(torch.equal, by_row.lora[linear], (a[index], b[index])))
    assert by_row.by_row() is by_row
    single = Application(lora={linear: (a[:1], b[:1])}, task_index=torch.zeros(4, dtype=torch.long)).by_row()
    assert len(single.lora[linear][0]) == 1  # one product for all rows is cheaper than one for each


def test_nothing_is_applied_outside_the_block(linear):
    x = torch.randn(2, 3, 5)
    bare = linear(x)
    with applied(Application(lora={linear: factors(1)})):
        assert not torch.equal(linear(x), bare)
    assert torch.equal(linear(x), bare)


def test_nothing_is_applied_after_an_exception(linear):
    x = torch.randn(2, 3, 5)
    bare = linear(x)
    with pytest.raises(RuntimeError, match="inside"):
        with applied(Application(lora={linear: factors(1)})):
            raise RuntimeError("inside")
    assert torch.equal(linear(x), bare)


def test_nested_blocks_replace_and_restore(linear):
    x = torch.randn(2, 3, 5)
    bare = linear(x)
    outer, inner = (Application(lora={linear: factors(1, seed=seed)}) for seed in (1, 2))
    with applied(outer):
        first = linear(x)
        with applied(inner):
            second = linear(x)
            with applied(None):
                assert torch.equal(linear(x), bare)
            assert torch.equal(linear(x), second)
        assert torch.equal(linear(x), first)
    assert not torch.equal(first, second)


def test_other_modules_are_left_alone(linear):
    other = nn.Linear(5, 3)
    other.register_forward_hook(lora_hook)
    x = torch.randn(2, 3, 5)
    bare = other(x)
    with applied(Application(lora={linear: factors(1)})):
        assert torch.equal(other(x), bare)


def test_fusion_hook_passes_on_the_rest_of_a_tuple():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "rest"

    pair, single = Pair(), nn.Identity()
    for module in (pair, single):
        module.register_forward_hook(fusion_hook)
    with applied(Application(fusion={pair: lambda x: x + 1, single: lambda x: x + 2})):
        states, rest = pair(torch.zeros(1))
        assert states.item() == 1 and rest == "rest" and single(torch.zeros(1)).item() == 2
    assert single(torch.zeros(1)).item() == 0


def test_two_threads_with_two_adapters_on_one_model_do_not_meet(linear):
    x = torch.randn(2, 3, 5)
    applications = [Application(lora={linear: factors(1, seed=seed)}) for seed in range(2)]
    expected = []
    for application in applications:
        with applied(application):
            expected.append(linear(x))
    barrier, wrong = threading.Barrier(2), []

    def work(number):
        try:
            for _ in range(200):
                barrier.wait(timeout=30)
                with applied(applications[number]):
                    barrier.wait(timeout=30)
                    if not torch.equal(linear(x), expected[number]):
                        wrong.append(number)
                    barrier.wait(timeout=30)
        except Exception as error:
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not torch.equal(*expected)


def test_targets_are_matched_as_peft_does(make_backbone):
    from peft import LoraConfig, get_peft_model

    wanted = {"t5": ["q", "v"], "llama": ["q_proj", "layers.1.mlp.up_proj"], "gpt2": ["attn.c_attn"]}
    for family, names in wanted.items():
        targets = find_targets(make_backbone(family), names)
        wrapped = get_peft_model(make_backbone(family), LoraConfig(r=2, target_modules=names))
        theirs = {
            path.removeprefix("base_model.model."): (module.in_features, module.out_features)
            for path, module in wrapped.named_modules()
            if hasattr(module, "lora_A")
        }
        assert targets == theirs


def test_a_name_that_matches_nothing_is_refused_with_what_there_is(make_backbone):
    with pytest.raises(ValueError, match=r"\['q', 'query'\] match no Linear.*LlamaForCausalLM.*q_proj.*v_proj"):
        find_targets(make_backbone("llama"), ["query", "q", "v_proj"])


def test_layers_are_chosen_as_peft_does(make_backbone):
    from peft import LoraConfig, get_peft_model

    for family, names in {"llama": ["q_proj", "mlp.up_proj"], "gpt2": ["c_attn"]}.items():
        targets = find_targets(make_backbone(family), names, [1])
        wrapped = get_peft_model(
            make_backbone(family), LoraConfig(r=2, target_modules=names, layers_to_transform=[1])
        )
        wrapped = {path for path, module in wrapped.named_modules() if hasattr(module, "lora_A")}
        theirs = {path.removeprefix("base_model.model.") for path in wrapped}
        assert set(targets) == theirs and targets
    both = find_targets(make_backbone("t5"), ["q"], [1])
    assert {path.split(".")[2] for path in both} == {"1"} and {path.split(".")[0] for path in both} == {
        "encoder", "decoder"
    }  # fmt: skip


@pytest.mark.parametrize("names, layers, message", [
    (["q_proj"], [1, 7], r"transform has \[7\], but LlamaForCausalLM has \['q_proj'\] in layers 0 to 1"),
    (["lm_head"], [0], r"has \[0\], but LlamaForCausalLM has \['lm_head'\] in no numbered layers"),
])  # fmt: skip
def test_a_layer_without_a_target_is_refused(make_backbone, names, layers, message):
    with pytest.raises(ValueError, match=message):
        find_targets(make_backbone("llama"), names, layers)


def test_an_embedding_is_no_target(make_backbone):
    with pytest.raises(ValueError, match="embed_tokens"):
        find_targets(make_backbone("llama"), ["embed_tokens"])


def test_several_adapters_of_experts_are_refused_as_their_tokens_are_of_any_row():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(5, 3)])

    a, b = ({"mlp.experts.0": x} for x in factors(2))
    adapter, routed = TagiAdapter(a, b, lora_alpha=2), nn.ModuleDict({"mlp": Routed()})
    with pytest.raises(ValueError, match="mlp.experts.0 is an expert"):
        Application.of(adapter, routed)
    assert routed.get_submodule("mlp.experts.0") in Application.of(adapter[0], routed).lora


@pytest.mark.parametrize("hook", [lora_hook, memory_hook])
def test_threads_that_meet_register_a_hook_once(monkeypatch, hook):
    linear = nn.Linear(5, 3)
    register = torch.nn.Module.register_forward_hook

    def slowly(self, *args, **kwargs):
        time.sleep(0.02)  # as if another thread's turn came between looking and registering
        return register(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", slowly)
    threads = [threading.Thread(target=hook_once, args=(linear, hook)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(linear._forward_hooks.values()) == [hook]
    assert list(linear._forward_pre_hooks.values()) == ([memory_pre_hook] if hook is memory_hook else [])


def test_a_module_that_memory_is_given_to_takes_it_away_from_the_first_call_on(monkeypatch):
    linear, seen = nn.Linear(5, 3), []
    register = torch.nn.Module.register_forward_pre_hook
    monkeypatch.setattr(
        torch.nn.Module, "register_forward_pre_hook",
        lambda self, *args, **kw: (seen.append(list(self._forward_hooks.values())), register(self, *args, **kw))[1],
    )  # fmt: skip
    hook_once(linear, memory_hook)
    assert seen == [[]]  # another thread does not take the half for the whole


class LayerOfLayerPast(nn.Module):
    def forward(self, states, layer_past=None):
        return states, layer_past


class LayerOfPastKeyValues(nn.Module):
    def forward(self, states, past_key_values=None):
        return states, past_key_values


class LayerOfCache(nn.Module):
    def forward(self, states, cache=None):
        return states, cache


@pytest.mark.parametrize("layer", [LayerOfLayerPast(), LayerOfPastKeyValues(), LayerOfCache()])
@pytest.mark.parametrize("given", ["by_name", "by_place", "not"])
def test_a_layer_gets_its_cache_back_by_whatever_name_its_version_of_transformers_calls_it(layer, given):
    name = cache_name(layer)
    keywords, inputs = {name: None} if given == "by_name" else {}, (None,) if given == "by_place" else ()
    call, states = partial(type(layer).forward, layer, **keywords), torch.ones(1)
    checkpoint = carry_through_checkpointing(lambda function, *args: function(*args))
    with applied(Application(new_cache=lambda: "a cache")):
        assert checkpoint(call, states, *inputs) == (states, "a cache")


def test_the_name_of_a_cache_is_read_off_the_module():
    names = [cache_name(layer) for layer in (LayerOfLayerPast(), LayerOfPastKeyValues(), LayerOfCache())]
    assert names == ["layer_past", "past_key_values", "cache"]
    assert cache_name(nn.Linear(1, 1)) == "past_key_values"
