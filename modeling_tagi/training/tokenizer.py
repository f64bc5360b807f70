"""The tokenizer of a run: the pretrained backbone's, or a vocabulary that the run makes of its data."""

import json
from pathlib import Path
from typing import Sequence

from transformers import AutoTokenizer

from ..common.processes import from_main, is_main, wait
from ..common.writing import reading, replacing
from ..data.records import Record
from ..data.tokenizer import train_tokenizer
from ..hub import readable
from ..tokens import OUTPUT_HEAD, prompt_text
from .backbones import backbone_config
from .run import Run
from .setting_fields import RunSettings
from .stage_keys import KEY_FILE, digest_of_records, digest_of_text

FOLDER = "tokenizer"
# What transformers notes of how a tokenizer was read, and saves with it: a run that resumes would write other files.
_OF_READING = ("is_local", "local_files_only")


def read_tokenizer(settings: RunSettings, train: Sequence[Record], text: Sequence[str]):
    """Returns the pretrained backbone's tokenizer; from scratch, one trained on the train split and the text."""
    backbone = settings.backbone
    if backbone.name is not None:
        name = readable(backbone.name, backbone.revision)
        return AutoTokenizer.from_pretrained(name, revision=backbone.revision, trust_remote_code=False)
    made = Path(settings.output_dir) / FOLDER
    key = _key(settings, digest_of_records(train), digest_of_text(text))
    # as often as training will read them, so that the words of instructions become pieces
    between = " " if backbone_config(settings, backbone.vocab_size).is_encoder_decoder else OUTPUT_HEAD
    texts = [f"{prompt_text(r.instruction, r.input, r.demonstrations)}{between}{r.targets[0]}" for r in train]
    return from_main(
        lambda: _read(made) if _is_made_of(made, key) else train_tokenizer([*texts, *text], backbone.vocab_size)
    )


def keep_tokenizer(run: Run, tokenizer) -> Path:
    """Writes the tokenizer that the run trained to the run's folder, and returns its path."""
    folder = run.folder / FOLDER
    key = _key(run.settings, run.read.get("records", ""), run.read.get("text", ""))
    if is_main() and not _is_made_of(folder, key):
        with replacing(folder) as beside:
            tokenizer.save_pretrained(beside)
            (beside / KEY_FILE).write_text(json.dumps(key), encoding="utf-8")
    wait()
    return folder


def _key(settings: RunSettings, records: str, text: str) -> dict:
    """Returns what a tokenizer that the run trains depends on, with the data as digests."""
    family = settings.backbone.config.get("model_type")
    return {"vocab_size": settings.backbone.vocab_size, "model_type": family, "records": records, "text": text}


def _is_made_of(folder: Path, key: dict) -> bool:
    """Tells whether the folder has a tokenizer made of this; one without a key, of an earlier version, counts too."""
    file = folder / KEY_FILE
    return folder.is_dir() and (not file.is_file() or file.read_text(encoding="utf-8") == json.dumps(key))


def _read(folder: Path):
    with reading(folder, "delete it: it is made again of the same data"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # nosec B615 # of the run
    for name in _OF_READING:
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer
