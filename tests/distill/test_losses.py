"""Losses against closed forms."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from stillhouse.config import Decoupled, DistillationLoss, Hinton, Hints, LossSection, Relational, Standardised
from stillhouse.config.base import tagged
from stillhouse.distill.losses import (
    LossInputs,
    decoupled_loss,
    hinton_loss,
    hints_loss,
    label_loss,
    logits_from_probs,
    loss_term,
    relational_loss,
    soften,
    standardised_loss,
)


def random_problem(rows: int = 64, actions: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, actions, generator=generator, dtype=torch.float64)
    teacher_probs = torch.softmax(torch.randn(rows, actions, generator=generator, dtype=torch.float64), dim=1)
    return logits, teacher_probs


def test_soften_at_one_is_the_identity() -> None:
    _, teacher_probs = random_problem()
    torch.testing.assert_close(soften(teacher_probs, 1.0), teacher_probs, rtol=1e-12, atol=0)


def test_soften_by_hand() -> None:
    """At T = 2 the odds 9 : 1 become 3 : 1."""
    torch.testing.assert_close(soften(torch.tensor([[0.9, 0.1]]), 2.0), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_soften_is_division_of_logits(temperature: float) -> None:
    logits, _ = random_problem()
    torch.testing.assert_close(
        soften(torch.softmax(logits, dim=1), temperature), torch.softmax(logits / temperature, dim=1), rtol=1e-6, atol=0
    )


def test_certain_teacher_gives_finite_losses() -> None:
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(soften(certain, 1.0), certain, rtol=0, atol=3e-6)
    logits = torch.tensor([[0.0, 50.0, -50.0]], requires_grad=True)
    loss = hinton_loss(logits, certain, 4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_hinton_loss_is_temperature_squared_times_kl(temperature: float) -> None:
    logits, teacher_probs = random_problem()
    student = torch.softmax(logits / temperature, dim=1).numpy()
    teacher = teacher_probs.numpy() ** (1 / temperature)
    teacher /= teacher.sum(axis=1, keepdims=True)
    expected = temperature**2 * np.mean([entropy(p, q) for p, q in zip(teacher, student, strict=True)])
    assert hinton_loss(logits, teacher_probs, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_kl_of_two_actions_by_hand() -> None:
    """Teacher (¾, ¼), student (½, ½): ¾ ln 1.5 + ¼ ln 0.5."""
    loss = hinton_loss(torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]), 1.0)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_hinton_loss_of_equal_predictions_has_zero_gradient() -> None:
    logits, _ = random_problem()
    logits.requires_grad_()
    loss = hinton_loss(logits, torch.softmax(logits.detach(), dim=1), 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert logits.grad.abs().max().item() < 1e-7


def gradient(temperature: float) -> torch.Tensor:
    logits, teacher_probs = random_problem()
    logits.requires_grad_()
    hinton_loss(logits, teacher_probs, temperature).backward()
    return logits.grad


def test_hinton_gradient_is_t_times_the_difference() -> None:
    """∂/∂z T² KL(p ‖ softmax(z/T)) = T (q − p) / n (Hinton et al. 2015, eq. 2, times T²)."""
    logits, teacher_probs = random_problem()
    expected = 4.0 * (torch.softmax(logits / 4.0, dim=1) - soften(teacher_probs, 4.0)) / len(logits)
    torch.testing.assert_close(gradient(4.0), expected, rtol=1e-9, atol=1e-12)


def test_hinton_gradient_does_not_vanish_with_temperature() -> None:
    """For large T it tends to (z − v) / (n K) with centred logits (Hinton et al. 2015, eq. 4), whatever T is."""
    logits, teacher_probs = random_problem()
    v = torch.log(teacher_probs)
    limit = ((logits - logits.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))) / (len(logits) * 5)
    for temperature in (20.0, 200.0):
        torch.testing.assert_close(
            gradient(temperature), limit, rtol=0, atol=5 / temperature * limit.abs().max().item()
        )
    assert gradient(200.0).norm().item() == pytest.approx(gradient(20.0).norm().item(), rel=0.1)


def test_label_loss_by_hand() -> None:
    """Logits (0, ln 3) are ¼ and ¾: mean of −ln ¾ and −ln ¼."""
    loss = label_loss(torch.tensor([[0.0, math.log(3)]] * 2), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)


# --------------------------------------------------------------------------- decoupled


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_weighted_by_the_teachers_doubt_is_hinton(temperature: float) -> None:
    """Zhao et al. 2022, eq. 6: KD = TCKD + (1 − p_target) NCKD, row by row."""
    logits, teacher_probs = random_problem(rows=1)
    for outcome in range(5):
        doubt = 1 - soften(teacher_probs, temperature)[0, outcome].item()
        loss = decoupled_loss(logits, teacher_probs, torch.tensor([outcome]), temperature, others=doubt)
        assert loss.item() == pytest.approx(hinton_loss(logits, teacher_probs, temperature).item(), rel=1e-9)


def test_decoupled_of_two_actions_is_hinton() -> None:
    logits, teacher_probs = random_problem(actions=2)
    labels = torch.arange(64) % 2
    for others in (0.5, 50.0):
        loss = decoupled_loss(logits, teacher_probs, labels, 2.0, others).item()
        assert loss == pytest.approx(hinton_loss(logits, teacher_probs, 2.0).item(), rel=1e-9)


# --------------------------------------------------------------------------- standardised


def test_standardised_ignores_shift_and_scale() -> None:
    _, teacher_probs = random_problem()
    logits = logits_from_probs(teacher_probs)
    assert standardised_loss(7 * logits + 3, teacher_probs, 2.0).item() == pytest.approx(0, abs=1e-12)
    assert standardised_loss(-logits, teacher_probs, 2.0).item() > 0.1


def test_standardised_by_hand() -> None:
    """Three logits, each row standardised by its own mean and (population) deviation, then KL at T = 2, times 4."""
    logits, teacher_probs = torch.tensor([[1.0, 2.0, 6.0]]).double(), torch.tensor([[0.2, 0.5, 0.3]]).double()
    rows = [logits.numpy()[0], np.log(teacher_probs.numpy()[0])]
    student, teacher = (np.exp((z - z.mean()) / z.std() / 2) for z in rows)
    expected = 4 * entropy(teacher / teacher.sum(), student / student.sum())
    assert standardised_loss(logits, teacher_probs, 2.0).item() == pytest.approx(expected, rel=1e-9)


def test_standardised_of_constant_logits_is_finite() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    standardised_loss(logits, torch.full((2, 3), 1 / 3), 1.0).backward()
    assert torch.isfinite(logits.grad).all()


# --------------------------------------------------------------------------- hints, relational


def test_hints_by_hand() -> None:
    assert hints_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).item() == pytest.approx(1.0)


def test_relational_ignores_rotation_and_scale_only() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    assert relational_loss(5 * points @ rotation + 1, points).item() == pytest.approx(0, abs=1e-12)
    assert relational_loss(torch.nn.functional.pad(points, (0, 4)), points).item() == pytest.approx(0, abs=1e-12)
    assert relational_loss(points * torch.tensor([1.0, 1.0, 9.0]), points).item() > 0.01


def test_relational_distances_by_hand() -> None:
    """Points 0, 1, 3: distances 1, 2, 3 of mean 2; the student's 0, 1, 2 have 1, 1, 2 of mean 4/3."""
    student, teacher = torch.tensor([[0.0], [1.0], [2.0]]).double(), torch.tensor([[0.0], [1.0], [3.0]]).double()
    differences = np.array([1 / 2 - 3 / 4, 2 / 2 - 3 / 4, 3 / 2 - 6 / 4])
    expected = 2 * (0.5 * differences**2).sum() / 9
    assert relational_loss(student, teacher, angles=0).item() == pytest.approx(expected, rel=1e-6)


