"""A short run loses no event, and the comparison detects lost, doubled and changed rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.durability import goals_of
from benchmarks.durability_run import RunFolders, RunResult, compare, event, pin, run_and_kill
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool


@pytest.mark.slow
def test_no_event_is_lost_or_doubled_by_kills_at_random_moments(tmp_path: Path) -> None:
    result = run_and_kill(RunFolders(tmp_path), kills=9, seed=1)
    assert result.kills.total() == 9 and result.acknowledged > 20
    assert result.lost == result.doubled == result.windows_changed == []
    assert {goal.name: goal.met for goal in goals_of(result)} == {
        "kills": False,
        "acknowledged_events_lost": True,
        "events_doubled": True,
        "pinned_windows_changed": True,
    }


def test_lost_doubled_and_changed_rows_are_counted(tmp_path: Path) -> None:
    folders, rng = RunFolders(tmp_path), random.Random(0)
    for folder in (folders.spools, folders.names, folders.windows):
        folder.mkdir(parents=True)
    spool, base = Spool(folders.spools), folders.base()
    for number in range(30):
        spool.put(event("decided", [f"decided:{number}"], rng), event("outcomes", [f"outcomes:{number}"], rng))
    spool.put(event("decided", ["decided:29"], rng), event("answered", ["answered:0"], rng))
    flush(base, folders.spools)
    (folders.names / "one").write_text("".join(f"decided:{number}\n" for number in range(31)))
    result = RunResult()
    pin(folders, random.Random(3), result)
    (rows,) = folders.windows.glob("*.rows")
    rows.write_text(rows.read_text() + "another")
    compare(folders, base, result)
    assert sorted(result.lost) == ["decided:30 in decisions", "decided:30 in observations"]
    assert sorted(result.doubled) == ["decided:29 in decisions", "decided:29 in observations"]
    assert result.acknowledged == 31 and result.unacknowledged == 31
    assert result.windows == 1 and result.windows_changed == [rows.stem]
