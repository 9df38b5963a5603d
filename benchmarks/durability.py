"""SIGKILL at random moments: every acknowledged event is in the knowledge base exactly once.

``python -m benchmarks.durability`` takes about ten minutes; ``--quick`` takes about one: fewer kills, no file written.

Three writers put events of all kinds into their spools, two threads each, and append the name of an event to a file
(``O_APPEND``) once the spool has acknowledged the event. Two flushers move the content of all spools into the tables,
in chunks of random size. A maintainer compacts all months with two small files or more and deletes, without a grace
period, every file that no pinned version needs. At random moments a random one of these processes is killed with
SIGKILL and replaced. At the end all of them are killed, one flush follows, and the tables are compared with the names:

lost
    acknowledged events without a row in a table that should have one.
doubled
    events, acknowledged or not, with more than one row in a table.
windows changed
    windows that were pinned during the run, as a model's window is, and that return other rows at the end.

A kill ends a process, not the machine: data that the operating system has not written yet survives. So this benchmark
does not test a loss of power (for that case the spool and the flush sync their files).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.durability_run import RunFolders, RunResult, run_and_kill
from benchmarks.report import Goal, begin

CLAIM = "every acknowledged event is in the knowledge base exactly once, whichever process is killed"


def main() -> None:
    """Run the processes, kill, count and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer kills, no file written")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = begin("durability", writes_result=not options.quick)
    with tempfile.TemporaryDirectory(prefix="durability-") as folder:
        result = run_and_kill(RunFolders(Path(folder)), 15 if options.quick else options.kills, options.seed)
    detail = {
        "kills": dict(result.kills),
        "acknowledged": result.acknowledged,
        "unacknowledged_and_there": result.unacknowledged,
        "windows": result.windows,
        "rows": dict(result.rows),
        "commits": dict(result.commits),
        "seconds": round(result.seconds, 1),
    }
    print(detail)
    if options.quick:
        for goal in goals_of(result):
            print(f"{goal.name}: {goal.measured:g}")
    else:
        run.write(CLAIM, goals_of(result), detail, ["deltalake", "msgspec"])


def goals_of(result: RunResult) -> list[Goal]:
    """Goals: a hundred kills; no event lost or doubled, no pinned window changed."""

    def exactly(name: str, goal: float, better: str, measured: int) -> Goal:
        return Goal(name, goal, better, measured, measured, measured)  # type: ignore[arg-type]

    return [
        exactly("kills", 100, "higher", result.kills.total()),
        exactly("acknowledged_events_lost", 0, "lower", len(result.lost)),
        exactly("events_doubled", 0, "lower", len(result.doubled)),
        exactly("pinned_windows_changed", 0, "lower", len(result.windows_changed)),
    ]


if __name__ == "__main__":
    main()
