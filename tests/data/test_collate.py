import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_tagi.data.collate import RecordCollator, TextCollator
from modeling_tagi.data.records import Record
from modeling_tagi.data.tokenizer import train_tokenizer
from modeling_tagi.tokens import OUTPUT_HEAD, Tokens, generation_tensors, pad, prompt_text

WORDS = "add double first swap the words of example input output : 1 2 one two three four five six x y z".split()
EOS = 1


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=[True, False], ids=["encoder-decoder", "causal"])
def tokens(request, tokenizer):
    return Tokens(tokenizer, request.param, max_input_length=32, max_target_length=4)


def record(task, instruction, text, target, **fields):
    return Record(task, instruction, text, (target,), **fields)


ADD = record("add", "add the words", "one two", "three", group="numbers")
ADD_AGAIN = record("add", "add the words", "x", "y z", group="numbers")
SWAP = record("swap", "swap the first", "x y z", "y x", demonstrations=(("one two", "two one"),))
BATCH = [ADD, SWAP, ADD_AGAIN]


def kept(row, mask):
    return row[mask.bool()].tolist()


def targets_of(labels):
    return [row[row != -100].tolist() for row in labels]


def test_padding_is_on_the_asked_side():
    ids, mask = pad([[5], [6, 7]], 9)
    assert ids.tolist() == [[5, 9], [6, 7]] and mask.tolist() == [[1, 0], [1, 1]]
    ids, mask = pad([[5], [6, 7]], 9, left=True)
    assert ids.tolist() == [[9, 5], [6, 7]] and mask.tolist() == [[0, 1], [1, 1]]


def test_inputs_and_targets_keep_their_end_of_sequence_when_cut(tokenizer):
    tokens = Tokens(tokenizer, True, max_input_length=3, max_target_length=2)
    one, two = tokens.plain("one two")
    assert tokens.input("one two three four") == [one, two, EOS]
    assert tokens.target("one two three") == [one, EOS]
    causal = Tokens(tokenizer, False, max_input_length=3, max_target_length=2)
    assert causal.input("one two three four") == causal.plain("one two three") + causal.plain(OUTPUT_HEAD)
    assert causal.target("one two three") == [one, EOS]


def test_each_instruction_is_in_a_batch_once(tokens):
    batch = RecordCollator(tokens)(BATCH)
    assert batch["task_index"].tolist() == [0, 1, 0]
    read = [kept(row, mask) for row, mask in zip(batch["instruction_input_ids"], batch["instruction_attention_mask"])]
    swap = "swap the first\n\nExample 1: Input: one two Output: two one"
    assert read == [tokens.tokenizer(text)["input_ids"] for text in ("add the words", swap)]
    assert "teacher_index" not in batch


def test_the_student_reads_the_input_alone(tokens):
    batch = RecordCollator(tokens, bank_index={"numbers": 0})(BATCH)
    for row, mask, labels, rec in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], BATCH):
        target = tokens.target(rec.targets[0])
        assert labels[labels != -100].tolist() == target
        if tokens.is_encoder_decoder:
            assert kept(row, mask) == tokens.plain(rec.input) + [EOS]
        else:
            read = tokens.plain(rec.input) + tokens.plain(OUTPUT_HEAD)
            assert kept(row, mask) == read + target
            length = len(read)
            assert (labels[:length] == -100).all() and labels[length:length + len(target)].tolist() == target


def test_the_teacher_reads_the_prompt_and_has_the_same_targets(tokens):
    batch = RecordCollator(tokens, bank_index={"numbers": 4})(BATCH)
    assert targets_of(batch["teacher_labels"]) == targets_of(batch["labels"])
    for row, mask, rec in zip(batch["teacher_input_ids"], batch["teacher_attention_mask"], BATCH):
        prompt = tokens.plain(prompt_text(rec.instruction, rec.input, rec.demonstrations))
        behind = tokens.plain(OUTPUT_HEAD) + tokens.target(rec.targets[0])
        expected = prompt + ([EOS] if tokens.is_encoder_decoder else behind)
        assert kept(row, mask) == expected


@pytest.mark.parametrize("by, bank, expected", [
    ("group", {"numbers": 4, "swap": 2}, [4, 2]),
    ("group", {"numbers": 4}, [4, -1]),
    ("task", {"swap": 7, "numbers": 1}, [-1, 7]),
])
def test_the_teacher_of_an_instruction_is_its_groups_or_tasks(tokens, by, bank, expected):
    assert RecordCollator(tokens, "adapter", bank, by)(BATCH)["teacher_index"].tolist() == expected
    rows = RecordCollator(tokens, "prompt", bank, by)(BATCH)
    assert rows["adapter_index"].tolist() == [expected[0], expected[1], expected[0]]
    assert not any(name.startswith(("teacher_", "instruction_")) for name in rows)


