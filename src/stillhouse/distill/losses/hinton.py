"""Softened probabilities: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Hinton
from stillhouse.distill.losses.signals import Signals, soften
from stillhouse.distill.losses.terms import term

__all__ = ["knowledge_loss"]


def knowledge_loss(logits: Tensor, knowledge: Tensor, temperature: float) -> Tensor:
    """``T² KL(teacher_T ‖ student_T)``, mean over rows (Hinton, Vinyals and Dean 2015, §2).

    :param logits: the student's, ``[n, K]``.
    :param knowledge: the teacher's probabilities, ``[n, K]``, not yet softened.
    """
    student = torch.log_softmax(logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, soften(knowledge, temperature), reduction="batchmean")


@term.register
def _(loss: Hinton, signals: Signals, temperature: float) -> Tensor:
    return knowledge_loss(signals.logits, signals.knowledge, temperature)
