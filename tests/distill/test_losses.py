"""Losses against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from stillhouse.distill.losses import knowledge_loss, outcome_loss, soften


def random_problem(rows: int = 64, actions: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, actions, generator=generator, dtype=torch.float64)
    knowledge = torch.softmax(torch.randn(rows, actions, generator=generator, dtype=torch.float64), dim=1)
    return logits, knowledge


def test_soften_at_one_is_the_identity() -> None:
    _, knowledge = random_problem()
    torch.testing.assert_close(soften(knowledge, 1.0), knowledge, rtol=1e-12, atol=0)


def test_soften_by_hand() -> None:
    """At T = 2 the odds 9 : 1 become 3 : 1."""
    torch.testing.assert_close(soften(torch.tensor([[0.9, 0.1]]), 2.0), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_soften_is_division_of_logits(temperature: float) -> None:
    logits, _ = random_problem()
    torch.testing.assert_close(
        soften(torch.softmax(logits, dim=1), temperature), torch.softmax(logits / temperature, dim=1), rtol=1e-6, atol=0
    )


def test_a_teacher_that_is_certain_stays_finite() -> None:
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(soften(certain, 1.0), certain, rtol=0, atol=3e-6)
    logits = torch.tensor([[0.0, 50.0, -50.0]], requires_grad=True)
    loss = knowledge_loss(logits, certain, 4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_is_temperature_squared_times_kl(temperature: float) -> None:
    logits, knowledge = random_problem()
    student = torch.softmax(logits / temperature, dim=1).numpy()
    teacher = knowledge.numpy() ** (1 / temperature)
    teacher /= teacher.sum(axis=1, keepdims=True)
    expected = temperature**2 * np.mean([entropy(p, q) for p, q in zip(teacher, student, strict=True)])
    assert knowledge_loss(logits, knowledge, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_kl_of_two_actions_by_hand() -> None:
    """Teacher (¾, ¼), student (½, ½): ¾ ln 1.5 + ¼ ln 0.5."""
    loss = knowledge_loss(torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]), 1.0)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_the_loss_of_agreement_is_zero_and_no_force() -> None:
    logits, _ = random_problem()
    logits.requires_grad_()
    loss = knowledge_loss(logits, torch.softmax(logits.detach(), dim=1), 3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert logits.grad.abs().max().item() < 1e-7


def gradient(temperature: float) -> torch.Tensor:
    logits, knowledge = random_problem()
    logits.requires_grad_()
    knowledge_loss(logits, knowledge, temperature).backward()
    return logits.grad


def test_the_gradient_is_t_times_the_difference() -> None:
    """∂/∂z T² KL(p ‖ softmax(z/T)) = T (q − p) / n (Hinton et al. 2015, eq. 2, times T²)."""
    logits, knowledge = random_problem()
    expected = 4.0 * (torch.softmax(logits / 4.0, dim=1) - soften(knowledge, 4.0)) / len(logits)
    torch.testing.assert_close(gradient(4.0), expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_does_not_fade_with_temperature() -> None:
    """For large T it tends to (z − v) / (n K) with centred logits (Hinton et al. 2015, eq. 4), whatever T is."""
    logits, knowledge = random_problem()
    v = torch.log(knowledge)
    limit = ((logits - logits.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))) / (len(logits) * 5)
    for temperature in (20.0, 200.0):
        torch.testing.assert_close(
            gradient(temperature), limit, rtol=0, atol=5 / temperature * limit.abs().max().item()
        )
    assert gradient(200.0).norm().item() == pytest.approx(gradient(20.0).norm().item(), rel=0.1)


def test_outcomes_by_hand() -> None:
    """Logits (0, ln 3) say ¼ and ¾: mean of −ln ¾ and −ln ¼."""
    loss = outcome_loss(torch.tensor([[0.0, math.log(3)]] * 2), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-6)
