from collections import Counter

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.evaluation import oracle as oracle_module
from modeling_tagi.evaluation.backbones import adaptable
from modeling_tagi.evaluation.oracle import oracle, tune_adapters, two_folds
from modeling_tagi.evaluation.predict import Answering
from modeling_tagi.tokens import Tokens

WORDS = "red green blue one two three four apple pear plum cat dog".split()
# Each task has one answer: what an adapter can learn in a few steps, and another task's cannot know.
ANSWERS = {"always plum": "plum", "always dog": "dog", "always two": "two"}


def records_of(tasks=ANSWERS, number=5):
    inputs = [f"{WORDS[n]} {WORDS[n + 3]}" for n in range(number)]
    return [Record(task, task, text, (ANSWERS[task],)) for task in tasks for text in inputs]


@pytest.fixture(scope="module")
def tokens():
    return Tokens(train_tokenizer([*WORDS, *ANSWERS, "Input:"], 60), True, 32, 4)


def make_backbone(tokens, dropout):
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(
        d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0, dropout_rate=dropout,
        pad_token_id=0, eos_token_id=1, vocab_size=len(tokens.tokenizer), tie_word_embeddings=False,
    ))  # fmt: skip


@pytest.fixture
def backbone(tokens):
    return make_backbone(tokens, dropout=0.1)


def of_tasks(records):
    found = {}
    for record in records:
        found.setdefault(record.task, []).append(record)
    return found


def equal(a, b):
    return all(torch.equal(a.lora_a[p], b.lora_a[p]) and torch.equal(a.lora_b[p], b.lora_b[p]) for p in a.lora_a)


def test_halves_are_as_large_and_keep_records_of_one_input_together():
    twice = [Record("t", "i", text, ("y",)) for text in "abcdefg"] + [Record("t", "other", " A ", ("z",))]
    more = twice + [Record("u", "i", text, ("y",)) for text in "abc"]
    fold = two_folds(more, seed=1)
    assert sorted(Counter(f for (task, _), f in fold.items() if task == "t").values()) == [3, 4]
    assert len(fold) == 10 and fold["t", "a"] in (0, 1)
    assert fold == two_folds(more[::1], 1) != two_folds(more, 2)
    assert {key: half for key, half in fold.items() if key[0] == "t"} == two_folds(twice, 1)


def test_a_task_of_one_input_cannot_be_halved():
    with pytest.raises(ValueError, match="task 'u' has 1 distinct input, but tuning on one half .* needs 2 or more"):
        two_folds([*records_of(), Record("u", "i", "a", ("y",)), Record("u", "j", "A ", ("y",))])


def test_adapters_learn_their_tasks_and_leave_the_rest_as_it_was(backbone, tokens):
    model, records = adaptable(backbone), records_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.backbone.train()
    torch.manual_seed(3)
    tuned = tune_adapters(model, tokens, of_tasks(records), steps=40, learning_rate=0.02, examples_per_task=4)
    drawn = torch.rand(1)
    number = {task: n for n, task in enumerate(ANSWERS)}
    answering = Answering(model, tokens, "input", adapters=tuned, row_of=lambda r: number[r.task])
    assert answering.generate(records) == [r.targets[0] for r in records]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in backbone.modules())
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_tuning_is_the_same_for_the_same_seed(backbone, tokens):
    model, records = adaptable(backbone), of_tasks(records_of())
    first, again, other = (tune_adapters(model, tokens, records, 3, 0.01, 2, seed=seed) for seed in (0, 0, 1))
    assert equal(first, again) and not equal(first, other)
    assert len(first) == 3


def test_chunks_come_back_in_order(tokens):
    # all records in every batch and no dropout: nothing is drawn but their order, and chunks are as tasks alone
    model, records = adaptable(make_backbone(tokens, dropout=0.0)), of_tasks(records_of(number=2))
    whole = tune_adapters(model, tokens, records, 3, 0.01, 2)
    cut = tune_adapters(model, tokens, records, 3, 0.01, 2, at_once=2)
    alone = tune_adapters(model, tokens, {"always two": records["always two"]}, 3, 0.01, 2)
    for path in whole.lora_b:
        assert torch.allclose(whole.lora_b[path], cut.lora_b[path], atol=1e-5)
        assert torch.allclose(cut.lora_b[path][2:], alone.lora_b[path], atol=1e-5)
        assert not torch.allclose(whole.lora_b[path][0], whole.lora_b[path][1], atol=1e-4)


def test_no_steps_are_refused(backbone, tokens):
    with pytest.raises(ValueError, match="steps is 0, but tuning takes at least 1"):
        tune_adapters(adaptable(backbone), tokens, of_tasks(records_of()), steps=0)


def test_no_record_is_answered_by_an_adapter_tuned_on_it(backbone, tokens, monkeypatch):
    tuned_on = []

    def tune(model, tokens, records_by_task, *args, **kwargs):
        tuned_on.append(records_by_task)
        return tune_adapters(model, tokens, records_by_task, *args, **kwargs)

    monkeypatch.setattr(oracle_module, "tune_adapters", tune)
    records = [*records_of(), *records_of()[:2]]
    answering = oracle(Answering(backbone, tokens, "prompt"), records, steps=1, examples_per_task=2)
    assert len(tuned_on) == 2 and len(answering.adapters) == 6
    tasks = list(ANSWERS)
    for record in records:
        half, task = divmod(answering.row_of(record), 3)
        assert tasks[task] == record.task
        assert record not in tuned_on[half][record.task]
        assert record in tuned_on[1 - half][record.task]


def test_the_oracle_answers_what_its_task_is(backbone, tokens):
    records = records_of()
    start = Answering(backbone, tokens, "prompt", 4)
    answering = oracle(start, records, steps=40, learning_rate=0.02, examples_per_task=4)
    assert answering.reads == "input" and answering.batch_size == 4
    right = sum(answer == record.targets[0] for answer, record in zip(answering.generate(records), records))
    assert right >= 13 > sum(a == r.targets[0] for a, r in zip(start.generate(records), records))
