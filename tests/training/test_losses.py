import math

import pytest
import torch

from modeling_tagi.training.losses import (
    alignment_delta,
    alignment_factors,
    alignment_weight,
    distillation_loss,
    prediction_loss,
    target_logits,
)


def factors(tasks=2, rank=3, d_in=5, d_out=4, paths=("one", "two"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = {path: torch.randn(tasks, rank, d_in, generator=generator, dtype=torch.float64) for path in paths}
    b = {path: torch.randn(tasks, d_out, rank, generator=generator, dtype=torch.float64) for path in paths}
    return a, b


def one(value):
    return {"m": torch.tensor([[[float(value)]]])}


# Over {0, 1}, logits (0, ln 3) are the probabilities (1/4, 3/4): -ln p is ln 4 for token 0 and ln 4/3 for token 1.
QUARTER = [0.0, math.log(3)]


def test_prediction_loss_is_the_mean_over_targets():
    logits = torch.tensor([[QUARTER, QUARTER, QUARTER]])
    labels = torch.tensor([[0, 1, -100]])
    expected = (math.log(4) + math.log(4 / 3)) / 2
    assert prediction_loss(logits, labels).item() == pytest.approx(expected, abs=1e-6)
    assert prediction_loss(logits[0], labels[0]).item() == pytest.approx(expected, abs=1e-6)


def test_prediction_loss_divides_by_the_items_it_is_told():
    loss = prediction_loss(torch.tensor([[QUARTER, QUARTER]]), torch.tensor([[0, -100]]), num_items=torch.tensor(8))
    assert loss.item() == pytest.approx(math.log(4) / 8, abs=1e-6)


def test_prediction_loss_without_targets_is_zero():
    assert prediction_loss(torch.randn(1, 2, 5), torch.full((1, 2), -100)).item() == 0


def test_prediction_loss_of_half_precision_is_computed_in_full():
    logits = torch.tensor([QUARTER]).bfloat16()
    assert prediction_loss(logits, torch.tensor([0])).dtype == torch.float32


def test_distillation_loss_of_two_tokens_by_hand():
    # Teacher (1/4, 3/4), student (1/2, 1/2): KL = 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = 0.130812.
    # At T = 2 the teacher's odds are sqrt(3): p = (1, sqrt 3) / (1 + sqrt 3), and the loss is 4 KL(p || (1/2, 1/2)).
    student, teacher = torch.zeros(1, 2), torch.tensor([QUARTER])
    by_hand = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert by_hand == pytest.approx(0.130812, abs=1e-6)
    assert distillation_loss(student, teacher).item() == pytest.approx(by_hand, abs=1e-6)
    root = math.sqrt(3)
    p, q = 1 / (1 + root), root / (1 + root)
    at_two = 4 * (p * math.log(2 * p) + q * math.log(2 * q))
    assert distillation_loss(student, teacher, temperature=2).item() == pytest.approx(at_two, abs=1e-6)


def test_distillation_loss_is_a_mean_over_tokens_or_over_the_items_it_is_told():
    student, teacher = torch.zeros(3, 2), torch.tensor([QUARTER, QUARTER, [0.0, 0.0]])
    assert distillation_loss(student, teacher).item() == pytest.approx(2 / 3 * 0.130812, abs=1e-6)
    assert distillation_loss(student, teacher, num_items=8).item() == pytest.approx(2 / 8 * 0.130812, abs=1e-6)


def test_the_gradient_of_distillation_is_about_the_same_at_any_high_temperature():
    # For T to infinity it is (student - teacher, both less their means) / vocab, a token: here (0 - 2 + 1) / 2 = -1/2.
    gradients = []
    for temperature in (20.0, 80.0):
        student = torch.zeros(1, 2, requires_grad=True)
        distillation_loss(student, torch.tensor([[2.0, 0.0]]), temperature).backward()
        gradients.append(student.grad[0, 0].item())
    assert gradients == pytest.approx([-0.5, -0.5], rel=1e-2)


def test_distillation_of_equal_logits_is_zero():
    logits = torch.randn(7, 11)
    assert distillation_loss(logits, logits.clone(), 3.0).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([QUARTER], requires_grad=True)
    distillation_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_teacher_and_student_must_have_the_same_targets():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(3, 5\)"):
        distillation_loss(torch.zeros(2, 5), torch.zeros(3, 5))


def test_target_logits_leave_padding_out():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[4, 1, -100], [2, -100, -100]])
    assert torch.equal(target_logits(logits, labels, True), torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]]))


def test_target_logits_of_a_causal_model_are_those_one_before():
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[-100, -100, 3, 1], [-100, 2, -100, -100]])
    assert torch.equal(target_logits(logits, labels, False), torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]))


def test_what_stands_at_padding_does_not_change_distillation():
    labels = torch.tensor([[-100, 3, 1, -100]])
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    for both in (True, False):
        before = distillation_loss(target_logits(student, labels, both), target_logits(teacher, labels, both))
        changed = teacher.clone()
        changed[0, 3] += torch.randn(5) * 100
        after = distillation_loss(target_logits(student, labels, both), target_logits(changed, labels, both))
        assert before > 0 and torch.equal(before, after)


