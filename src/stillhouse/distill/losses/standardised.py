"""Standardised logits: Sun, Ren, Li, Wang and Cao 2024, "Logit Standardization in Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Standardised
from stillhouse.distill.losses.inputs import LossInputs, logits_from_probs
from stillhouse.distill.losses.terms import loss_term

__all__ = ["standardised_loss"]

_MIN_DEVIATION = 1e-2  # of a row's logits: nearly constant rows are not amplified


def standardised_loss(logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """``T² KL`` of softmax(z / T) with each row's logits standardised first (Sun et al. 2024, algorithm 1).

    The student has to match the order and the proportions of the teacher's logits, not their scale. For K = 2 only the
    order is left.

    :param logits: the student's, ``[n, K]``.
    :param teacher_probs: the teacher's probabilities, ``[n, K]``; its logits are their logarithms.
    """
    student = torch.log_softmax(_standardise(logits) / temperature, dim=1)
    teacher = torch.softmax(_standardise(logits_from_probs(teacher_probs)) / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean")


def _standardise(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).clamp(min=_MIN_DEVIATION**2).sqrt()
    return centred / deviation


@loss_term.register
def _(loss: Standardised, inputs: LossInputs, temperature: float) -> Tensor:
    return standardised_loss(inputs.logits, inputs.teacher_probs, temperature)
