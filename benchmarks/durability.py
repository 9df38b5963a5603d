"""SIGKILL at random moments: every acknowledged event is in the knowledge base exactly once.

``python -m benchmarks.durability`` takes about ten minutes; ``--quick`` takes about one: fewer kills, nothing written.

Three writers put events of all kinds into their spools, two threads each, and append the name of an event to a file
(``O_APPEND``) as soon as the spool has acknowledged it. Two flushers move the content of all spools into the tables,
in chunks of random size. A maintainer compacts all months with two small files or more and deletes, without a grace
period, every file that no version in use needs. At random moments a random one of these processes is killed with
SIGKILL and replaced. At the end all of them are killed, one flush follows, and the tables are compared with the names:

lost
    acknowledged events without a row in a table that should have one.
doubled
    events, acknowledged or not, with more than one row in a table.
windows changed
    windows that were pinned during the run, each as a model's, and that return other rows at the end.

A kill ends a process, not the machine: data that the operating system had not yet written is not lost by it. So this
proves nothing about a loss of power (the spool and the flush sync their files for that).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.durability_life import Found, Place, lived
from benchmarks.report import Goal, begin

CLAIM = "every acknowledged event is in the knowledge base exactly once, whichever process is killed"


def main() -> None:
    """Live, kill, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer kills, nothing written")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    run = begin("durability", recorded=not asked.quick)
    with tempfile.TemporaryDirectory(prefix="durability-") as folder:
        found = lived(Place(Path(folder)), 15 if asked.quick else asked.kills, asked.seed)
    detail = {
        "kills": dict(found.kills),
        "acknowledged": found.acknowledged,
        "unacknowledged_and_there": found.unacknowledged,
        "windows": found.windows,
        "rows": dict(found.rows),
        "commits": dict(found.commits),
        "seconds": round(found.seconds, 1),
    }
    print(detail)
    if asked.quick:
        for goal in goals_of(found):
            print(f"{goal.name}: {goal.measured:g}")
    else:
        run.write(CLAIM, goals_of(found), detail, ["deltalake", "msgspec"])


def goals_of(found: Found) -> list[Goal]:
    """A hundred kills, and nothing lost or doubled."""

    def exactly(name: str, goal: float, better: str, measured: int) -> Goal:
        return Goal(name, goal, better, measured, measured, measured)  # type: ignore[arg-type]

    return [
        exactly("kills", 100, "higher", found.kills.total()),
        exactly("acknowledged_events_lost", 0, "lower", len(found.lost)),
        exactly("events_doubled", 0, "lower", len(found.doubled)),
        exactly("pinned_windows_changed", 0, "lower", len(found.windows_changed)),
    ]


if __name__ == "__main__":
    main()
