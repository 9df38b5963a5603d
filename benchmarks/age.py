"""The cost of a watch and of a refresh with ten times the history.

``python -m benchmarks.age`` runs the flights agent for half a year, inserts nine more such half-years before the rows
of a copy of its knowledge base (every table, in weekly commits), and runs the same watch and the same refresh on copies
of both, interleaved, in one warm process. ``--quick`` runs each job once on ten weeks and writes no file.

The registry is the same on both sides: the effect of the number of models in MLflow is not measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.overhead import measure_once, median_goal, prepare, trace_calls, use_home
from benchmarks.report import begin
from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.schemas import FIELDS

CLAIM = "with ten times the history a refresh takes no longer, and a watch takes about a quarter longer"

HISTORY_FACTOR = 10
WEEK = timedelta(weeks=1)
GAP_BETWEEN_COPIES = 27 * WEEK  # the windows of both sides hold the same rows


def main() -> None:
    """Run the agent, extend a copy of its history, measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="number of measurements of each side")
    parser.add_argument("--quick", action="store_true", help="one repeat, ten weeks of history, no file written")
    options = parser.parse_args()
    run = begin("age", writes_result=not options.quick)
    with tempfile.TemporaryDirectory(prefix="stillhouse-age-") as folder:
        weeks = 10 if options.quick else 26
        young, now = prepare(Path(folder) / "young", weeks=weeks)
        old = Path(folder) / "old"
        shutil.copytree(young, old)
        rows = extend_history(old, weeks * WEEK)
        pairs_by_job = compare(Path(folder), {"young": young, "old": old}, now, 1 if options.quick else options.repeats)
    goals = [
        median_goal(
            f"{job}_old_over_young", 1.2, "lower", [pair["old"]["seconds"] / pair["young"]["seconds"] for pair in pairs]
        )
        for job, pairs in pairs_by_job.items()
    ]
    if options.quick:
        print(json.dumps([{g.name: round(g.measured, 4)} for g in goals] + [rows], indent=1))
    else:
        run.write(CLAIM, goals, {"rows": rows, "pairs": pairs_by_job}, ("deltalake", "mlflow", "pandas", "pyarrow"))


def extend_history(home: Path, length: timedelta) -> dict[str, tuple[int, int]]:
    """Insert nine shifted copies of all rows before the history; return the row counts before and after, by table."""
    use_home(home)
    base = KnowledgeBase(config.load("flights"))
    before = base.tables.count_rows()
    for table in FIELDS:
        rows = base.read(table)
        for copy in range(1, HISTORY_FACTOR):
            older_rows = shift_rows(rows, GAP_BETWEEN_COPIES + copy * length, f"{copy}-")
            for week, part in older_rows.groupby(
                ((older_rows["observed_at"] - pd.Timestamp(0, tz="UTC")) // WEEK).to_numpy()
            ):
                base.tables.append(table, part, batch=f"age:{copy}:{week}")
    after = base.tables.count_rows()
    return {table: (count, after[table]) for table, count in before.items()}


def shift_rows(rows: pd.DataFrame, by: timedelta, prefix: str) -> pd.DataFrame:
    """Move all times of ``rows`` back by ``by`` and put ``prefix`` before their ids and names."""
    shifted = rows.copy()
    for name, column in rows.items():
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            shifted[name] = column - by
    for name in ("observation_id", "decision_id", "content_key", "teacher", "champion", "job", "verdict_id", "version"):
        if name in shifted:
            shifted[name] = prefix + shifted[name].astype(str)
    if "observation_ids" in shifted:
        shifted["observation_ids"] = [
            np.array([prefix + observation_id for observation_id in ids]) for ids in shifted["observation_ids"]
        ]
    return shifted


def compare(folder: Path, homes: dict[str, Path], now: Any, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run each job on a fresh copy of each home, in alternating order; one unmeasured round warms the process up."""
    import stillhouse

    jobs: dict[str, Callable[[], object]] = {
        "watch": lambda: stillhouse.watch("flights", now),
        "refresh": lambda: stillhouse.refresh("flights", now, cause="a benchmark"),
    }
    pairs_by_job: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
    with trace_calls() as trace:
        for repeat in range(repeats + 1):
            for name, job in jobs.items():
                order = sorted(homes, reverse=bool(repeat % 2))
                pair = {home: measure_once(job, folder, homes[home], trace) for home in order}
                if repeat:
                    pairs_by_job[name].append(pair)
    return pairs_by_job


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stillhouse-age-") as scratch:
        use_home(Path(scratch))
        config.use_embedded_defaults()
        main()
