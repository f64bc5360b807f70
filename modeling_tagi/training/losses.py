"""The terms of the finetuning loss, `L = L_pred + λ1 L_kl + λ2 L_ins` (eqs 4-6), as pure functions.

Factors are the adapters' own: A `[tasks, rank, d_in]` and B `[tasks, d_out, rank]` by module path, so that the update
of a module is `scaling * B A`.
"""

from typing import Any, Callable, Mapping, NamedTuple, Optional, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapter_algebra import inner_products
from ..modeling_tagi import prediction_loss

__all__ = ["ALIGNMENTS", "LOSSES", "TopK",
           "alignment_delta", "alignment_factors", "alignment_weight", "distillation_loss",
           "predicted", "predicting", "prediction_loss", "target_labels", "target_logits", "top_k",
           "update_norm"]  # fmt: skip

Factors = Mapping[str, Tensor]


class TopK(NamedTuple):
    """Holds the likeliest tokens of a distribution over a vocabulary, and the probability of all others together.

    Args:
        values: `[tokens, k]`, log-probabilities.
        tokens: `[tokens, k]`, the ids that these belong to.
        rest: `[tokens]`, the log of the probability of all other ids.
    """

    values: Tensor
    tokens: Tensor
    rest: Tensor


def top_k(logits: Tensor, k: int, temperature: float = 1.0) -> TopK:
    """Returns the `TopK` of `logits [tokens, vocab]` at a temperature; that of another needs the logits again."""
    log_p = F.log_softmax(logits.float() / temperature, -1)
    values, tokens = log_p.topk(min(k, log_p.shape[-1]))
    return TopK(values, tokens.int(), _rest(log_p, tokens))


def _rest(log_p: Tensor, tokens: Tensor) -> Tensor:
    """Returns the log-sum over the vocabulary without `tokens`; 1 less their sum would lose precision."""
    return log_p.scatter(-1, tokens, -torch.inf).logsumexp(-1)


def target_logits(logits: Tensor, labels: Tensor, is_encoder_decoder: bool) -> Tensor:
    """Returns the logits that predict target tokens, in order.

    Args:
        logits: `[batch, seq, vocab]`.
        labels: `[batch, seq]`, -100 where there is no target. A causal model's logits predict the next position's.

    Returns:
        `[tokens, vocab]`.
    """
    return logits[predicting(labels, is_encoder_decoder)]


def target_labels(labels: Tensor, is_encoder_decoder: bool) -> Tensor:
    """Returns the targets that a model predicts of `labels [batch, seq]`, in order: `[tokens]`.

    A causal model predicts no first token.
    """
    labels = labels if is_encoder_decoder else labels[:, 1:]
    return labels[labels != -100]


def predicting(labels: Tensor, is_encoder_decoder: bool) -> Tensor:
    """Returns a mask `[batch, seq]` of where targets are predicted: in place or, by causal models, one before."""
    targets = labels != -100
    return targets if is_encoder_decoder else F.pad(targets[:, 1:], (0, 1))


def distillation_loss(
    student: Tensor,
    teacher: Union[Tensor, TopK],
    temperature: float = 1.0,
    num_items: Optional[Union[int, Tensor]] = None,
) -> Tensor:
    """Returns L_kl (eq. 5), `T² KL(teacher ‖ student)` at temperature T; T² keeps the scale of gradients for any T.

    Args:
        student: `[tokens, vocab]`, logits of target tokens; see `predicted`.
        teacher: Logits of the same tokens, or their `top_k` at the same temperature. Then the divergence is that of
            k + 1 outcomes, the last being any other token: never above the exact one, and equal to it for k = vocab.
        temperature: T, above 0. The authors' is 3.
        num_items: What the sum over tokens is divided by; `None` takes the number of tokens.

    Returns:
        Scalar, fp32. The teacher gets no gradient.

    Raises:
        ValueError: if student and teacher differ in their number of tokens or, with logits, in their vocabulary.
    """
    theirs = teacher.values if isinstance(teacher, TopK) else teacher
    if len(student) != len(theirs) or theirs is teacher and student.shape != teacher.shape:
        raise ValueError(
            f"the student has logits {tuple(student.shape)} for target tokens, the teacher {tuple(theirs.shape)}; "
            "both must be of the same targets and vocabulary"
        )
    log_q = F.log_softmax(student.float() / temperature, -1)
    if theirs is teacher:
        log_p = F.log_softmax(teacher.detach().float() / temperature, -1)
    else:
        log_p, all_q, tokens = teacher.values, log_q, teacher.tokens.long()
        log_q = all_q.gather(-1, tokens)
        if log_p.shape[-1] < all_q.shape[-1]:  # else there are no others, and a gradient of log 0
            log_p = torch.cat([log_p, teacher.rest[:, None]], -1)
            log_q = torch.cat([log_q, _rest(all_q, tokens)[:, None]], -1)
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2
    return total / (max(len(student), 1) if num_items is None else num_items)


