"""Upkeep never changes the rows in the windows of a registered champion."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from flows.maintain import maintain
from stillhouse import maintaining, refresh, watch
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.errors import RegistryError
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.events import Outcomes
from stillhouse.knowledge.spool import Spool, spool_folder
from stillhouse.records import Verdict
from stillhouse.shown import escape_markdown
from tests.flows.test_loop import artifacts

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def base(day, agents: Path) -> KnowledgeBase:
    """Twenty days of data in periods of four days, with upkeep settings that delete as early as possible."""
    file = agents / "toy.yaml"
    file.write_text(file.read_text() + "upkeep: {keep: 19d, grace: 0s, min_files: 2}\n")
    for first in range(0, 20, 4):
        ingest("toy", day(first), day(first + 4))
    return KnowledgeBase(load("toy"))


@pytest.mark.slow
def test_training_window_of_a_champion_reads_identically_after_upkeep(base: KnowledgeBase, day) -> None:
    refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    for first in range(20, 50, 5):
        ingest("toy", day(first), day(first + 5))
    champion = open_registry("toy").champion()
    assert champion is not None
    baseline = open_registry("toy").baseline(champion)
    before = [base.read_labelled(window, day(50)) for window in (baseline.train, baseline.test)]
    assert len(before[0]) > 1000
    spool = Spool(spool_folder("toy"))
    at = int(day(49).timestamp() * 1e6)
    spool.put(Outcomes(observation_ids=["toy-05999"], observed_at=[at], known_at=[at], actions=["go"]))
    rows = base.tables.count_rows()["observations"]

    upkeep = maintain(agent="toy", as_of=day(50))
    assert upkeep.flushed.rows == {"outcomes": 1} and upkeep.models >= 1 and not upkeep.nothing_removed
    assert {c.table for c in upkeep.compacted} >= {"observations", "outcomes", "decisions"}
    assert baseline.train.start <= day(2) and baseline.test.end >= day(18)
    removed = {r.table: r.rows for r in upkeep.removed}
    assert removed["observations"] == rows - base.tables.count_rows()["observations"] > 0
    freed = {f.table: f for f in upkeep.freed}
    assert freed["observations"].files_after < freed["observations"].files_before
    readable_versions = freed["observations"].readable_versions
    assert str(champion) in readable_versions[baseline.train.versions["observations"]]
    report = artifacts()["maintain-toy"]
    assert "## Old rows removed" in report and escape_markdown(champion) in report

    for window, rows_before in zip((baseline.train, baseline.test), before, strict=True):
        pd.testing.assert_frame_equal(base.read_labelled(window, day(50)), rows_before)
    again = maintain(agent="toy", as_of=day(50))
    assert again.removed == () and again.flushed.rows == {}
    for window, rows_before in zip((baseline.train, baseline.test), before, strict=True):
        pd.testing.assert_frame_equal(base.read_labelled(window, day(50)), rows_before)
    observed = base.read("observations")["observed_at"]
    assert not ((observed >= baseline.test.end) & (observed < day(31))).any()
    assert ((observed >= baseline.train.start) & (observed < baseline.test.end)).sum() >= len(before[0])
    assert watch(agent="toy", as_of=day(50)).result != "data_broken"


def test_nothing_is_deleted_without_the_registry(
    base: KnowledgeBase, day, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse_connection(_agent: str) -> None:
        raise RegistryError("MLflow does not answer at http://127.0.0.1:9")

    ingest("toy", day(20), day(50))
    base.journal.append_verdict(
        Verdict(verdict_id="v", kind="gate", agent="toy", as_of=day(20), result="promoted", summary="the first")
    )
    before, old = base.read("observations"), base.window("w", day(0), day(50))
    with monkeypatch.context() as patch:
        patch.setattr(maintaining, "open_registry", refuse_connection)
        upkeep = maintain(agent="toy", as_of=day(50))
    assert "does not answer" in upkeep.nothing_removed and upkeep.removed == upkeep.freed == () and upkeep.compacted
    assert "nothing was removed: MLflow does not answer" in artifacts()["maintain-toy"]
    pd.testing.assert_frame_equal(base.read("observations"), before)
    pd.testing.assert_frame_equal(base.read("observations", old), before)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")  # another, empty registry
    upkeep = maintain(agent="toy", as_of=day(50) + timedelta(hours=1))
    assert "is MLFLOW_TRACKING_URI the right one?" in upkeep.nothing_removed
    pd.testing.assert_frame_equal(base.read("observations", old), before)


def test_agent_without_data_has_nothing_to_maintain(agents: Path) -> None:
    upkeep = maintain(agent="toy")
    assert upkeep.compacted == upkeep.removed == upkeep.freed == () and not upkeep.nothing_removed
