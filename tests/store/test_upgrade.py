"""A home of every earlier store version is opened, upgraded and used by the current code."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from stillhouse.config import home, load
from stillhouse.config.store import VERSION
from stillhouse.knowledge import KnowledgeBase
from stillhouse.registry import Registry
from stillhouse.runtime import Agent
from tests.store.make import FOLDER, ROWS


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_home_of_that_version_can_be_used(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(FOLDER / f"version{version}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "set to be unset")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    assert f'"version": {VERSION}' in (home() / "store.json").read_text()
    base, registry = KnowledgeBase(load("flights")), Registry("flights")
    assert set(base.read("observations")["observation_id"]) == {f"o{i}" for i in range(4)}
    assert [verdict.summary for verdict in base.journal.verdicts()] == ["the first"]
    assert base.answers.probs(base.read("observations"), "rule@1")[:2].tolist() == [[0.5, 0.5]] * 2
    with Agent("flights", follow=False, flush=False) as agent:
        agent.flush()  # events in a spool of the old version
        agent.follow(registry)
        assert agent.decide(ROWS[0] | {"observation_id": "new"}).version == "flights@1"
        agent.flush()
    assert set(base.read("decisions")["observation_id"]) == {"new", *(f"o{i}" for i in range(6))}
    assert base.read("outcomes")["action"].tolist() == ["late"]
    champion = registry.champion()
    assert champion is not None and registry.baseline(champion).quality.rows == 900
