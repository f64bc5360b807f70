"""`tagi evaluate`: a checkpoint on any data that can be read, beside what tells what its scores mean."""

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
from ..data.p3 import read_t0_eval
from ..data.readers import READERS
from ..data.records import Record, Splits
from ..data.sources import read_source
from ..data.tables import JSON_SUFFIXES, read_tables
from ..hub import require_folder_for, said_in_one_line
from ..instructions import instruction_text
from ..modeling_tagi import TagiModel
from ..tokens import Tokens
from ..training.settings import RunSettings, build_settings
from .evaluate import load_backbone, score_methods, spread, table
from .predict import Answering
from .report.write import write_report
from .results import RESULTS_VERSION


def settings_of(options) -> RunSettings:
    """What the arguments of the command say, in the fields of a run.

    Args:
        options: The command's arguments, as argparse has them.

    Raises:
        ValueError: for an argument with a value that is not allowed, or arguments that do not go together.
    """
    source, path = options.source, options.path
    if path == "builtin" and source is None:
        source, path = "builtin", None
    source = source or "tables"
    if path is None and source != "builtin" and (source != "tables" or options.t0_eval is None):
        raise ValueError("there is no data; give --data FOLDER, --data builtin, or --t0_eval FOLDER")
    if path is not None and source == "builtin":
        raise ValueError(f"--source builtin makes its own tasks, and has no use for --data {path}; leave out one")
    if "nearest_adapter" in options.references and options.task_adapters is None:
        raise ValueError("the reference nearest_adapter needs --task_adapters FOLDER")
    if options.output_dir is not None:
        try:
            require_folder_for("evaluation", options.output_dir)
        except ValueError as error:
            raise ValueError(f"--output_dir: {error}") from None
    if "oracle" in options.references and dict(options.oracle).get("steps", 1) == 0:
        raise ValueError("--oracle steps=0 tunes nothing; give at least 1 step")
    return build_settings({
        "output_dir": options.output_dir,
        "seed": options.seed,
        "max_input_length": options.max_input_length,
        "max_target_length": options.max_target_length,
        "data": {"source": source, "path": path, "t0_eval": options.t0_eval,
                 "options": dict(options.options)},
        "task_adapters": {"path": options.task_adapters},
        "evaluation": {
            "splits": options.splits, "max_records": options.max_records, "batch_size": options.batch_size,
            "rank_options": not options.no_rank, "references": options.references, "oracle": dict(options.oracle),
        },
    })  # fmt: skip


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
    """What `evaluate_checkpoint` returns; `folder` is the one that it writes to."""
    began = time.monotonic()
    quiet_libraries()
    TagiModel.config_class.from_pretrained(checkpoint)  # whether it is there, before data is read
    if baseline is not None:
        with said_in_one_line(baseline, "load"):
            kind = PretrainedConfig.get_config_dict(baseline)[0].get("model_type")
    bank = AdapterBank.open(task_adapters) if task_adapters is not None else None
    if bank is not None:
        bank.load()
    splits, train, leaks = read_splits(settings)
    evaluation = settings.evaluation
    wanted = evaluation.splits or list(splits)
    unknown = [name for name in wanted if name not in splits]
    if unknown:
        raise ValueError(f"--splits names {unknown[0]!r}, but the data has {', '.join(splits)}")
    splits = {name: spread(splits[name], evaluation.max_records) for name in wanted}

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TagiModel.from_pretrained(checkpoint).eval().to(device)
    tokens = _tokens(settings, model.tokenizer, model.config)
    _require_readable(model, tokens, [record for records in (*splits.values(), train) for record in records])
    own = Answering(model, tokens, "adapter", evaluation.batch_size)
    if baseline is None:
        start, which = Answering(model, tokens, "prompt", evaluation.batch_size), _own_backbone(model)
    else:
        if kind == "tagi":
            prompted = TagiModel.from_pretrained(baseline).eval().to(device)
            tokenizer = prompted.tokenizer
        else:
            prompted = load_backbone(baseline)
            tokenizer = AutoTokenizer.from_pretrained(baseline, trust_remote_code=False)
        chat = kind != "tagi" and model.config.input_format == "chat" and getattr(tokenizer, "chat_template", None)
        read = _tokens(settings, tokenizer, prompted.config, "chat" if chat else None)
        start, which = Answering(prompted, read, "prompt", evaluation.batch_size), baseline
    loaded = time.monotonic()

    scored = score_methods(own, start, splits, evaluation, model.config, train, bank, settings.seed)
    results = {"schema_version": RESULTS_VERSION, **scored}
    results["baseline"], results["leaks"] = which, leaks
    ended = time.monotonic()
    results["seconds"] = {"loading": round(loaded - began, 1), "evaluation": round(ended - loaded, 1)}
    results["run"] = {
        **circumstances(command, settings.seed),
        "label": settings.label,
        "seconds_of_this_call": round(ended - began, 1),
    }
    if folder is not None:
        write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_text(folder / "results.md", shown(results) + "\n")
        write_report(folder)
    return results


def shown(results: dict) -> str:
    """The tables, and what must be known to read them."""
    notes = [*shown_notes(results), f"references are made with {results['baseline']}"]
    return table(results) + "\n\n" + "\n".join(f"* {note}" for note in notes)


def shown_notes(results: dict) -> list[str]:
    """What must be known to read the tables of scores."""
    unchecked = ["no train split came with the data, so nothing was checked for what training may have seen"]
    return [
        "scores in per cent, means over tasks with 95 % intervals",
        *results["notes"],
        *(unchecked if results["leaks"] is None else []),
    ]


def read_splits(settings: RunSettings) -> tuple[Splits, list[Record], Optional[dict]]:
    """What is to be scored, by split; the train split (or nothing); and the report of the leak check, if there is one
    to check with.

    A file of records is a split of its name; of a folder of them every file is one, and none must be for training.

    Raises:
        FileNotFoundError, ValueError: as `read_source`.
    """
    data = settings.data
    if data.source == "tables":
        files = _files(Path(data.path)) if data.path is not None else {}
        if "train" not in files:
            splits = read_tables(files, **READERS["tables"].checked(data.options, "tables", "--options"))
            if data.t0_eval is not None:
                splits.update(read_t0_eval(data.t0_eval))
            return splits, [], None
    splits, _, leaks = read_source(data.source, data.path, None, data.t0_eval, data.options)
    train = splits.pop("train")
    return splits, train, leaks


def _files(path: Path) -> dict[str, Path]:
    """A file by its split; of a folder, all of them."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; give a file or folder of records by --data")
    listed = sorted(path.iterdir()) if path.is_dir() else [path]
    files: dict[str, Path] = {}
    for file in listed:
        if path.is_dir() and (not file.name.endswith((*JSON_SUFFIXES, ".parquet")) or file.name.startswith(".")):
            continue
        split = file.name.split(".")[0]
        if path.is_file() and split == "train":
            split = "evaluation"  # it is to be scored, or it would not have been named
        if split in files:
            raise ValueError(f"{path} has {files[split].name} and {file.name} for one split; remove one of them")
        files[split] = file
    if not files:
        raise FileNotFoundError(f"{path} holds no file that ends in {', '.join(JSON_SUFFIXES)} or .parquet")
    return files


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
    if model.config.backbone_trained:
        return "the checkpoint's own backbone, as its training left it"
    name = model.config.backbone_name_or_path
    return f"the checkpoint's own backbone, {name}" if name else "the checkpoint's own backbone"
