import pytest
from transformers import AutoTokenizer

from modeling_tagi.data.builtin import builtin_suite
from modeling_tagi.data.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def texts():
    records = [r for split in builtin_suite(train_instances=2, eval_instances=1).values() for r in split]
    return list(dict.fromkeys(text for r in records for text in (r.instruction, r.input, *r.targets)))


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 300)


def test_the_same_texts_give_the_same_vocabulary(texts, tokenizer):
    again = train_tokenizer(iter(texts), 300)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert train_tokenizer(texts[: len(texts) // 4], 300).get_vocab() != tokenizer.get_vocab()


def test_the_vocabulary_is_no_larger_than_asked(tokenizer):
    assert 50 < len(tokenizer) <= 300
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("a")["input_ids"][-1] == 1


def test_decoding_gives_the_texts_back(texts, tokenizer):
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert 2 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(text.split())


def test_a_saved_tokenizer_reads_alike(texts, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in texts[:200]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == " ".join(text.split())


@pytest.mark.parametrize("texts, size", [([], 100), (["   "], 100), (["the quick brown fox jumps"], 10)])
def test_too_little_text_is_refused(texts, size):
    with pytest.raises(ValueError, match=f"no vocabulary of {size} pieces"):
        train_tokenizer(texts, size)


def test_a_text_has_a_mark_at_its_beginning_and_its_end(tokenizer):
    # T5 knows relative positions alone: without the first mark it could not tell the third word from the fourth
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id, tokenizer.eos_token_id] == [3, 1]
    ids = tokenizer("a")["input_ids"]
    assert ids[0] == 3 and ids[-1] == 1 and ids[1:-1] == tokenizer("a", add_special_tokens=False)["input_ids"]
