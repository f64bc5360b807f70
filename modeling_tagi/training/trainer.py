"""TagiTrainer: the HF Trainer with distillation from task adapters."""

import copy
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Iterable, Optional, Union

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Seq2SeqTrainer, TrainerCallback

from ..adapter import TagiAdapter
from ..banks.stored import StoredAdapters
from ..common.randomness import unchanged_randomness
from ..common.writing import naming
from ..data.sampling import Shares
from ..lora import Application, applied
from ..modeling_tagi import TagiModel, evaluating
from . import losses
from .sharding import fsdp
from .task_adapters import AdapterTuner

ALIGNMENTS = ("factors", "delta", "none")
KEPT = ("states", "top_k")  # of a teacher's answers, by a `TeacherCache`
_STEP_TASKS = "step_tasks"  # tasks with a teacher in all batches of a step, the mean over processes


class NotFinite(ValueError):
    """Training met a loss or a weight that is not finite."""


@dataclass(frozen=True)
class Objective:
    """Weights of `L_pred + λ1 L_kl + λ2 L_ins`; the defaults are the paper's (section 3.2.4, Table 8).

    Args:
        prediction_weight: Of L_pred.
        distillation_weight: λ1. With 0, no teacher is run.
        temperature: Of L_kl; the authors' scripts have 3.
        alignment: L_ins on the `"factors"` (eq. 6), on the updates (`"delta"`), or `"none"`.
        alignment_weight: λ2: `"sigmoid"` of L_ins, `"sigmoid_detached"` (not part of the gradient), or a number.
        distillation_steps, alignment_steps: λ1 and λ2 fall in a line to 0 over these optimizer steps; `None` leaves
            them as they are. The teacher is not run after them.
    """

    prediction_weight: float = 1.0
    distillation_weight: float = 5.0
    temperature: float = 3.0
    alignment: str = "factors"
    alignment_weight: Union[str, float] = "sigmoid"
    distillation_steps: Optional[int] = None
    alignment_steps: Optional[int] = None

    def __post_init__(self):
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment is {self.alignment!r}, but must be one of {', '.join(map(repr, ALIGNMENTS))}")
        losses.alignment_weight(torch.zeros(()), self.alignment_weight)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}, but must be above 0")

    def lasts(self, steps: int) -> bool:
        """Whether something is minimised in the last of `steps`."""
        def to_the_end(falls_over: Optional[int]) -> bool:
            return falls_over is None or falls_over >= steps

        distils = self.distillation_weight != 0 and to_the_end(self.distillation_steps)
        aligns = self.alignment != "none" and self.alignment_weight != 0 and to_the_end(self.alignment_steps)
        return self.prediction_weight != 0 or distils or aligns

    @property
    def needs_teacher(self) -> bool:
        return self.distillation_weight != 0 or self.alignment != "none"


