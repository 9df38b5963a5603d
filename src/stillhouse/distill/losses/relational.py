"""Relations between rows: Park, Kim, Lu and Cho 2019, "Relational Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Relational
from stillhouse.distill.losses.signals import Signals, log_knowledge
from stillhouse.distill.losses.terms import term

__all__ = ["relational_loss"]

_TINY = 1e-6


def relational_loss(student: Tensor, teacher: Tensor, angles: float = 2.0) -> Tensor:
    """Huber loss of pairwise distances plus ``angles`` times that of the angles of triples (Park et al. 2019, eq. 5–9).

    Distances are in units of their own mean, so that neither width nor scale of the two spaces matters.

    :param student: what the student makes of the rows, ``[n, H]``.
    :param teacher: what the teacher makes of them, ``[n, D]``; H and D may differ.
    """
    loss = functional.smooth_l1_loss(_distances(student), _distances(teacher))
    if angles:
        loss = loss + angles * functional.smooth_l1_loss(_angles(student), _angles(teacher))
    return loss


def _distances(points: Tensor) -> Tensor:
    """``[n, n]``, in units of the mean distance of two different points."""
    squared = (points.unsqueeze(0) - points.unsqueeze(1)).square().sum(dim=2)
    apart = ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    distances = torch.where(apart, squared.clamp(min=_TINY**2), 1.0).sqrt() * apart
    mean = distances.sum() / max(1, len(points) * (len(points) - 1))
    return distances / mean.clamp(min=_TINY)


def _angles(points: Tensor) -> Tensor:
    """``[n, n, n]``: at point j, the cosine between the directions to i and to k."""
    directions = functional.normalize(points.unsqueeze(0) - points.unsqueeze(1), dim=2, eps=_TINY)
    return torch.bmm(directions, directions.transpose(1, 2))


@term.register
def _(loss: Relational, signals: Signals, temperature: float) -> Tensor:
    taught = log_knowledge(signals.knowledge) if signals.features is None else signals.features
    learned = signals.logits if signals.features is None or signals.hidden is None else signals.hidden
    return relational_loss(learned[: loss.rows], taught[: loss.rows], loss.angles)
