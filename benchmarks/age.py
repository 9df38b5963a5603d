"""The cost of a watch and of a refresh of an agent with ten times the history.

``python -m benchmarks.age`` runs the flights agent for half a year, puts nine more such half-years in front of a copy
of its knowledge base (every table, in weekly commits as they arise), and runs the same watch and the same refresh on
copies of both, interleaved, in one warm process. ``--quick`` does each once on ten weeks and writes nothing.

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

from benchmarks.overhead import goal, once, prepare, traced, use
from benchmarks.report import begin
from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.schemas import FIELDS

CLAIM = "with ten times the history a refresh takes no longer, and a watch takes about a quarter longer"

TIMES = 10
WEEK = timedelta(weeks=1)
GAP = 27 * WEEK  # so that the windows of both sides hold the same rows


def main() -> None:
    """Live, stretch, repeat, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="of each side")
    parser.add_argument("--quick", action="store_true", help="one repeat, ten weeks of history, nothing written")
    asked = parser.parse_args()
    run = begin("age", recorded=not asked.quick)
    with tempfile.TemporaryDirectory(prefix="stillhouse-age-") as folder:
        weeks = 10 if asked.quick else 26
        young, now = prepare(Path(folder) / "young", weeks=weeks)
        old = Path(folder) / "old"
        shutil.copytree(young, old)
        rows = stretch(old, weeks * WEEK)
        measured = compare(Path(folder), {"young": young, "old": old}, now, 1 if asked.quick else asked.repeats)
    goals = [
        goal(
            f"{job}_old_over_young", 1.2, "lower", [pair["old"]["seconds"] / pair["young"]["seconds"] for pair in pairs]
        )
        for job, pairs in measured.items()
    ]
    if asked.quick:
        print(json.dumps([{g.name: round(g.measured, 4)} for g in goals] + [rows], indent=1))
    else:
        run.write(CLAIM, goals, {"rows": rows, "pairs": measured}, ("deltalake", "mlflow", "pandas", "pyarrow"))


def stretch(home: Path, length: timedelta) -> dict[str, tuple[int, int]]:
    """Put the whole life of the agent before itself, nine times; rows of each table before and after."""
    use(home)
    base = KnowledgeBase(config.load("flights"))
    before = base.tables.count_rows()
    for table in FIELDS:
        rows = base.read(table)
        for number in range(1, TIMES):
            moved = shifted(rows, GAP + number * length, f"{number}-")
            for week, part in moved.groupby(((moved["observed_at"] - pd.Timestamp(0, tz="UTC")) // WEEK).to_numpy()):
                base.tables.append(table, part, batch=f"age:{number}:{week}")
    after = base.tables.count_rows()
    return {table: (count, after[table]) for table, count in before.items()}


def shifted(rows: pd.DataFrame, by: timedelta, prefix: str) -> pd.DataFrame:
    """The same rows so much earlier, about others: their ids, contents, teachers, champions and jobs are others."""
    found = rows.copy()
    for name, column in rows.items():
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            found[name] = column - by
    for name in ("observation_id", "decision_id", "content_key", "teacher", "champion", "job", "verdict_id", "version"):
        if name in found:
            found[name] = prefix + found[name].astype(str)
    if "observation_ids" in found:
        found["observation_ids"] = [np.array([prefix + each for each in ids]) for ids in found["observation_ids"]]
    return found


def compare(folder: Path, homes: dict[str, Path], now: Any, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Each job on a fresh copy of each home, in an order that alternates, after one of each to warm the process up."""
    import stillhouse

    jobs: dict[str, Callable[[], object]] = {
        "watch": lambda: stillhouse.watch("flights", now),
        "refresh": lambda: stillhouse.refresh("flights", now, cause="a benchmark"),
    }
    measured: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
    with traced() as trace:
        for number in range(repeats + 1):
            for name, job in jobs.items():
                order = sorted(homes, reverse=bool(number % 2))
                pair = {home: once(job, folder, homes[home], trace) for home in order}
                if number:
                    measured[name].append(pair)
    return measured


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stillhouse-age-") as aside:
        use(Path(aside))
        config.use_embedded_defaults()
        main()