class Teacher:
    """The backbone with each task's own adapter and the instruction in its input (section 3.2.4).

    Args:
        backbone: The language model that the task adapters were tuned on; never trained. With all answers in a
            `TeacherCache` its head is enough.
        bank: The task adapters, one after the other; a [`StoredAdapters`] where they are many.
        bf16: Whether it computes in bfloat16; what the trainer is told is for what is trained.
    """

    def __init__(self, backbone: nn.Module, bank: Union[TagiAdapter, StoredAdapters], bf16: bool = False):
        self.backbone, self.bank, self.bf16 = backbone, bank, bf16
        self.head, self.is_encoder_decoder = backbone.get_output_embeddings(), backbone.config.is_encoder_decoder

    def precision(self):
        """A context to answer in."""
        return torch.autocast(self.head.weight.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def adapters(self, index: Tensor) -> TagiAdapter:
        """Those of `index [tasks]`."""
        return self.bank[index].to(index.device).detach()

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor], adapters: TagiAdapter, task_index: Tensor) -> Tensor:
        """`[batch, seq, vocab]` for the prompts in `inputs`, row i with the adapter `task_index[i]` of `adapters`."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if self.backbone.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = self.backbone.prepare_decoder_input_ids_from_labels(labels=labels)
        application = Application.of(adapters, self.backbone, task_index)
        with applied(application), evaluating(self.backbone):
            return self.backbone(**inputs).logits

    @torch.no_grad()
    def answers(
        self, inputs: dict[str, Tensor], index: Tensor, task_index: Tensor, rows: Tensor
    ) -> Union[Tensor, losses.TopK]:
        """What `distillation_loss` compares with: of the prompts in `inputs`, those of `rows [batch]`; or, where
        `inputs` are a `TeacherCache`'s, what it kept of them."""
        if "values" in inputs:
            return losses.TopK(**inputs)
        if "states" in inputs:
            return self.head(inputs["states"])
        places = losses.predicting(of_rows(inputs["labels"], rows), self.is_encoder_decoder)
        adapters = self.adapters(index)
        if any(self.backbone.get_submodule(path) is self.head for path in adapters.lora_a):
            return self.logits(inputs, adapters, task_index)[places]  # which needs each row's own update of the head
        with reading_at(self.head, places):
            return self.logits(inputs, adapters, task_index)


@contextmanager
def reading_at(head: nn.Module, places: Tensor):
    """Makes an output head read its states `[batch, seq, d_model]` at some `places [batch, seq]` alone, `[tokens, …]`:
    a causal model's logits for a whole prompt would be by far the largest tensor of a step."""
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][places], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def of_rows(labels: Tensor, rows: Tensor) -> Tensor:
    """`labels [batch, seq]` without those of other rows than `rows [batch]`."""
    return labels.masked_fill(~rows[:, None], -100)


class Drawn(Dataset):
    """Items by whatever the batch sampler draws: records by number, or the draw itself."""

    def __init__(self, records=None):
        self.records = records

    def __getitem__(self, draw):
        return self.records[draw] if self.records is not None else draw

    def __len__(self):
        return len(self.records) if self.records is not None else 0


