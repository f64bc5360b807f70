"""Training of one stage by the HF Trainer: from its last complete checkpoint, with a log, plot and progress bar."""

import json
import math
import shutil
from pathlib import Path
from typing import Callable, Optional, Sequence

import torch
from transformers import ProgressCallback, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ..common.console import progress_bar
from ..common.names import file_name
from ..common.processes import from_main, is_main, wait
from ..common.randomness import unchanged_randomness
from ..common.writing import write_text
from ..data.reading import READS
from ..lora import evaluating
from ..modeling_tagi import TagiModel
from .finite import NotFinite
from .run import Run, Stage
from .setting_fields import StageSettings
from .sharding.sharded import gathered_weights, sharded_copy, weights_are_sharded
from .task_adapters import AdapterTuner
from .trainer import TagiTrainer

COMPLETE_FILE = "complete"


def train_stage(
    run: Run,
    stage: Stage,
    settings: StageSettings,
    model,
    collator,
    sampler,
    dataset,
    seed: int,
    part: str = "",
    callbacks: Sequence[TrainerCallback] = (),
    **trainer_options,
) -> dict:
    """Trains `model` in place with the HF Trainer, and resumes from the last checkpoint if there is one.

    Where weights are sharded, a copy of the model is trained, and the main process then copies its weights back to
    `model`, which stays whole for saving and for the teacher. `seed` seeds dropout.

    Returns:
        `loss` (mean over the last tenth of the log) and `steps`; the whole log is written to the stage's folder.
    """
    place = file_name(part) if part else ""  # a task's name, which comes from the data and may be any text
    checkpoints = stage.folder / "checkpoints" / (place or "all")
    trainer = TagiTrainer(
        model=sharded_copy(model, run.settings.bf16) if weights_are_sharded() else model,
        args=training_arguments(run, settings, model, checkpoints, seed),
        train_dataset=dataset,
        data_collator=collator,
        batch_sampler=sampler,
        callbacks=[Checkpoints(stage), *callbacks],
        **trainer_options,
    )
    trainer.remove_callback(ProgressCallback)
    progress = Progress(stage)
    trainer.add_callback(progress)
    try:
        trainer.train(resume_from_checkpoint=from_main(lambda: _last_complete(checkpoints)))
    except NotFinite as error:
        raise NotFinite(f"{stage.label} stopped at {error}; {_after_a_stop(stage, settings, checkpoints)}") from error
    finally:
        progress.close()
    if weights_are_sharded():
        weights = gathered_weights(trainer)
        if is_main():
            model.load_state_dict({**model.state_dict(), **weights})
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if is_main():
        log = stage.folder / (f"log-{place}.jsonl" if place else "log.jsonl")
        lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in history]
        write_text(log, "".join(lines))
        plot_losses(history, log.with_suffix(".png"), stage.label)
    last = history[-max(1, len(history) // 10):]
    return {"steps": settings.steps, "loss": sum(entry["loss"] for entry in last) / len(last)}


def training_arguments(
    run: Run, settings: StageSettings, model, folder: Path, seed: int
) -> Seq2SeqTrainingArguments:
    """Returns the HF Trainer's arguments for a stage; its checkpoints go to `folder`, and `seed` seeds dropout."""
    return Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # the batch sampler makes the batches
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        optim=settings.optimizer,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=run.settings.bf16 and not weights_are_sharded(),  # a sharded model casts by itself
        use_cpu=not torch.cuda.is_available(),  # as elsewhere; without it the Trainer refuses bf16
        gradient_checkpointing=run.settings.gradient_checkpointing and not isinstance(model, AdapterTuner),
        logging_steps=max(1, settings.steps // 50),
        save_steps=settings.save_every,
        save_total_limit=2,
        seed=seed,
        report_to=[],
        disable_tqdm=False,
        remove_unused_columns=False,
        label_names=["labels"],
        # a generator that reads no instruction is not used; else every step uses all trained weights
        ddp_find_unused_parameters=isinstance(model, TagiModel) and not READS[run.settings.finetuning.reads].adapter,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def plot_losses(history: Sequence[dict], path: Path, title: str):
    """Writes a plot of every loss term over the steps to `path`."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7, 4))
    axes = figure.add_axes((0.11, 0.13, 0.87, 0.79))  # a layout that is found by trial draws everything twice
    # sorted: a run that resumes reads its history back in another order
    for name in sorted({key for entry in history for key in entry if key.startswith("loss")}):
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        axes.plot(*zip(*points), label=name.removeprefix("loss_").replace("loss", "all"))
    axes.set(title=title, xlabel="optimizer steps", ylabel="loss (nats per token; alignment: its own)")
    axes.legend()
    figure.savefig(path, dpi=120)


class Checkpoints(TrainerCallback):
    """Marks checkpoints as complete, and saves the stage's clock with them."""

    def __init__(self, stage: Stage):
        self.stage = stage

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save:  # else a run that resumes here would lack the losses since the last log
            control.should_log = True

    def on_save(self, args, state, control, **kwargs):
        wait()  # each process writes its own random state
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE_FILE).touch()
        self.stage.tick()


class Scores(TrainerCallback):
    """Evaluates the model during training, and writes a line of scores each time; training is the same without it."""

    def __init__(self, stage: Stage, every: int, scores: Callable[[TagiModel], dict]):
        self.file, self.every, self.scores = stage.folder / "scores.jsonl", every, scores

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self.every or (state.global_step % self.every and state.global_step != state.max_steps):
            return
        with unchanged_randomness(), evaluating(model):
            line = {"step": state.global_step, **self.scores(model)}
        if not state.is_world_process_zero:
            return
        before = [json.loads(text) for text in self.file.read_text().splitlines()] if self.file.is_file() else []
        lines = [entry for entry in before if entry["step"] < state.global_step] + [line]
        write_text(self.file, "".join(json.dumps(entry) + "\n" for entry in lines))


class Pushes(TrainerCallback):
    """Uploads the model during training, but not after the last step, when the run itself uploads it."""

    def __init__(self, every: int, push: Callable[[TagiModel, int], None]):
        self.every, self.push = every, push

    def on_step_end(self, args, state, control, model=None, **kwargs):
        at_end = state.global_step >= state.max_steps
        if state.is_world_process_zero and state.global_step % self.every == 0 and not at_end:
            with unchanged_randomness():
                self.push(model, state.global_step)


class Progress(ProgressCallback):
    """Shows a progress bar with the stage, the time that it still takes and the loss, and prints nothing else."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.stage = stage

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = progress_bar(
                total=state.max_steps, initial=state.global_step, desc=self.stage.label
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def close(self):
        """Removes the bar of a training that failed, to leave its line to the error message."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None


def _after_a_stop(stage: Stage, settings: StageSettings, checkpoints: Path) -> str:
    """Returns what is left of a stage that diverged, and what to change, for a message."""
    lower = f"lower --{stage.name}.learning_rate (it is {settings.learning_rate:g})"
    if settings.weight_decay:
        lower += f" or --{stage.name}.weight_decay (it is {settings.weight_decay:g})"
    kept = _last_complete(checkpoints)
    if kept is None:
        return f"nothing of it was saved: {lower}, and start again"
    return f"{kept} is from before it and is kept: to begin the stage again, delete {stage.folder} and {lower}"


def _last_complete(folder: Path) -> Optional[str]:
    """Returns the newest complete checkpoint, and deletes newer ones of a run that was interrupted while saving."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        if (Path(last) / COMPLETE_FILE).is_file():
            return last
        shutil.rmtree(last)
    return None
