"""Few-shot tuning: adapters as parameters, and gradient steps from generated ones."""

import math
import random
import weakref
from dataclasses import replace
from typing import Any, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers.utils import logging

from .adapter import TagiAdapter
from .fit import fingerprint, require_fit
from .modes import frozen
from .tokens import Tokens, training_tensors


class AdapterParameters(nn.Module):
    """The factors of several tasks' adapters as parameters of one model.

    Args:
        lora_a: Path -> A `[tasks, rank, d_in]`.
        lora_b: Path -> B `[tasks, d_out, rank]`.
        lora_alpha: Scale, `lora_alpha / rank`.
    """

    def __init__(self, lora_a: dict[str, Tensor], lora_b: dict[str, Tensor], lora_alpha: float):
        super().__init__()
        self.paths, self.lora_alpha = list(lora_a), lora_alpha
        self.a = nn.ParameterList(lora_a[path].detach().float().clone() for path in self.paths)
        self.b = nn.ParameterList(lora_b[path].detach().float().clone() for path in self.paths)

    def adapter(self) -> TagiAdapter:
        """As they are now, with gradients."""
        return TagiAdapter(dict(zip(self.paths, self.a)), dict(zip(self.paths, self.b)), self.lora_alpha)


def summed_task_losses(logits: Tensor, labels: Tensor, task_index: Tensor, tasks: int, shifted: bool) -> Tensor:
    """The sum over tasks of each task's mean cross-entropy of target tokens: a scalar, fp32.

    AdamW works number by number, so with this loss tuning adapters side by side is what tuning each alone would be.

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


def zero_b(backbone: nn.Module, lora_a: dict[str, Tensor]) -> dict[str, Tensor]:
    """B of 0, fp32, `[tasks, d_out, rank]` by path, for A `[tasks, rank, d_in]` by path: no update."""
    made = {}
    for path, a in lora_a.items():
        module = backbone.get_submodule(path)
        d_out = getattr(module, "out_features", None) or module.weight.shape[1]
        made[path] = torch.zeros(a.shape[0], d_out, a.shape[1], device=a.device)
    return made


def fresh_adapter(model: PreTrainedModel, tasks: int = 1, seed: int = 0) -> TagiAdapter:
    """An adapter that changes nothing, of the generator's rank, scale and modules, to tune from nothing.

    It has no instruction memory: of the task it knows nothing. A is random as PEFT's, the same for all tasks and for
    the same seed; B is 0.
    """
    generator, lora_a = torch.Generator().manual_seed(seed), {}
    for path, shared in model.hypernetwork.shared_factors().items():
        a = torch.empty(1, *shared.shape).uniform_(-1, 1, generator=generator) * shared.shape[1] ** -0.5
        lora_a[path] = a.expand(tasks, -1, -1).clone().to(model.device)
    adapter = TagiAdapter(
        lora_a, zero_b(model.backbone, lora_a), model.config.lora_alpha, origin=weakref.ref(model)
    )
    return adapter.described(_base_of(adapter, model), model.peft_config())


def tune(
    adapter: TagiAdapter,
    records: Sequence[Any],
    steps: int = 100,
    *,
    model: Optional[PreTrainedModel] = None,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    max_input_length: Optional[int] = None,
    max_target_length: Optional[int] = None,
    seed: int = 0,
    progress: bool = True,
) -> TagiAdapter:
    """Tunes an adapter on examples by AdamW, with a learning rate that falls in a line to 0.

    The backbone is frozen, and used without dropout. An instruction memory is used and kept as it is.

    Args:
        adapter: Where tuning starts; it is left as it is.
        records: Examples, as dicts `{"input": …, "target": …}`, pairs (input, target), or objects with an `input` and
            `targets`, of which the first is taken. For an adapter of several tasks a list of such lists, one for
            each; they are tuned side by side, each as it would be alone.
        steps: Optimizer steps.
        model: The TagiModel to tune with; `None` is the one that generated the adapter.
        learning_rate: At its highest.
        batch_size: Examples of each task in a step; all of them where there are no more.
        max_input_length, max_target_length: Tokens kept of each; `None` is all.
        seed: Of the draws of examples. The same seed gives the same adapter; no other randomness is used or changed.
        progress: Whether a bar is shown.

    Returns:
        An adapter of the same tasks, which saves as a PEFT folder as any does.

    Raises:
        ValueError: if no model is known, the adapter is another backbone's, there is no example, or one cannot be
            read; if tuning diverges.
    """
    model = _model_of(adapter, model)
    require_fit(adapter, model)
    if type(steps) is not int or steps < 1 or type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"tune got steps={steps!r} and batch_size={batch_size!r}; both must be whole numbers above 0")
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"tune got learning_rate={learning_rate!r}, but it must be a finite number of at least 0")
    tokens = Tokens.of(model.tokenizer, model.config, max_input_length, max_target_length)
    by_task = [
        [(tokens.input(text), tokens.target(target)) for text, target in examples]
        for examples in _examples(adapter, records)
    ]
    with torch.inference_mode(False), torch.enable_grad():
        # tensors made under inference_mode take no part in a graph, copies do
        start = adapter.to(model.device).detach()._map(lambda x: x.clone() if x.is_inference() else x)
        parameters = AdapterParameters(start.lora_a, start.lora_b, start.lora_alpha).to(model.device)
        optimizer = torch.optim.AdamW(parameters.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
        schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
        bar = logging.tqdm(total=steps, desc="tuning", disable=not progress, dynamic_ncols=True, leave=False)
        with bar, frozen(model):
            for step in range(steps):
                drawn = [random.Random(f"{seed} {step}").sample(e, min(batch_size, len(e))) for e in by_task]
                rows = [(*example, task) for task, examples in enumerate(drawn) for example in examples]
                inputs, targets, task_index = zip(*rows)
                batch = training_tensors(tokens, inputs, targets)
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                labels, index = batch.pop("labels"), torch.tensor(task_index, device=model.device)
                if tokens.is_encoder_decoder:
                    batch["decoder_input_ids"] = model.backbone.prepare_decoder_input_ids_from_labels(labels=labels)
                applied = replace(parameters.adapter(), memory=start.memory)
                logits = model(**batch, adapter=applied, task_index=index).logits
                loss = summed_task_losses(logits, labels, index, len(start), shifted=not tokens.is_encoder_decoder)
                value = loss.item() / len(start)
                _require_finite(torch.tensor(value), f"the loss of step {step + 1} of {steps}", learning_rate)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
    tuned = parameters.adapter().detach()
    tuned_a = {path: a.to(adapter.lora_a[path]) for path, a in tuned.lora_a.items()}
    tuned_b = {path: b.to(adapter.lora_b[path]) for path, b in tuned.lora_b.items()}
    for path, a in tuned_a.items():  # an update of numbers too large for their product is no update either
        _require_finite(a.float().norm() * tuned_b[path].float().norm(), f"after step {steps} {path!r}", learning_rate)
    note = {"steps": steps, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    sources = adapter.provenance or (_base_of(adapter, model),) * len(adapter)
    provenance = [{**p, "tuned": {**note, "examples": len(e)}} for p, e in zip(sources, by_task)]
    return replace(
        adapter, lora_a=tuned_a, lora_b=tuned_b, origin=weakref.ref(model)
    ).described(provenance, adapter.peft_config or model.peft_config())


def _require_finite(value: Tensor, what: str, learning_rate: float):
    if not value.isfinite():
        raise ValueError(
            f"{what} is not finite ({value.item()}), so no adapter was made; use a learning_rate below "
            f"{learning_rate:g}"
        )


def _base_of(adapter: TagiAdapter, model: PreTrainedModel) -> dict:
    return {
        **model.adapter_base(),
        "input_format": model.config.input_format,
        "backbone_fingerprint": fingerprint(adapter, model.backbone),
    }


def _model_of(adapter: TagiAdapter, model: Optional[PreTrainedModel]) -> PreTrainedModel:
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


def _examples(adapter: TagiAdapter, records: Sequence[Any]) -> list[list[tuple[str, str]]]:
    """(input, target) of each example, by task."""
    if isinstance(records, (str, dict)) or not hasattr(records, "__iter__"):
        raise ValueError(f"the records are a {type(records).__name__}, but must be a list of examples")
    records = list(records)
    if len(adapter) > 1:
        if len(records) != len(adapter) or not all(isinstance(of_task, list) for of_task in records):
            raise ValueError(
                f"the adapter is of {len(adapter)} tasks: give a list of {len(adapter)} lists of examples"
            )
    else:
        records = [records]
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
