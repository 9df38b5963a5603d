"""Comparisons with a control and without synthetic rows, by hand and against plain trainings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.config import Distillation
from stillhouse.distill import comparisons
from stillhouse.distill.comparisons import compare_students, distil_with_best_rows, distil_with_control
from stillhouse.distill.history import TrainingHistory
from stillhouse.distill.students import TabularStudent
from stillhouse.distill.train import distil
from stillhouse.distill.training_set import TrainingSet

SETTINGS = Distillation(epochs=3, batch_size=64, learning_rate=0.02)


def world(rows: int, seed: int, teacher: float = 1.0) -> TrainingSet:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    go = 1 / (1 + np.exp(-3 * x[:, 0]))
    teacher_probs = 1 / (1 + np.exp(-3 * teacher * x[:, 0]))
    return TrainingSet(x, np.column_stack([1 - teacher_probs, teacher_probs]), (rng.random(rows) < go).astype(np.int64))


def student() -> TabularStudent:
    torch.manual_seed(0)
    return TabularStudent(torch.linspace(-2, 2, 5).repeat(3, 1), (), 2, (8,))


def test_gain_and_its_standard_error_by_hand() -> None:
    rows = world(400, 0)
    rows.cluster_ids = torch.arange(400) // 40
    first, second = student().eval(), nn.Linear(3, 2)
    with torch.no_grad():
        gains = nn.functional.cross_entropy(
            second(rows.x), rows.labels, reduction="none"
        ) - nn.functional.cross_entropy(first(rows.x), rows.labels, reduction="none")
    means = gains.reshape(10, 40).mean(dim=1).numpy()
    comparison = compare_students(first, second, rows)
    assert comparison.gain == pytest.approx(gains.mean().item(), abs=1e-6)
    assert comparison.gain == pytest.approx(comparison.log_loss_fixed - comparison.log_loss)
    assert comparison.standard_error == pytest.approx(means.std(ddof=1) / np.sqrt(10), rel=1e-5)


def test_adapting_to_a_wrong_teacher_has_a_gain() -> None:
    history = distil_with_control(
        student(),
        world(2000, 0, -1.0),
        SETTINGS,
        validation_control=world(600, 1, -1.0),
        validation_compare=world(600, 2, -1.0),
    )
    assert history.control.gain > 3 * history.control.standard_error > 0


def test_no_control_is_trained_without_a_change_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    validation = world(600, 1)
    validation.cluster_ids = torch.arange(600) % 3
    history = distil_with_control(
        student(), world(600, 0), SETTINGS, validation_control=validation, validation_compare=world(600, 2)
    )
    assert (history.control.gain, history.control.standard_error) == (0, 0)
    fixed = SETTINGS.model_copy(update={"controller": "fixed"})
    for settings, compares in (
        (fixed, world(9, 2)),
        (SETTINGS, None),
        (SETTINGS.model_copy(update={"control": False}), world(9, 2)),
    ):
        assert (
            distil_with_control(
                student(), world(99, 0), settings, validation_control=None, validation_compare=compares
            ).control
            is None
        )


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "helped"), [(1.0, True), (-1.0, False)])
def test_synthetic_rows_are_used_if_they_lower_the_validation_loss(teacher: float, helped: bool) -> None:
    """Few observed rows, and many synthetic ones on which the teacher is right, or predicts the opposite."""
    observed, synthetic = world(60, 0), world(1500, 3, teacher)
    synthetic.labels = torch.full_like(synthetic.labels, -1)
    training_set, validation = observed.append(synthetic), world(600, 1)
    fixed = SETTINGS.model_copy(update={"controller": "fixed", "epochs": 20})
    history, learned = distil_with_best_rows(chosen := student(), training_set, fixed, validation=validation)
    (change,) = history.changes
    assert (change.setting, change.value, len(learned)) == ("synthetic_rows", float(helped), 1560 if helped else 60)
    assert "600 validation rows" in change.reason and "1500 synthetic rows" in change.reason
    assert not history.adapted and learned.synthetic_rows == (1500 if helped else 0)
    assert history.synthetic_rows_helped == helped
    assert abs(history.steps - 20 * -(-1560 // 64)) <= 1
    rest = student()
    epochs = 20 if helped else history.steps
    distil(rest, training_set if helped else observed, fixed, validation=validation, epochs=epochs)
    assert torch.equal(chosen(validation.x), rest(validation.x))


def test_synthetic_rows_are_used_without_validation_rows() -> None:
    synthetic = world(90, 3)
    synthetic.labels = torch.full_like(synthetic.labels, -1)
    history, learned = distil_with_best_rows(student(), world(60, 0).append(synthetic), SETTINGS, validation=None)
    assert history.changes == () and len(learned) == 150


@pytest.mark.slow
def test_control_is_skipped_after_a_comparison_without_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def counted(
        module: nn.Module, training_set: TrainingSet, settings: Distillation, **more: object
    ) -> TrainingHistory:
        trained.append(settings.controller)
        return distil(module, training_set, settings, **more)

    monkeypatch.setattr(comparisons, "distil", counted)

    def refresh(
        previous: TrainingHistory | None, rows: int = 2000, **changed: object
    ) -> tuple[TrainingHistory, list[str]]:
        trained.clear()
        settings = SETTINGS.model_copy(update={"compare_every": 3} | changed)
        others = {"validation_control": world(600, 1, -1.0), "validation_compare": world(600, 2, -1.0)}
        return distil_with_control(student(), world(rows, 0, -1.0), settings, previous=previous, **others), [*trained]

    first, done = refresh(None)
    assert (
        done == ["adaptive", "fixed"]
        and first.control.significant
        and first.rows == 2000
        and first.refreshes_without_control == 0
    )
    again, done = refresh(first)
    assert done == ["adaptive", "fixed"] and again == first
    level = first.model_copy(update={"control": first.control.model_copy(update={"gain": 1e-9})})
    assert not level.control.significant
    second, done = refresh(level)
    assert done == ["adaptive"] and second.control is None and second.refreshes_without_control == 1
    assert (
        "600 rows, showed no significant difference" in second.control_skipped_because
        and second.changes == first.changes
    )
    third, done = refresh(second)
    assert (
        done == ["adaptive"]
        and third.refreshes_without_control == 2
        and third.control_skipped_because == second.control_skipped_because
    )
    fourth, done = refresh(third)
    assert done == ["adaptive", "fixed"] and fourth.control == first.control and fourth.refreshes_without_control == 0
    assert refresh(level, rows=1000)[1] == refresh(level, compare_every=1)[1] == ["adaptive", "fixed"]


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "helped"), [(1.0, True), (-1.0, False)])
def test_comparison_of_synthetic_rows_is_reused(teacher: float, helped: bool) -> None:
    synthetic = world(1500, 3, teacher)
    synthetic.labels = torch.full_like(synthetic.labels, -1)
    training_set, validation = world(60, 0).append(synthetic), world(600, 1)
    fixed = SETTINGS.model_copy(update={"controller": "fixed", "epochs": 10, "compare_every": 3})
    history = distil_with_control(
        student(), training_set, fixed, validation_control=validation, validation_compare=None
    )
    assert history.synthetic_rows_helped == helped and history.refreshes_without_synthetic_comparison == 0
    for reused in (1, 2):
        before, history = (
            history,
            distil_with_control(
                student(), training_set, fixed, validation_control=validation, validation_compare=None, previous=history
            ),
        )
        assert history.refreshes_without_synthetic_comparison == reused and history.synthetic_rows_helped == helped
        assert history.changes[-1].reason.startswith("reused from an earlier refresh: loss on 600 validation rows")
        assert history.rows == before.rows == 1560
    assert (
        distil_with_control(
            student(), training_set, fixed, validation_control=validation, validation_compare=None, previous=history
        ).refreshes_without_synthetic_comparison
        == 0
    )
