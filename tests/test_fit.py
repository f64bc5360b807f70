import re

import pytest
import torch

from modeling_tagi import TagiAdapter
from modeling_tagi.adapter_algebra import require_one_backbone, same_weights
from modeling_tagi.evaluation.compare import compare_adapters
from modeling_tagi.fit import (
    checked_index,
    input_list,
    instruction_list,
    require_room,
)


def part(adapter, paths):
    """The adapter of some modules alone, of no known origin."""
    return TagiAdapter(
        {path: adapter.lora_a[path] for path in paths}, {path: adapter.lora_b[path] for path in paths},
        adapter.lora_alpha,
    )  # fmt: skip


def marked(mark, paths=("a", "b")):
    x = torch.ones(1, 2, 3)
    return TagiAdapter({p: x for p in paths}, {p: x.mT for p in paths}, 2.0).described({"backbone_fingerprint": mark})


def test_a_half_precision_twin_is_the_same_backbone_everywhere(make_model, random_ids):
    model, twin = make_model("llama", "none"), make_model("llama", "none").to(torch.bfloat16)
    one, other = model.generate_adapter([5, 6, 7]), twin.generate_adapter([5, 6, 7]).to(torch.float32)
    marks = [adapter.provenance[0]["backbone_fingerprint"] for adapter in (one, other)]
    assert marks[0] != marks[1] and same_weights(one, other) is True
    with torch.no_grad():
        model(random_ids(1, 4), adapter=other)  # fits
    found = compare_adapters(one, other)
    assert found["same_backbone"] is True and found["similarity"] > 0.9
    assert one.similarity(other) > 0.9
    combined = TagiAdapter.combine([one, other], [1, 1])
    assert combined.provenance[0]["backbone_fingerprint"] == marks[0]


def test_another_backbone_is_another_one_everywhere(make_model, random_ids):
    model, stranger = make_model("llama", "none"), make_model("llama", "none", seed=7)
    one, other = model.generate_adapter([5, 6, 7]), stranger.generate_adapter([5, 6, 7])
    assert same_weights(one, other) is False
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        model(random_ids(1, 4), adapter=other)
    found = compare_adapters(one, other)
    assert found["same_backbone"] is False and found["similarity"] is None
    for call in (lambda: one.similarity(other), lambda: TagiAdapter.combine([one, other], [1, 1])):
        with pytest.raises(ValueError, match="adapters 0 and 1 were made for backbones with different weights"):
            call()


def test_fingerprints_are_held_against_each_other_where_modules_are_the_same():
    one = marked([1.0, 2.0, 3.0, 4.0])
    assert same_weights(one, marked([3.01, 4.0, 9.0, 9.0], ("b", "c"))) is True
    assert same_weights(one, marked([3.1, 4.0, 9.0, 9.0], ("b", "c"))) is False
    assert same_weights(one, marked([9.0, 9.0], ("c",))) is None
    assert same_weights(one, marked(None)) is None
    assert same_weights(one, marked([1.0, 2.0])) is False  # not of these modules
    require_one_backbone([marked(None), one, marked(None), one])
    with pytest.raises(ValueError, match="adapters 1 and 3 were made for backbones with different weights"):
        require_one_backbone([marked(None), one, marked(None), marked([1.0, 2.0, 3.0, 5.0])])


def test_a_combination_of_other_modules_is_refused(make_model):
    one = make_model("llama", "none").generate_adapter([5, 6, 7])
    paths = list(one.lora_a)
    with pytest.raises(ValueError, match="adapters 0 and 1 change different modules .* takes adapters for the same"):
        TagiAdapter.combine([one, part(one, paths[:3])], [1, 1])
    assert 0 < one.similarity(part(one, paths[:3])).item() < 1


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(make_model, weight):
    one = make_model("llama", "none").generate_adapter([5, 6, 7])
    with pytest.raises(ValueError, match=f"weight 1 of combine is {weight}, but weights must be finite"):
        TagiAdapter.combine([one, one], [1, weight])


KINDS = "must be a text, a list of texts, or token ids"