def alignment_factors(
    a: Factors, b: Factors, scaling: float, teacher_a: Factors, teacher_b: Factors, teacher_scaling: float
) -> Tensor:
    """Returns L_ins (eq. 6) as in the paper: the mean squared error of the generated factors, A with A and B with B.

    A and B are each multiplied by the square root of the scale, so that adapters of different scales can be compared.

    Returns:
        Scalar, the mean over all numbers of all factors.
    """
    total, count = 0.0, 0
    for ours, theirs in ((a, teacher_a), (b, teacher_b)):
        for path in ours:
            difference = ours[path] * scaling**0.5 - theirs[path].detach() * teacher_scaling**0.5
            total, count = total + difference.float().square().sum(), count + difference.numel()
    return total / count


def alignment_delta(
    a: Factors, b: Factors, scaling: float, teacher_a: Factors, teacher_b: Factors, teacher_scaling: float
) -> Tensor:
    """Returns L_ins on the updates themselves, `‖ΔW - ΔW'‖² / ‖ΔW'‖²`, as a mean over tasks and modules.

    Rotations of the factors that leave B A unchanged do not change it. It is computed from rank × rank products,
    `‖B A‖² = tr((BᵀB)(A Aᵀ))`, so no ΔW is ever formed. It is relative to the teacher's norm, since a ΔW has
    d_in × d_out tiny numbers.

    Returns:
        Scalar; 0 for equal updates, 1 for a ΔW of zero.
    """
    losses = []
    for path in a:
        ours_a, ours_b = a[path].float(), b[path].float() * scaling
        theirs_a, theirs_b = teacher_a[path].detach().float(), teacher_b[path].detach().float() * teacher_scaling
        ours = inner_products(ours_a, ours_b, ours_a, ours_b)
        theirs = inner_products(theirs_a, theirs_b, theirs_a, theirs_b)
        both = inner_products(ours_a, ours_b, theirs_a, theirs_b)
        losses.append((ours - 2 * both + theirs) / theirs.clamp_min(1e-12))
    return torch.stack(losses).mean()


def alignment_weight(loss: Tensor, weight: Union[str, float]) -> Tensor:
    """Returns λ2: a constant, or the paper's `sigmoid(L_ins)`.

    Args:
        loss: L_ins.
        weight: A number; `"sigmoid"`, through which gradients flow; or `"sigmoid_detached"`, through which none do.

    Raises:
        ValueError: for another text.
    """
    if weight == "sigmoid":
        return torch.sigmoid(loss)
    if weight == "sigmoid_detached":
        return torch.sigmoid(loss).detach()
    if isinstance(weight, str):
        raise ValueError(f"alignment_weight is {weight!r}, but must be a number, 'sigmoid' or 'sigmoid_detached'")
    return torch.as_tensor(float(weight), device=loss.device)


# L_ins by its name in `finetuning.alignment`; `None` leaves it out. To add one, write a function of the generated
# factors, their scale, the teacher's factors and their scale, and add a line here.
ALIGNMENTS: dict[str, Optional[Callable[..., Tensor]]] = {
    "factors": alignment_factors,
    "delta": alignment_delta,
    "none": None,
}


def update_norm(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tensor:
    """Returns `‖ΔW‖²` of the generated updates, as a mean over tasks and modules; as a loss, it keeps them small.

    Args:
        outputs: The model's outputs, with the `adapter` that it generated.
        inputs: The batch; not used.
    """
    adapter, norms = outputs["adapter"], []
    for path, a in adapter.lora_a.items():
        a, b = a.float(), adapter.lora_b[path].float() * adapter.scaling
        norms.append(inner_products(a, b, a, b))
    return torch.stack(norms).mean()


def predicted(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns what a further term compares: the logits `[tokens, vocab]` of target tokens, and these tokens' ids.

    Args:
        outputs: The model's outputs in training, whose `logits [tokens, vocab]` are of targets alone.
        inputs: The batch, with `labels [batch, seq]`, and with `is_encoder_decoder`, which tells what is predicted.
    """
    return outputs["logits"], target_labels(inputs["labels"], inputs["is_encoder_decoder"])


# Further terms of the objective, by their names in `finetuning.losses`, which gives their weights. To add one, write
# a function of the model's outputs for a batch and of the batch (with `is_encoder_decoder`; see `predicted`) that
# returns a mean, and add a line here.
LOSSES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor]] = {
    "update_norm": update_norm,
}
