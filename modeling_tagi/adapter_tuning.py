"""Gradient steps on adapters: factors as parameters, the training loop, and few-shot tuning of a generated adapter.

Functions here take a [`TagiAdapter`] by its fields, and make new ones from it.
"""

import math
import random
import weakref
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers.utils import logging

from .fit import fingerprint, require_fit
from .lora import frozen
from .tokens import Tokens, training_tensors


class AdapterParameters(nn.Module):
    """Holds the factors of several tasks' adapters, A `[tasks, rank, d_in]` and B `[tasks, d_out, rank]` by path, as
    parameters of one model, in fp32."""

    def __init__(self, lora_a: dict[str, Tensor], lora_b: dict[str, Tensor]):
        super().__init__()
        self.paths = list(lora_a)
        self.a = nn.ParameterList(lora_a[path].detach().float().clone() for path in self.paths)
        self.b = nn.ParameterList(lora_b[path].detach().float().clone() for path in self.paths)

    def factors(self) -> dict[str, dict[str, Tensor]]:
        """Returns `lora_a` and `lora_b` of an adapter as they are now, with gradients."""
        return {"lora_a": dict(zip(self.paths, self.a)), "lora_b": dict(zip(self.paths, self.b))}


def summed_task_losses(logits: Tensor, labels: Tensor, task_index: Tensor, tasks: int, shifted: bool) -> Tensor:
    """Returns the sum over tasks of each task's mean cross-entropy of target tokens: a scalar, fp32.

    AdamW works element by element, so with this loss adapters tuned side by side are as if each were tuned alone.

    Args:
        logits: `[batch, seq, vocab]`.
        labels: `[batch, seq]`; -100 is left out.
        task_index: `[batch]`, the task of each row.
        tasks: How many there are.
        shifted: Whether logits predict the next position's label, as a causal model's do.
    """
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
    zeros = losses.new_zeros(tasks)
    totals = zeros.index_add(0, task_index, losses.sum(1))
    counts = zeros.index_add(0, task_index, (labels != -100).sum(1).to(zeros.dtype)).clamp_min(1)
    return (totals / counts).sum()


def lower_loss(
    parameters: Iterable[nn.Parameter],
    batches: Iterable,
    loss_of: Callable[[Any], Tensor],
    steps: int,
    learning_rate: float,
    tasks: int,
    bar,
):
    """Lowers a sum of tasks' losses by AdamW without weight decay, at a learning rate that falls linearly to 0.

    Args:
        batches: One for each step; each goes to `loss_of`.
        bar: A tqdm bar, which goes on by 1 a step and shows the tasks' mean loss.

    Raises:
        ValueError: at the first loss that is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step, batch in enumerate(batches, start=1):
        loss = loss_of(batch)
        value = loss.item() / tasks
        _require_finite(value, f"the loss of step {step} of {steps}", learning_rate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
        bar.set_postfix(loss=f"{value:.3f}", refresh=False)


def _require_finite(value: float, what: str, learning_rate: float):
    if not math.isfinite(value):
        raise ValueError(
            f"{what} is not finite ({value}), so no adapter was made; use a learning_rate below {learning_rate:g}"
        )


def zero_b(backbone: nn.Module, lora_a: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns B of zeros, fp32, `[tasks, d_out, rank]` by path, for A `[tasks, rank, d_in]` by path."""
    made = {}
    for path, a in lora_a.items():
        module = backbone.get_submodule(path)
        d_out = getattr(module, "out_features", None) or module.weight.shape[1]
        made[path] = torch.zeros(a.shape[0], d_out, a.shape[1], device=a.device)
    return made


def fresh_adapter(model: PreTrainedModel, tasks: int = 1, seed: int = 0):
    """Returns an adapter that changes nothing, of the generator's rank, scale and modules, to tune from scratch.

    It has no instruction memory. A is random as in PEFT, the same for all tasks and fixed by the seed; B is 0.
    """
    generator, lora_a = torch.Generator().manual_seed(seed), {}
    for path, shared in model.hypernetwork.shared_factors().items():
        a = torch.empty(1, *shared.shape).uniform_(-1, 1, generator=generator) * shared.shape[1] ** -0.5
        lora_a[path] = a.expand(tasks, -1, -1).clone().to(model.device)
    lora_b = zero_b(model.backbone, lora_a)
    adapter = model.adapter_class(lora_a, lora_b, model.config.lora_alpha, origin=weakref.ref(model))
    return adapter.described(base_of(adapter, model), model.peft_config())


def tune(adapter, records, steps, model, learning_rate, batch_size, lengths, seed, progress):
    """Tunes an adapter on examples; see `TagiAdapter.tune`, whose arguments these are.

    Args:
        lengths: Its `max_input_length` and `max_target_length`.
    """
    model = _model_of(adapter, model)
    require_fit(adapter, model)
    if type(steps) is not int or steps < 1 or type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"tune got steps={steps!r} and batch_size={batch_size!r}; both must be whole numbers above 0")
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"tune got learning_rate={learning_rate!r}, but it must be a finite number of at least 0")
    tokens = Tokens.of(model.tokenizer, model.config, *lengths)
    examples = [[(tokens.input(text), tokens.target(target)) for text, target in of_task]
                for of_task in _examples(adapter, records)]  # fmt: skip
    batches = _batches(examples, steps, batch_size, seed)
    factors = _tuned_factors(adapter, model, tokens, batches, steps, learning_rate, progress)
    for path, a in factors["lora_a"].items():  # an update of numbers too large for their product is no update either
        size = a.float().norm() * factors["lora_b"][path].float().norm()
        _require_finite(size.item(), f"after step {steps} {path!r}", learning_rate)
    note = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    sources = adapter.provenance or (base_of(adapter, model),) * len(adapter)
    provenance = [{**p, "tuned": {**note, "examples": len(of_task)}} for p, of_task in zip(sources, examples)]
    tuned = replace(adapter, **factors, origin=weakref.ref(model))
    return tuned.described(provenance, adapter.peft_config or model.peft_config())


