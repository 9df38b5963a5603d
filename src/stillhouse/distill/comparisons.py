"""Trains a second student to compare with: a control at the fixed settings, or one without synthetic rows."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.config import Distillation, fit_defaults
from stillhouse.distill.history import ControlComparison, SettingChange, TrainingHistory
from stillhouse.distill.train import distil, validation_loss
from stillhouse.distill.training_set import TrainingSet
from stillhouse.stats import clustered_error

__all__ = ["compare_students", "distil_with_best_rows", "distil_with_control"]

MAX_ROWS_RATIO = 1.5  # beyond this change of the number of rows, an earlier comparison is out of date


def distil_with_control(
    student: nn.Module,
    training_set: TrainingSet,
    settings: Distillation,
    *,
    validation_control: TrainingSet | None,
    validation_compare: TrainingSet | None,
    checkpoint: Path | None = None,
    previous: TrainingHistory | None = None,
) -> TrainingHistory:
    """Train ``student`` in place, and a control at the fixed settings for as many steps to compare it with.

    If the controller changed no setting, the control would be the same student, so it is not trained. Nor is it if the
    latest comparison showed no significant difference: then every ``settings.compare_every``-th refresh compares again,
    and one with many more, or many fewer, training rows. The history records the reason.

    :param validation_control: rows for the controller.
    :param validation_compare: rows that neither training uses, of which those with labels count; None: no comparison.
    :param previous: the training of the champion's student; None: no comparison is skipped.
    """
    control, rows = deepcopy(student), len(training_set)
    history, training_set = distil_with_best_rows(
        student, training_set, settings, validation=validation_control, checkpoint=checkpoint, previous=previous
    )
    without_control = 1 + (previous.refreshes_without_control if previous else 0)
    history = history.model_copy(update={"rows": rows, "refreshes_without_control": without_control})
    validation_compare = validation_compare and validation_compare.select_labelled()
    if not validation_compare or not settings.control or settings.controller == "fixed":
        return history
    if history.adapted:
        if previous is not None and (reason := _reason_to_skip_control(previous, rows, settings)):
            return history.model_copy(update={"rows": previous.rows, "control_skipped_because": reason})
        fixed = settings.model_copy(update={"controller": "fixed"})
        control_file = checkpoint and checkpoint.with_name(f"control-{checkpoint.name}")
        distil(control, training_set, fixed, validation=validation_control, checkpoint=control_file)
        history = history.model_copy(update={"refreshes_without_control": 0})
    else:
        control = student
    return history.model_copy(update={"control": compare_students(student, control, validation_compare)})


def distil_with_best_rows(
    student: nn.Module,
    training_set: TrainingSet,
    settings: Distillation,
    *,
    validation: TrainingSet | None,
    checkpoint: Path | None = None,
    previous: TrainingHistory | None = None,
) -> tuple[TrainingHistory, TrainingSet]:
    """Train with the synthetic rows of ``training_set`` and without them, and keep the student that is better.

    Both trainings take the same number of steps (within half a pass). The better student has the lower validation loss;
    without validation rows there is no comparison, and the synthetic rows are used. The result of a comparison is
    reused by later refreshes, until ``settings.compare_every`` of them have passed or the number of rows has changed
    much.

    :param student: ends as the better one.
    :param previous: the training of the champion's student; None: always compare.
    :return: the history of the better training, and its rows.
    """
    settings = fit_defaults(settings, len(training_set))
    if not training_set.synthetic_rows or not validation:
        return distil(student, training_set, settings, validation=validation, checkpoint=checkpoint), training_set
    if previous is not None and (earlier := _earlier_comparison(previous, len(training_set), settings)):
        if not earlier.value:
            training_set = training_set.drop_synthetic()
        history = distil(student, training_set, settings, validation=validation, checkpoint=checkpoint)
        reused = previous.refreshes_without_synthetic_comparison
        reason = earlier.reason if reused else f"reused from an earlier refresh: {earlier.reason}"
        change = earlier.model_copy(update={"step": history.steps, "reason": reason})
        update = {"changes": (*history.changes, change), "refreshes_without_synthetic_comparison": reused + 1}
        return history.model_copy(update=update), training_set
    observed, other = training_set.drop_synthetic(), deepcopy(student)
    history = distil(student, training_set, settings, validation=validation, checkpoint=checkpoint)
    epochs = max(1, round(history.steps / -(-len(observed) // settings.batch_size)))
    other_file = checkpoint and checkpoint.with_name(f"observed-{checkpoint.name}")
    other_history = distil(other, observed, settings, validation=validation, epochs=epochs, checkpoint=other_file)
    loss_with, loss_without = (
        validation_loss(module, validation, settings.outcome_weight)[0] for module in (student, other)
    )
    reason = (
        f"loss on {len(validation)} validation rows: {loss_with:.4g} with {training_set.synthetic_rows} synthetic "
        f"rows, {loss_without:.4g} without, in as many steps"
    )
    helped = loss_with < loss_without
    if not helped:
        student.load_state_dict(other.state_dict())
        history, training_set = other_history, observed
    change = SettingChange(step=history.steps, setting="synthetic_rows", value=float(helped), reason=reason)
    return history.model_copy(update={"changes": (*history.changes, change)}), training_set


def _reason_to_skip_control(previous: TrainingHistory, rows: int, settings: Distillation) -> str:
    """Why no control is needed this time; empty: it is needed."""
    due = previous.refreshes_without_control + 1 >= settings.compare_every
    if due or _rows_changed_much(previous, rows):
        return ""
    if previous.control is None:
        return previous.control_skipped_because
    if previous.control.significant:
        return ""
    return (
        f"the latest comparison with the fixed settings, on {previous.control.rows} rows, showed no significant "
        f"difference ({previous.control.gain:+.2g} nats, standard error {previous.control.standard_error:.2g}); the "
        f"next is due {settings.compare_every} refreshes after it"
    )


def _earlier_comparison(previous: TrainingHistory, rows: int, settings: Distillation) -> SettingChange | None:
    """The earlier comparison with and without synthetic rows, if it is still valid."""
    due = previous.refreshes_without_synthetic_comparison + 1 >= settings.compare_every
    if due or _rows_changed_much(previous, rows):
        return None
    return next((change for change in previous.changes if change.setting == "synthetic_rows"), None)


def _rows_changed_much(previous: TrainingHistory, rows: int) -> bool:
    return not previous.rows / MAX_ROWS_RATIO <= rows <= previous.rows * MAX_ROWS_RATIO


def compare_students(student: nn.Module, control: nn.Module, rows: TrainingSet) -> ControlComparison:
    """Log losses of two students on the same labelled ``rows``, and their difference with its clustered error."""
    losses, control_losses = _log_losses(student, rows), _log_losses(control, rows)
    gains = control_losses - losses
    cluster_ids = None if rows.cluster_ids is None else rows.cluster_ids.numpy()
    return ControlComparison(
        rows=len(rows),
        log_loss=float(losses.mean()),
        log_loss_fixed=float(control_losses.mean()),
        gain=float(gains.mean()),
        standard_error=clustered_error((gains - gains.mean()) / len(rows), cluster_ids, small_sample=True),
    )


def _log_losses(student: nn.Module, rows: TrainingSet) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    with torch.no_grad():
        log_probs: Tensor = torch.log_softmax(student(rows.x).double(), dim=1)
    losses: np.ndarray[tuple[int], np.dtype[np.float64]] = -log_probs[torch.arange(len(rows)), rows.labels].numpy()
    return losses
