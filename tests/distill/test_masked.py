"""Rows that the teacher was never asked about, and rows whose outcome is not known (yet)."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.config import Distillation
from stillhouse.distill.comparisons import distil_with_control
from stillhouse.distill.losses import decoupled_loss
from stillhouse.distill.online import distill_step, measure_forgetting, update
from stillhouse.distill.train import distil
from stillhouse.distill.training_set import TrainingSet, effective_label_weight
from stillhouse.errors import DataError
from tests.distill.replay import with_student_probs

ACTIONS = 4


def training_set(rows: int, seed: int, unasked: float = 0.0, unknown: float = 0.0, features: int = 0) -> TrainingSet:
    """Rows of random knowledge and outcomes, of which shares are masked, never both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    knowledge, outcomes = rng.dirichlet(np.ones(ACTIONS), rows), rng.integers(0, ACTIONS, rows)
    draw = rng.random(rows)
    knowledge[draw < unasked] = np.nan
    outcomes[draw > 1 - unknown] = -1
    return TrainingSet(x, knowledge, outcomes, features=rng.normal(size=(rows, features)) if features else None)


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, ACTIONS))


def settings(loss: str = "hinton", **given: Any) -> Distillation:
    losses = [{"type": loss, "rows": 64} if loss == "relational" else {"type": loss}]
    common = {"losses": losses, "epochs": 1, "batch_size": 512, "controller": "fixed", "outcome_weight": 0.3}
    return Distillation.model_validate(common | given)


def gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in module.parameters()])


def after_one_step(rows: TrainingSet, loss: str) -> torch.Tensor:
    distil(module := student(), rows, settings(loss))
    return gradient(module)


@pytest.mark.parametrize("loss", ["hinton", "decoupled", "standardised", "relational", "hints"])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_sum_of_its_parts(loss: str, seed: int) -> None:
    """Whatever rows are masked: knowledge's on the rows that have it, and outcomes' on those that have them."""
    rng = np.random.default_rng(seed)
    rows = training_set(60, seed, *rng.uniform(0.1, 0.45, 2), features=5)  # few: relational looks at all of them
    taught, lived = rows.take(rows.has_teacher_probs.nonzero()[:, 0]), rows.take(rows.has_label.nonzero()[:, 0])
    if loss != "decoupled":  # the only one that looks at outcomes
        taught.labels = torch.full_like(taught.labels, -1)
        knowledge = after_one_step(taught, loss)
    else:
        knowledge = after_one_step(taught, loss)
        outcomes_there = taught.take(taught.has_label.nonzero()[:, 0])
        outcomes_there.teacher_probs = torch.full_like(outcomes_there.teacher_probs, torch.nan)
        there = effective_label_weight(taught, 0.3)
        knowledge = (knowledge - there * after_one_step(outcomes_there, loss)) / (1 - there)
    lived.teacher_probs = torch.full_like(lived.teacher_probs, torch.nan)
    part = effective_label_weight(rows, 0.3)
    torch.testing.assert_close(
        after_one_step(rows, loss), (1 - part) * knowledge + part * after_one_step(lived, loss), atol=1e-5, rtol=1e-4
    )


def test_outcomes_pull_by_how_many_they_are() -> None:
    """0.3 · 20 / (0.3 · 20 + 0.7 · 100) where 20 of 100 rows have one; w itself where all rows have both."""
    rows = training_set(100, 0)
    assert effective_label_weight(rows, 0.3) == pytest.approx(0.3)
    rows.labels[20:] = -1
    assert effective_label_weight(rows, 0.3) == pytest.approx(6 / 76)
    assert (effective_label_weight(rows, 0.0), effective_label_weight(rows, 1.0)) == (0, 1)
    rows.labels[:] = -1
    assert effective_label_weight(rows, 0.3) == 0 and effective_label_weight(rows, 1.0) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_an_update_skips_what_is_absent_alike(seed: int) -> None:
    rows = training_set(100, seed, 0.4, 0.4)
    taught, lived = rows.take(rows.has_teacher_probs.nonzero()[:, 0]), rows.take(rows.has_label.nonzero()[:, 0])
    taught.labels = torch.full_like(taught.labels, -1)
    lived.teacher_probs = torch.full_like(lived.teacher_probs, torch.nan)

    def stepped(batch: TrainingSet, **replayed: Any) -> torch.Tensor:
        module = student()
        distill_step(module, torch.optim.SGD(module.parameters(), lr=0.1), batch, settings(), **replayed)
        return gradient(module)

    torch.testing.assert_close(stepped(rows), stepped(taught) + stepped(lived))
    weights = torch.rand(100)
    replayed = stepped(rows, replayed=rows, weights=weights, old_share=1.0)
    parts = [
        stepped(rows, replayed=part, weights=weights[which], old_share=1.0)
        for part, which in ((taught, rows.has_teacher_probs), (lived, rows.has_label))
    ]
    torch.testing.assert_close(replayed, parts[0] + parts[1])


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    """Two kinds of rows of the same number: each part is the mean over its own, not over all."""
    whole = training_set(64, 0)
    apart = TrainingSet(
        torch.cat([whole.x, whole.x]).numpy(),
        torch.cat([whole.teacher_probs, torch.full_like(whole.teacher_probs, torch.nan)]).numpy(),
        torch.cat([torch.full_like(whole.labels, -1), whole.labels]).numpy(),
    )
    torch.testing.assert_close(after_one_step(whole, "hinton"), after_one_step(apart, "hinton"))


