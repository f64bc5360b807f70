"""Scores of a checkpoint and its references on any data that can be read, as `tagi evaluate` makes them."""

import json
import time
from pathlib import Path
from typing import Optional

import torch
from transformers import AutoTokenizer, PretrainedConfig

from ..banks.adapter_bank import AdapterBank
from ..common.console import circumstances, quiet_libraries
from ..common.folder_lock import alone_in
from ..common.writing import write_text
from ..configuration_tagi import TagiConfig
from ..data.records import Record, Splits
from ..hub import readable, require_folder_for, said_in_one_line
from ..modeling_tagi import TagiModel
from ..tokens import Tokens, instruction_text
from ..training.settings import RunSettings
from .backbones import load_backbone
from .evaluate import score_methods, spread
from .evaluated_data import read_splits
from .predict import Answering
from .references import require_names
from .report.write import write_report
from .results import RESULTS_FILE, RESULTS_VERSION
from .tables import table


def evaluate_checkpoint(
    checkpoint: str,
    settings: RunSettings,
    baseline: Optional[str] = None,
    task_adapters: Optional[str] = None,
    command: str = "",
) -> dict:
    """Scores a checkpoint and its references; writes `results.json`, `results.md` and the report if there is an
    `output_dir`.

    Args:
        checkpoint: A folder, or a repository on the Hub.
        settings: Those of `data`, `evaluation`, lengths and seed are used.
        baseline: The backbone that is prompted, and that the other references use: a folder or a repository;
            `None` is the checkpoint's own.
        task_adapters: A folder of task adapters of the baseline, for `nearest_adapter`.
        command: What was called, for the report.

    Returns:
        As `score_methods`, with `baseline` (which one it is), `leaks` (`None` if there is no train split to check),
        `run` and `seconds`.

    Raises:
        OSError: if the checkpoint, the baseline or the data is not there.
        ValueError: for data that cannot be used, or instructions that the checkpoint cannot read whole; or if the
            `output_dir` holds something else, or another process is at work in it.
    """
    if settings.output_dir is None:
        return _evaluated(checkpoint, settings, baseline, task_adapters, command, None)
    folder = require_folder_for("evaluation", settings.output_dir)
    with alone_in(folder):
        return _evaluated(checkpoint, settings, baseline, task_adapters, command, folder)


def _evaluated(
    checkpoint: str,
    settings: RunSettings,
    baseline: Optional[str],
    task_adapters: Optional[str],
    command: str,
    folder: Optional[Path],
) -> dict:
    """Does what `evaluate_checkpoint` says, and writes to `folder` if there is one."""
    began = time.monotonic()
    quiet_libraries()
    require_names(settings.evaluation.references)
    TagiModel.config_class.from_pretrained(checkpoint)  # whether it is there, before data is read
    kind = _kind(baseline) if baseline is not None else None
    bank = AdapterBank.open(task_adapters) if task_adapters is not None else None
    if bank is not None:
        bank.load()
    splits, train, leaks = _chosen(settings, *read_splits(settings))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TagiModel.from_pretrained(checkpoint).eval().to(device)
    tokens = _tokens(settings, model.tokenizer, model.config)
    _require_readable(model, tokens, [record for records in (*splits.values(), train) for record in records])
    own = Answering(model, tokens, "adapter", settings.evaluation.batch_size)
    if baseline is None:
        start, which = Answering(model, tokens, "prompt", own.batch_size), _own_backbone(model)
    else:
        start, which = _baseline(baseline, kind, settings, model.config), baseline
    loaded = time.monotonic()

    scored = score_methods(own, start, splits, settings.evaluation, model.config, train, bank, settings.seed)
    ended = time.monotonic()
    results = {
        "schema_version": RESULTS_VERSION,
        **scored,
        "baseline": which,
        "leaks": leaks,
        "seconds": {"loading": round(loaded - began, 1), "evaluation": round(ended - loaded, 1)},
        "run": {
            **circumstances(command, settings.seed),
            "label": settings.label,
            "seconds_of_this_call": round(ended - began, 1),
        },
    }
    if folder is not None:
        write_text(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        write_text(folder / "results.md", shown(results) + "\n")
        write_report(folder)
    return results


def _kind(baseline: str) -> Optional[str]:
    """Returns the baseline's `model_type`."""
    place = readable(baseline)
    with said_in_one_line(place, "load"):
        return PretrainedConfig.get_config_dict(place)[0].get("model_type")


def _chosen(settings: RunSettings, splits: Splits, train: list[Record], leaks: Optional[dict]):
    """Returns what `read_splits` does with the splits, and of each the records, that the settings ask for."""
    wanted = settings.evaluation.splits or list(splits)
    unknown = [name for name in wanted if name not in splits]
    if unknown:
        raise ValueError(f"--splits names {unknown[0]!r}, but the data has {', '.join(splits)}")
    return {name: spread(splits[name], settings.evaluation.max_records) for name in wanted}, train, leaks


def _baseline(name: str, kind: Optional[str], settings: RunSettings, config: TagiConfig) -> Answering:
    """Returns answers by another backbone, prompted as the checkpoint's inputs are written.

    Args:
        name: Its folder or repository.
        kind: Its `model_type`; of a TAGI checkpoint the backbone is taken.
        settings: Its lengths are used.
        config: The evaluated checkpoint's.
    """
    if kind == "tagi":
        model = TagiModel.from_pretrained(name).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer, chat = model.tokenizer, None
    else:
        model = load_backbone(name)
        place = readable(name)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)  # nosec B615 # as the weights above
        chat = "chat" if config.input_format == "chat" and getattr(tokenizer, "chat_template", None) else None
    tokens = _tokens(settings, tokenizer, model.config, chat)
    return Answering(model, tokens, "prompt", settings.evaluation.batch_size)


def shown(results: dict) -> str:
    """Returns the tables, and what must be known to read them."""
    notes = [*shown_notes(results), f"references are made with {results['baseline']}"]
    return table(results) + "\n\n" + "\n".join(f"* {note}" for note in notes)


def shown_notes(results: dict) -> list[str]:
    """Returns what must be known to read the tables of scores."""
    unchecked = ["no train split came with the data, so nothing was checked for what training may have seen"]
    return [
        "scores in per cent, means over tasks with 95 % intervals",
        *results["notes"],
        *(unchecked if results["leaks"] is None else []),
    ]


def _tokens(
    settings: RunSettings, tokenizer, config: PretrainedConfig, input_format: Optional[str] = None
) -> Tokens:
    return Tokens.of(tokenizer, config, settings.max_input_length, settings.max_target_length, input_format)


def _require_readable(model: TagiModel, tokens: Tokens, records: list[Record]):
    """Refuses instructions that the hypernetwork cannot read whole."""
    limit = model.config.max_instruction_length
    texts = {(r.instruction, r.demonstrations): r.task for r in records}
    for key, task in texts.items():
        length = len(tokens.instruction(instruction_text(*key)))
        if length > limit:
            raise ValueError(
                f"an instruction of task {task!r} has {length} tokens, but this checkpoint reads at most {limit}; "
                "shorten it, or use fewer demonstrations"
            )


def _own_backbone(model: TagiModel) -> str:
    """Returns what results call the checkpoint's own backbone."""
    if model.config.backbone_trained:
        return "the checkpoint's own backbone, as its training left it"
    name = model.config.backbone_name_or_path
    return f"the checkpoint's own backbone, {name}" if name else "the checkpoint's own backbone"
