"""A sentencepiece vocabulary from texts, for backbones that start from scratch."""

import tempfile
from pathlib import Path
from typing import Iterable

import sentencepiece
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Tokenizer

_CHARACTERS = 10_000_000  # more text makes it slower, not better


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a unigram vocabulary of at most `vocab_size` pieces, for a tokenizer that marks both ends of a text.

    Texts are not normalised, but for runs of white space, which become one blank. Of very much text, only every
    second, third, … one is read. The same texts give the same vocabulary.

    Raises:
        ValueError: if the texts do not hold enough for a vocabulary of even the smallest size.
    """
    lines = [" ".join(text.split()) for text in texts]
    lines = lines[:: sum(map(len, lines)) // _CHARACTERS + 1]
    words = dict.fromkeys(word for line in lines for word in line.split())
    if len(words) < vocab_size:
        # sentencepiece makes pieces of what recurs among the distinct words; where these are few, whole words do not
        lines += [f"{word}." for word in words]
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "vocabulary"
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_prefix=str(prefix),
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                character_coverage=1.0,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=3,
                pad_piece="<pad>",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2].split(". Increase")[0].strip() or "there is none"
            raise ValueError(
                f"no vocabulary of {vocab_size} pieces can be made from these texts ({reason}); give more text, or "
                "another vocab_size"
            ) from error
        model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    vocab = [(model.id_to_piece(number), model.get_score(number)) for number in range(model.get_piece_size())]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)._tokenizer
    # T5's own marks the end alone; without a mark at the beginning, relative positions do not tell which word is third
    special = [(piece, tokenizer.token_to_id(piece)) for piece in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return PreTrainedTokenizerFast(  # nosec B106 # marks of a vocabulary
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
