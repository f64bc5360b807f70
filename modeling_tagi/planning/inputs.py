"""What can be known of a run's backbone, data and lengths before anything is downloaded or made."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Optional

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from ..configuration_tagi import TagiConfig
from ..costs.inference import lengths_of
from ..costs.work import TextLengths
from ..data.records import Splits
from ..data.sources import read_source
from ..evaluation.evaluate import spread
from ..hub import is_gguf, readable
from ..tokens import Tokens, instruction_text
from ..training.backbones import backbone_config, made_config, require_place
from ..training.settings import RunSettings
from ..training.tokenizer import read_tokenizer

_LOOKED_AT = 2000  # records, and passages of text, whose lengths are taken


@dataclass
class Inputs:
    """Holds what of a run's inputs is on this machine; `None` for what is not.

    Args:
        splits, text: The data.
        tokenizer: The backbone's; never there without data.
        seconds: Spent on reading them.
    """

    splits: Optional[Splits]
    text: Optional[Sequence[str]]
    tokenizer: Any
    seconds: float

    def counted(self, by: str) -> Optional[dict[str, int]]:
        """Returns how many records, tasks, groups and task adapters (one for each `by`) there are to train on."""
        if self.splits is None:
            return None
        train = self.splits["train"]
        return {
            "records": len(train),
            "tasks": len({record.task for record in train}),
            "groups": len({record.group for record in train}),
            "adapters": len({getattr(record, by) for record in train}),
        }


def read_inputs(settings: RunSettings, with_data: bool, notes: list[str]) -> Inputs:
    """Reads the data, if it is wanted and there, and the tokenizer that goes with it; `notes` say what is missing."""
    began = time.perf_counter()
    splits = text = tokenizer = None
    if with_data:
        try:
            splits, text, _ = read_source(
                **dataclasses.asdict(settings.data), train_tasks=settings.train_tasks, seed=settings.seed
            )
        except FileNotFoundError as error:
            notes.append(f"the data is not read, lengths are the limits: {error}")
    if splits is not None:
        tokenizer = _tokenizer(settings, splits, text, notes)
    return Inputs(splits, text, tokenizer, time.perf_counter() - began)


def _tokenizer(settings: RunSettings, splits: Splits, text: Sequence[str], notes: list[str]):
    backbone = settings.backbone
    if backbone.name is None:
        return read_tokenizer(settings, splits["train"], text)
    try:
        return AutoTokenizer.from_pretrained(
            _readable(settings), revision=backbone.revision, local_files_only="model_type" in backbone.shape,
            trust_remote_code=False,
        )
    except (OSError, ValueError):
        notes.append(f"the tokenizer of {backbone.name} is not on this machine: lengths are the limits")
        return None


def _readable(settings: RunSettings) -> str:
    backbone = settings.backbone
    return readable(backbone.name, backbone.revision, local_files_only="model_type" in backbone.shape)


def backbone_shape(
    settings: RunSettings, vocab_size: Optional[int], notes: list[str]
) -> tuple[PretrainedConfig, str]:
    """Returns the backbone's config and where it was found: `scratch`, `repository` or `config` (the recipe).

    Args:
        settings: The run's settings.
        vocab_size: The number of the tokenizer's tokens, if that is known.
        notes: A list to which what does not agree is added.

    Raises:
        ValueError: if it is found nowhere.
        FileNotFoundError: if the backbone is a folder that does not exist.
    """
    backbone = settings.backbone
    if backbone.name is None:
        return backbone_config(settings, vocab_size or backbone.vocab_size), "scratch"
    declared = made_config(backbone.shape, "shape") if "model_type" in backbone.shape else None
    require_place(backbone.name)
    try:
        # without the network where the recipe says the shape: a plan is to be quick, and the same everywhere
        found = AutoConfig.from_pretrained(
            _readable(settings), revision=backbone.revision, local_files_only=declared is not None,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        if declared is None and is_gguf(backbone.name):
            raise
        if declared is None:
            raise ValueError(
                f"the shape of the backbone {backbone.name!r} is not to be had ({str(error).splitlines()[0]}); go "
                "online, name a folder, or say it in the fields of backbone.shape: model_type and what makes its size"
            ) from None
        notes.append(f"{backbone.name} is not on this machine: its shape is what backbone.shape says")
        return declared, "config"
    wrong = [name for name, value in backbone.shape.items() if getattr(found, name, value) != value]
    if wrong:
        more = f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        notes.append(
            f"backbone.shape says {wrong[0]} {backbone.shape[wrong[0]]!r}, but {backbone.name} has "
            f"{getattr(found, wrong[0])!r}{more}; planned with the latter"
        )
    return found, "repository"


@dataclass(frozen=True)
class PlannedLengths:
    """Holds the lengths of a run's texts in tokens.

    Args:
        limit: The settings' limits.
        longest: The greatest of the data, or the limits.
        mean: The data's means; `None` if they could not be read.
    """

    limit: TextLengths
    longest: TextLengths
    mean: Optional[TextLengths] = None

    def as_json(self) -> dict[str, Optional[dict[str, float]]]:
        found = {"limit": self.limit, "longest": self.mean and self.longest, "mean": self.mean}
        return {name: lengths and dataclasses.asdict(lengths) for name, lengths in found.items()}


def lengths_of_run(settings: RunSettings, config: TagiConfig, inputs: Inputs) -> PlannedLengths:
    """Returns the limits of a run's lengths, and those of some of its data where that is here."""
    limit = TextLengths(
        config.max_instruction_length, settings.max_input_length, settings.max_target_length,
        max(settings.text.max_length, settings.pretraining.max_length),
    )  # fmt: skip
    if inputs.tokenizer is None:
        return PlannedLengths(limit, limit)
    tokens = Tokens.of(inputs.tokenizer, config, settings.max_input_length, settings.max_target_length)
    records = spread(inputs.splits["train"], _LOOKED_AT)
    passages = [len(tokens.plain(passage)) for passage in itertools.islice(inputs.text, _LOOKED_AT)]
    passages = passages or [limit.passage]
    longest = TextLengths(
        max(len(tokens.instruction(instruction_text(r.instruction, r.demonstrations))) for r in records),
        max(len(tokens.input(r.input)) for r in records),
        max(len(tokens.target(r.targets[0])) for r in records),
        max(passages),
    )
    task = lengths_of(records, tokens)
    return PlannedLengths(limit, longest, TextLengths(task.instruction, task.input, task.target, fmean(passages)))
