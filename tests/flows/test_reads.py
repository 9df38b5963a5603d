"""A refresh and a watch read tables and load teachers a constant number of times, whatever the agent's age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import stillhouse
from stillhouse import data_contract
from stillhouse.drift.decide import decide_from_evidence
from stillhouse.evaluate.gate import replay
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.tables import Tables
from stillhouse.records import Verdict
from stillhouse.teachers import ensemble


@contextmanager
def count_reads() -> Iterator[Counter[str]]:
    """Count the scans of each table and the loads of teachers within the context."""
    times = Counter[str]()
    scan, load = Tables.scan, ensemble.load

    def scanning(self: Tables, table: Any, *args: Any, **kwargs: Any) -> Any:
        times[table] += 1
        return scan(self, table, *args, **kwargs)

    def loading(*args: Any, **kwargs: Any) -> Any:
        times["teacher"] += 1
        return load(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tables, "scan", scanning)
        patch.setattr(ensemble, "load", loading)
        yield times


def bootstrap(day) -> None:
    ingest("toy", day(0), day(20))
    stillhouse.refresh("toy", day(20), trigger="bootstrap", cause="first")


@pytest.mark.slow
@pytest.mark.usefixtures("more_recipes")
def test_refresh_loads_its_teacher_once_and_reads_tables_at_most_twice(day) -> None:
    bootstrap(day)
    ingest("toy", day(20), day(24))
    with count_reads() as times:
        verdict = stillhouse.refresh("toy", day(24), cause="again")
    assert verdict.kind == "gate", verdict.summary
    assert times["teacher"] == 1
    assert times["observations"] <= 2 and times["outcomes"] <= 2
    assert times["knowledge"] <= 2  # of its own teacher, and of the champion's, which it is compared with


@pytest.mark.slow
def test_watch_reads_its_window_once(day) -> None:
    bootstrap(day)
    ingest("toy", day(20), day(24))
    read, windows = KnowledgeBase.read, Counter[tuple[str, Any, Any]]()

    def reading(self: KnowledgeBase, table: Any, window: Any = None, columns: Any = None) -> Any:
        windows[(table, window and window.start, window and window.end)] += 1
        return read(self, table, window, columns)

    with count_reads() as times, pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnowledgeBase, "read", reading)
        verdict = stillhouse.watch("toy", day(24))
    assert (verdict.result, verdict.response) == ("no_drift", "hold")
    assert windows[("observations", day(20), day(24))] == 1
    assert {count for (table, *_), count in windows.items() if table != "quarantine"} == {1}
    # the window, rows whose outcomes arrived, whether there is anything new, and the blocks that the pool is scored on
    assert times["observations"] <= 4
    assert times["knowledge"] <= 2 and times["teacher"] <= 1


@pytest.mark.slow
def test_both_verdicts_record_a_skipped_contract(day) -> None:
    bootstrap(day)
    ingest("toy", day(20), day(24))
    unchecked = data_contract.skip("a replay of days that were checked when they passed")

    def contract_reasons(verdict: Verdict) -> list[str]:
        return [reason.text for reason in verdict.reasons if reason.measure == "data_contract"]

    watched = stillhouse.watch("toy", day(24), contract=unchecked)
    assert contract_reasons(watched) == [
        "the data contract was not checked: a replay of days that were checked when they passed"
    ]
    assert decide_from_evidence(watched.evidence) == watched
    gate = stillhouse.refresh("toy", day(24), cause="again", contract=unchecked)
    assert contract_reasons(gate) == contract_reasons(watched) and replay(gate) == gate
    assert contract_reasons(stillhouse.watch("toy", day(24) + (day(1) - day(0)))) == []
    with pytest.raises(ValueError, match="skipped_because"):
        stillhouse.watch("toy", day(24), contract=data_contract.skip("  "))
