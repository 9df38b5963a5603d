"""Softened probabilities: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Hinton
from stillhouse.distill.losses.inputs import LossInputs, soften
from stillhouse.distill.losses.terms import loss_term

__all__ = ["hinton_loss"]


def hinton_loss(logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """``T² KL(teacher_T ‖ student_T)``, mean over rows (Hinton, Vinyals and Dean 2015, §2).

    :param logits: the student's, ``[n, K]``.
    :param teacher_probs: the teacher's probabilities, ``[n, K]``, at temperature 1.

    >>> round(hinton_loss(torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]), 1.0).item(), 4)
    0.1308
    """
    student = torch.log_softmax(logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, soften(teacher_probs, temperature), reduction="batchmean")


@loss_term.register
def _(loss: Hinton, inputs: LossInputs, temperature: float) -> Tensor:
    return hinton_loss(inputs.logits, inputs.teacher_probs, temperature)
