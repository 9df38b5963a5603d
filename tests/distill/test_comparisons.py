"""What adapting has earned, by hand and against a plain reckoning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.config import Distillation
from stillhouse.distill import control
from stillhouse.distill.control import compare, distil_better, distil_with_control
from stillhouse.distill.controller import Course
from stillhouse.distill.students import TabularStudent
from stillhouse.distill.train import Lesson, distil

SETTINGS = Distillation(epochs=3, batch_size=64, learning_rate=0.02)


def world(rows: int, seed: int, teacher: float = 1.0) -> Lesson:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    go = 1 / (1 + np.exp(-3 * x[:, 0]))
    said = 1 / (1 + np.exp(-3 * teacher * x[:, 0]))
    return Lesson(x, np.column_stack([1 - said, said]), (rng.random(rows) < go).astype(np.int64))


def student() -> TabularStudent:
    torch.manual_seed(0)
    return TabularStudent(torch.linspace(-2, 2, 5).repeat(3, 1), (), 2, (8,))


def test_gain_and_its_error_by_hand() -> None:
    rows = world(400, 0)
    rows.groups = torch.arange(400) // 40
    one, other = student().eval(), nn.Linear(3, 2)
    with torch.no_grad():
        gains = nn.functional.cross_entropy(
            other(rows.x), rows.outcomes, reduction="none"
        ) - nn.functional.cross_entropy(one(rows.x), rows.outcomes, reduction="none")
    means = gains.reshape(10, 40).mean(dim=1).numpy()
    found = compare(one, other, rows)
    assert found.gain == pytest.approx(gains.mean().item(), abs=1e-6)
    assert found.gain == pytest.approx(found.log_loss_fixed - found.log_loss)
    assert found.standard_error == pytest.approx(means.std(ddof=1) / np.sqrt(10), rel=1e-5)


def test_a_wrong_teacher_makes_adapting_pay() -> None:
    course = distil_with_control(
        student(), world(2000, 0, -1.0), SETTINGS, held_out=world(600, 1, -1.0), compared=world(600, 2, -1.0)
    )
    assert course.control.gain > 3 * course.control.standard_error > 0


def test_where_nothing_was_changed_nothing_is_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = world(600, 1)
    held_out.groups = torch.arange(600) % 3
    course = distil_with_control(student(), world(600, 0), SETTINGS, held_out=held_out, compared=world(600, 2))
    assert (course.control.gain, course.control.standard_error) == (0, 0)
    fixed = SETTINGS.model_copy(update={"controller": "fixed"})
    for settings, compared in (
        (fixed, world(9, 2)),
        (SETTINGS, None),
        (SETTINGS.model_copy(update={"control": False}), world(9, 2)),
    ):
        assert distil_with_control(student(), world(99, 0), settings, held_out=None, compared=compared).control is None


@pytest.mark.parametrize(("teacher", "helped"), [(1.0, True), (-1.0, False)])
def test_made_up_rows_are_learned_from_where_held_out_rows_speak_for_them(teacher: float, helped: bool) -> None:
    """Few observed rows, and many made-up ones about which the teacher is right, or says the opposite."""
    observed, made = world(60, 0), world(1500, 3, teacher)
    made.outcomes = torch.full_like(made.outcomes, -1)
    lesson, held_out = observed.plus(made), world(600, 1)
    fixed = SETTINGS.model_copy(update={"controller": "fixed", "epochs": 20})
    course, learned = distil_better(chosen := student(), lesson, fixed, held_out=held_out)
    (change,) = course.changes
    assert (change.setting, change.value, len(learned)) == ("made_up_rows", float(helped), 1560 if helped else 60)
    assert "600 held-out rows" in change.reason and "1500 made-up rows" in change.reason
    assert not course.adapted and learned.made_up == (1500 if helped else 0)
    assert course.made_up_rows_helped == helped
    assert abs(course.steps - 20 * -(-1560 // 64)) <= 1
    rest = student()
    epochs = 20 if helped else course.steps
    distil(rest, lesson if helped else observed, fixed, held_out=held_out, epochs=epochs)
    assert torch.equal(chosen(held_out.x), rest(held_out.x))


def test_without_held_out_rows_made_up_ones_are_learned_from_untried() -> None:
    made = world(90, 3)
    made.outcomes = torch.full_like(made.outcomes, -1)
    course, learned = distil_better(student(), world(60, 0).plus(made), SETTINGS, held_out=None)
    assert course.changes == () and len(learned) == 150


def test_a_comparison_that_told_of_no_difference_stands_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def counted(module: nn.Module, lesson: Lesson, settings: Distillation, **more: object) -> Course:
        trained.append(settings.controller)
        return distil(module, lesson, settings, **more)

    monkeypatch.setattr(control, "distil", counted)

    def refresh(previous: Course | None, rows: int = 2000, **changed: object) -> tuple[Course, list[str]]:
        trained.clear()
        settings = SETTINGS.model_copy(update={"compare_every": 3} | changed)
        others = {"held_out": world(600, 1, -1.0), "compared": world(600, 2, -1.0)}
        return distil_with_control(student(), world(rows, 0, -1.0), settings, previous=previous, **others), [*trained]

    first, done = refresh(None)
    assert done == ["adaptive", "fixed"] and first.control.moved and first.rows == 2000 and first.uncontrolled == 0
    again, done = refresh(first)
    assert done == ["adaptive", "fixed"] and again == first
    level = first.model_copy(update={"control": first.control.model_copy(update={"gain": 1e-9})})
    assert not level.control.moved
    second, done = refresh(level)
    assert done == ["adaptive"] and second.control is None and second.uncontrolled == 1
    assert "600 rows, told of no difference" in second.uncontrolled_why and second.changes == first.changes
    third, done = refresh(second)
    assert done == ["adaptive"] and third.uncontrolled == 2 and third.uncontrolled_why == second.uncontrolled_why
    fourth, done = refresh(third)
    assert done == ["adaptive", "fixed"] and fourth.control == first.control and fourth.uncontrolled == 0
    assert refresh(level, rows=1000)[1] == refresh(level, compare_every=1)[1] == ["adaptive", "fixed"]


@pytest.mark.parametrize(("teacher", "helped"), [(1.0, True), (-1.0, False)])
def test_what_made_up_rows_were_worth_is_taken_over_for_a_while(teacher: float, helped: bool) -> None:
    made = world(1500, 3, teacher)
    made.outcomes = torch.full_like(made.outcomes, -1)
    lesson, held_out = world(60, 0).plus(made), world(600, 1)
    fixed = SETTINGS.model_copy(update={"controller": "fixed", "epochs": 10, "compare_every": 3})
    course = distil_with_control(student(), lesson, fixed, held_out=held_out, compared=None)
    assert course.made_up_rows_helped == helped and course.untried == 0
    for untried in (1, 2):
        before, course = (
            course,
            distil_with_control(student(), lesson, fixed, held_out=held_out, compared=None, previous=course),
        )
        assert course.untried == untried and course.made_up_rows_helped == helped
        assert course.changes[-1].reason.startswith("taken over from an earlier refresh: loss on 600 held-out rows")
        assert course.rows == before.rows == 1560
    assert distil_with_control(student(), lesson, fixed, held_out=held_out, compared=None, previous=course).untried == 0
