"""Open tables are cached, and only files that can contain the rows are read."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.pruning import Clause, files_with
from stillhouse.records import Spending, Verdict, WeightChange
from tests.knowledge.parts_for_tests import START, make_config, make_rows

HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)


@pytest.fixture
def kb(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(make_config(), tmp_path / "kb")


def another(kb: KnowledgeBase) -> KnowledgeBase:
    """The same knowledge base as another process opens it."""
    return KnowledgeBase(kb.config, kb.root)


def record(kb: KnowledgeBase, verdict_id: str, kind: Any, as_of: datetime, outcome: Any = "no_drift") -> None:
    kb.journal.append_verdict(
        Verdict(verdict_id=verdict_id, kind=kind, agent="toy", as_of=as_of, result=outcome, summary=verdict_id)
    )


def compact(kb: KnowledgeBase, table: Any) -> None:
    delta = another(kb).tables.open(table)
    assert delta is not None
    delta.optimize.compact()


# --------------------------------------------------------------------------- kept open


def test_a_cached_open_table_shows_appends_of_others(kb: KnowledgeBase) -> None:
    for number in range(30):  # beyond a checkpoint
        assert kb.tables.count_rows() == ({"observations": 2 * number} if number else {})
        another(kb).append_observations(make_rows(2 * number, 2), batch=f"{number}")
        assert kb.tables.has_batch("observations", f"{number}")
        assert kb.append_observations(make_rows(2 * number, 2), batch=f"{number}") == 0
    assert kb.tables.open("observations") is kb.tables.open("observations")


def test_a_replaced_table_is_opened_again(kb: KnowledgeBase, tmp_path: Path) -> None:
    kb.append_observations(make_rows(0, 5), batch="a")
    identity = kb.tables.identity()
    shutil.copytree(kb.root, tmp_path / "backup")
    kb.append_observations(make_rows(5, 5), batch="b")
    shutil.rmtree(kb.root)
    assert kb.tables.count_rows() == {}
    shutil.copytree(tmp_path / "backup", kb.root)
    assert kb.tables.count_rows() == {"observations": 5, "decisions": 0} and kb.tables.identity() == identity
    assert not kb.tables.has_batch("observations", "b")
    shutil.rmtree(kb.root / "observations")
    kb.append_observations(make_rows(7, 3), batch="b")
    assert kb.tables.count_rows() == {"observations": 3, "decisions": 0}


def test_a_window_keeps_its_version_while_the_open_table_advances(kb: KnowledgeBase) -> None:
    kb.append_observations(make_rows(0, 5), batch="a")
    window = kb.window("w", START, START + 100 * HOUR)
    kb.append_observations(make_rows(5, 5), batch="b")
    assert len(kb.read_observations(window)) == 5
    assert len(kb.read_observations(kb.window("w", START, START + 100 * HOUR))) == 10


# --------------------------------------------------------------------------- which files


def test_files_are_pruned_by_any_text(kb: KnowledgeBase) -> None:
    jobs = ["plain", "it's", 'per cent % and \\ and "', "ü" * 40, "a" * 100 + "b", "a" * 100 + "c", "-- x"]
    for job in jobs:
        spent = Spending(calls=1)
        kb.answers.append_spending(spent, job=job, purpose="refresh", teacher=job, version="v", as_of=START, batch=job)
    delta = kb.tables.open("spending")
    assert delta is not None
    for job in jobs:
        assert kb.answers.spending(job=job).keys() == {job}
        clause: Clause = ("job", "=", job)
        assert 1 <= len(files_with(delta, clause)[0].files) <= 2
    few: Clause = ("job", "in", [jobs[0], jobs[1]])
    assert kb.tables.select("spending", ["job"], few)["job"].to_pylist() in (jobs[:2], jobs[1::-1])
    none: Clause = ("job", "in", [])
    assert kb.tables.select("spending", ["job"], none).num_rows == 0 and not files_with(delta, none)[0].files
    compact(kb, "spending")
    assert all(kb.answers.spending(job=job).keys() == {job} for job in jobs) and kb.answers.spending(job="none") == {}


def test_files_are_pruned_by_times_to_the_microsecond(kb: KnowledgeBase) -> None:
    moments = [START + timedelta(microseconds=123_000 + n) for n in (0, 250, 999)]
    for number, moment in enumerate(moments):
        record(kb, f"{number}", "gate", moment, "refused" if number == 1 else "promoted")
    for _ in range(2):
        for number, moment in enumerate(moments):
            assert [verdict.verdict_id for verdict in kb.journal.verdicts("gate", moment)] == [f"{number}"]
            actual = kb.journal.verdict_at("gate", moment)
            assert (
                actual is not None
                and actual.verdict_id == f"{number}"
                and kb.journal.verdict_at("watch", moment) is None
            )
            assert kb.journal.last_refresh(before=moment + TICK) == moment
            assert kb.journal.last_refresh_refused(before=moment + TICK) == (number == 1)
        assert kb.journal.last_refresh() == moments[-1] and kb.journal.last_refresh(before=moments[0]) is None
        compact(kb, "verdicts")


def test_the_last_refresh_is_found_after_many_watches(kb: KnowledgeBase) -> None:
    record(kb, "g1", "gate", START + 2 * HOUR, "promoted")
    record(kb, "g2", "gate", START + 4 * HOUR, "refused")
    record(kb, "g2 again", "gate", START + 4 * HOUR, "promoted")  # recorded later, for the same time
    compact(kb, "verdicts")
    for number in range(5, 15):
        record(kb, f"w{number}", "watch", START + number * HOUR)
    record(kb, "p", "promotion", START + 15 * HOUR, "promoted")
    for _ in range(2):
        assert kb.journal.last_refresh() == START + 4 * HOUR and not kb.journal.last_refresh_refused()
        assert kb.journal.last_refresh(before=START + 4 * HOUR) == START + 2 * HOUR
        assert [verdict.verdict_id for verdict in kb.journal.verdicts("gate")] == ["g1", "g2", "g2 again"]
        assert [verdict.verdict_id for verdict in kb.journal.verdicts("promotion")] == ["p"] and len(
            kb.journal.verdicts()
        ) == 14
        compact(kb, "verdicts")


def test_replaced_weight_changes_are_not_returned(kb: KnowledgeBase) -> None:
    def change(version: str, hours: int, after: float) -> WeightChange:
        return WeightChange(
            teacher="t",
            slice="",
            before=0.5,
            after=after,
            by="outcomes",
            as_of=START + hours * HOUR,
            version=version,
            job="r1",
            reason="r",
        )

    first, replaced, last = change("v1", 1, 0.6), change("v1", 2, 0.7), change("v2", 2, 0.8)
    for weight_change in (first, replaced, last):
        kb.journal.append_weight_changes([weight_change])
    assert kb.journal.weight_changes("v1") == [first] and kb.journal.weight_changes("v2") == [last]
    assert kb.journal.weight_changes() == [first, last] and kb.journal.weight_changes("v3") == []


def test_a_missing_table_reads_as_empty_columns(kb: KnowledgeBase) -> None:
    frame: pd.DataFrame = kb.tables.select("verdicts", ["kind", "json"], ("kind", "=", "gate")).to_pandas()
    assert frame.empty and list(frame.columns) == ["kind", "json"]
    record(kb, "w", "watch", START)
    assert kb.tables.select("verdicts", ["kind"], ("kind", "=", "gate")).column_names == ["kind"]
    assert (
        kb.journal.last_refresh() is None
        and not kb.journal.last_refresh_refused()
        and kb.journal.verdicts("gate") == []
    )
