"""Relations between rows: Park, Kim, Lu and Cho 2019, "Relational Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.config import Relational
from stillhouse.distill.losses.inputs import LossInputs, logits_from_probs
from stillhouse.distill.losses.terms import loss_term

__all__ = ["relational_loss"]

_MIN_DISTANCE = 1e-6


def relational_loss(student: Tensor, teacher: Tensor, angles: float = 2.0) -> Tensor:
    """Huber loss of pairwise distances plus ``angles`` times that of the angles of triples (Park et al. 2019, eq. 5–9).

    Distances are divided by their mean, so the width and the scale of the two spaces do not matter.

    :param student: the student's representation of the rows, ``[n, H]``.
    :param teacher: the teacher's, ``[n, D]``; H and D may differ.
    """
    loss = functional.smooth_l1_loss(_distances(student), _distances(teacher))
    if angles:
        loss = loss + angles * functional.smooth_l1_loss(_angles(student), _angles(teacher))
    return loss


def _distances(points: Tensor) -> Tensor:
    """Pairwise distances ``[n, n]``, divided by the mean distance of two different points."""
    squared = (points.unsqueeze(0) - points.unsqueeze(1)).square().sum(dim=2)
    different = ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    distances = torch.where(different, squared.clamp(min=_MIN_DISTANCE**2), 1.0).sqrt() * different
    mean = distances.sum() / max(1, len(points) * (len(points) - 1))
    return distances / mean.clamp(min=_MIN_DISTANCE)


def _angles(points: Tensor) -> Tensor:
    """Cosines ``[n, n, n]`` of the angle at point j between the directions to i and to k."""
    directions = functional.normalize(points.unsqueeze(0) - points.unsqueeze(1), dim=2, eps=_MIN_DISTANCE)
    return torch.bmm(directions, directions.transpose(1, 2))


@loss_term.register
def _(loss: Relational, inputs: LossInputs, temperature: float) -> Tensor:
    teacher = logits_from_probs(inputs.teacher_probs) if inputs.features is None else inputs.features
    student = inputs.logits if inputs.features is None or inputs.hidden is None else inputs.hidden
    return relational_loss(student[: loss.rows], teacher[: loss.rows], loss.angles)
