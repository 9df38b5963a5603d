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

_OTHER_DATA = 1.5  # times as many rows as at the last comparison, or as few: what it told may not hold any more


def distil_with_control(
    student: nn.Module,
    lesson: Lesson,
    settings: Distillation,
    *,
    held_out: Lesson | None,
    compared: Lesson | None,
    checkpoint: Path | None = None,
    previous: Course | None = None,
) -> Course:
    """:func:`~stillhouse.distill.train.distil`, and the same at the fixed settings, for as many steps, to compare.

    Without a change of settings the two are one and the same student, so nothing is trained twice. Nor is it where the
    last comparison told of no difference: then every ``settings.compare_every``-th refresh compares again, and one
    that learns from many more rows, or many fewer. The course says why.

    :param held_out: rows for the controller.
    :param compared: rows that neither has seen, of which those with outcomes count; None: no comparison.
    :param previous: the training of the champion's student; None: every comparison is made.
    """
    fixed, rows = deepcopy(student), len(lesson)
    course, lesson = distil_better(
        student, lesson, settings, held_out=held_out, checkpoint=checkpoint, previous=previous
    )
    uncontrolled = 1 + (previous.uncontrolled if previous else 0)
    course = course.model_copy(update={"rows": rows, "uncontrolled": uncontrolled})
    compared = compared and compared.take(compared.lived.nonzero().squeeze(1))
    if compared is None or not len(compared) or not settings.control or settings.controller == "fixed":
        return course
    if course.adapted:
        if why := _not_again(previous, rows, settings):
            assert previous is not None  # it is the reason
            return course.model_copy(update={"rows": previous.rows, "uncontrolled_why": why})
        at_rest = settings.model_copy(update={"controller": "fixed"})
        aside = checkpoint and checkpoint.with_name(f"control-{checkpoint.name}")
        distil(fixed, lesson, at_rest, held_out=held_out, checkpoint=aside)
        course = course.model_copy(update={"uncontrolled": 0})
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
    previous: Course | None = None,
) -> tuple[Course, Lesson]:
    """:func:`~stillhouse.distill.train.distil` with the made-up rows of ``lesson`` and without them; keeps the better.

    Both take the same number of steps (within half a pass). The better has the lower loss on held-out rows, which
    neither has learned from; without such rows the made-up ones are learned from untried. What a comparison told
    stands for the refreshes that follow, until ``settings.compare_every`` of them have passed or the rows are many
    more, or many fewer.

    :param previous: the training of the champion's student; None: compared anew.
    :return: how the training of the better went, and what it has learned from.
    """
    if lesson.made_up and held_out and (stands := _standing(previous, len(lesson), settings)):
        assert previous is not None  # it has said so
        lesson = lesson if stands.value else lesson.observed()
        course = distil(student, lesson, settings, held_out=held_out, checkpoint=checkpoint)
        reason = stands.reason if previous.untried else f"taken over from an earlier refresh: {stands.reason}"
        change = stands.model_copy(update={"step": course.steps, "reason": reason})
        changes = (*course.changes, change)
        return course.model_copy(update={"changes": changes, "untried": previous.untried + 1}), lesson
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


def _not_again(previous: Course | None, rows: int, settings: Distillation) -> str:
    """Why no second training at the fixed settings is needed this time; empty: it is."""
    if previous is None or _other_data(previous, rows) or previous.uncontrolled + 1 >= settings.compare_every:
        return ""
    if previous.control is None:
        return previous.uncontrolled_why
    if previous.control.moved:
        return ""
    return (
        f"the last comparison with the fixed settings, on {previous.control.rows} rows, told of no difference "
        f"({previous.control.gain:+.2g} nats, standard error {previous.control.standard_error:.2g}); the next is due "
        f"{settings.compare_every} refreshes after it"
    )


def _standing(previous: Course | None, rows: int, settings: Distillation) -> Change | None:
    """What an earlier comparison told of made-up rows, if that still stands."""
    if previous is None or _other_data(previous, rows) or previous.untried + 1 >= settings.compare_every:
        return None
    return next((change for change in previous.changes if change.setting == "made_up_rows"), None)


def _other_data(previous: Course, rows: int) -> bool:
    """Whether so many rows are many more, or many fewer, than those of then."""
    return not previous.rows / _OTHER_DATA <= rows <= previous.rows * _OTHER_DATA


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