@pytest.mark.parametrize(("unasked", "unknown", "absent"), [(1.0, 0.0, "knowledge_loss"), (0.0, 1.0, "outcome_loss")])
def test_a_lesson_of_one_kind_teaches_and_says_nothing_of_the_other(
    unasked: float, unknown: float, absent: str
) -> None:
    module, rows = student(), training_set(200, 0, unasked, unknown)
    before = deepcopy(module.state_dict())
    course = distil(
        module, rows, settings(epochs=3, controller="adaptive"), validation=training_set(80, 1, unasked, unknown)
    )
    assert not any(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    for epoch in course.history:
        assert absent not in epoch and f"held_out_{absent}" not in epoch
        assert np.isfinite(list(epoch.values())).all()
    assert json.loads(course.model_dump_json())["history"][0] == course.history[0]


def test_the_controller_reads_rows_with_both_and_ignores_the_rest() -> None:
    """What it changes is the same whether or not rows that cannot tell it anything lie among the held-out ones."""

    def teacher_is_wrong(rows: int, seed: int) -> TrainingSet:
        found = training_set(rows, seed)
        found.labels = (found.x[:, 0] > 0).long()
        wrong = nn.functional.one_hot(1 - found.labels, ACTIONS).float()
        found.teacher_probs = 0.9 * wrong + 0.025
        return found

    rows, validation = teacher_is_wrong(800, 0), teacher_is_wrong(300, 1)
    blind = training_set(300, 2, 0.5, 0.5)
    both = TrainingSet(
        *(
            torch.cat([getattr(part, name) for part in (validation, blind)]).numpy()
            for name in ("x", "knowledge", "outcomes")
        )
    )
    given = settings(epochs=10, batch_size=64, learning_rate=0.02, controller="adaptive")
    one, other = (distil(student(), rows, given, validation=part) for part in (validation, both))
    assert one.adapted and one.changes == other.changes
    assert any(change.setting == "outcome_weight" and change.value > 0.9 for change in one.changes)


def test_students_are_compared_on_rows_with_outcomes() -> None:
    given = settings(epochs=2, controller="adaptive")
    rows, validation, compared = (
        training_set(100, 0, 0.3, 0.3),
        training_set(50, 1, 0.3, 0.3),
        training_set(60, 2, 0.3, 0.3),
    )
    course = distil_with_control(student(), rows, given, validation=validation, validation_compare=compared)
    assert course.control is not None and course.control.rows == int(compared.has_label.sum()) < 60
    none = training_set(60, 2, 0.0, 1.0)
    assert distil_with_control(student(), rows, given, validation=validation, validation_compare=none).control is None


def test_an_update_and_its_forgetting_without_knowledge_or_outcomes() -> None:
    module = student()
    found = update(
        module, training_set(60, 0, 1.0), with_student_probs(module, training_set(40, 1, 0.3, 0.3)), settings(), steps=8
    )
    assert found.knowledge_loss is None
    past = {"some": training_set(60, 2, 0.2, 0.5), "none": training_set(60, 3, 0.0, 1.0)}
    assert list(measure_forgetting(student(), module, past)) == ["some"]


def test_decoupled_takes_the_teachers_choice_where_the_outcome_is_not_known() -> None:
    rows = training_set(20, 0)
    logits = torch.randn(20, ACTIONS, generator=torch.Generator().manual_seed(0))
    unknown = decoupled_loss(logits, rows.teacher_probs, torch.full((20,), -1), 2.0, 8.0)
    assert torch.equal(unknown, decoupled_loss(logits, rows.teacher_probs, rows.teacher_probs.argmax(dim=1), 2.0, 8.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, k, o: (x, k * np.nan, o * 0 - 1),
            r"20 of 20 rows .* neither teacher probabilities nor a label.*leave them out",
        ),
        (lambda x, k, o: (x, np.where(np.eye(20, ACTIONS) > 0, np.nan, k), o), "4 of 20 rows .* some actions only"),
        (lambda x, k, o: (x, k, o - 2), "0 … 3, or be −1"),
        (lambda x, k, o: (x, k, o + ACTIONS), "0 … 3, or be −1"),
        (lambda x, k, o: (x[1:], k, o), "19 rows, 20 rows of teacher probabilities and 20 labels"),
    ],
)
def test_rows_that_cannot_teach_are_refused(change: Callable[..., tuple[Any, ...]], message: str) -> None:
    rows = training_set(20, 0)
    with pytest.raises(DataError, match=message):
        TrainingSet(*change(rows.x.numpy(), rows.teacher_probs.numpy(), rows.labels.numpy()))
