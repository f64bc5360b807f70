import copy
from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from modeling_tagi.lora import _IN_FORCE, Application

FUSIONS = ["none", "concat", "cross_attention"]
every_family = pytest.mark.parametrize("family", ["t5", "t5_v1_1", "mt5", "llama", "qwen2", "qwen3", "gpt2"])
both_kinds = pytest.mark.parametrize("family", ["t5", "llama"])
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
NEW = 6
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_beams": 1}
BEAMS = {**GREEDY, "num_beams": 4}


@pytest.fixture
def mixed(make_model, random_ids):
    """A model, two adapters of different lengths, and inputs of two rows."""

    def make(family, fusion):
        model = make_model(family, fusion)
        adapters = model.generate_adapter([random_ids(1, n, n)[0].tolist() for n in (3, 7)])
        return model, adapters, random_ids(2, 5, 40)

    return make


def step_by_step(model, ids, adapter):
    """Greedy decoding through forward, without any cache."""
    both = model.config.is_encoder_decoder
    tokens = torch.zeros(len(ids), 1, dtype=torch.long) if both else ids
    for _ in range(NEW):
        inputs = {"input_ids": ids, "decoder_input_ids": tokens} if both else {"input_ids": tokens}
        logits = model(**inputs, adapter=adapter).logits[:, -1]
        logits[:, model.config.eos_token_id] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return tokens


