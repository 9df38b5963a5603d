"""What adapting has earned: the same student, trained at the fixed settings beside it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.config import Distillation
from stillhouse.distill.controller import Control, Course
from stillhouse.distill.train import Lesson, distil

__all__ = ["compare", "distil_with_control"]


def distil_with_control(
    student: nn.Module,
    lesson: Lesson,
    settings: Distillation,
    *,
    held_out: Lesson | None,
    compared: Lesson | None,
    checkpoint: Path | None = None,
) -> Course:
    """:func:`~stillhouse.distill.train.distil`, and the same at the fixed settings, for as many steps, to compare.

    Without a change of settings the two are one and the same student, so nothing is trained twice.

    :param held_out: rows for the controller.
    :param compared: rows that neither has seen, of which those with outcomes count; None: no comparison.
    """
    fixed = deepcopy(student)
    course = distil(student, lesson, settings, held_out=held_out, checkpoint=checkpoint)
    compared = compared and compared.take(compared.lived.nonzero().squeeze(1))
    if compared is None or not len(compared) or not settings.control or settings.controller == "fixed":
        return course
    if course.adapted:
        at_rest = settings.model_copy(update={"controller": "fixed"})
        aside = checkpoint and checkpoint.with_name(f"control-{checkpoint.name}")
        distil(fixed, lesson, at_rest, held_out=held_out, checkpoint=aside)
    else:
        fixed = student
    return course.model_copy(update={"control": compare(student, fixed, compared)})


def compare(student: nn.Module, fixed: nn.Module, rows: Lesson) -> Control:
    """Log loss of two students on the same ``rows``, all with outcomes, and their difference with its error."""
    losses, losses_fixed = _losses(student, rows), _losses(fixed, rows)
    gains = losses_fixed - losses
    groups = np.arange(len(rows)) if rows.groups is None else np.unique(rows.groups.numpy(), return_inverse=True)[1]
    sums = np.bincount(groups, weights=gains - gains.mean())
    factor = len(sums) / max(1, len(sums) - 1)
    return Control(
        rows=len(rows),
        log_loss=float(losses.mean()),
        log_loss_fixed=float(losses_fixed.mean()),
        gain=float(gains.mean()),
        standard_error=float(np.sqrt(factor * (sums**2).sum())) / len(rows),
    )


def _losses(student: nn.Module, rows: Lesson) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    with torch.no_grad():
        said: Tensor = torch.log_softmax(student(rows.x).double(), dim=1)
    losses: np.ndarray[tuple[int], np.dtype[np.float64]] = -said[torch.arange(len(rows)), rows.outcomes].numpy()
    return losses
