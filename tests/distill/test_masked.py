"""Training sets in which rows lack teacher probabilities or a label."""

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


def training_set(
    rows: int, seed: int, unanswered_share: float = 0.0, unlabelled_share: float = 0.0, features: int = 0
) -> TrainingSet:
    """Rows with random teacher probabilities and labels, of which shares are masked, never both in a row."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    knowledge, labels = rng.dirichlet(np.ones(ACTIONS), rows), rng.integers(0, ACTIONS, rows)
    draw = rng.random(rows)
    knowledge[draw < unanswered_share] = np.nan
    labels[draw > 1 - unlabelled_share] = -1
    return TrainingSet(x, knowledge, labels, features=rng.normal(size=(rows, features)) if features else None)


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, ACTIONS))


def settings(loss: str = "hinton", **changes: Any) -> Distillation:
    losses = [{"type": loss, "rows": 64} if loss == "relational" else {"type": loss}]
    common = {"losses": losses, "epochs": 1, "batch_size": 512, "controller": "fixed", "outcome_weight": 0.3}
    return Distillation.model_validate(common | changes)


def gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in module.parameters()])


def after_one_step(rows: TrainingSet, loss: str) -> torch.Tensor:
    distil(module := student(), rows, settings(loss))
    return gradient(module)


@pytest.mark.parametrize("loss", ["hinton", "decoupled", "standardised", "relational", "hints"])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_sum_of_its_parts(loss: str, seed: int) -> None:
    """The distillation gradient on answered rows and the label gradient on labelled ones, whatever the masks."""
    rng = np.random.default_rng(seed)
    rows = training_set(60, seed, *rng.uniform(0.1, 0.45, 2), features=5)  # few, so that relational uses all
    answered, labelled = rows.take(rows.has_teacher_probs.nonzero()[:, 0]), rows.take(rows.has_label.nonzero()[:, 0])
    if loss != "decoupled":  # the only loss that uses labels
        answered.labels = torch.full_like(answered.labels, -1)
        knowledge = after_one_step(answered, loss)
    else:
        knowledge = after_one_step(answered, loss)
        with_both = answered.take(answered.has_label.nonzero()[:, 0])
        with_both.teacher_probs = torch.full_like(with_both.teacher_probs, torch.nan)
        weight = effective_label_weight(answered, 0.3)
        knowledge = (knowledge - weight * after_one_step(with_both, loss)) / (1 - weight)
    labelled.teacher_probs = torch.full_like(labelled.teacher_probs, torch.nan)
    part = effective_label_weight(rows, 0.3)
    torch.testing.assert_close(
        after_one_step(rows, loss), (1 - part) * knowledge + part * after_one_step(labelled, loss), atol=1e-5, rtol=1e-4
    )


def test_label_weight_follows_the_number_of_labels() -> None:
    """0.3 · 20 / (0.3 · 20 + 0.7 · 100) where 20 of 100 rows have one; w itself where all rows have both."""
    rows = training_set(100, 0)
    assert effective_label_weight(rows, 0.3) == pytest.approx(0.3)
    rows.labels[20:] = -1
    assert effective_label_weight(rows, 0.3) == pytest.approx(6 / 76)
    assert (effective_label_weight(rows, 0.0), effective_label_weight(rows, 1.0)) == (0, 1)
    rows.labels[:] = -1
    assert effective_label_weight(rows, 0.3) == 0 and effective_label_weight(rows, 1.0) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_update_skips_missing_probabilities_and_labels(seed: int) -> None:
    rows = training_set(100, seed, 0.4, 0.4)
    answered, labelled = rows.take(rows.has_teacher_probs.nonzero()[:, 0]), rows.take(rows.has_label.nonzero()[:, 0])
    answered.labels = torch.full_like(answered.labels, -1)
    labelled.teacher_probs = torch.full_like(labelled.teacher_probs, torch.nan)

    def gradient_of_step(batch: TrainingSet, **replayed: Any) -> torch.Tensor:
        module = student()
        distill_step(module, torch.optim.SGD(module.parameters(), lr=0.1), batch, settings(), **replayed)
        return gradient(module)

    torch.testing.assert_close(gradient_of_step(rows), gradient_of_step(answered) + gradient_of_step(labelled))
    weights = torch.rand(100)
    replayed = gradient_of_step(rows, replayed=rows, replay_weights=weights, old_share=1.0)
    parts = [
        gradient_of_step(rows, replayed=part, replay_weights=weights[which], old_share=1.0)
        for part, which in ((answered, rows.has_teacher_probs), (labelled, rows.has_label))
    ]
    torch.testing.assert_close(replayed, parts[0] + parts[1])


def test_each_loss_is_a_mean_over_its_own_rows() -> None:
    """As many answered rows as labelled ones: each loss is a mean over its own rows, not over all."""
    complete = training_set(64, 0)
    apart = TrainingSet(
        torch.cat([complete.x, complete.x]).numpy(),
        torch.cat([complete.teacher_probs, torch.full_like(complete.teacher_probs, torch.nan)]).numpy(),
        torch.cat([torch.full_like(complete.labels, -1), complete.labels]).numpy(),
    )
    torch.testing.assert_close(after_one_step(complete, "hinton"), after_one_step(apart, "hinton"))


@pytest.mark.parametrize(
    ("unanswered_share", "unlabelled_share", "absent"), [(1.0, 0.0, "knowledge_loss"), (0.0, 1.0, "outcome_loss")]
)
def test_training_set_of_one_kind_trains_and_reports_no_other_loss(
    unanswered_share: float, unlabelled_share: float, absent: str
) -> None:
    module, rows = student(), training_set(200, 0, unanswered_share, unlabelled_share)
    before = deepcopy(module.state_dict())
    history = distil(
        module,
        rows,
        settings(epochs=3, controller="adaptive"),
        validation=training_set(80, 1, unanswered_share, unlabelled_share),
    )
    assert not any(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    for epoch in history.history:
        assert absent not in epoch and f"held_out_{absent}" not in epoch
        assert np.isfinite(list(epoch.values())).all()
    assert json.loads(history.model_dump_json())["history"][0] == history.history[0]


def test_controller_ignores_rows_without_both() -> None:
    """It changes the same settings with and without incomplete validation rows."""

    def teacher_is_wrong(rows: int, seed: int) -> TrainingSet:
        incorrect = training_set(rows, seed)
        incorrect.labels = (incorrect.x[:, 0] > 0).long()
        wrong = nn.functional.one_hot(1 - incorrect.labels, ACTIONS).float()
        incorrect.teacher_probs = 0.9 * wrong + 0.025
        return incorrect

    rows, validation = teacher_is_wrong(800, 0), teacher_is_wrong(300, 1)
    blind = training_set(300, 2, 0.5, 0.5)
    with_both = TrainingSet(
        *(
            torch.cat([getattr(part, name) for part in (validation, blind)]).numpy()
            for name in ("x", "teacher_probs", "labels")
        )
    )
    config = settings(epochs=10, batch_size=64, learning_rate=0.02, controller="adaptive")
    first, second = (distil(student(), rows, config, validation=part) for part in (validation, with_both))
    assert first.adapted and first.changes == second.changes
    assert any(change.setting == "outcome_weight" and change.value > 0.9 for change in first.changes)


def test_students_are_compared_on_labelled_rows() -> None:
    config = settings(epochs=2, controller="adaptive")
    rows, validation, compare_rows = (
        training_set(100, 0, 0.3, 0.3),
        training_set(50, 1, 0.3, 0.3),
        training_set(60, 2, 0.3, 0.3),
    )
    history = distil_with_control(
        student(), rows, config, validation_control=validation, validation_compare=compare_rows
    )
    assert history.control is not None and history.control.rows == int(compare_rows.has_label.sum()) < 60
    none = training_set(60, 2, 0.0, 1.0)
    assert (
        distil_with_control(student(), rows, config, validation_control=validation, validation_compare=none).control
        is None
    )


def test_update_and_forgetting_without_probabilities_or_labels() -> None:
    module = student()
    result = update(
        module, training_set(60, 0, 1.0), with_student_probs(module, training_set(40, 1, 0.3, 0.3)), settings(), steps=8
    )
    assert result.knowledge_loss is None
    past = {"some": training_set(60, 2, 0.2, 0.5), "none": training_set(60, 3, 0.0, 1.0)}
    assert list(measure_forgetting(student(), module, past)) == ["some"]


def test_decoupled_uses_the_teachers_choice_without_a_label() -> None:
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
def test_invalid_rows_are_refused(change: Callable[..., tuple[Any, ...]], message: str) -> None:
    rows = training_set(20, 0)
    with pytest.raises(DataError, match=message):
        TrainingSet(*change(rows.x.numpy(), rows.teacher_probs.numpy(), rows.labels.numpy()))
