"""A few kills as in the benchmark, and that its counting finds what is lost, doubled or changed."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.durability import goals_of
from benchmarks.durability_life import Found, Place, compare, event, lived, pin
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool


def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    found = lived(Place(tmp_path), kills=9, seed=1)
    assert found.kills.total() == 9 and found.acknowledged > 20
    assert found.lost == found.doubled == found.windows_changed == []
    assert {goal.name: goal.met for goal in goals_of(found)} == {
        "kills": False,
        "acknowledged_events_lost": True,
        "events_doubled": True,
        "pinned_windows_changed": True,
    }


def test_what_is_lost_doubled_or_changed_is_found(tmp_path: Path) -> None:
    place, rng = Place(tmp_path), random.Random(0)
    for folder in (place.spools, place.names, place.windows):
        folder.mkdir(parents=True)
    spool, base = Spool(place.spools), place.base()
    for number in range(30):
        spool.put(event("decided", [f"decided:{number}"], rng), event("outcomes", [f"outcomes:{number}"], rng))
    spool.put(event("decided", ["decided:29"], rng), event("taught", ["taught:0"], rng))
    flush(base, place.spools)
    (place.names / "one").write_text("".join(f"decided:{number}\n" for number in range(31)))
    found = Found()
    pin(place, random.Random(3), found)
    (rows,) = place.windows.glob("*.rows")
    rows.write_text(rows.read_text() + "another")
    compare(place, base, found)
    assert sorted(found.lost) == ["decided:30 in decisions", "decided:30 in observations"]
    assert sorted(found.doubled) == ["decided:29 in decisions", "decided:29 in observations"]
    assert found.acknowledged == 31 and found.unacknowledged == 31
    assert found.windows == 1 and found.windows_changed == [rows.stem]
