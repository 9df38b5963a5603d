"""The losses that are compared, as their papers and official code have them, unbalanced.

Each takes logits ``[n, K]``, teacher logits ``[n, K]``, outcomes ``[n]`` (−1: not known), a temperature and the weight
of the cross-entropy with those outcomes that are known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PUBLISHED", "Loss"]

Loss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def hard(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy, mean over the rows whose outcome is known; 0 where there is none."""
    known = outcomes >= 0
    return functional.cross_entropy(logits[known], outcomes[known]) if known.any() else logits.sum() * 0


def kd(logits: Tensor, teacher: Tensor, outcomes: Tensor, temperature: float, weight: float) -> Tensor:
    """Hinton, Vinyals and Dean 2015: ``(1 − w) T² KL + w CE``."""
    taught = functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )
    return (1 - weight) * temperature**2 * taught + weight * hard(logits, outcomes)


def dkd(logits: Tensor, teacher: Tensor, outcomes: Tensor, temperature: float, weight: float) -> Tensor:
    """Zhao et al. 2022 with the authors' α = 1 and β = 8, and the weight of the outcomes to be tuned.

    Where the outcome is not known the teacher's first choice is the target.
    """
    right = functional.one_hot(torch.where(outcomes >= 0, outcomes, teacher.argmax(dim=1)), logits.shape[1]).bool()

    def two(p: Tensor) -> Tensor:
        return torch.stack([p[right], 1 - p[right]], dim=1).clamp(min=1e-7)

    student_p, teacher_p = torch.softmax(logits / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)
    target = functional.kl_div(two(student_p).log(), two(teacher_p), reduction="batchmean")
    others = functional.kl_div(
        functional.log_softmax(logits / temperature - 1000.0 * right, dim=1),
        functional.softmax(teacher / temperature - 1000.0 * right, dim=1),
        reduction="batchmean",
    )
    taught = temperature**2 * (target + 8.0 * others)
    return (1 - weight) * taught + weight * hard(logits, outcomes)


def standardised(logits: Tensor, teacher: Tensor, outcomes: Tensor, temperature: float, weight: float) -> Tensor:
    """Sun et al. 2024: Hinton's loss on logits standardised row by row."""

    def brought(z: Tensor) -> Tensor:
        return (z - z.mean(dim=1, keepdim=True)) / (1e-7 + z.std(dim=1, keepdim=True))

    taught = functional.kl_div(
        functional.log_softmax(brought(logits) / temperature, dim=1),
        functional.softmax(brought(teacher) / temperature, dim=1),
        reduction="batchmean",
    )
    return (1 - weight) * temperature**2 * taught + weight * hard(logits, outcomes)


PUBLISHED: dict[str, Loss] = {"kd": kd, "dkd": dkd, "standardised": standardised}
