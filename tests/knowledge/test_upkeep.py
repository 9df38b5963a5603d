"""Upkeep removes no needed row: windows of models read identical rows afterwards."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from stillhouse.config import AgentConfig, Upkeep
from stillhouse.knowledge import KnowledgeBase, upkeep
from stillhouse.records import Window
from tests.knowledge.parts_for_tests import START, make_config, make_rows

CONFIG = make_config()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = timedelta()


@pytest.fixture
def kb(tmp_path: Path) -> KnowledgeBase:
    """Seventy days in batches of five with outcomes; the last days are in March."""
    base = KnowledgeBase(CONFIG, tmp_path / "kb")
    for first in range(0, 24 * 70, 24 * 5):
        rows = make_rows(first, 24 * 5)
        base.append_observations(rows, batch=f"{first}")
        known_outcomes = rows[["observation_id", "observed_at"]].assign(
            known_at=rows["observed_at"] + HOUR, action="move"
        )
        base.tables.append("outcomes", known_outcomes, batch=f"{first}")
    return base


def window(kb: KnowledgeBase, first: int, last: int) -> Window:
    """Days ``first … last − 1``."""
    return kb.window("w", START + first * DAY, START + last * DAY)


def labelled(kb: KnowledgeBase, of: Window) -> pd.DataFrame:
    return kb.read_labelled(of, START + 1000 * DAY)


def files(kb: KnowledgeBase, table: str) -> set[Path]:
    return {path for path in (kb.root / table).rglob("*.parquet") if "_delta_log" not in path.parts}


def live(kb: KnowledgeBase, table: Any) -> dict[str, int]:
    """Files of the newest version, by month."""
    delta = kb.tables.open(table)
    assert delta is not None
    months = [path.split("observed_month=")[1][:7] for path in delta.file_uris()]
    return {month: months.count(month) for month in sorted(set(months))}


def test_only_months_with_many_small_files_are_compacted(kb: KnowledgeBase) -> None:
    assert live(kb, "observations") == {"2013-01": 7, "2013-02": 6, "2013-03": 3}
    before = kb.read("observations")
    result = upkeep.compact(kb.tables, Upkeep(min_files=6))
    assert [(c.table, c.month, c.files_before, c.files_after) for c in result] == [
        ("observations", "2013-01", 7, 1),
        ("observations", "2013-02", 6, 1),
        ("outcomes", "2013-01", 7, 1),
        ("outcomes", "2013-02", 6, 1),
    ]
    assert all(0 < c.bytes_after < c.bytes_before for c in result)
    assert live(kb, "observations") == {"2013-01": 1, "2013-02": 1, "2013-03": 3}
    pd.testing.assert_frame_equal(kb.read("observations"), before)
    assert upkeep.compact(kb.tables, Upkeep(min_files=6)) == ()
    assert kb.append_observations(make_rows(0, 24 * 5), batch="0") == 0  # batches are remembered


def test_an_unpartitioned_table_is_compacted_and_keeps_its_log(tmp_path: Path) -> None:
    kb = KnowledgeBase(CONFIG, tmp_path / "kb")
    kb.root.mkdir()
    DeltaTable.create(str(kb.root / "observations"), schema=kb.tables.schema("observations"))
    for number in range(5):
        kb.append_observations(make_rows(number, 1), batch=f"{number}")
    (result,) = upkeep.compact(kb.tables, Upkeep(min_files=5))
    assert (result.month, result.files_before, result.files_after) == (None, 5, 1)
    delta = kb.tables.open("observations")
    assert delta is not None and delta.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
    assert kb.tables.count_rows() == {"observations": 5}


def test_windows_of_models_read_identical_rows_after_all_upkeep(kb: KnowledgeBase) -> None:
    train_window, test_window = window(kb, 3, 20), window(kb, 20, 25)
    rows = labelled(kb, train_window), labelled(kb, test_window), kb.read("observations", train_window)
    kb.append_observations(make_rows(24 * 70, 24), batch="later")
    windows = {"toy@1": (train_window, test_window)}
    for turn in range(2):  # the second run has nothing to do
        upkeep.compact(kb.tables, Upkeep(min_files=2))
        removed = upkeep.delete_old_rows(kb.tables, START + 60 * DAY, windows)
        freed = {result.table: result for result in upkeep.vacuum(kb.tables, NOW, windows)}
        assert {deleted.table: deleted.rows for deleted in removed} == (
            {"observations": 38 * 24, "outcomes": 38 * 24} if turn == 0 else {}
        )
        version = train_window.versions["observations"]
        assert freed["observations"].readable_versions == {version: ("toy@1",)} and not freed["observations"].unreadable
        assert (freed["observations"].files_before > freed["observations"].files_after) == (turn == 0)
        pd.testing.assert_frame_equal(labelled(kb, train_window), rows[0])
        pd.testing.assert_frame_equal(labelled(kb, test_window), rows[1])
        pd.testing.assert_frame_equal(kb.read("observations", train_window), rows[2])
    # its rows are in the newest version as well, with the eleven days within the retention
    days = kb.read("observations")["observed_at"].dt.floor("D").unique()
    assert sorted((day - START) // DAY for day in days) == [*range(3, 25), *range(60, 71)]
    assert kb.tables.count_rows()["observations"] == 33 * 24


def test_without_a_model_old_versions_are_removed(kb: KnowledgeBase) -> None:
    old = window(kb, 0, 70)
    upkeep.compact(kb.tables, Upkeep(min_files=2))
    before = kb.read("observations")
    upkeep.vacuum(kb.tables, NOW, {})
    assert len(files(kb, "observations")) == len(live(kb, "observations")) == 3
    pd.testing.assert_frame_equal(kb.read("observations"), before)
    with pytest.raises(Exception, match=r"(?i)not found|no such file"):
        kb.read("observations", old)


def test_versions_within_the_grace_period_stay(kb: KnowledgeBase) -> None:
    young = window(kb, 0, 70)
    rows = kb.read("observations", young)
    for file in files(kb, "observations"):
        os.utime(file, (time.time() - 90 * 86_400,) * 2)  # the age since the version was replaced counts
    upkeep.compact(kb.tables, Upkeep(min_files=2))
    (freed, *_) = upkeep.vacuum(kb.tables, HOUR, {})
    assert freed.files_before == freed.files_after
    pd.testing.assert_frame_equal(kb.read("observations", young), rows)


def test_uncommitted_files_are_removed_after_a_day(kb: KnowledgeBase) -> None:
    month = kb.root / "observations" / "observed_month=2013-01"
    old, new = month / "part-old.parquet", month / "part-new.parquet"
    for file in (old, new):
        file.write_bytes(b"PAR1")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    upkeep.vacuum(kb.tables, NOW, {})
    assert new.exists() and not old.exists()  # the writer of the new file may be about to commit it


def test_a_missing_version_is_reported(kb: KnowledgeBase) -> None:
    strange = window(kb, 0, 5).model_copy(update={"versions": {"observations": 4711}})
    freed = {
        result.table: result
        for result in upkeep.vacuum(kb.tables, NOW, {"toy@1": (strange,), "toy@2": (window(kb, 0, 5),)})
    }
    assert freed["observations"].unreadable == {4711: ("toy@1",)}
    assert list(freed["observations"].readable_versions.values()) == [("toy@2",)]


def test_teacher_answers_and_verdicts_are_kept(kb: KnowledgeBase) -> None:
    rows = kb.read("observations")
    kb.answers.append(rows.head(3), np.full((3, 2), 0.5), teacher="t")
    upkeep.delete_old_rows(kb.tables, START + 60 * DAY, {})
    assert kb.tables.count_rows() == {"observations": 240, "outcomes": 240, "knowledge": 3}


def test_adjacent_time_ranges_are_merged() -> None:
    spans = [(START + a * DAY, START + b * DAY) for a, b in ((5, 9), (0, 3), (3, 4), (6, 7))]
    assert upkeep._merge_ranges(spans) == [(START, START + 4 * DAY), (START + 5 * DAY, START + 9 * DAY)]
    assert upkeep._merge_ranges([]) == []


def test_a_table_under_constant_change_is_left_to_the_next_run(
    kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[int]()

    def refused(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise CommitFailedError("another was quicker")

    monkeypatch.setattr(upkeep, "_delete", refused)
    assert upkeep.delete_old_rows(kb.tables, START + 60 * DAY, {}) == ()
    assert len(tries) == 2 * upkeep._TRIES
    assert kb.tables.count_rows()["observations"] == 24 * 70


def test_a_retention_shorter_than_a_refresh_needs_is_refused() -> None:
    settings = CONFIG.model_dump(exclude_unset=True)
    with pytest.raises(ValueError, match=r"upkeep.keep: .*keep at least those"):
        AgentConfig.model_validate({**settings, "upkeep": {"keep": "9w"}})
    assert AgentConfig.model_validate({**settings, "upkeep": {"keep": "10w"}}).upkeep.keep == timedelta(weeks=10)
