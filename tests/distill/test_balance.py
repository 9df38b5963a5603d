"""Loss terms of any magnitude get equal gradient norms."""

from __future__ import annotations

import pytest
import torch

from stillhouse.distill.balance import LossBalance, normalise_weights


def norm(loss: torch.Tensor, at: torch.Tensor) -> float:
    return torch.autograd.grad(loss, at, retain_graph=True)[0].norm().item()


@pytest.mark.parametrize("factor", [1e-3, 1.0, 100.0, 1e6])
def test_scaled_terms_have_the_gradient_norm_of_the_reference(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    balance = LossBalance(2)
    for _ in range(20):
        shared = torch.randn(32, 4, generator=generator, requires_grad=True)
        terms = [factor * shared.square().mean(), shared.abs().mean()]
        reference = (shared - 1).square().mean()
        scales = balance.scales(terms, reference, shared)
        expected = norm(reference, shared)
        for scale, loss in zip(scales.tolist(), terms, strict=True):
            assert norm(scale * loss, shared) == pytest.approx(expected, rel=0.35)


def test_single_step_is_exact_and_a_term_without_gradient_gets_zero() -> None:
    shared = torch.tensor([3.0, 4.0], requires_grad=True)
    scales = LossBalance(2).scales([7 * shared.sum(), 0 * shared.sum()], shared.square().sum(), shared)
    assert scales.tolist() == pytest.approx([10 / (7 * 2**0.5), 0])


def test_weights_are_normalised() -> None:
    assert normalise_weights([1, 3]).tolist() == [0.25, 0.75]
