"""A sentencepiece vocabulary from texts, for backbones that start from scratch."""

import tempfile
from pathlib import Path
from typing import Iterable

import sentencepiece
from transformers import T5Tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> T5Tokenizer:
    """A unigram vocabulary of at most `vocab_size` pieces, as a T5 tokenizer without sentinels.

    Texts are taken as they are (no Unicode normalisation, blanks and line ends count as one blank). The same texts
    give the same vocabulary.

    Raises:
        ValueError: if the texts do not hold enough for a vocabulary of even the smallest size.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "vocabulary"
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(" ".join(text.split()) for text in texts),
                model_prefix=str(prefix),
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                character_coverage=0.9998,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                pad_piece="<pad>",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"no vocabulary of {vocab_size} pieces can be made from these texts: {error}") from error
        model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    vocab = [(model.id_to_piece(number), model.get_score(number)) for number in range(model.get_piece_size())]
    return T5Tokenizer(vocab=vocab, extra_ids=0)
