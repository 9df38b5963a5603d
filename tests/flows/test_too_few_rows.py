"""A refresh that comes too early is refused in one sentence, before the data check and before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.config import home, load
from stillhouse.errors import WindowError
from stillhouse.knowledge import KnowledgeBase
from tasks import refreshing
from tests.flows import toy


def require_learnable(day, until: int, outcomes_until: int) -> None:
    """Request a refresh on day ``until`` of an agent that has outcomes until day ``outcomes_until``."""
    base = KnowledgeBase(load("toy"))
    base.append_observations(toy.observations(day(0), day(until)), batch="observations")
    if outcomes_until:
        known = toy.outcomes(day(0), day(outcomes_until))
        base.tables.append("outcomes", known, batch="outcomes")
    request = refreshing.request_refresh("toy", day(until), "bootstrap", "first", "fit", "redistil")
    refreshing.require_learnable(request)


@pytest.mark.parametrize(
    ("until", "outcomes_until", "message"),
    [
        (3, 3, r"train .* has 0 rows with known outcomes, and 500 are needed: wait for more"),
        (8, 8, r"train .* has 360 rows with known outcomes, and 500 are needed"),
        (20, 0, r"train .* has 0 rows with known outcomes"),
        (20, 15, r"test .* has 0 rows with known outcomes, and 100 are needed"),
    ],
)
def test_too_few_rows_or_outcomes_are_refused(day, until: int, outcomes_until: int, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        require_learnable(day, until, outcomes_until)
    assert not (home() / "refreshes").exists() and not (home() / "data_docs").exists()


def test_window_without_a_validation_day_is_refused(day, agents: Path) -> None:
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("folds: 3", "folds: 3, validation_every: 365"))
    with pytest.raises(WindowError, match=r"train .* has no validation rows .*every 365th day.*: wait for more"):
        require_learnable(day, 20, 20)


def test_enough_rows_are_accepted(day) -> None:
    require_learnable(day, 20, 20)