def _tuned_factors(adapter, model, tokens, batches, steps: int, learning_rate: float, progress: bool) -> dict:
    """Returns the tuned `lora_a` and `lora_b`, in the adapter's dtypes and on its device."""
    with torch.inference_mode(False), torch.enable_grad():
        # autograd takes no tensors made under inference_mode, but copies of them
        start = adapter.to(model.device).detach()._map(lambda x: x.clone() if x.is_inference() else x)
        start = replace(start, provenance=(), origin=None)  # it fits; each step need not compare it again
        parameters = AdapterParameters(start.lora_a, start.lora_b).to(model.device)
        loss_of = partial(_loss, model, tokens, start, parameters)
        bar = logging.tqdm(total=steps, desc="tuning", disable=not progress, dynamic_ncols=True, leave=False)
        with bar, frozen(model):
            lower_loss(parameters.parameters(), batches, loss_of, steps, learning_rate, len(start), bar)
    return {name: {path: x.detach().to(getattr(adapter, name)[path]) for path, x in of_path.items()}
            for name, of_path in parameters.factors().items()}  # fmt: skip


def _batches(examples: Sequence[Sequence], steps: int, batch_size: int, seed: int) -> Iterator[list[tuple]]:
    """Yields a batch for each step: up to `batch_size` rows of each task.

    A row is its input ids, its target ids and the number of its task.
    """
    for step in range(steps):
        drawn = [random.Random(f"{seed} {step}").sample(e, min(batch_size, len(e))) for e in examples]
        yield [(*example, task) for task, of_task in enumerate(drawn) for example in of_task]


def _loss(model: PreTrainedModel, tokens: Tokens, start, parameters: AdapterParameters, rows: list[tuple]) -> Tensor:
    inputs, targets, task_index = zip(*rows)
    batch = training_tensors(tokens, inputs, targets)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels, index = batch.pop("labels"), torch.tensor(task_index, device=model.device)
    if tokens.is_encoder_decoder:
        batch["decoder_input_ids"] = model.backbone.prepare_decoder_input_ids_from_labels(labels=labels)
    logits = model(**batch, adapter=replace(start, **parameters.factors()), task_index=index).logits
    return summed_task_losses(logits, labels, index, len(start), shifted=not tokens.is_encoder_decoder)


def base_of(adapter, model: PreTrainedModel) -> dict:
    """Returns what the provenance of an adapter says of the model that it is for."""
    return {
        **model.adapter_base(),
        "input_format": model.config.input_format,
        "backbone_fingerprint": fingerprint(adapter, model.backbone),
    }


def _model_of(adapter, model: Optional[PreTrainedModel]) -> PreTrainedModel:
    if model is None:
        model = adapter.origin() if adapter.origin is not None else None
        if model is None:
            raise ValueError(
                "tune needs the model: an adapter knows it only while the model that generated it is in memory, not "
                "when it was read from a folder; give adapter.tune(records, model=model)"
            )
    if not hasattr(model, "hypernetwork"):
        raise ValueError(f"tune got model={type(model).__name__}, but takes a TagiModel")
    return model


def _examples(adapter, records: Sequence[Any]) -> list[list[tuple[str, str]]]:
    """Returns (input, target) of each example, by task."""
    if isinstance(records, (str, dict)) or not hasattr(records, "__iter__"):
        raise ValueError(f"the records are a {type(records).__name__}, but must be a list of examples")
    records = list(records)
    if len(adapter) == 1:
        records = [records]
    elif len(records) != len(adapter) or not all(isinstance(of_task, list) for of_task in records):
        raise ValueError(f"the adapter is of {len(adapter)} tasks: give a list of {len(adapter)} lists of examples")
    for task, of_task in enumerate(records):
        if not of_task:
            raise ValueError(f"task {task} has no examples to tune on; give at least one")
    return [[_example(record, number) for number, record in enumerate(of_task)] for of_task in records]


def _example(record: Any, number: int) -> tuple[str, str]:
    if isinstance(record, dict):
        pair = record.get("input"), record.get("target", record.get("targets"))
    elif isinstance(record, (tuple, list)) and len(record) == 2:
        pair = record
    else:
        pair = getattr(record, "input", None), getattr(record, "targets", None)
    text, target = pair
    if isinstance(target, (tuple, list)) and target:
        target = target[0]
    if not (isinstance(text, str) and isinstance(target, str) and text.strip() and target.strip()):
        raise ValueError(
            f"example {number} is {record!r:.200}, but must be a dict with an input and a target, or a pair of them, "
            "both texts that are not empty"
        )
    return text, target
