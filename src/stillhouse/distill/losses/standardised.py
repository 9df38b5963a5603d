"""Standardised logits: Sun, Ren, Li, Wang and Cao 2024, "Logit Standardization in Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Standardised
from stillhouse.distill.losses.signals import Signals, log_knowledge
from stillhouse.distill.losses.terms import term

__all__ = ["standardised_loss"]

_LEAST_SPREAD = 1e-2  # of a row's logits: a row that says nothing is not blown up


def standardised_loss(logits: Tensor, knowledge: Tensor, temperature: float) -> Tensor:
    """``T² KL`` of softmax(z / T) with each row's logits standardised first (Sun et al. 2024, algorithm 1).

    The student need not have the teacher's scale, only its order and its proportions; for K = 2 all that is left is
    which of the two is larger.

    :param logits: the student's, ``[n, K]``.
    :param knowledge: the teacher's probabilities, ``[n, K]``; its logits are their logarithms.
    """
    student = torch.log_softmax(_standardised(logits) / temperature, dim=1)
    teacher = torch.softmax(_standardised(log_knowledge(knowledge)) / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean")


def _standardised(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).clamp(min=_LEAST_SPREAD**2).sqrt()
    return centred / spread


@term.register
def _(loss: Standardised, signals: Signals, temperature: float) -> Tensor:
    return standardised_loss(signals.logits, signals.knowledge, temperature)