class TagiTrainer(Seq2SeqTrainer):
    """Trains a [`TagiModel`] on batches that `batch_sampler` draws.

    Args:
        batch_sampler: Gives the draws of each batch; one pass over it is the whole training. Several processes share
            each batch (see `Shares`), and together take the step that one would.
        objective: What is minimised; `None` is L_pred alone.
        teacher: Needed if the objective distils or aligns.
        instruction_dropout: Share of each instruction's tokens that are hidden in a step, never all of them.
        args, kwargs: As for `Seq2SeqTrainer`.
    """

    def __init__(
        self,
        *args,
        batch_sampler: Sampler,
        objective: Optional[Objective] = None,
        teacher: Optional[Teacher] = None,
        instruction_dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.batch_sampler, self.teacher, self.instruction_dropout = batch_sampler, teacher, instruction_dropout
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
        alone = self.accelerator.num_processes == 1
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batch_sampler if alone else Shares(self.batch_sampler, self.accelerator.num_processes),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            # an iterator's own generator: else starting it would take a number from the global one
            generator=torch.Generator().manual_seed(self.args.seed),
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, *args, **kwargs):
        """As `Seq2SeqTrainer`'s; each batch of a step says how many tasks with a teacher the whole step has."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.objective.needs_teacher and batches and all("teacher_index" in batch for batch in batches):
            known = sum((batch["teacher_index"] >= 0).sum() for batch in batches).float()
            batches = [{**batch, _STEP_TASKS: self._mean_over_processes(known)} for batch in batches]
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        teacher_index, step_tasks = inputs.pop("teacher_index", None), inputs.pop(_STEP_TASKS, None)
        teacher_inputs = {name: inputs.pop(name) for name in list(inputs) if name.startswith("teacher_")}
        if not model.training or not self.model_accepts_loss_kwargs:
            num_items_in_batch = None
        if num_items_in_batch is not None:
            if self.args.average_tokens_across_devices:  # a count over all processes, whose gradients are averaged
                num_items_in_batch = num_items_in_batch / self.accelerator.num_processes
            inputs["num_items_in_batch"] = num_items_in_batch
        if self.instruction_dropout and model.training:
            mask = inputs["instruction_attention_mask"]
            inputs["instruction_attention_mask"] = dropped(mask, self.instruction_dropout)
        outputs = model(**inputs)
        if not model.training:  # evaluation reports L_pred
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]
        terms = {"prediction": self._part_of_whole(outputs["loss"], inputs)}
        loss = self.objective.prediction_weight * terms["prediction"]
        if self.objective.needs_teacher:
            if teacher_index is None:
                raise ValueError(
                    "the objective distils or aligns, but the batch has no teacher_index; give the data collator a "
                    "bank_index, such as AdapterBank.numbers()"
                )
            known = teacher_index >= 0
            here = self._mean_over_processes(known.sum().float())
            step_tasks = here if step_tasks is None else step_tasks
            if step_tasks > 0:  # all take part in what is summed over processes
                share = here / step_tasks
                if num_items_in_batch is None:  # the Trainer is to divide by the accumulation
                    share = share * getattr(self, "current_gradient_accumulation_steps", 1)
                loss = loss + self._distil(
                    outputs, inputs, teacher_inputs, teacher_index, known, terms, num_items_in_batch, share
                )
        if not torch.isfinite(loss):
            parts = ", ".join(f"loss_{name} {float(term.detach()):g}" for name, term in terms.items())
            raise NotFinite(f"step {self.state.global_step + 1}: the loss is {float(loss.detach()):g} ({parts})")
        for name, term in terms.items():
            total = self._terms[name]
            total[0], total[1] = total[0] + term.detach().float(), total[1] + 1
        return (loss, outputs) if return_outputs else loss

    def _mean_over_processes(self, x: Tensor) -> Tensor:
        """The mean, whose gradient is that of this process's `x`: DDP takes the mean of gradients."""
        if self.accelerator.num_processes == 1:
            return x
        return x + (self.accelerator.reduce(x.detach(), "mean") - x.detach())

    def _part_of_whole(self, loss: Tensor, inputs: dict) -> Tensor:
        """This process's `loss` such that the mean over processes is the loss of their batches as one."""
        if self.accelerator.num_processes == 1 or self.model_accepts_loss_kwargs:  # num_items is of all processes
            return loss
        if isinstance(self.model, AdapterTuner):  # a sum over tasks
            tasks = inputs["adapter_index"].unique().numel()
            return loss * len(self.model.names) / self._mean_over_processes(loss.new_tensor(tasks))
        labels = inputs["labels"] if self.model.config.is_encoder_decoder else inputs["labels"][:, 1:]
        tokens = (labels != -100).sum().to(loss)
        return loss * tokens / self._mean_over_processes(tokens)

    def _distil(self, outputs, inputs, teacher_inputs, teacher_index, known, terms, num_items, share):
        """λ1 L_kl + λ2 L_ins over the tasks that have a teacher; `share` of the step's are in this batch."""
        objective, task_index = self.objective, inputs["task_index"]
        loss = 0.0
        distillation_left, alignment_left = map(self._left, (objective.distillation_steps, objective.alignment_steps))
        if objective.distillation_weight and distillation_left:
            terms["distillation"] = outputs["loss"].new_zeros(())
            if known.any():  # among this process's tasks
                teacher_inputs = {name.removeprefix("teacher_"): tensor for name, tensor in teacher_inputs.items()}
                rows = known[task_index]
                with self.teacher.precision():
                    answers = self.teacher.answers(teacher_inputs, teacher_index.clamp_min(0), task_index, rows)
                labels = of_rows(inputs["labels"], rows)
                terms["distillation"] = losses.distillation_loss(
                    losses.target_logits(outputs.logits, labels, self.teacher.is_encoder_decoder),
                    answers,
                    objective.temperature,
                    num_items,
                )
            loss = loss + distillation_left * objective.distillation_weight * terms["distillation"]
        if objective.alignment != "none" and alignment_left:
            aligned = outputs["loss"].new_zeros(())
            if known.any():
                function = {"factors": losses.alignment_factors, "delta": losses.alignment_delta}[objective.alignment]
                ours, theirs = outputs.adapter, self.teacher.adapters(teacher_index[known])
                a, b = ({path: x[known] for path, x in factors.items()} for factors in (ours.lora_a, ours.lora_b))
                aligned = function(a, b, ours.scaling, theirs.lora_a, theirs.lora_b, theirs.scaling)
            if self.accelerator.num_processes > 1:  # its weight is of the mean over all processes' tasks
                tasks = known.sum().to(aligned)
                mean_tasks = self._mean_over_processes(tasks).clamp_min(torch.finfo(tasks.dtype).tiny)  # or 0 / 0
                aligned = self._mean_over_processes(aligned * tasks / mean_tasks)
            # a mean over the step's tasks, of which each accumulated batch has a share
            terms["alignment"] = aligned * share
            weight = alignment_left * losses.alignment_weight(aligned, objective.alignment_weight)
            loss = loss + weight * terms["alignment"]
        return loss

    def _left(self, steps: Optional[int]) -> float:
        """What is left of a weight that falls to 0 over `steps`."""
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
        """As `Seq2SeqTrainer`'s; what the disk says of it names the folder."""
        with naming(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False):
        """As `Seq2SeqTrainer`'s; FSDP's shares are put together, of which its own way leaves some apart."""
        if not fsdp.used():
            return super().save_model(output_dir, _internal_call)
        state = fsdp.trained_weights(self.model)
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state_dict=state)

    def _issue_warnings_after_load(self, load_result):
        """As `Seq2SeqTrainer`'s, for what is really missing: of tied weights a checkpoint holds one."""
        state, missing = self.model.state_dict(), set(load_result.missing_keys)
        there = {x.data_ptr() for name, x in state.items() if name not in missing}
        lacking = [name for name in load_result.missing_keys if state[name].data_ptr() not in there]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=lacking))

    def prediction_step(self, model, inputs, prediction_loss_only, *args, **kwargs):
        """As `Seq2SeqTrainer`'s; what the teacher would read is left out.

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
        """As `Seq2SeqTrainer`'s; the training that goes on after it is as if it had not been."""
        with unchanged_randomness():
            return super().evaluate(*args, **kwargs)


