"""Tables damaged by a power failure and impossible times are reported, and do not change what "now" is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from deltalake import Transaction

from stillhouse.errors import SchemaError, StoreError
from stillhouse.knowledge import KnowledgeBase, time_range
from stillhouse.knowledge.integrity import find_problems
from tests.knowledge.parts_for_tests import make_config as agent

DAY = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    """Three days with one observation per day."""
    knowledge = KnowledgeBase(agent(), tmp_path / "knowledge")
    for day in range(3):
        knowledge.append_observations(observation(f"o{day}", DAY + timedelta(days=day)), batch=f"day {day}")
    return knowledge


def observation(name: str, moment: datetime) -> pd.DataFrame:
    config = agent()
    features = dict.fromkeys(config.observations.numbers, 1.0) | dict.fromkeys(
        (*config.observations.categories, *config.observations.texts), "a"
    )
    return pd.DataFrame([{"observation_id": name, "observed_at": pd.Timestamp(moment).as_unit("us"), **features}])


def log(base: KnowledgeBase, version: int) -> Path:
    return base.root / "observations" / "_delta_log" / f"{version:020d}.json"


def test_undamaged_tables_have_no_problems(base: KnowledgeBase) -> None:
    assert find_problems(base.tables) == []


def test_an_empty_commit_file_is_reported(base: KnowledgeBase) -> None:
    log(base, 2).write_bytes(b"")
    (sentence,) = find_problems(base.tables)
    assert "table observations" in sentence and f"{2:020d}.json" in sentence and "are empty" in sentence
    assert len(base.read("observations")) == 2


def test_a_truncated_commit_file_is_named_with_the_remedy(base: KnowledgeBase) -> None:
    newest = log(base, 3)
    newest.write_text(newest.read_text()[:40])
    with pytest.raises(StoreError, match=rf"{newest.name} is truncated.*remove the file"):
        base.read("observations")
    newest.unlink()
    assert len(base.read("observations")) == 2


def test_an_empty_data_file_is_reported(base: KnowledgeBase) -> None:
    next((base.root / "observations").rglob("*.parquet")).write_bytes(b"")
    with pytest.raises(StoreError, match=r"'observations' .* cannot be read .* restore the table"):
        base.read("observations")


@pytest.mark.parametrize("moment", [datetime(1, 1, 1, tzinfo=UTC), datetime(2190, 1, 1, tzinfo=UTC)])
def test_a_time_out_of_range_is_refused(base: KnowledgeBase, moment: datetime) -> None:
    with pytest.raises(SchemaError, match=r"'odd' at .* correct their observed_at"):
        base.append_observations(observation("odd", moment), batch="odd")


def test_a_wrong_date_in_the_table_does_not_move_now(base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as ahead:  # a clock that jumped forward
        ahead.setattr(time_range, "latest_allowed", lambda: datetime(2200, 1, 1, tzinfo=UTC))
        both = pd.concat(
            [observation("o3", DAY + timedelta(days=3)), observation("odd", datetime(2190, 5, 6, tzinfo=UTC))]
        )
        base.append_observations(both, batch="odd")
    assert base.newest_observed_at() == DAY + timedelta(days=3)
    base.append_observations(observation("o4", DAY + timedelta(days=4)), batch="day 4")
    assert base.newest_observed_at() == DAY + timedelta(days=4)
    assert base.observed_until() == DAY + timedelta(days=4, microseconds=1)
    (sentence,) = find_problems(base.tables)
    assert "2190-05-06" in sentence and "observations" in sentence


def test_a_commit_after_an_empty_one_is_written_once(base: KnowledgeBase) -> None:
    log(base, 3).write_bytes(b"")
    assert base.tables.transaction_version("observations", "day 2") is None  # lost rows can be appended again
    rows = base.tables.to_arrow("observations", base.read("observations").head(1))
    assert base.tables.commit("observations", rows, Transaction("again", 1)) == 4
    assert base.tables.commit("observations", rows, Transaction("again", 1)) is None
