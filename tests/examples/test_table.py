"""The example for tables: its rows, its teacher, and a copy of it played where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples import table
from stillhouse.new_agent import copy_example

START = pd.Timestamp("2026-01-05T00:00:00Z")
WEEK = pd.Timedelta(weeks=1)


def test_a_period_equals_the_sum_of_its_parts() -> None:
    whole = table.observations(START, START + 2 * WEEK)
    parts = [table.observations(START, START + WEEK), table.observations(START + WEEK, START + 2 * WEEK)]
    pd.testing.assert_frame_equal(whole, pd.concat(parts))
    assert list(whole) == ["observation_id", "observed_at", *table.NUMBERS, *table.CATEGORIES] and len(whole) == 2520


def test_rows_without_an_outcome_are_observed_and_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table.read_table().head(10)
    rows.loc[[2, 5], table.OUTCOME] = None
    monkeypatch.setattr(table, "read_table", lambda: rows)
    table._table.cache_clear()
    outcomes = table.outcomes(START, START + WEEK)
    assert len(table.observations(START, START + WEEK)) == 10
    assert outcomes["observation_id"].tolist() == [str(row) for row in range(10) if row not in (2, 5)]
    assert (outcomes["known_at"] == outcomes["observed_at"] + table.KNOWN_AFTER).all()
    table._table.cache_clear()


def test_the_portal_opens_after_eight_weeks_and_follows_other_rules() -> None:
    rows = table.read_table()
    portal = rows["channel"] == "portal"
    assert (
        not portal[rows["opened"] < START + 8 * WEEK].any() and portal[rows["opened"] >= START + 8 * WEEK].mean() > 0.3
    )
    escalated, length = rows["result"] == "escalate", np.log1p(rows["length"])
    assert np.corrcoef(length[portal], escalated[portal])[0, 1] < -0.2
    assert np.corrcoef(length[~portal], escalated[~portal])[0, 1] > 0.2


def test_a_saved_teacher_answers_alike_and_takes_what_it_does_not_know(tmp_path: Path) -> None:
    rows = table.read_table().head(2000).astype({"hour": float, "customers": float})
    teacher = table.Trees(trees=5)
    teacher.fit(rows, (rows["result"] == "escalate").to_numpy().astype(int))
    teacher.save(tmp_path)
    unknown = rows.head(50).assign(channel="fax", length=np.nan)
    for asked in (rows, unknown):
        probs = table.Trees.load(tmp_path).predict_proba(asked)
        np.testing.assert_allclose(probs, teacher.predict_proba(asked))
        assert probs.shape == (len(asked), 2) and np.allclose(probs.sum(axis=1), 1)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_copy_is_played_where_it_lies(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.demo import demo

    copy_example("tickets", "table", agents)
    monkeypatch.chdir(agents.parent)
    result = demo(agent="tickets", weeks=1)
    (week,) = result.weeks
    assert week.response == "hold" and week.quality_champion == week.quality_static
    assert week.quality_champion is not None and week.quality_champion > 0.7
