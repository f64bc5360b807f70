"""How long a run takes on this machine: a few real steps of every stage, on its own batches, timed."""

import contextlib
import copy
import io
import json
import logging
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Iterator, Sequence

from torch.optim.optimizer import register_optimizer_step_post_hook

from ..banks.adapter_bank import AdapterBank
from ..common.console import progress_bar
from ..data.records import Record, Splits
from ..evaluation.backbones import adaptable, load_backbone
from ..evaluation.evaluate import spread
from ..evaluation.oracle import tune_adapters
from ..evaluation.predict import Answering
from ..evaluation.references import REFERENCES
from ..evaluation.scores import evaluate_split
from ..evaluation.while_training import scored_while_training
from ..training.run import DONE_FILE, Run
from ..training.run_state import RunState
from ..training.settings import RunSettings
from ..training.stages import STAGES, training_stages, wanted_stages
from .checks import evaluated_splits

STEPS = 6  # of each stage; the first also loads what is needed, and is not counted
_READ = 64  # adapters of a bank
_TUNED_AT_ONCE = 32  # `tune_adapters`' own, for the oracle
_WRITING = 3.0  # seconds for the report, its plots, the card and the checkpoint, on the CPUs it was tried on


@dataclass(frozen=True)
class StageTime:
    """Holds the seconds of a stage.

    Args:
        once: What each training in it takes beside its steps, such as loading and saving; `task_adapters` trains
            once for each group of adapters that are tuned side by side.
        step: What an optimizer step takes.
    """

    once: float
    step: float

    def of(self, steps: int, trainings: int = 1) -> float:
        return self.once * trainings + self.step * steps


@dataclass(frozen=True)
class Trial:
    """Holds what was timed: seconds of each stage, of an answer of the trained model and of its start (each for a
    record), and of a step of the oracle's tuning."""

    stages: dict[str, StageTime]
    own: float
    start: float
    oracle: float

    def evaluation(self, settings: RunSettings, splits: Splits) -> float:
        """Returns the seconds of the last stage, with every reference, and of the report."""
        evaluation, seconds = settings.evaluation, _WRITING
        trained = bool(settings.finetuning.steps or settings.pretraining.steps)
        for records in evaluated_splits(settings, splits).values():
            records = spread(records, evaluation.max_records)
            a_pass = {"own": self.own * len(records), "start": self.start * len(records)}
            seconds += a_pass["own"] * trained
            for name in evaluation.references:
                asks_trained = REFERENCES[name].asks_trained
                seconds += a_pass["own"] * trained if asks_trained else a_pass["start"]
                if REFERENCES[name].tunes:
                    groups = math.ceil(len({record.task for record in records}) / _TUNED_AT_ONCE)
                    seconds += 2 * groups * evaluation.oracle.steps * self.oracle
        return seconds

    def scores_on_the_way(self, settings: RunSettings, splits: Splits) -> float:
        """Returns the seconds of the evaluations during finetuning."""
        every, steps = settings.evaluation.every, settings.finetuning.steps
        if not every or not steps:
            return 0.0
        first = next(iter(evaluated_splits(settings, splits).values()))
        records = scored_while_training(spread(first, settings.evaluation.max_records))
        return math.ceil(steps / every) * len(records) * self.own


def timed_trial(settings: RunSettings, splits: Splits, text: Sequence[str], tokenizer, longest_target: int) -> Trial:
    """Trains a few steps of every stage in a folder that is thrown away, and answers a few batches.

    Args:
        settings: The run's settings.
        splits, text, tokenizer: What the run reads.
        longest_target: Tokens of the data's longest target. A model that has learned nothing does not end its
            answers, and is stopped there.
    """
    said = sys.stderr
    names = wanted_stages(settings)
    with tempfile.TemporaryDirectory(prefix="tagi-plan-") as folder, _quiet(), _steps() as stamps:
        trial = _short(settings, folder, longest_target)
        train = splits["train"]
        with progress_bar(total=len(names) + 1, desc="plan: trying this machine", file=said) as bar:
            state = RunState(Run(trial, wanted_stages(trial), STAGES), tokenizer, train, text)
            for name, stage in STAGES.items():
                state.train = stage.of_one_training(trial, train)
                stage.run(state)
                if state.bank is not None and not isinstance(state.bank, _ReadBank):
                    own = list(dict.fromkeys(getattr(record, trial.task_adapters.by) for record in train))
                    state.bank = _ReadBank(state.bank, state.bank.names if trial.task_adapters.given else own)
                bar.update(name in names)
            times, bank = _stage_times(settings, trial, stamps), state.bank
            for name, found in times.items():
                if bank is not None and STAGES[name].reads_bank(settings):
                    times[name] = StageTime(found.once + bank.seconds, found.step)
            own, first, oracle = _answers(
                trial, state.model, load_backbone(state.backbone, state.revision), state.tokens, splits
            )
            bar.update()
    return Trial(times, own, first, oracle)