class FiniteWeights(TrainerCallback):
    """Stops training behind the first step that leaves a weight not finite, before anything of it is saved."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        name = not_finite((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
        if name is not None:
            raise NotFinite(f"step {state.global_step + 1}: the weight {name} is no longer finite")


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> Optional[str]:
    """Returns the name of the first weight that holds a number that is not finite; `None` if there is none."""
    weights = [(name, fsdp.own_part(weight.detach())) for name, weight in weights if weight.is_floating_point()]
    # a sum is not finite if one of its numbers is not, and takes no memory
    sums = [weight.sum(dtype=torch.float32) for _, weight in weights]
    if not sums or torch.stack([x.to(sums[0].device) for x in sums]).isfinite().all():
        return None
    return next((name for name, weight in weights if not weight.isfinite().all()), None)


def dropped(mask: Tensor, share: float) -> Tensor:
    """`mask [tasks, seq]` with each 1 made 0 at the probability `share`; the first token stays, so none is all 0."""
    kept = torch.rand(mask.shape, device=mask.device) >= share
    kept[:, 0] = True
    return mask * kept


def frozen_copy(backbone: nn.Module) -> nn.Module:
    """A copy that no training reaches, for a teacher whose backbone is being trained."""
    return copy.deepcopy(backbone).requires_grad_(False).eval()
