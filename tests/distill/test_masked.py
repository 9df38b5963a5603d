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
from stillhouse.distill.control import distil_with_control
from stillhouse.distill.losses import decoupled_loss
from stillhouse.distill.online import distill_step, forgetting, remember, update
from stillhouse.distill.train import Lesson, distil, outcomes_part
from stillhouse.errors import DataError

ACTIONS = 4


def lesson(rows: int, seed: int, unasked: float = 0.0, unknown: float = 0.0, features: int = 0) -> Lesson:
    """Rows of random knowledge and outcomes, of which shares are masked, never both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    knowledge, outcomes = rng.dirichlet(np.ones(ACTIONS), rows), rng.integers(0, ACTIONS, rows)
    draw = rng.random(rows)
    knowledge[draw < unasked] = np.nan
    outcomes[draw > 1 - unknown] = -1
    return Lesson(x, knowledge, outcomes, features=rng.normal(size=(rows, features)) if features else None)


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, ACTIONS))


def settings(loss: str = "hinton", **given: Any) -> Distillation:
    losses = [{"type": loss, "rows": 64} if loss == "relational" else {"type": loss}]
    common = {"losses": losses, "epochs": 1, "batch_size": 512, "controller": "fixed", "outcome_weight": 0.3}
    return Distillation.model_validate(common | given)


def gradient(module: nn.Module) -> torch.Tensor:
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in module.parameters()])


def after_one_step(rows: Lesson, loss: str) -> torch.Tensor:
    distil(module := student(), rows, settings(loss))
    return gradient(module)


@pytest.mark.parametrize("loss", ["hinton", "decoupled", "standardised", "relational", "hints"])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_sum_of_its_parts(loss: str, seed: int) -> None:
    """Whatever rows are masked: knowledge's on the rows that have it, and outcomes' on those that have them."""
    rng = np.random.default_rng(seed)
    rows = lesson(60, seed, *rng.uniform(0.1, 0.45, 2), features=5)  # few: relational looks at all of them
    taught, lived = rows.take(rows.taught.nonzero()[:, 0]), rows.take(rows.lived.nonzero()[:, 0])
    if loss != "decoupled":  # the only one that looks at outcomes
        taught.outcomes = torch.full_like(taught.outcomes, -1)
        knowledge = after_one_step(taught, loss)
    else:
        knowledge = after_one_step(taught, loss)
        outcomes_there = taught.take(taught.lived.nonzero()[:, 0])
        outcomes_there.knowledge = torch.full_like(outcomes_there.knowledge, torch.nan)
        there = outcomes_part(taught, 0.3)
        knowledge = (knowledge - there * after_one_step(outcomes_there, loss)) / (1 - there)
    lived.knowledge = torch.full_like(lived.knowledge, torch.nan)
    part = outcomes_part(rows, 0.3)
    torch.testing.assert_close(
        after_one_step(rows, loss), (1 - part) * knowledge + part * after_one_step(lived, loss), atol=1e-5, rtol=1e-4
    )


def test_outcomes_pull_by_how_many_they_are() -> None:
    """0.3 · 20 / (0.3 · 20 + 0.7 · 100) where 20 of 100 rows have one; w itself where all rows have both."""
    rows = lesson(100, 0)
    assert outcomes_part(rows, 0.3) == pytest.approx(0.3)
    rows.outcomes[20:] = -1
    assert outcomes_part(rows, 0.3) == pytest.approx(6 / 76)
    assert (outcomes_part(rows, 0.0), outcomes_part(rows, 1.0)) == (0, 1)
    rows.outcomes[:] = -1
    assert outcomes_part(rows, 0.3) == 0 and outcomes_part(rows, 1.0) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_an_update_skips_what_is_absent_alike(seed: int) -> None:
    rows = lesson(100, seed, 0.4, 0.4)
    taught, lived = rows.take(rows.taught.nonzero()[:, 0]), rows.take(rows.lived.nonzero()[:, 0])
    taught.outcomes = torch.full_like(taught.outcomes, -1)
    lived.knowledge = torch.full_like(lived.knowledge, torch.nan)

    def stepped(batch: Lesson, **replayed: Any) -> torch.Tensor:
        module = student()
        distill_step(module, torch.optim.SGD(module.parameters(), lr=0.1), batch, settings(), **replayed)
        return gradient(module)

    torch.testing.assert_close(stepped(rows), stepped(taught) + stepped(lived))
    weights = torch.rand(100)
    replayed = stepped(rows, replayed=rows, weights=weights, old_share=1.0)
    parts = [
        stepped(rows, replayed=part, weights=weights[which], old_share=1.0)
        for part, which in ((taught, rows.taught), (lived, rows.lived))
    ]
    torch.testing.assert_close(replayed, parts[0] + parts[1])


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    """Two kinds of rows of the same number: each part is the mean over its own, not over all."""
    whole = lesson(64, 0)
    apart = Lesson(
        torch.cat([whole.x, whole.x]).numpy(),
        torch.cat([whole.knowledge, torch.full_like(whole.knowledge, torch.nan)]).numpy(),
        torch.cat([torch.full_like(whole.outcomes, -1), whole.outcomes]).numpy(),
    )
    torch.testing.assert_close(after_one_step(whole, "hinton"), after_one_step(apart, "hinton"))


@pytest.mark.parametrize(("unasked", "unknown", "absent"), [(1.0, 0.0, "knowledge_loss"), (0.0, 1.0, "outcome_loss")])
def test_a_lesson_of_one_kind_teaches_and_says_nothing_of_the_other(
    unasked: float, unknown: float, absent: str
) -> None:
    module, rows = student(), lesson(200, 0, unasked, unknown)
    before = deepcopy(module.state_dict())
    course = distil(module, rows, settings(epochs=3, controller="adaptive"), held_out=lesson(80, 1, unasked, unknown))
    assert not any(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())
    for epoch in course.history:
        assert absent not in epoch and f"held_out_{absent}" not in epoch
        assert np.isfinite(list(epoch.values())).all()
    assert json.loads(course.model_dump_json())["history"][0] == course.history[0]


def test_the_controller_reads_rows_with_both_and_ignores_the_rest() -> None:
    """What it changes is the same whether or not rows that cannot tell it anything lie among the held-out ones."""

    def teacher_is_wrong(rows: int, seed: int) -> Lesson:
        found = lesson(rows, seed)
        found.outcomes = (found.x[:, 0] > 0).long()
        wrong = nn.functional.one_hot(1 - found.outcomes, ACTIONS).float()
        found.knowledge = 0.9 * wrong + 0.025
        return found

    rows, held_out = teacher_is_wrong(800, 0), teacher_is_wrong(300, 1)
    blind = lesson(300, 2, 0.5, 0.5)
    both = Lesson(
        *(
            torch.cat([getattr(part, name) for part in (held_out, blind)]).numpy()
            for name in ("x", "knowledge", "outcomes")
        )
    )
    given = settings(epochs=10, batch_size=64, learning_rate=0.02, controller="adaptive")
    one, other = (distil(student(), rows, given, held_out=part) for part in (held_out, both))
    assert one.adapted and one.changes == other.changes
    assert any(change.setting == "outcome_weight" and change.value > 0.9 for change in one.changes)


def test_students_are_compared_on_rows_with_outcomes() -> None:
    given = settings(epochs=2, controller="adaptive")
    rows, held_out, compared = lesson(100, 0, 0.3, 0.3), lesson(50, 1, 0.3, 0.3), lesson(60, 2, 0.3, 0.3)
    course = distil_with_control(student(), rows, given, held_out=held_out, compared=compared)
    assert course.control is not None and course.control.rows == int(compared.lived.sum()) < 60
    none = lesson(60, 2, 0.0, 1.0)
    assert distil_with_control(student(), rows, given, held_out=held_out, compared=none).control is None


def test_what_is_remembered_is_known_of_all_rows() -> None:
    rows = lesson(50, 0, 0.5, 0.3)
    kept = remember(student(), rows)
    assert kept.taught.all() and torch.equal(kept.outcomes, rows.outcomes) and not rows.taught.all()


def test_an_update_and_its_forgetting_without_knowledge_or_outcomes() -> None:
    module = student()
    found = update(module, lesson(60, 0, 1.0), remember(module, lesson(40, 1, 0.3, 0.3)), settings(), steps=8)
    assert found.knowledge_loss is None
    past = {"some": lesson(60, 2, 0.2, 0.5), "none": lesson(60, 3, 0.0, 1.0)}
    assert list(forgetting(student(), module, past)) == ["some"]


def test_decoupled_takes_the_teachers_choice_where_the_outcome_is_not_known() -> None:
    rows = lesson(20, 0)
    logits = torch.randn(20, ACTIONS, generator=torch.Generator().manual_seed(0))
    unknown = decoupled_loss(logits, rows.knowledge, torch.full((20,), -1), 2.0, 8.0)
    assert torch.equal(unknown, decoupled_loss(logits, rows.knowledge, rows.knowledge.argmax(dim=1), 2.0, 8.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, k, o: (x, k * np.nan, o * 0 - 1), r"20 of 20 rows .* neither knowledge nor outcome.*leave them out"),
        (lambda x, k, o: (x, np.where(np.eye(20, ACTIONS) > 0, np.nan, k), o), "4 of 20 rows .* some actions alone"),
        (lambda x, k, o: (x, k, o - 2), "0 … 3, or be −1"),
        (lambda x, k, o: (x, k, o + ACTIONS), "0 … 3, or be −1"),
        (lambda x, k, o: (x[1:], k, o), "19 rows, 20 of knowledge and 20 outcomes"),
    ],
)
def test_rows_that_cannot_teach_are_refused(change: Callable[..., tuple[Any, ...]], message: str) -> None:
    rows = lesson(20, 0)
    with pytest.raises(DataError, match=message):
        Lesson(*change(rows.x.numpy(), rows.knowledge.numpy(), rows.outcomes.numpy()))
