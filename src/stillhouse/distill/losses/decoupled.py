"""Decoupled distillation: Zhao, Cui, Song, Qiu and Liang 2022, "Decoupled Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Decoupled
from stillhouse.distill.losses.inputs import LossInputs, logits_from_probs
from stillhouse.distill.losses.terms import loss_term

__all__ = ["decoupled_loss"]

_MASKED_LOGIT = -1e4  # removes an action from a softmax


def decoupled_loss(
    logits: Tensor, teacher_probs: Tensor, labels: Tensor, temperature: float, others: float, target: float = 1.0
) -> Tensor:
    """``T² (target · TCKD + others · NCKD)``, mean over rows (Zhao et al. 2022, eq. 7).

    TCKD is the KL divergence between the distributions over two classes, the target action and all others together;
    NCKD is that between the distributions over the other actions. The target is the label, or, where that is not known,
    the teacher's most probable action. Hinton's loss is the case where ``others`` is the teacher's probability of not
    being right. For K = 2 NCKD is 0.

    :param logits: the student's, ``[n, K]``.
    :param teacher_probs: the teacher's probabilities, ``[n, K]``, at temperature 1.
    :param labels: action indices int64 ``[n]``; −1: not known.
    """
    student, teacher = logits / temperature, logits_from_probs(teacher_probs) / temperature
    targets = torch.where(labels >= 0, labels, teacher_probs.argmax(dim=1))
    is_target = functional.one_hot(targets, logits.shape[1]).bool()
    tckd = _kl_divergence(_target_log_probs(student, is_target), _target_log_probs(teacher, is_target))
    nckd = _kl_divergence(_other_log_probs(student, is_target), _other_log_probs(teacher, is_target))
    return temperature**2 * (target * tckd + others * nckd)


def _kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher ‖ student)`` of log-probabilities, mean over rows."""
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _target_log_probs(logits: Tensor, is_target: Tensor) -> Tensor:
    """Log-probabilities ``[n, 2]`` of the target action and of all others together."""
    log_probs = torch.log_softmax(logits, dim=1)
    others = log_probs.masked_fill(is_target, _MASKED_LOGIT).logsumexp(dim=1)
    return torch.stack([log_probs[is_target], others], dim=1)


def _other_log_probs(logits: Tensor, is_target: Tensor) -> Tensor:
    """Log-probabilities ``[n, K]`` of the other actions, given that the target is none of them."""
    return torch.log_softmax(logits.masked_fill(is_target, _MASKED_LOGIT), dim=1)


@loss_term.register
def _(loss: Decoupled, inputs: LossInputs, temperature: float) -> Tensor:
    return decoupled_loss(inputs.logits, inputs.teacher_probs, inputs.labels, temperature, loss.others)