@every_family
@every_fusion
def test_greedy_tokens_equal_a_loop_through_forward(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    with torch.no_grad():
        expected = step_by_step(model, ids, adapters)
    assert torch.equal(model.generate(ids, adapter=adapters, **GREEDY), expected)
    assert torch.equal(model.generate(input_ids=ids, adapter=adapters, use_cache=False, **GREEDY), expected)
    first, bare = (
        model.generate(ids, adapter=adapter, output_scores=True, return_dict_in_generate=True, **GREEDY).scores[0]
        for adapter in (adapters, None)
    )
    assert not torch.allclose(first, bare, atol=1e-3)  # it matters, whether or not another token is the likeliest


def merged(model, adapter):
    backbone = copy.deepcopy(model.backbone)
    with torch.no_grad():
        for path, a in adapter.lora_a.items():
            module = backbone.get_submodule(path)
            delta = adapter.scaling * adapter.lora_b[path][0] @ a[0]
            module.weight += delta.T if isinstance(module, Conv1D) else delta
    return backbone


@every_family
def test_beams_equal_those_of_a_merged_backbone(mixed, family):
    model, adapters, ids = mixed(family, "none")
    for adapter in adapters:
        expected = merged(model, adapter).generate(ids, attention_mask=torch.ones_like(ids), **BEAMS)
        assert torch.equal(model.generate(ids, adapter=adapter, **BEAMS), expected)


@every_family
@every_fusion
def test_beams_of_a_mixed_batch_equal_each_row_alone(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    together = model.generate(ids, adapter=adapters, **BEAMS)
    for row in range(2):
        alone = model.generate(ids[row: row + 1], adapter=adapters[row], **BEAMS)
        assert torch.equal(together[row: row + 1], alone)
    indexed = model.generate(ids, adapter=adapters, task_index=torch.tensor([1, 0]), **BEAMS)
    assert torch.equal(indexed, model.generate(ids, adapter=adapters[[1, 0]], **BEAMS))


@every_family
@every_fusion
def test_one_adapter_is_for_every_row(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    for settings in (GREEDY, BEAMS):
        expected = model.generate(ids, adapter=adapters[[1, 1]], **settings)
        assert torch.equal(model.generate(ids, adapter=adapters[1], **settings), expected)


@both_kinds
@every_fusion
def test_sampling_with_a_seed_is_reproducible(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    sampling = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": NEW, "min_new_tokens": NEW}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(ids, adapter=adapters, **sampling))
    assert len(drawn[0]) == 6 and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    prompt = 0 if model.config.is_encoder_decoder else ids.shape[1]
    assert torch.equal(drawn[0][:, :prompt], ids.repeat_interleave(3, 0)[:, :prompt])


@both_kinds
@every_fusion
def test_returned_beams_belong_to_their_row(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    together = model.generate(ids, adapter=adapters, num_return_sequences=2, **BEAMS)
    for row in range(2):
        alone = model.generate(ids[row: row + 1], adapter=adapters[row], num_return_sequences=2, **BEAMS)
        assert torch.equal(together[2 * row: 2 * row + 2], alone)


@both_kinds
@every_fusion
def test_an_instruction_is_read_once_a_call(make_model, random_ids, family, fusion):
    model = make_model(family, fusion)
    calls = {"hypernetwork": 0, "encoder": 0, "project": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.hypernetwork.register_forward_hook(count("hypernetwork"))
    for layer in model.fusion:
        layer.k.register_forward_hook(count("project"))
    if family == "t5":
        model.backbone.encoder.register_forward_hook(count("encoder"))
    ids, instruction = random_ids(2, 5), random_ids(2, 4, seed=8)
    from_ids = model.generate(ids, instruction_input_ids=instruction, **BEAMS)
    # T5: the encoder reads the instructions, then the inputs
    assert calls == {"hypernetwork": 1, "encoder": 2 if family == "t5" else 0, "project": len(model.fusion)}
    adapter = model.generate_adapter(instruction)
    calls.update(dict.fromkeys(calls, 0))
    assert torch.equal(model.generate(ids, adapter=adapter, **BEAMS), from_ids)
    assert calls == {"hypernetwork": 0, "encoder": 1 if family == "t5" else 0, "project": 0}


@both_kinds
@every_fusion
@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_rows_that_lie_by_task_share_its_updates_and_equal_each_row_alone(mixed, random_ids, family, fusion, settings):
    model, adapters, _ = mixed(family, fusion)
    ids, tasks = random_ids(4, 5, 40), []
    target = model.backbone.get_submodule(next(iter(adapters.lora_a)))
    watch = target.register_forward_hook(lambda *_: tasks.append(len(_IN_FORCE.application.lora[target][0])))
    together = model.generate(ids, adapter=adapters, task_index=torch.tensor([0, 0, 1, 1]), **settings)
    watch.remove()
    assert set(tasks) == {2}  # and not a copy for each of four rows
    for row in range(4):
        alone = model.generate(ids[row: row + 1], adapter=adapters[row // 2], **settings)
        assert torch.equal(together[row: row + 1], alone)


@both_kinds
@every_fusion
@pytest.mark.parametrize("index", [None, torch.tensor([1, 0])], ids=["in order", "indexed"])
def test_updates_are_gathered_and_cast_once_a_call(mixed, family, fusion, index):
    model, adapters, ids = mixed(family, fusion)
    model = model.to(torch.bfloat16)
    written = [path for path in adapters.lora_a if not path.startswith("encoder")][0]  # called for every token
    target, seen = model.backbone.get_submodule(written), []
    watch = target.register_forward_hook(lambda *_: seen.append(_IN_FORCE.application.lora[target]))
    fast = model.generate(ids, adapter=adapters, task_index=index, output_scores=True, return_dict_in_generate=True,
                          **GREEDY)  # fmt: skip
    watch.remove()
    assert len(seen) == NEW and {x.dtype for pair in seen for x in pair} == {torch.bfloat16}
    assert len({id(x) for pair in seen for x in pair}) == 2 and len(seen[0][0]) == 2
    with applied_slowly():
        slow = model.generate(ids, adapter=adapters, task_index=index, output_scores=True,
                              return_dict_in_generate=True, **GREEDY)  # fmt: skip
    assert all(map(torch.equal, fast.scores, slow.scores))  # bit for bit what a cast in every call gives


@contextmanager
def applied_slowly():
    """Updates in force as the adapter has them, float32, to be gathered and cast by every call of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Application, "cast", lambda self, dtype: self)
        patch.setattr(Application, "by_row", lambda self: self)
        yield


@every_family
@every_fusion
def test_static_cache_gives_the_same_tokens(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    for settings in (GREEDY, {**BEAMS, "max_new_tokens": 3, "min_new_tokens": 3}):
        expected = model.generate(ids, adapter=adapters, **settings)
        assert torch.equal(model.generate(ids, adapter=adapters, cache_implementation="static", **settings), expected)


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_a_cache_that_cannot_hold_a_prefix_is_refused(mixed, fusion):
    model, adapters, ids = mixed("llama", fusion)
    with pytest.raises(ValueError, match=r"cache_implementation is 'quantized'.*'dynamic' or 'static'"):
        model.generate(ids, adapter=adapters, cache_implementation="quantized", **GREEDY)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
@every_fusion
@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_left_padding_changes_no_token(mixed, random_ids, family, fusion, settings):
    model, adapters, _ = mixed(family, fusion)
    short, long = random_ids(1, 3, 60), random_ids(1, 6, 61)
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    mask = (padded != 0).long()
    for masked in ({"attention_mask": mask}, {}):  # the mask is also told from the padding
        together = model.generate(padded, adapter=adapters, **masked, **settings)
        assert torch.equal(together[0, 6:], model.generate(short, adapter=adapters[0], **settings)[0, 3:])
        assert torch.equal(together[1], model.generate(long, adapter=adapters[1], **settings)[0])


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "mt5"])
@every_fusion
def test_right_padding_changes_no_token(mixed, random_ids, family, fusion):
    model, adapters, _ = mixed(family, fusion)
    short, long = random_ids(1, 3, 60), random_ids(1, 6, 61)
    padded = torch.cat([torch.cat([short, torch.zeros(1, 3, dtype=torch.long)], 1), long])
    together = model.generate(padded, attention_mask=(padded != 0).long(), adapter=adapters, **BEAMS)
    assert torch.equal(together[:1], model.generate(short, adapter=adapters[0], **BEAMS))
    assert torch.equal(together[1:], model.generate(long, adapter=adapters[1], **BEAMS))


@every_fusion
def test_a_token_that_also_ends_texts_is_not_taken_for_padding(mixed, fusion):
    model, adapters, ids = mixed("llama", fusion)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = int(ids[0, 1])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), adapter=adapters, **GREEDY)
    assert torch.equal(model.generate(ids, adapter=adapters, **GREEDY), expected)


@pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
def test_lengths_and_penalties_do_not_count_the_prefix(mixed, fusion):
    model, adapters, ids = mixed("llama", fusion)
    expected = model.generate(ids, adapter=adapters, **GREEDY)
    by_length = {"max_length": 5 + NEW, "min_length": 5 + NEW, "do_sample": False}
    assert torch.equal(model.generate(ids, adapter=adapters, **by_length), expected)
    assert torch.equal(model.generate(ids, adapter=adapters, generation_config=GenerationConfig(**GREEDY)), expected)

    def penalised(ids, adapter):
        tokens = ids
        for _ in range(NEW):
            logits = model(tokens, adapter=adapter).logits[:, -1]
            seen = logits.gather(1, tokens)
            logits = logits.scatter(1, tokens, torch.where(seen < 0, seen * 5.0, seen / 5.0))
            logits[:, 1] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
        return tokens

    with torch.no_grad():
        by_hand = penalised(ids, adapters)
    assert torch.equal(model.generate(ids, adapter=adapters, repetition_penalty=5.0, **GREEDY), by_hand)


@both_kinds
@every_fusion
def test_a_dict_is_returned_where_asked(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    output = model.generate(ids, adapter=adapters, return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert torch.equal(output.sequences, model.generate(ids, adapter=adapters, **GREEDY)) and len(output.scores) == NEW


@both_kinds
def test_without_adapter_generate_is_the_backbones(make_model, random_ids, family):
    model, ids = make_model(family), random_ids(2, 5)
    mask = torch.ones_like(ids)
    expected = model.backbone.generate(ids, attention_mask=mask, **BEAMS)
    assert torch.equal(model.generate(ids, attention_mask=mask, **BEAMS), expected)


@both_kinds
@every_fusion
def test_generate_leaves_the_models_settings_and_context(mixed, family, fusion):
    model, adapters, ids = mixed(family, fusion)
    before, bare = model.generation_config.to_dict(), model.generate(ids, **GREEDY)
    settings = GenerationConfig(**GREEDY)
    model.generate(ids, adapter=adapters, generation_config=settings, max_new_tokens=3)
    with pytest.raises(ValueError):
        model.generate(ids, adapter=adapters, no_such_argument=1)
    assert model.generation_config.to_dict() == before and settings.max_new_tokens == NEW
    assert torch.equal(model.generate(ids, **GREEDY), bare)


@pytest.mark.parametrize("family, fusion", [("t5", "cross_attention"), ("llama", "concat"), ("llama", "none")])
def test_instructions_of_all_lengths_equal_each_alone(make_model, random_ids, monkeypatch, family, fusion):
    model = make_model(family, fusion)
    rows = [random_ids(1, length, seed=length)[0].tolist() for length in (100, 3, 90, 5, 100, 4, 3)]
    read, shapes = model._read, []
    monkeypatch.setattr(model, "_read", lambda ids, mask: (shapes.append(ids.shape), read(ids, mask))[1])
    together = model.generate_adapter(rows)
    assert len(shapes) == 2 and sum(rows for rows, _ in shapes) == len(rows)
    for number, row in enumerate(rows):
        alone, ours = model.generate_adapter(row), together[number]
        assert ours.provenance == alone.provenance
        for factors, expected in ((ours.lora_a, alone.lora_a), (ours.lora_b, alone.lora_b)):
            assert all(torch.allclose(x, expected[path], atol=1e-5) for path, x in factors.items())
        assert (ours.memory is None) == (fusion == "none")
        if fusion != "none":
            for name, x in alone.memory.tensors().items():
                assert torch.allclose(ours.memory.tensors()[name], x, atol=1e-5), name