def _short(settings: RunSettings, folder: str, longest_target: int) -> RunSettings:
    """Returns the settings of the same run, shortened to a few steps."""
    made = copy.deepcopy(settings)
    made.output_dir, made.push_to_hub, made.push_every = str(Path(folder) / "run"), None, 0
    made.max_target_length = min(settings.max_target_length, max(2, longest_target))
    for stage in training_stages(settings):
        stage.shorten(made, STEPS)
    made.evaluation.every = 0
    return made


class _ReadBank(AdapterBank):
    """Holds adapters of a bank that are read before the clock starts: in a run, each is read only once or twice.

    Args:
        bank: Some of its adapters are read, and stand in for all.
        names: Names of all adapters.

    Attributes:
        seconds: What the run will take to read them all.
    """

    def __init__(self, bank: AdapterBank, names: Sequence[str]):
        some, began = bank.names[:_READ], time.perf_counter()
        self._adapters = [bank.read(name) for name in some]
        self.seconds = 2 * len(names) * (time.perf_counter() - began) / len(some)  # checked once, then used
        super().__init__(bank.folder, {name: bank._index[some[n % len(some)]] for n, name in enumerate(names)})
        self._places = {name: n % len(some) for n, name in enumerate(names)}

    def read(self, name, device="cpu", check_finite=True):
        return self._adapters[self._places[name]].to(device)


def _stage_times(settings: RunSettings, trial: RunSettings, stamps: list[float]) -> dict[str, StageTime]:
    """Returns what each stage takes, once and for every step, from the moments at which the trial's steps ended."""
    times, rest = {}, list(stamps)
    for stage in training_stages(settings):
        lengths, steps = [length for length, _ in stage.phases(settings)], []
        for _ in lengths:
            own, rest = rest[:STEPS], rest[STEPS:]
            steps.append(median(after - before for before, after in zip(own, own[1:])))
        done = json.loads((Path(trial.output_dir) / "stages" / stage.name / DONE_FILE).read_text())
        mean = sum(step * length for step, length in zip(steps, lengths)) / sum(lengths)
        times[stage.name] = StageTime(max(0.0, done["seconds"] - STEPS * sum(steps)), mean)
    return times


def _answers(settings: RunSettings, model, baseline, tokens, splits: Splits) -> tuple[float, float, float]:
    """Returns the seconds of an answer by the model, of one by its start, and of a step of tuning for the oracle.

    The last is scaled to a full group of `_TUNED_AT_ONCE` tasks, and 0 if no reference of the run is tuned.
    """
    evaluation = settings.evaluation
    split, records = next(iter(evaluated_splits(settings, splits).items()))
    records = spread(spread(records, evaluation.max_records), 2 * evaluation.batch_size)
    own = Answering(model.to(baseline.device), tokens, settings.finetuning.reads, evaluation.batch_size)
    start = Answering(baseline, tokens, "prompt", evaluation.batch_size)
    seconds = []
    for answering in (own, start):
        began = time.perf_counter()
        evaluate_split({split: answering}, records, evaluation.rank_options)
        seconds.append((time.perf_counter() - began) / len(records))
    oracle = 0.0
    if any(REFERENCES[name].tunes for name in evaluation.references):
        by_task: dict[str, list[Record]] = {}
        for record in records:
            by_task.setdefault(record.task, []).append(record)
        some = dict(list(by_task.items())[:_TUNED_AT_ONCE])
        adapters, began = adaptable(baseline, model.config), time.perf_counter()
        tune_adapters(adapters, tokens, some, 3, examples_per_task=evaluation.oracle.examples_per_task)
        oracle = (time.perf_counter() - began) / 3 * _TUNED_AT_ONCE / len(some)
    return seconds[0], seconds[1], oracle


@contextlib.contextmanager
def _steps() -> Iterator[list[float]]:
    """Yields a list of the times at which optimizer steps inside the block end."""
    stamps: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *args: stamps.append(time.perf_counter()))
    try:
        yield stamps
    finally:
        handle.remove()


@contextlib.contextmanager
def _quiet():
    """Hides what stages print, and their progress bars."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