@pytest.mark.parametrize("given, read", [
    ("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), (("ab",), ["ab"]),
    pytest.param((x for x in "ab"), ["a", "b"], id="generator"),
    ([5, 6], [[5, 6]]), ([[5, 6], (7,)], [[5, 6], [7]]), (torch.tensor([5, 6]), [[5, 6]]),
    ([torch.tensor([5]), [6]], [[5], [6]]), (torch.tensor([[5, 6], [7, 8]]).numpy(), [[5, 6], [7, 8]]),
], ids=str)  # fmt: skip
def test_instructions_are_read_as_texts_or_as_rows_of_ids(given, read):
    assert instruction_list(given) == read


@pytest.mark.parametrize("given, error, message", [
    (None, TypeError, f"the instruction is None, but {KINDS}"),
    (5, TypeError, rf"the instruction is a int \(5\), but {KINDS}"),
    ({"a": 1}, TypeError, f"the instruction is a dict .*{KINDS}"),
    (b"write", TypeError, f"the instruction is a bytes .*{KINDS}"),
    ({"a"}, TypeError, f"the instruction is a set .*{KINDS}"),
    ([["a"]], TypeError, r"instruction 0 is a list \(\['a'\]\), but all must be texts, or all lists of token ids"),
    ([[5], "a"], TypeError, "instruction 1 is a str.*all must be texts"),
    ([[5, 6.5]], TypeError, "instruction 0 is a list.*whole numbers"),
    ([True, False], TypeError, "instruction 0 is a bool"),
    (torch.tensor([[1.5]]), TypeError, r"tensor of torch.float32 and shape \[1, 1\], but token ids are whole numbers"),
    (torch.ones(1, 1, 1, dtype=torch.long), TypeError, r"shape \[1, 1, 1\], but token ids"),
    ([], ValueError, "got no instruction; give a text"),
], ids=str)  # fmt: skip
def test_what_is_no_instruction_is_told(given, error, message):
    with pytest.raises(error, match=message):
        instruction_list(given)


@pytest.mark.parametrize("given, error, message", [
    (None, TypeError, "the inputs are None, but must be a text, or a list of texts"),
    (b"ab", TypeError, "the inputs are a bytes .*must be a text"),
    (["ab", None], TypeError, "input 1 is None, but must be a text"),
    ([1], TypeError, r"input 0 is a int \(1\)"),
    ("a \ud800 b", ValueError, r"input 0 has '\\ud800' at character 3, a lone surrogate.*UTF-8"),
    ([], ValueError, "there are no inputs; give a text"),
], ids=ascii)  # fmt: skip
def test_what_is_no_input_is_told(given, error, message):
    with pytest.raises(error, match=message):
        input_list(given)


@pytest.mark.parametrize("given, error, message", [
    ([0, 2], ValueError, "task_index names adapter 2, but there are 2: it takes 0 to 1"),
    ([0, -1], ValueError, "task_index names adapter -1, but there are 2"),
    (["a", "b"], TypeError, "task_index is a list.*whole numbers"),
    ("ab", TypeError, "task_index is a str.*whole numbers"),
    (torch.tensor([0.0, 1.0]), TypeError, "task_index is a tensor of torch.float32"),
    (torch.tensor([[0, 1]]), TypeError, r"shape \[1, 2\]"),
], ids=str)  # fmt: skip
def test_what_is_no_index_of_adapters_is_told(make_model, random_ids, given, error, message):
    model, ids = make_model("t5", "none"), random_ids(2, 4)
    adapters = model.generate_adapter([[5, 6], [7]])
    for call in (model.generate, lambda ids, **kwargs: model(ids, labels=ids, **kwargs)):
        with pytest.raises(error, match=message):
            call(ids, adapter=adapters, task_index=given)
    assert torch.equal(checked_index([1, 0], 2, torch.device("cpu")), torch.tensor([1, 0]))
    expected = model.generate(ids, adapter=adapters[[1, 0]], max_new_tokens=3)
    assert torch.equal(model.generate(ids, adapter=adapters, task_index=[1, 0], max_new_tokens=3), expected)


@pytest.mark.parametrize("given, message", [
    ([[5, 6], [5, 100]], "instruction 1 has the token id 100, but the vocabulary of this model has ids from 0 to 99"),
    (torch.tensor([5, -3]), "instruction 0 has the token id -3, but the vocabulary"),
], ids=["above", "below"])  # fmt: skip
def test_token_ids_of_another_vocabulary_are_told(make_model, given, message):
    with pytest.raises(ValueError, match=message):
        make_model("llama", "none").generate_adapter(given)


def test_texts_that_are_no_unicode_are_told(make_model, tokenizer):
    model = make_model("t5", "none")
    model.tokenizer = tokenizer
    for call, what in (
        (lambda: model.generate_adapter("a \ud800"), "the instruction"),
        (lambda: model.generate_adapter("a", [("b", "\udfff")]), "demonstration 1"),
        (lambda: model.encode_inputs(["a", "\ud800"]), "input 1"),
    ):
        with pytest.raises(ValueError, match=f"{what} has .* a lone surrogate"):
            call()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_generate_without_inputs_says_so(make_model, family):
    model = make_model(family)
    with pytest.raises(ValueError, match=r"got an adapter, but no inputs; give input_ids \(encode_inputs"):
        model.generate(adapter=model.generate_adapter([5, 6]))


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_input_too_long_for_the_memory_is_refused_with_the_length_that_fits(make_model, monkeypatch, family):
    model = make_model(family, "none")
    adapter = model.generate_adapter([5, 6])
    monkeypatch.setattr("modeling_tagi.fit._bytes_of", lambda device: 16 * 10**9)
    with pytest.raises(ValueError, match=r"has 1,650,000 tokens, .* GB of memory, but cpu has 16 GB; 1 inputs of at"):
        model.generate(torch.full((1, 1_650_000), 5), adapter=adapter)
    each = 4 * 4 if family == "t5" else 1  # of 4 heads, 4 bytes each; or the mask's one
    limit = int((16e9 / each) ** 0.5)
    require_room(model, 1, limit)
    with pytest.raises(ValueError, match=re.escape(f"at most {limit:,} tokens would fit: cut the input")):
        require_room(model, 1, limit + 1)
