"""One run, from data to tables: what `train.py` does, and a study for each of its cells.

    settings -> data -> stages -> model/ -> evaluation -> report and card -> Hub
"""

import dataclasses
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Optional, Sequence

from .common.console import circumstances, quiet_libraries
from .common.folder_lock import alone_in
from .common.processes import from_main, is_main, processes, say
from .common.writing import write_text
from .configuration_tagi import new_model_fields
from .costs.inference import costs_if_known, lengths_of
from .data.records import Record, Splits
from .data.sources import check_places, read_source
from .data.streams import number_of
from .evaluation.adapter_map import adapter_map
from .evaluation.evaluate import evaluate_model, spread
from .evaluation.report.write import read_report, write_report
from .evaluation.results import RESULTS_VERSION, headline
from .evaluation.tables import table
from .evaluation.while_training import scores_on_the_way
from .hub import require_folder_for
from .planning.checks import check_run, check_setup, evaluated_splits
from .publishing.pushing import push_at_the_end, push_on_the_way, repository_of
from .publishing.run_card import example_of, write_run_card
from .publishing.run_model import save_on_the_way, save_run_model
from .training.backbones import backbone_config
from .training.run import Run
from .training.run_state import RunState
from .training.settings import RunSettings
from .training.stages import STAGES, run_stages, wanted_stages
from .training.tokenizer import read_tokenizer


def run_experiment(settings: RunSettings, command: str = "") -> dict:
    """Trains what `settings` say, scores it on every split and writes it all to the run's folder.

    Args:
        settings: What the run is; an interrupted run resumes, a finished one is evaluated again.
        command: What was called, for the report.

    Returns:
        What `results.json` has; the scores alone in all but the main one of several processes.

    Raises:
        ValueError, FileNotFoundError: for settings or data that cannot be used, before any long work.
        HubError: if it is to be pushed, and may not be; before anything else.
        OSError: if its folder cannot be written to.
    """
    folder = require_folder_for("run", settings.output_dir)
    # of several processes the main one holds it for all; a study's cell has a lock of its own in there
    with alone_in(folder, ".run.lock") if is_main() else nullcontext():
        return _run(settings, command)


def _run(settings: RunSettings, command: str) -> dict:
    began = time.monotonic()
    quiet_libraries()
    # first of all: a wrong token is found in a second, data is read in minutes
    repo_id = from_main(lambda: repository_of(settings))
    settings = _checked(settings)
    data = _read(settings)
    state = _start(settings, data, repo_id)
    run_stages(state)
    save_run_model(state)
    results = _evaluate(state, data)
    if not is_main():
        return results
    results = _with_circumstances(results, state.run, data, command, began)
    _write(results, state.run, data, repo_id)
    if repo_id is not None:
        results["hub"] = push_at_the_end(state.run.folder / "model", repo_id, settings)
        _write_json(state.run, "results.json", results, indent=2)
    return results


@dataclass
class _Data:
    """Holds what a run reads: the train split, text, the splits that are scored, and what the leak check found."""

    splits: Splits
    text: Sequence[str]
    evaluated: dict[str, Sequence[Record]]
    leaks: dict

    @property
    def train(self) -> Sequence[Record]:
        return self.splits["train"]

    @property
    def first(self) -> tuple[str, Sequence[Record]]:
        """Returns the name and records of the split that summaries show."""
        return next(iter(self.evaluated.items()))


def _checked(settings: RunSettings) -> RunSettings:
    """Refuses what can be told before the data is read, and returns the settings with the model's own choices."""
    data = settings.data
    check_places(data.source, data.path, data.text, data.t0_eval)
    shape = backbone_config(settings, settings.backbone.vocab_size)
    settings = dataclasses.replace(settings, tagi=new_model_fields(shape, settings.tagi))
    check_setup(settings, shape)
    return settings


def _read(settings: RunSettings) -> _Data:
    splits, text, leaks = read_source(
        **dataclasses.asdict(settings.data), train_tasks=settings.train_tasks, seed=settings.seed
    )
    most = settings.evaluation.max_records
    evaluated = {name: spread(records, most) for name, records in evaluated_splits(settings, splits).items()}
    data = _Data(splits, text, evaluated, leaks)
    tasks = len({record.task for record in data.train})
    say(f"data: {tasks} tasks with {number_of(data.train)} records to train on, {len(text)} passages of text; no leak "
        f"into {', '.join(evaluated)}")  # fmt: skip
    return data


def _start(settings: RunSettings, data: _Data, repo_id: Optional[str]) -> RunState:
    """Returns the run's state before its first stage, after every check."""
    tokenizer = read_tokenizer(settings, data.train, data.text)
    check_run(settings, tokenizer, data.splits, data.text)
    run = Run(settings, [*wanted_stages(settings), "evaluation"], STAGES, data.train, data.text)
    state = RunState(run, tokenizer, data.train, data.text)
    if settings.evaluation.every:
        state.scores = scores_on_the_way(state, *data.first)
    if repo_id is not None and settings.push_every:
        state.push = push_on_the_way(repo_id, run.folder, settings, partial(save_on_the_way, state))
    return state


def _evaluate(state: RunState, data: _Data) -> dict:
    """Scores the model and its references on every split, and writes the map of adapters and what they cost."""
    settings, run, model, tokens = state.settings, state.run, state.model, state.tokens
    stage = run.stage("evaluation")
    stage.start(anew=True)
    start = state.backbone, state.revision
    results = evaluate_model(settings, model, tokens, start, data.evaluated, data.train, state.bank)
    if is_main() and settings.finetuning.makes_adapters:
        shown = {"train": data.train, **data.evaluated}
        _write_json(run, "adapters.json", adapter_map(model, tokens, shown, state.bank))
        _write_json(run, "costs.json", costs_if_known(model.config, lengths_of(data.first[1], tokens)))
    stage.finish(headline(results, settings.label))
    return results


def _with_circumstances(results: dict, run: Run, data: _Data, command: str, began: float) -> dict:
    """Returns the results with what they were made by, and how long it took."""
    facts = {name: run.stage(name).facts or {} for name in run.stages}
    return {
        "schema_version": RESULTS_VERSION,
        **results,
        "seconds": {name: found.get("seconds") for name, found in facts.items()},
        "run": {
            **circumstances(command, run.settings.seed),
            "processes": processes().num_processes,
            "label": run.settings.label,
            "train_tasks": len({record.task for record in data.train}),
            "seconds_of_this_call": round(time.monotonic() - began, 1),
            "losses": {name: found.get("loss") for name, found in facts.items()},
        },
        "leaks": data.leaks,
        "example": example_of(data.first[1]),
    }


def _write(results: dict, run: Run, data: _Data, repo_id: Optional[str]):
    """Writes the results, the report and the card."""
    write_text(run.folder / "results.md", table(results, list(data.evaluated)) + "\n")
    _write_json(run, "results.json", results, indent=2)
    report = read_report(run.folder)
    write_report(run.folder, report)
    write_run_card(run.folder, repo_id, report)


def _write_json(run: Run, name: str, value, indent: Optional[int] = None):
    write_text(run.folder / name, json.dumps(value, indent=indent) + "\n")
