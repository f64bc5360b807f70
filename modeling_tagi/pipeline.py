"""One run from data to tables: what `train.py` does, and a study for each of its cells."""

import dataclasses
import json
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from .common.console import circumstances, quiet_libraries
from .common.folder_lock import alone_in
from .common.processes import from_main, is_main, processes, say
from .common.writing import replacing, write_text
from .configuration_tagi import new_model_fields
from .costs.inference import costs_if_known, lengths_of
from .data.records import Record
from .data.sources import check_places, read_source
from .data.streams import number_of
from .evaluation.adapter_map import adapter_map
from .evaluation.evaluate import evaluate_model, spread
from .evaluation.metrics import score
from .evaluation.predict import Answering
from .evaluation.report.write import read_report, write_report
from .evaluation.results import RESULTS_VERSION, headline
from .evaluation.tables import table
from .hub import require_folder_for
from .modeling_tagi import TagiModel
from .planning.checks import check_run, check_setup, evaluated_splits
from .publishing.cards import CARD_FILE, is_edited
from .publishing.pushing import push_at_the_end, push_on_the_way, repository_of
from .publishing.run_card import example_of, write_run_card
from .training.backbones import backbone_config
from .training.known_instructions import index_instructions
from .training.run import Run
from .training.run_state import RunState
from .training.settings import RunSettings
from .training.stages import run_stages, wanted_stages
from .training.tokenizer import read_tokenizer

SCORED_WHILE_TRAINING = 400  # records of the first split


def run_experiment(settings: RunSettings, command: str = "") -> dict:
    """Trains what `settings` say, scores it on every split and writes it all to the run's folder.

    Args:
        settings: What the run is; a run that was cut off goes on, one that is done is evaluated again.
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
        return _train_and_score(settings, command)


def _train_and_score(settings: RunSettings, command: str) -> dict:
    began = time.monotonic()
    quiet_libraries()
    # first of all: a wrong token is found in a second, data is read in minutes
    repo_id = from_main(lambda: repository_of(settings))

    data = settings.data
    check_places(data.source, data.path, data.text, data.t0_eval)
    shape = backbone_config(settings, settings.backbone.vocab_size)
    settings = dataclasses.replace(settings, tagi=new_model_fields(shape, settings.tagi))
    check_setup(settings, shape)

    # data
    splits, text, leaks = read_source(
        **dataclasses.asdict(settings.data), train_tasks=settings.train_tasks, seed=settings.seed
    )
    train = splits["train"]
    evaluated = {name: spread(records, settings.evaluation.max_records)
                 for name, records in evaluated_splits(settings, splits).items()}  # fmt: skip
    tasks = len({record.task for record in train})
    say(f"data: {tasks} tasks with {number_of(train)} records to train on, {len(text)} passages of text; no leak into "
        f"{', '.join(evaluated)}")  # fmt: skip

    # model and training
    tokenizer = read_tokenizer(settings, train, text)
    check_run(settings, tokenizer, splits, text)
    run = Run(settings, [*wanted_stages(settings), "evaluation"], train, text)
    state = RunState(run, tokenizer, train, text)
    if settings.evaluation.every:
        state.scores = partial(_scores, state, evaluated)
    if repo_id is not None and settings.push_every:
        state.push = push_on_the_way(repo_id, run.folder, settings, partial(_save_on_the_way, state))
    run_stages(state)
    model, tokens, bank = state.model, state.tokens, state.bank
    made_here = state.backbone != settings.backbone.name

    # save
    _name_backbone(model.config, settings, made_here)
    model.tokenizer = tokens.tokenizer
    if settings.finetuning.reads == "adapter" and settings.finetuning.steps:
        model.instruction_index = index_instructions(model, tokens, train, publish=settings.publish_instructions)
    if is_main():
        card = run.folder / "model" / CARD_FILE
        edited = card.read_text(encoding="utf-8") if card.is_file() else None
        with replacing(run.folder / "model") as beside:
            model.save_pretrained(beside)
            if is_edited(edited):
                (beside / CARD_FILE).write_text(edited, encoding="utf-8")

    # evaluation
    stage = run.stage("evaluation")
    stage.start(anew=True)
    results = evaluate_model(settings, model, tokens, (state.backbone, state.revision), evaluated, train, bank)
    if is_main() and settings.finetuning.reads == "adapter" and settings.finetuning.steps:
        shown = {"train": train, **evaluated}
        write_text(run.folder / "adapters.json", json.dumps(adapter_map(model, tokens, shown, bank)) + "\n")
        first = next(iter(evaluated.values()))
        costs = costs_if_known(model.config, lengths_of(first, tokens))
        write_text(run.folder / "costs.json", json.dumps(costs) + "\n")
    stage.finish(headline(results, settings.label))
    if not is_main():
        return results

    results = {"schema_version": RESULTS_VERSION, **results}
    results["seconds"] = {name: (run.stage(name).facts or {}).get("seconds") for name in run.stages}
    results["run"] = {
        **circumstances(command, settings.seed),
        "processes": processes().num_processes,
        "label": settings.label,
        "train_tasks": tasks,
        "seconds_of_this_call": round(time.monotonic() - began, 1),
        "losses": {name: (run.stage(name).facts or {}).get("loss") for name in run.stages},
    }
    results["leaks"] = leaks
    results["example"] = example_of(next(iter(evaluated.values())))
    write_text(run.folder / "results.md", table(results, list(evaluated)) + "\n")
    write_text(run.folder / "results.json", json.dumps(results, indent=2) + "\n")
    report = read_report(run.folder)
    write_report(run.folder, report)
    write_run_card(run.folder, repo_id, report)

    # push
    if repo_id is not None:
        results["hub"] = push_at_the_end(run.folder / "model", repo_id, settings)
        write_text(run.folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def _name_backbone(config, settings: RunSettings, made_here: bool):
    """Says in the config whose the backbone is, as the checkpoint is published."""
    finetuned = settings.finetuning.steps and settings.finetuning.train != "generator"
    config.backbone_trained = config.backbone_trained or made_here or bool(finetuned)
    if made_here:  # the checkpoint's own, not to be had elsewhere
        config.backbone_name_or_path = config.backbone_revision = config.backbone_sha256 = None


def _save_on_the_way(state: RunState, model: TagiModel, folder: Path):
    """Writes a checkpoint as it is published; training goes on with the model as it was."""
    model.tokenizer, kept = state.tokenizer, dict(vars(model.config))
    _name_backbone(model.config, state.settings, state.backbone != state.settings.backbone.name)
    try:
        model.save_pretrained(folder)
    finally:
        vars(model.config).update(kept)


def _scores(state: RunState, evaluated: dict[str, list[Record]], model: TagiModel) -> dict:
    """Scores the model while it is trained: on some records of the first split, answered freely."""
    split, records = next(iter(evaluated.items()))
    records, settings = spread(records, SCORED_WHILE_TRAINING), state.settings
    answering = Answering(model, state.tokens, settings.finetuning.reads, settings.evaluation.batch_size)
    found = score(answering.generate(records), records)
    return {"split": split, **{name: round(found[name], 2) for name in ("exact_match", "rouge_l")}}
