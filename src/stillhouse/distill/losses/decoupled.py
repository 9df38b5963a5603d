"""Decoupled knowledge: Zhao, Cui, Song, Qiu and Liang 2022, "Decoupled Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Decoupled
from stillhouse.distill.losses.signals import Signals, log_knowledge
from stillhouse.distill.losses.terms import term

__all__ = ["decoupled_loss"]

_NEVER = -1e4  # a logit that takes an action out of a softmax


def decoupled_loss(
    logits: Tensor, knowledge: Tensor, outcomes: Tensor, temperature: float, others: float, target: float = 1.0
) -> Tensor:
    """``T² (target · TCKD + others · NCKD)``, mean over rows (Zhao et al. 2022, eq. 7).

    TCKD is the KL divergence of (outcome's action, all others) as two classes, NCKD that of the others among
    themselves; with ``others`` equal to the teacher's probability of not being right it would be Hinton's loss.
    For K = 2 there is one other action and NCKD is 0. Where the outcome is not known the teacher's first choice
    stands for it.

    :param logits: the student's, ``[n, K]``.
    :param knowledge: the teacher's probabilities, ``[n, K]``, not yet softened.
    :param outcomes: action indices int64 ``[n]``; −1: not known.
    """
    student, teacher = logits / temperature, log_knowledge(knowledge) / temperature
    targeted = torch.where(outcomes >= 0, outcomes, knowledge.argmax(dim=1))
    right = functional.one_hot(targeted, logits.shape[1]).bool()
    targets = functional.kl_div(_two(student, right), _two(teacher, right), reduction="batchmean", log_target=True)
    spread = functional.kl_div(_rest(student, right), _rest(teacher, right), reduction="batchmean", log_target=True)
    return temperature**2 * (target * targets + others * spread)


def _two(logits: Tensor, right: Tensor) -> Tensor:
    """Log-probabilities ``[n, 2]`` of the outcome's action and of all others together."""
    said = torch.log_softmax(logits, dim=1)
    return torch.stack([said[right], said.masked_fill(right, _NEVER).logsumexp(dim=1)], dim=1)


def _rest(logits: Tensor, right: Tensor) -> Tensor:
    """Log-probabilities ``[n, K]`` of the others among themselves."""
    return torch.log_softmax(logits.masked_fill(right, _NEVER), dim=1)


@term.register
def _(loss: Decoupled, signals: Signals, temperature: float) -> Tensor:
    return decoupled_loss(signals.logits, signals.knowledge, signals.outcomes, temperature, loss.others)
