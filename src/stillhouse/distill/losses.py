"""What a student is pulled towards, one term each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["knowledge_loss", "outcome_loss", "soften"]


def soften(probabilities: Tensor, temperature: float) -> Tensor:
    """``[n, K]`` probabilities as they would be at ``temperature``: ``p^(1/T)``, normalised.

    The same as dividing logits by T (Hinton, Vinyals and Dean 2015, eq. 1), for teachers that have none.
    """
    return torch.softmax(torch.log(probabilities.clamp(min=1e-6)) / temperature, dim=1)


def knowledge_loss(logits: Tensor, knowledge: Tensor, temperature: float) -> Tensor:
    """``T² KL(teacher_T ‖ student_T)``, mean over rows (Hinton, Vinyals and Dean 2015, §2).

    :param logits: the student's, ``[n, K]``.
    :param knowledge: the teacher's probabilities, ``[n, K]``, not yet softened.
    """
    student = torch.log_softmax(logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, soften(knowledge, temperature), reduction="batchmean")


def outcome_loss(logits: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy with what turned out to be true: logits ``[n, K]``, action indices int64 ``[n]``."""
    return functional.cross_entropy(logits, outcomes)
