"""The compared losses, as in their papers and official code, without loss balancing.

Each takes logits ``[n, K]``, teacher logits ``[n, K]``, labels ``[n]`` (−1: unknown), a temperature and the weight of
the cross-entropy with the known labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["PUBLISHED", "Loss"]

Loss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, mean over the labelled rows; 0 if there are none."""
    has_label = labels >= 0
    return functional.cross_entropy(logits[has_label], labels[has_label]) if has_label.any() else logits.sum() * 0


def kd(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float) -> Tensor:
    """Hinton, Vinyals and Dean 2015: ``(1 − w) T² KL + w CE``."""
    distillation_loss = functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1),
        functional.softmax(teacher / temperature, dim=1),
        reduction="batchmean",
    )
    return (1 - weight) * temperature**2 * distillation_loss + weight * label_loss(logits, labels)


def dkd(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float) -> Tensor:
    """Zhao et al. 2022 with the authors' α = 1 and β = 8, and a tuned weight of the labels.

    The target of a row without a label is the teacher's most probable action.
    """
    is_target = functional.one_hot(torch.where(labels >= 0, labels, teacher.argmax(dim=1)), logits.shape[1]).bool()

    def target_and_rest(p: Tensor) -> Tensor:
        return torch.stack([p[is_target], 1 - p[is_target]], dim=1).clamp(min=1e-7)

    student_p, teacher_p = torch.softmax(logits / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)
    target_loss = functional.kl_div(target_and_rest(student_p).log(), target_and_rest(teacher_p), reduction="batchmean")
    others_loss = functional.kl_div(
        functional.log_softmax(logits / temperature - 1000.0 * is_target, dim=1),
        functional.softmax(teacher / temperature - 1000.0 * is_target, dim=1),
        reduction="batchmean",
    )
    distillation_loss = temperature**2 * (target_loss + 8.0 * others_loss)
    return (1 - weight) * distillation_loss + weight * label_loss(logits, labels)


def standardised(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, weight: float) -> Tensor:
    """Sun et al. 2024: Hinton's loss on logits standardised row by row."""

    def standardise(z: Tensor) -> Tensor:
        return (z - z.mean(dim=1, keepdim=True)) / (1e-7 + z.std(dim=1, keepdim=True))

    distillation_loss = functional.kl_div(
        functional.log_softmax(standardise(logits) / temperature, dim=1),
        functional.softmax(standardise(teacher) / temperature, dim=1),
        reduction="batchmean",
    )
    return (1 - weight) * temperature**2 * distillation_loss + weight * label_loss(logits, labels)


PUBLISHED: dict[str, Loss] = {"kd": kd, "dkd": dkd, "standardised": standardised}
