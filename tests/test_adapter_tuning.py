import copy
import json
import pickle

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from modeling_tagi import TagiAdapter
from modeling_tagi.data.records import Record

PAIRS = [("ab cd", "ab"), ("ef gh", "ef"), ("ij kl", "ij"), ("mn op", "mn"), ("qr st", "qr")]
QUICK = {"steps": 6, "learning_rate": 1e-2, "batch_size": 2, "progress": False}


@pytest.fixture
def model_of(make_model, tokenizer):
    def make(family="t5", fusion="cross_attention", **fields):
        model = make_model(family, fusion, **fields)
        model.tokenizer = tokenizer
        return model

    return make


def factors(adapter):
    return [part[path] for part in (adapter.lora_a, adapter.lora_b) for path in sorted(part)]


def same(one, two, atol=0.0):
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in zip(factors(one), factors(two)))


def loss_of(model, adapter, pairs=PAIRS):
    from modeling_tagi.tokens import Tokens, training_tensors

    tokens = Tokens.of(model.tokenizer, model.config)
    batch = training_tensors(tokens, [tokens.input(x) for x, _ in pairs], [tokens.target(y) for _, y in pairs])
    with torch.no_grad():
        return model(**batch, adapter=adapter).loss.item()


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("t5", "none"), ("llama", "concat")])
def test_tuning_learns_its_examples_and_changes_nothing_but_the_adapter(model_of, family, fusion):
    model = model_of(family, fusion).train()
    adapter = model.generate_adapter("say ab")
    weights, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(adapter.memory)
    before = copy.deepcopy(factors(adapter))
    grads = [p.requires_grad for p in model.parameters()]
    tuned = adapter.tune(PAIRS, steps=40, learning_rate=3e-2, batch_size=5, progress=False)
    model.eval()
    assert loss_of(model, tuned) < loss_of(model, adapter) - 0.3  # a random backbone cannot do more
    assert all(torch.equal(x, y) for x, y in zip(before, factors(adapter)))
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert grads == [p.requires_grad for p in model.parameters()] and all(grads)
    assert all(p.grad is None for p in model.parameters())
    if memory is not None:
        assert all(torch.equal(x, tuned.memory.tensors()[name]) for name, x in memory.tensors().items())
    else:
        assert tuned.memory is None
    assert not any(x.requires_grad for x in factors(tuned))


def test_the_memory_is_used_while_tuning(model_of):
    model = model_of()
    adapter = model.generate_adapter("say ab")
    with_memory, without = adapter.tune(PAIRS, **QUICK), adapter.without_memory().tune(PAIRS, **QUICK)
    assert not same(with_memory, without, atol=1e-4)