def test_alignment_of_factors_by_hand():
    # A 3 against 1, B 2 against 4: ((3 - 1)^2 + (2 - 4)^2) / 2 = 4.
    assert alignment_factors(one(3), one(2), 1, one(1), one(4), 1).item() == pytest.approx(4)


def test_alignment_of_factors_gives_half_of_each_scale_to_either_factor():
    # Scales 4 and 9: A 2 * 3 against 3 * 1, B 2 * 2 against 3 * 4, so ((6 - 3)^2 + (4 - 12)^2) / 2 = 36.5.
    assert alignment_factors(one(3), one(2), 4, one(1), one(4), 9).item() == pytest.approx(36.5)
    # The same update, 24 = 4 * 3 * 2 = 1 * 6 * 4, in two ways: no difference.
    assert alignment_factors(one(3), one(2), 4, one(6), one(4), 1).item() == pytest.approx(0, abs=1e-9)


def test_alignment_of_factors_is_a_mean_over_all_numbers():
    a, b = {"m": torch.zeros(2, 1, 3)}, {"m": torch.zeros(2, 5, 1)}
    teacher_a, teacher_b = {"m": torch.ones(2, 1, 3)}, {"m": torch.full((2, 5, 1), 2.0)}
    # 6 numbers off by 1, 10 by 2: (6 + 40) / 16
    assert alignment_factors(a, b, 1, teacher_a, teacher_b, 1).item() == pytest.approx(46 / 16)


def dense_delta(a, b, scaling, teacher_a, teacher_b, teacher_scaling):
    terms = []
    for path in a:
        ours, theirs = scaling * b[path] @ a[path], teacher_scaling * teacher_b[path] @ teacher_a[path]
        terms.append((ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2)))
    return torch.stack(terms).mean().item()


def test_alignment_of_updates_equals_the_dense_one():
    arguments = (*factors(), 2.0, *factors(rank=2, seed=1), 0.5)
    assert alignment_delta(*arguments).item() == pytest.approx(dense_delta(*arguments), rel=1e-5)


def test_alignment_of_updates_is_blind_to_rotations_of_the_factors():
    a, b = factors()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned_a, turned_b = {p: turn @ x for p, x in a.items()}, {p: x @ turn.T for p, x in b.items()}
    assert alignment_delta(turned_a, turned_b, 2.0, a, b, 2.0).item() == pytest.approx(0, abs=1e-5)
    assert alignment_factors(turned_a, turned_b, 2.0, a, b, 2.0).item() > 0.1


def test_alignment_of_an_update_of_zero_is_one():
    a, b = factors()
    zeros = {path: torch.zeros_like(x) for path, x in b.items()}
    assert alignment_delta(a, zeros, 2.0, *factors(seed=1), 2.0).item() == pytest.approx(1)


def test_alignment_of_updates_never_forms_an_update():
    # 200 000 x 200 000 numbers are 160 GB.
    a, b = factors(1, 2, 200_000, 200_000, paths=("m",))
    loss = alignment_delta(a, {"m": b["m"].requires_grad_()}, 1.0, *factors(1, 2, 200_000, 200_000, ("m",), 1), 1.0)
    loss.backward()
    assert loss.item() > 0 and b["m"].grad.shape == (1, 200_000, 2)


@pytest.mark.parametrize("function", [alignment_factors, alignment_delta])
def test_alignment_gives_the_teacher_no_gradient(function):
    ours, theirs = factors(), factors(seed=1)
    for x in (*ours[0].values(), *ours[1].values(), *theirs[0].values(), *theirs[1].values()):
        x.requires_grad_()
    function(*ours, 1.0, *theirs, 1.0).backward()
    assert all(x.grad.abs().sum() > 0 for part in ours for x in part.values())
    assert all(x.grad is None for part in theirs for x in part.values())


def test_the_sigmoid_weight_adds_its_own_derivative():
    # L = x, w = s(x): d(w L)/dx = s + x s (1 - s); detached: s. At x = ln 3, s = 3/4: 3/4 + 3/16 ln 3, and 3/4.
    gradients = {}
    for weight in ("sigmoid", "sigmoid_detached"):
        x = torch.tensor(math.log(3), requires_grad=True)
        product = alignment_weight(x, weight) * x
        assert product.item() == pytest.approx(0.75 * math.log(3))
        product.backward()
        gradients[weight] = x.grad.item()
    assert gradients["sigmoid"] == pytest.approx(0.75 + 3 / 16 * math.log(3))
    assert gradients["sigmoid_detached"] == pytest.approx(0.75)


def test_a_constant_weight_is_itself():
    assert alignment_weight(torch.tensor(7.0), 0.5).item() == 0.5
    with pytest.raises(ValueError, match="'sigmod', but must be a number, 'sigmoid' or 'sigmoid_detached'"):
        alignment_weight(torch.tensor(7.0), "sigmod")
