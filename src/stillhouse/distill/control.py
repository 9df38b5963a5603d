"""What adapting has earned: the same student, trained at the fixed settings beside it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.config import Distillation
from stillhouse.distill.controller import Change, Control, Course
from stillhouse.distill.train import Lesson, distil, held_out_loss
from stillhouse.stats import clustered_error

__all__ = ["compare", "distil_better", "distil_with_control"]


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
    course, lesson = distil_better(student, lesson, settings, held_out=held_out, checkpoint=checkpoint)
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


def distil_better(
    student: nn.Module,
    lesson: Lesson,
    settings: Distillation,
    *,
    held_out: Lesson | None,
    checkpoint: Path | None = None,
) -> tuple[Course, Lesson]:
    """:func:`~stillhouse.distill.train.distil` with the made-up rows of ``lesson`` and without them; keeps the better.

    Both take the same number of steps (within half a pass). The better has the lower loss on held-out rows, which
    neither has learned from; without such rows the made-up ones are learned from untried.

    :return: how the training of the better went, and what it has learned from.
    """
    start = deepcopy(student)
    course = distil(student, lesson, settings, held_out=held_out, checkpoint=checkpoint)
    if not lesson.made_up or not held_out:
        return course, lesson
    observed, plain = lesson.observed(), start
    passes = max(1, round(course.steps / -(-len(observed) // settings.batch_size)))
    aside = checkpoint and checkpoint.with_name(f"observed-{checkpoint.name}")
    other = distil(plain, observed, settings, held_out=held_out, epochs=passes, checkpoint=aside)
    with_them, without = (held_out_loss(each, held_out, settings.outcome_weight)[0] for each in (student, plain))
    helped, count = with_them < without, lesson.made_up
    if not helped:
        student.load_state_dict(plain.state_dict())
        course, lesson = other, observed
    reason = (
        f"loss on {len(held_out)} held-out rows: {with_them:.4g} with {count} made-up rows, {without:.4g} without, "
        f"in as many steps"
    )
    change = Change(step=course.steps, setting="made_up_rows", value=float(helped), reason=reason)
    return course.model_copy(update={"changes": (*course.changes, change)}), lesson


def compare(student: nn.Module, fixed: nn.Module, rows: Lesson) -> Control:
    """Log loss of two students on the same ``rows``, all with outcomes, and their difference with its error."""
    losses, losses_fixed = _losses(student, rows), _losses(fixed, rows)
    gains = losses_fixed - losses
    groups = None if rows.groups is None else rows.groups.numpy()
    return Control(
        rows=len(rows),
        log_loss=float(losses.mean()),
        log_loss_fixed=float(losses_fixed.mean()),
        gain=float(gains.mean()),
        standard_error=clustered_error((gains - gains.mean()) / len(rows), groups, small_sample=True),
    )


def _losses(student: nn.Module, rows: Lesson) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    with torch.no_grad():
        said: Tensor = torch.log_softmax(student(rows.x).double(), dim=1)
    losses: np.ndarray[tuple[int], np.dtype[np.float64]] = -said[torch.arange(len(rows)), rows.outcomes].numpy()
    return losses
