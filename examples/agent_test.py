"""Tests that the agent file beside this file is ready, and that its sources give what they promise. Run with pytest.

`stillhouse new` writes a copy as `test_<agent>.py` beside the agent file `<agent>.yaml`, which is found by this name.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from stillhouse.config import AgentConfig, load_file
from stillhouse.parts import resolve
from stillhouse.rehearsal import rehearse

FILE = Path(__file__).with_name(f"{Path(__file__).stem.removeprefix('test_')}.yaml")
WEEKS = timedelta(weeks=2)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentConfig:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    return load_file(FILE)


def test_the_agent_is_ready(agent: AgentConfig) -> None:
    steps = list(rehearse(agent))
    assert any(step.startswith("student") for step in steps)


def test_the_sources_give_the_same_rows_again_each_once_and_within_the_period(agent: AgentConfig) -> None:
    start = agent.observations.since
    rows, again = read(agent, agent.observations.source, start), read(agent, agent.observations.source, start)
    pd.testing.assert_frame_equal(rows, again)
    assert rows["observation_id"].is_unique
    assert rows["observed_at"].between(start, start + WEEKS, inclusive="left").all()
    assert set(agent.observations.columns) <= set(rows)


def test_the_outcomes_are_actions_of_these_rows_and_known_afterwards(agent: AgentConfig) -> None:
    start = agent.observations.since
    rows, outcomes = read(agent, agent.observations.source, start), read(agent, agent.outcomes.source, start)
    assert set(outcomes["observation_id"]) <= set(rows["observation_id"])
    assert set(outcomes["action"]) <= set(agent.actions)
    assert (outcomes["known_at"] >= outcomes["observed_at"]).all()


def read(agent: AgentConfig, target: str, start: pd.Timestamp) -> pd.DataFrame:
    """What a source gives for the first two weeks, in one order."""
    rows = resolve(target, where=str(FILE), folder=agent.folder)(start, start + WEEKS)
    return rows.sort_values(["observed_at", "observation_id"], ignore_index=True)