def test_one_instruction_of_two_tasks_keeps_both_teachers(tokens):
    twin = record("twin", ADD.instruction, "six", "five")
    batch = RecordCollator(tokens, "adapter", {"add": 0, "twin": 1}, "task")([ADD, twin, ADD_AGAIN])
    assert batch["teacher_index"].tolist() == [0, 1]
    assert batch["task_index"].tolist() == [0, 1, 0]
    first, second = batch["instruction_input_ids"]
    assert torch.equal(first, second)


def test_a_prompted_model_reads_instruction_and_input(tokens):
    batch = RecordCollator(tokens, "prompt")(BATCH)
    teacher = RecordCollator(tokens, bank_index={})(BATCH)
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    for name, tensor in batch.items():
        assert torch.equal(tensor, teacher[f"teacher_{name}"])


def test_generation_pads_a_causal_model_on_the_left(tokens):
    batch = generation_tensors(tokens, [tokens.input("one"), tokens.input("one two three")])
    mask = batch["attention_mask"][0].tolist()
    assert mask == ([1, 1, 0, 0] if tokens.is_encoder_decoder else [0, 0, *[1] * len(tokens.input("one"))])
    assert kept(batch["input_ids"][0], batch["attention_mask"][0]) == tokens.input("one")


PASSAGES = ["one two three four five six x y z", "one", "x y z", "six five four three two one"]


def parts(collator, batch, row):
    mask, labels = batch["attention_mask"][row], batch["labels"][row]
    c = labels[labels != -100].tolist()
    read = kept(batch["input_ids"][row], mask)
    if collator.tokens.is_encoder_decoder:
        assert read.pop() == EOS
    else:
        assert read[len(read) - len(c):] == c
        read = read[:-len(c)]
    if not collator.to_hypernetwork:
        return [], read, c
    a = kept(batch["instruction_input_ids"][row], batch["instruction_attention_mask"][row])
    if collator.tokens.is_encoder_decoder:
        assert a.pop() == EOS
    return a, read, c


@pytest.mark.parametrize("to_hypernetwork", [True, False])
def test_a_passage_is_cut_into_instruction_input_and_target_in_order(tokens, to_hypernetwork):
    collator = TextCollator(tokens, PASSAGES, 32, to_hypernetwork)
    assert collator.passages == [PASSAGES[0], *PASSAGES[2:]]  # one word cannot be cut into three parts
    for draw in range(20):
        batch = collator([(0, draw), (1, draw), (2, draw)])
        for row, passage in enumerate(collator.passages):
            a, b, c = parts(collator, batch, row)
            assert a + b + c == tokens.plain(passage)
            assert b and c and bool(a) == to_hypernetwork
    if to_hypernetwork:
        assert batch["task_index"].tolist() == [0, 1, 2]


def test_a_long_passage_gives_a_window(tokens):
    collator = TextCollator(tokens, PASSAGES, 4, True)
    whole = tokens.plain(PASSAGES[0])
    starts = set()
    for draw in range(40):
        a, b, c = parts(collator, collator([(0, draw)]), 0)
        starts.add(whole.index(a[0]))
        assert a + b + c == whole[whole.index(a[0]):][:4]
    assert starts == set(range(6))  # 9 words, windows of 4


def test_the_cut_is_decided_by_the_draw(tokens):
    collator = TextCollator(tokens, PASSAGES, 32, True)
    first, again, other = (collator([(0, draw)]) for draw in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert parts(collator, first, 0) != parts(collator, other, 0)


def test_texts_begin_as_the_tokenizer_begins_them():
    made = train_tokenizer(["say the first word red cat", "Input:"], 40)
    tokens = Tokens(made, True, 20, 8)
    assert tokens.start == [made.bos_token_id]
    assert tokens.input("red cat") == made("red cat")["input_ids"]
    prompt = tokens.prompt("say the first word", "red cat")
    assert prompt == made(prompt_text("say the first word", "red cat"))["input_ids"]


def test_a_teacher_may_read_the_input_alone(tokens):
    batch = RecordCollator(tokens, bank_index={"numbers": 0}, teacher_reads="input")(BATCH)
    assert batch["teacher_input_ids"].equal(batch["input_ids"]) and batch["teacher_labels"].equal(batch["labels"])
