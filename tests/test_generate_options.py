"""Options of transformers' `generate`, with an adapter: each as on a backbone alone, or refused."""

import copy

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

both_memories = pytest.mark.parametrize("fusion", ["concat", "cross_attention"])
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture
def read(make_model, random_ids):
    """A model, the adapter of an instruction, and one input."""

    def make(family, fusion):
        model = make_model(family, fusion)
        return model, model.generate_adapter(random_ids(1, 6, 3)[0].tolist()), random_ids(1, 7, 9)

    return make


def merged(model, adapter):
    backbone = copy.deepcopy(model.backbone)
    with torch.no_grad():
        for path, a in adapter.lora_a.items():
            backbone.get_submodule(path).weight += adapter.scaling * adapter.lora_b[path][0] @ a[0]
    return backbone


# Drafts


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_assistant_changes_no_token(read, make_backbone, family):
    model, adapter, ids = read(family, "none")
    expected = model.generate(ids, adapter=adapter, **GREEDY)
    for assistant in (make_backbone(family, seed=5), copy.deepcopy(model.backbone)):
        assert torch.equal(model.generate(ids, adapter=adapter, assistant_model=assistant, **GREEDY), expected)


@pytest.mark.parametrize("family, fusion", [("t5", "none"), ("t5", "cross_attention"), ("llama", "none")])
def test_prompt_lookup_changes_no_token(read, family, fusion):
    model, adapter, ids = read(family, fusion)
    expected = model.generate(ids, adapter=adapter, **GREEDY)
    assert torch.equal(model.generate(ids, adapter=adapter, prompt_lookup_num_tokens=3, **GREEDY), expected)


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
@both_memories
def test_drafts_are_refused_where_the_instruction_would_not_be_counted(read, make_backbone, family, fusion):
    model, adapter, ids = read(family, fusion)
    with pytest.raises(ValueError, match=f"assistant_model cannot draft .*{fusion}.*leave it out, or .*'none'"):
        model.generate(ids, adapter=adapter, assistant_model=make_backbone(family, seed=5), **GREEDY)
    if family != "t5":
        with pytest.raises(ValueError, match=r"\(prompt_lookup_num_tokens\) cannot draft .*leave it out"):
            model.generate(ids, adapter=adapter, prompt_lookup_num_tokens=3, **GREEDY)


# Penalties, streamers, criteria


@pytest.mark.parametrize("option", [{"encoder_repetition_penalty": 9.0}, {"encoder_no_repeat_ngram_size": 1}], ids=str)
def test_what_reads_the_encoders_input_sees_the_input(read, option):
    model, adapter, ids = read("t5", "none")
    said = model.generate(ids, adapter=adapter, **GREEDY)
    ids[0, :6] = said[0, 1:]  # so that a penalty for the input's tokens changes the output
    backbone = merged(model, adapter)
    expected = backbone.generate(ids, attention_mask=torch.ones_like(ids), **option, **GREEDY)
    assert not torch.equal(model.generate(ids, adapter=adapter, **GREEDY), expected)
    assert torch.equal(model.generate(ids, adapter=adapter, **option, **GREEDY), expected)


@pytest.mark.parametrize("fusion", ["none", "concat", "cross_attention"])
def test_an_encoders_ngrams_are_those_of_each_rows_input(make_model, random_ids, fusion):
    model, ids = make_model("t5", fusion), random_ids(2, 6, 9)
    adapters = model.generate_adapter([random_ids(1, n, n)[0].tolist() for n in (6, 3)])
    ids[:] = model.generate(ids, adapter=adapters, **GREEDY)[:, 1:]
    options = {"encoder_no_repeat_ngram_size": 1, "num_beams": 2, **GREEDY}
    found = model.generate(ids, adapter=adapters, **options)
    for row in range(2):
        assert not set(found[row, 1:].tolist()) & set(ids[row].tolist())
        assert torch.equal(found[row], model.generate(ids[[row]], adapter=adapters[row], **options)[0])


class Heard(BaseStreamer):
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard += value.flatten().tolist()

    def end(self):
        pass


class Seen(StoppingCriteria):
    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids[0].tolist())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@both_memories
def test_what_looks_on_sees_the_input_and_the_output_alone(read, family, fusion):
    model, adapter, ids = read(family, fusion)
    streamer, criterion, asked = Heard(), Seen(), []

    def allowed(batch, sequence):
        asked.append(sequence.tolist())
        return list(range(100))

    output = model.generate(
        ids, adapter=adapter, streamer=streamer, stopping_criteria=StoppingCriteriaList([criterion]),
        prefix_allowed_tokens_fn=allowed, **GREEDY,
    )[0].tolist()  # fmt: skip
    assert output[:7] == ids[0].tolist() and streamer.heard == output
    assert criterion.seen == [output[: 8 + n] for n in range(6)] and asked == [output[: 7 + n] for n in range(6)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@both_memories
def test_ngrams_that_may_not_come_again_are_those_of_input_and_output(read, family, fusion):
    model, adapter, ids = read(family, fusion)
    first = int(ids[0, 0])
    wanted = {"sequence_bias": {(first,): 50.0}, "no_repeat_ngram_size": 2}

    def by_hand():
        tokens = ids
        for _ in range(6):
            scores = model(tokens, adapter=adapter).logits[:, -1]
            scores[:, first] += 50.0
            row = tokens[0].tolist()
            scores[:, [1, *(b for a, b in zip(row, row[1:]) if a == row[-1])]] = -torch.inf
            tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], 1)
        return tokens

    with torch.no_grad():
        expected = by_hand()
    assert expected[0, 7] == first  # which comes behind the input's last token for the first time
    assert torch.equal(model.generate(ids, adapter=adapter, **wanted, **GREEDY), expected)


@both_memories
def test_criteria_that_count_the_output_do_not_count_the_instruction(read, fusion):
    model, adapter, ids = read("llama", fusion)
    full = model.generate(ids, adapter=adapter, return_dict_in_generate=True, output_scores=True,
                          output_hidden_states=True, prefill_chunk_size=3, **GREEDY)  # fmt: skip
    assert torch.equal(full.sequences, model.generate(ids, adapter=adapter, **GREEDY))
    assert len(full.scores) == len(full.hidden_states) == 6