def test_a_seed_gives_the_same_adapter_and_leaves_other_randomness_alone(model_of):
    model = model_of()
    adapter = model.generate_adapter("say ab")
    state = torch.get_rng_state()
    first = adapter.tune(PAIRS, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same(first, adapter.tune(PAIRS, **QUICK))
    assert not same(first, adapter.tune(PAIRS, seed=1, **QUICK), atol=1e-5)


def test_tasks_tuned_side_by_side_are_each_as_alone(model_of):
    model = model_of()
    both = model.generate_adapter(["say ab", "say the other one"])
    other = [("ab cd", "cd"), ("ef gh", "gh"), ("ij kl", "kl")]
    tuned = both.tune([PAIRS, other], **QUICK)
    alone = [both[0].tune(PAIRS, **QUICK), both[1].tune(other, **QUICK)]
    for one, expected in zip(tuned, alone):
        assert same(one, expected, atol=1e-3) and len(one) == 1  # AdamW blows up the last digit of a gradient
    assert not same(alone[0], both[0], atol=2e-2)


def test_examples_may_be_dicts_pairs_or_records(model_of):
    model = model_of()
    adapter = model.generate_adapter("say ab")
    expected = adapter.tune(PAIRS, **QUICK)
    for records in (
        [{"input": x, "target": y} for x, y in PAIRS],
        [{"input": x, "targets": [y, "zz"]} for x, y in PAIRS],
        [Record("task", "say ab", x, (y, "zz")) for x, y in PAIRS],
        iter(PAIRS),
    ):
        assert same(adapter.tune(records, **QUICK), expected)


def test_a_tuned_adapter_is_a_peft_folder_that_does_the_same(model_of, random_ids, tmp_path):
    model = model_of(fusion="none")
    model.backbone.save_pretrained(tmp_path / "backbone")
    tuned = model.generate_adapter("say ab").tune(PAIRS, **QUICK)
    tuned.save_pretrained(tmp_path / "adapter")
    assert same(TagiAdapter.from_pretrained(tmp_path / "adapter"), tuned)
    stock = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "backbone").eval()
    theirs, ids = PeftModel.from_pretrained(stock, tmp_path / "adapter").eval(), random_ids(2, 5)
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids, adapter=tuned).logits
        got = theirs(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    source = json.loads((tmp_path / "adapter" / "tagi_adapter.json").read_text())["provenance"]
    assert source["instruction"] == "say ab" and source["tuned"]["examples"] == 5 and source["tuned"]["steps"] == 6


def test_an_adapter_from_disk_is_tuned_with_a_model_that_is_given(model_of, tmp_path):
    model = model_of()
    adapter = model.generate_adapter("say ab")
    adapter.save_pretrained(tmp_path)
    read = TagiAdapter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only while the model .* is in memory.*give adapter.tune.records, model=mod"):
        read.tune(PAIRS, **QUICK)
    assert same(read.tune(PAIRS, model=model, **QUICK), adapter.tune(PAIRS, **QUICK), atol=1e-3)
    with pytest.raises(ValueError, match="whose weights are not this model's"):
        read.tune(PAIRS, model=model_of(seed=8), **QUICK)
    with pytest.raises(ValueError, match="model=T5ForConditionalGeneration, but takes a TagiModel"):
        read.tune(PAIRS, model=model.backbone, **QUICK)


def test_the_model_is_remembered_weakly(model_of):
    model = model_of()
    adapter = model.generate_adapter("say ab")
    for other in (adapter[0], adapter.detach(), TagiAdapter.stack([adapter])):
        assert other.origin() is model
    assert pickle.loads(pickle.dumps(adapter)).origin is None
    assert "origin" not in repr(adapter)
    del model
    import gc

    gc.collect()
    assert adapter.origin() is None


def test_a_fresh_adapter_changes_nothing_and_can_be_tuned(model_of, random_ids):
    model, ids = model_of(), random_ids(2, 5)
    fresh = model.fresh_adapter(tasks=2, seed=3)
    generated = model.generate_adapter("say ab")
    assert len(fresh) == 2 and fresh.memory is None and fresh.lora_a.keys() == generated.lora_a.keys()
    with torch.no_grad():
        bare = model(input_ids=ids, decoder_input_ids=ids).logits
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids, adapter=fresh).logits, bare)
    assert same(fresh[0], fresh[1]) and same(fresh, model.fresh_adapter(2, seed=3))
    assert not same(fresh, model.fresh_adapter(2, seed=4))
    for path, a in fresh.lora_a.items():
        assert a.std() > 0.3 * a.shape[2] ** -0.5 and not fresh.lora_b[path].any()
    tuned = fresh[0].tune(PAIRS, steps=40, learning_rate=3e-2, batch_size=5, progress=False)
    assert loss_of(model, tuned) < loss_of(model, fresh[0]) - 0.3


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "task 0 has no examples"),
        ("ab", "the records are a str, but must be a list"),
        ([("ab", "cd"), ("ab",)], r"example 1 is \('ab',\), but must be a dict with an input and a target, or a pair"),
        ([{"input": "ab"}], "example 0 is {'input': 'ab'}"),
        ([{"input": " ", "target": "ab"}], "both texts that are not empty"),
        ([("ab", [])], "example 0 is"),
    ],
)
def test_examples_that_cannot_be_read_are_named(model_of, records, message):
    model = model_of()
    with pytest.raises(ValueError, match=message):
        model.generate_adapter("say ab").tune(records, **QUICK)


def test_several_adapters_take_a_list_each(model_of):
    model = model_of()
    two = model.generate_adapter(["say ab", "say cd"])
    for records in (PAIRS, [PAIRS], [PAIRS, PAIRS, PAIRS]):
        with pytest.raises(ValueError, match="the adapter is of 2 tasks: give a list of 2 lists of examples"):
            two.tune(records, **QUICK)
    for options in ({"steps": 0}, {"batch_size": 0}, {"steps": 1.5}):
        with pytest.raises(ValueError, match="both must be whole numbers above 0"):
            two.tune([PAIRS, PAIRS], **{**QUICK, **options})


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("llama", "concat"), ("t5", "none")])
def test_an_adapter_made_or_tuned_in_inference_mode_is_tuned_as_any(model_of, family, fusion):
    model = model_of(family, fusion)
    expected = model.generate_adapter("say ab").tune(PAIRS, **QUICK)
    with torch.inference_mode():
        adapter = model.generate_adapter("say ab")
        inside = adapter.tune(PAIRS, **QUICK)
    assert same(adapter.tune(PAIRS, **QUICK), expected) and same(inside, expected)


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -1.0])
def test_a_learning_rate_that_cannot_be_is_refused(model_of, rate):
    model = model_of()
    with pytest.raises(ValueError, match=f"learning_rate={rate}, but it must be a finite number"):
        model.generate_adapter("say ab").tune(PAIRS, **{**QUICK, "learning_rate": rate})


@pytest.mark.parametrize("steps, where", [
    (6, "the loss of step 2 of 6 is not finite"), (1, "after step 1 '.*is not finite"),
])  # fmt: skip
def test_tuning_that_diverges_ends_with_the_step_and_no_adapter(model_of, steps, where):
    model = model_of()
    with pytest.raises(ValueError, match=f"{where}.*no adapter was made; use a learning_rate below 1e.30"):
        model.generate_adapter("say ab").tune(PAIRS, **{**QUICK, "steps": steps, "learning_rate": 1e30})
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
