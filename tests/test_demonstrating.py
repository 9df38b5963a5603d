"""How many weeks of a source a demo plays, and how many of them come before the first champion."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.demonstrating import fit_bootstrap_weeks, list_week_ends
from tests.agents import agent_file

SOURCE = """\
import pandas as pd

def rows(start, end):
    times = pd.date_range("2013-01-01", periods={hours}, freq="h", tz="UTC")
    return pd.DataFrame({{"observed_at": times[(times >= start) & (times < end)]}})
"""


@pytest.mark.parametrize(("weeks", "first"), [(52, 8), (24, 8), (23, 7), (12, 4), (6, 2), (3, 2)])
def test_the_weeks_before_the_first_champion_are_eight_or_a_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weeks: int, first: int
) -> None:
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path))
    (tmp_path / "toy.yaml").write_text(agent_file())
    (tmp_path / "toy.py").write_text(SOURCE.format(hours=weeks * 168 - 5))  # the last week lacks some hours
    assert fit_bootstrap_weeks("toy") == first
    assert len(list_week_ends("toy", first, None)) == weeks - first