def test_relational_of_equal_rows_is_finite() -> None:
    points = torch.zeros(4, 2, requires_grad=True)
    relational_loss(points, torch.ones(4, 3)).backward()
    assert torch.isfinite(points.grad).all()


@pytest.mark.parametrize("kind", [Hinton, Decoupled, Standardised, Relational, Hints])
def test_every_loss_section_has_a_term(kind: type) -> None:
    logits, teacher_probs = random_problem()
    logits.requires_grad_()
    features = torch.randn(64, 6, dtype=torch.float64)
    inputs = LossInputs(
        logits, teacher_probs, torch.arange(64) % 5, 2 * logits, logits @ torch.ones(5, 6).double(), features
    )
    loss = loss_term(kind(type=kind.__name__.lower()), inputs, 2.0)
    loss.backward()
    assert loss.shape == () and logits.grad.abs().sum() > 0


# --------------------------------------------------------------------------- kinds


class MadeUpLoss(LossSection):
    type: Literal["made_up"] = "made_up"


class Squared(LossSection):
    """Squared differences of probabilities: a new type of loss needs a section and a term."""

    type: Literal["squared"] = "squared"


@loss_term.register
def _(loss: Squared, inputs: LossInputs, temperature: float) -> torch.Tensor:
    return (torch.softmax(inputs.logits, dim=1) - inputs.teacher_probs).square().sum(dim=1).mean()


def test_a_new_type_of_loss_and_one_without_a_file() -> None:
    inputs = LossInputs(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert float(loss_term(Squared(), inputs, 2.0)) == 0.5
    with pytest.raises(TypeError, match="no loss of type 'made_up': MadeUpLoss is not registered"):
        loss_term(MadeUpLoss(), inputs, 2.0)


def test_every_type_of_loss_of_the_agent_file_is_registered() -> None:
    assert all(section in loss_term.registry for section in tagged(DistillationLoss).values())
