"""What pays: promotions by evidence, undo, the reckoning in the verdict, and gains, on the real path."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import stillhouse
from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.drift.decide import decide_from_evidence
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ChampionChoice, PoolState, Verdict, drift_report
from stillhouse.watching import payoff, pool, promotions
from stillhouse.watching.publishing import format_pool, format_reckoning
from stillhouse.watching.window import get_window, open_window

Day = Callable[[int], datetime]
Base = Callable[..., KnowledgeBase]


def _edit(agents: Path, *changes: tuple[str, str]) -> None:
    file = agents / "toy.yaml"
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture
def accuracy(agents: Path) -> None:
    """Judged by accuracy with a generous margin; nothing is refused because of the rows that there are."""
    _edit(
        agents,
        ("quality: {measure: auc}", "quality: {measure: accuracy}"),
        ("non_inferiority_margin: 0.02, slices: [place], slice_margin: 0.1,", "non_inferiority_margin: 0.02,"),
    )


def _refuse_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every refresh ends as inconclusive, as with a test window that proves nothing."""
    from stillhouse.refreshing import publishing

    judge = publishing.gate.judge

    def undecided(certificate: object) -> Verdict:
        return judge(certificate).model_copy(update={"result": "inconclusive"})  # type: ignore[arg-type]

    monkeypatch.setattr(publishing.gate, "judge", undecided)


def _watch_until_switch(day: Day, first: int, last: int) -> Verdict | None:
    for number in range(first, last + 1):
        verdict = stillhouse.watch("toy", day(number))
        if verdict.response == "reuse":
            return verdict
    return None


def test_an_inconclusive_challenger_becomes_champion_by_evidence_and_may_be_undone(
    toy_base: Base, day: Day, accuracy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = toy_base(58)
    registry = open_registry("toy")
    first = str(registry.champion())
    _refuse_next(monkeypatch)
    stillhouse.refresh("toy", as_of=day(40), trigger="manual", cause="drift")
    assert str(registry.champion()) == first
    verdict = _watch_until_switch(day, 57, 57)
    assert verdict is not None, base.journal.last_verdict("watch").summary
    choice = ChampionChoice.model_validate(verdict.evidence["choice"])
    assert choice.action == "promote" and str(registry.champion()) == choice.member != first
    assert str(registry.previous()) == first
    (promotion,) = base.journal.verdicts("promotion")
    assert promotion.result == "promoted" and promotion.as_of == verdict.as_of
    assert promotion.evidence["pool"]["watch"] == verdict.verdict_id
    assert decide_from_evidence(verdict.evidence) == verdict
    # a watch that was killed before its promotion is completed by the next one, and only once
    assert promotions.complete_promotion("toy") is None
    assert len(base.journal.verdicts("promotion")) == 1
