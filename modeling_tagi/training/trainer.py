"""TagiTrainer: the HF Trainer with distillation from task adapters."""

from collections import defaultdict
from typing import Any, Mapping, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Seq2SeqTrainer

from ..common.randomness import unchanged_randomness
from ..common.writing import naming
from ..data.sampling import BatchShards
from ..modeling_tagi import TagiModel
from . import losses
from .finite import FiniteWeights, NotFinite
from .objective import Objective
from .sharding import fsdp
from .sharding.sharded import weights_are_sharded
from .step_outputs import KeptInstructions, step_outputs
from .target_positions import is_adapted
from .task_adapters import AdapterTuner
from .teacher import Teacher, of_rows

_STEP_TASKS = "step_tasks"  # tasks with a teacher in all batches of a step, the mean over processes


class TagiTrainer(Seq2SeqTrainer):
    """Trains a [`TagiModel`] on batches that `batch_sampler` draws.

    Args:
        batch_sampler: Yields the draws of each batch; one pass over it is the whole training. Several processes share
            each batch (see `BatchShards`), and together take the step that one would.
        objective: The loss to minimise; `None` is L_pred alone.
        teacher: Needed if the objective distils or aligns.
        rows_by_length: Whether rows of like length go through the backbone together; see `step_outputs`.
        args, kwargs: As for `Seq2SeqTrainer`.
    """

    def __init__(
        self,
        *args,
        batch_sampler: Sampler,
        objective: Optional[Objective] = None,
        teacher: Optional[Teacher] = None,
        rows_by_length: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.rows_by_length, self._instructions = rows_by_length, KeptInstructions()
        self.batch_sampler, self.teacher = batch_sampler, teacher
        self.objective = objective or Objective(distillation_weight=0, alignment="none")
        if self.objective.needs_teacher and teacher is None:
            raise ValueError(
                "the objective distils or aligns, but there is no teacher; give one, or set distillation_weight=0 and "
                "alignment='none'"
            )
        # a bare backbone takes the batch's size and ignores it; then the Trainer is to divide by the accumulation
        self.model_accepts_loss_kwargs = isinstance(self.model, TagiModel)
        self._terms = defaultdict(lambda: [0.0, 0])
        self.add_callback(FiniteWeights())

    def get_train_dataloader(self) -> DataLoader:
        sampler, number = self.batch_sampler, self.accelerator.num_processes
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler if number == 1 else BatchShards(sampler, number),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            # a generator of its own: else each new iterator would draw a number from the global one
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, *args, **kwargs):
        """Returns a step's batches as `Seq2SeqTrainer` does, and adds to each how many of its tasks have a teacher."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.objective.needs_teacher and batches and all("teacher_index" in batch for batch in batches):
            known = sum((batch["teacher_index"] >= 0).sum() for batch in batches).float()
            batches = [{**batch, _STEP_TASKS: self._mean_over_processes(known)} for batch in batches]
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs, taught = self._inputs_of(inputs)
        if not model.training or not self.model_accepts_loss_kwargs:
            num_items_in_batch = None
        if num_items_in_batch is not None:
            if self.args.average_tokens_across_devices:  # a count over all processes, whose gradients are averaged
                num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
            inputs["num_items_in_batch"] = num_items_in_batch
        outputs = self._outputs(model, inputs)
        if not model.training:  # evaluation reports L_pred
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]
        terms = {"prediction": self._part_of_whole(outputs["loss"], inputs)}
        loss = self.objective.prediction_weight * terms["prediction"]
        if self.objective.needs_teacher:
            loss = loss + self._taught_loss(outputs, inputs, taught, terms, num_items_in_batch)
        for name, weight in self.objective.losses.items():
            batch = {**inputs, "is_encoder_decoder": self.model.config.is_encoder_decoder}
            terms[name] = losses.LOSSES[name](outputs, batch) / self._batches_to_sum(num_items_in_batch)
            loss = loss + weight * terms[name]
        self._record(loss, terms)
        return (loss, outputs) if return_outputs else loss

    def _outputs(self, model, inputs: Mapping[str, Any]):
        """Returns the model's outputs for a batch; in training their logits `[tokens, vocab]` are of targets alone."""
        if not model.training or isinstance(self.model, AdapterTuner):
            return model(**inputs)
        head = self._head()
        if head is None:
            outputs, both = model(**inputs), self.model.config.is_encoder_decoder
            outputs["logits"] = losses.target_logits(outputs["logits"], inputs["labels"], both)
            return outputs
        cut = self.rows_by_length and isinstance(model, TagiModel)  # and not what distributes it
        return step_outputs(model, inputs, head, self._instructions, cut)

    def _head(self) -> Optional[nn.Module]:
        """Returns the output head, unless it works on rows (adapters change it) or its weights are sharded."""
        model = self.model
        if weights_are_sharded():
            return None
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            return None  # experts have a loss of their own, which the model adds where it has the labels
        if self.args.n_gpu > 1 or self.args.torch_compile:  # DataParallel splits the rows; a graph has no such hooks
            return None
        head = model.get_output_embeddings()
        return None if isinstance(model, TagiModel) and is_adapted(head, model.backbone, model.targets) else head

    def _inputs_of(self, batch: Mapping[str, Any]) -> tuple[dict, dict]:
        """Splits a batch into the model's inputs and the teacher's, which are its own inputs and its tasks."""
        inputs = dict(batch)
        taught = {name: inputs.pop(name, None) for name in ("teacher_index", _STEP_TASKS)}
        taught["inputs"] = {
            name.removeprefix("teacher_"): inputs.pop(name) for name in list(inputs) if name.startswith("teacher_")
        }
        return inputs, taught

    def _batches_to_sum(self, num_items: Optional[Union[int, Tensor]]) -> int:
        """Returns the divisor of batch means with which they sum to the mean over a step.

        It is 1 if the Trainer itself divides by the accumulation.
        """
        return 1 if num_items is None else getattr(self, "current_gradient_accumulation_steps", 1)

    def _record(self, loss: Tensor, terms: Mapping[str, Tensor]):
        """Adds the terms to the next entry of the log, and refuses a loss that is not finite."""
        if not torch.isfinite(loss):
            parts = ", ".join(f"loss_{name} {float(term.detach()):g}" for name, term in terms.items())
            raise NotFinite(f"step {self.state.global_step + 1}: the loss is {float(loss.detach()):g} ({parts})")
        for name, term in terms.items():
            total = self._terms[name]
            total[0], total[1] = total[0] + term.detach().float(), total[1] + 1

    def _mean_over_processes(self, x: Tensor) -> Tensor:
        """Returns the mean of `x` over processes, with this one's gradient, since DDP averages gradients."""
        if self.accelerator.num_processes == 1:
            return x
        return x + (self.accelerator.reduce(x.detach(), "mean") - x.detach())

    def _part_of_whole(self, loss: Tensor, inputs: dict) -> Tensor:
        """Scales this process's `loss` so that the mean over processes is the loss of their batches as one."""
        if self.accelerator.num_processes == 1 or self.model_accepts_loss_kwargs:  # num_items is of all processes
            return loss
        if isinstance(self.model, AdapterTuner):  # a sum over tasks
            tasks = inputs["adapter_index"].unique().numel()
            return loss * len(self.model.names) / self._mean_over_processes(loss.new_tensor(tasks))
        labels = inputs["labels"] if self.model.config.is_encoder_decoder else inputs["labels"][:, 1:]
        tokens = (labels != -100).sum().to(loss)
        return loss * tokens / self._mean_over_processes(tokens)

    def _taught_loss(self, outputs, inputs, taught, terms, num_items) -> Union[Tensor, float]:
        """Returns λ1 L_kl + λ2 L_ins over the batch's tasks that have a teacher, and adds both to `terms`."""
        if taught["teacher_index"] is None:
            raise ValueError(
                "the objective distils or aligns, but the batch has no teacher_index; give the data collator a "
                "bank_index, such as AdapterBank.numbers()"
            )
        known = taught["teacher_index"] >= 0
        here = self._mean_over_processes(known.sum().float())
        step_tasks = here if taught[_STEP_TASKS] is None else taught[_STEP_TASKS]
        if not step_tasks > 0:  # all processes take part in what is summed over them, or none
            return 0.0
        fraction = here / step_tasks  # of the step's tasks, in this batch
        if num_items is None:  # the Trainer is to divide by the accumulation
            fraction = fraction * getattr(self, "current_gradient_accumulation_steps", 1)
        objective, loss = self.objective, 0.0
        distillation_left, alignment_left = map(self._left, (objective.distillation_steps, objective.alignment_steps))
        if objective.distillation_weight and distillation_left:
            terms["distillation"] = self._distillation(outputs, inputs, taught, known, num_items)
            loss = loss + distillation_left * objective.distillation_weight * terms["distillation"]
        if losses.ALIGNMENTS[objective.alignment] is not None and alignment_left:
            aligned = self._alignment(outputs, taught["teacher_index"], known)
            # a mean over the step's tasks, of which each accumulated batch has a fraction
            terms["alignment"] = aligned * fraction
            weight = alignment_left * losses.alignment_weight(aligned, objective.alignment_weight)
            loss = loss + weight * terms["alignment"]
        return loss

    def _distillation(self, outputs, inputs, taught, known: Tensor, num_items) -> Tensor:
        """Returns L_kl (eq. 5) over the target tokens of the tasks that are `known [tasks]` to the teacher."""
        if not known.any():  # among this process's tasks
            return outputs["loss"].new_zeros(())
        task_index = inputs["task_index"]
        rows = known[task_index]
        with self.teacher.precision():
            answers = self.teacher.answers(taught["inputs"], taught["teacher_index"].clamp_min(0), task_index, rows)
        labels = of_rows(inputs["labels"], rows)
        return losses.distillation_loss(
            outputs.logits[self._among_targets(inputs["labels"], labels)],
            answers,
            self.objective.temperature,
            num_items,
        )

    def _among_targets(self, labels: Tensor, some: Tensor) -> Tensor:
        """Returns a mask `[tokens]` of those targets in `labels [batch, seq]` that are in `some`, a part of them."""
        both = self.teacher.is_encoder_decoder
        return losses.predicting(some, both)[losses.predicting(labels, both)]

    def _alignment(self, outputs, teacher_index: Tensor, known: Tensor) -> Tensor:
        """Returns L_ins (eq. 6) over the tasks that are `known [tasks]` to the teacher, of all processes' batches."""
        aligned = outputs["loss"].new_zeros(())
        if known.any():
            function = losses.ALIGNMENTS[self.objective.alignment]
            ours, theirs = outputs.adapter, self.teacher.adapters(teacher_index[known])
            a, b = ({path: x[known] for path, x in factors.items()} for factors in (ours.lora_a, ours.lora_b))
            aligned = function(a, b, ours.scaling, theirs.lora_a, theirs.lora_b, theirs.scaling)
        if self.accelerator.num_processes > 1:  # its weight is of the mean over all processes' tasks
            tasks = known.sum().to(aligned)
            mean_tasks = self._mean_over_processes(tasks).clamp_min(torch.finfo(tasks.dtype).tiny)  # or 0 / 0
            aligned = self._mean_over_processes(aligned * tasks / mean_tasks)
        return aligned

    def _left(self, steps: Optional[int]) -> float:
        """Returns the fraction that is left of a weight that falls linearly to 0 over `steps`."""
        return 1.0 if steps is None else max(0.0, 1 - self.state.global_step / max(1, steps))

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            for name, (total, count) in self._terms.items():
                summed = self.model_accepts_loss_kwargs  # over a step's batches
                scale = self.args.gradient_accumulation_steps if summed else 1
                logs[f"loss_{name}"] = round(float(self._mean_over_processes(total)) / count * scale, 5)
            self._terms.clear()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        """Saves a checkpoint as `Seq2SeqTrainer` does, and names the folder if the disk refuses it."""
        with naming(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False):
        """Saves the model as `Seq2SeqTrainer` does, but gathers all of FSDP's shards; the original leaves some out."""
        if not fsdp.used():
            return super().save_model(output_dir, _internal_call)
        state = fsdp.trained_weights(self.model)
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state_dict=state)

    def _issue_warnings_after_load(self, load_result):
        """Warns as `Seq2SeqTrainer` does, but not of tied weights, of which a checkpoint holds only one."""
        state, missing = self.model.state_dict(), set(load_result.missing_keys)
        there = {x.data_ptr() for name, x in state.items() if name not in missing}
        lacking = [name for name in load_result.missing_keys if state[name].data_ptr() not in there]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=lacking))

    def prediction_step(self, model, inputs, prediction_loss_only, *args, **kwargs):
        """Predicts as `Seq2SeqTrainer` does, without the inputs of the teacher.

        Raises:
            ValueError: if a causal model is to generate from a training batch, whose input holds the answer.
        """
        if self.args.predict_with_generate and not prediction_loss_only:
            if not self.model.config.is_encoder_decoder:
                raise ValueError(
                    "predict_with_generate is set, but in a causal model's training batch the input holds the answer; "
                    "leave it out, and generate from batches without targets"
                )
            inputs = {name: value for name, value in inputs.items() if not name.startswith("teacher_")}
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def evaluate(self, *args, **kwargs):
        """Evaluates as `Seq2SeqTrainer` does, without an effect on the random numbers of the training that follows."""
        with unchanged_randomness():
            return super().evaluate(*args, **kwargs)
