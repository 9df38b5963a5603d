"""Functions that tests run in spawned processes, which import them by name."""

from __future__ import annotations

import multiprocessing
import os
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.knowledge import KnowledgeBase, tables
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.schemas import Table
from stillhouse.knowledge.spool import SpoolFile
from stillhouse.knowledge.tables import Tables
from stillhouse.records import Window
from tests.agents import agent_config

SPAWN = multiprocessing.get_context("spawn")  # Delta panics in a forked process

START = datetime(2013, 1, 1, tzinfo=UTC)


def make_config() -> AgentConfig:
    return agent_config()


def make_rows(first: int, count: int) -> pd.DataFrame:
    """Observations ``first … first + count − 1``, one per hour, all with different content."""
    numbers = range(first, first + count)
    return pd.DataFrame(
        {
            "observation_id": [f"o{i:04d}" for i in numbers],
            "observed_at": pd.to_datetime([START + timedelta(hours=i) for i in numbers]),
            "temp": [float(i) for i in numbers],
            "wind": [float(i % 7) for i in numbers],
            "origin": ["EWR" if i % 2 else "JFK" for i in numbers],
        }
    )


def read_unlabelled(base: KnowledgeBase, window: Window, known_by: datetime) -> pd.DataFrame:
    """Observations of the window without an outcome known by ``known_by``; ``outcome`` is −1."""
    rows = base.join_labels(base.read_observations(window), window, known_by)
    return rows[rows["outcome"] < 0].reset_index(drop=True)


def append(root: Path, first: int, count: int, batch: str) -> None:
    KnowledgeBase(make_config(), root).append_observations(make_rows(first, count), batch=batch)


def identity_of(root: Path) -> str:
    return KnowledgeBase(make_config(), root).tables.identity()


def append_many(root: Path, worker: int) -> None:
    for number in range(5):
        append(root, 100 * worker + 10 * number, 10, f"{worker}:{number}")


def append_the_same(root: Path, barrier: Barrier) -> None:
    for number in range(10):
        barrier.wait(60)
        append(root, 10 * number, 10, f"the same {number}")


def append_and_die(root: Path, moment: str, first: int, count: int, batch: str) -> None:
    """Exit without cleaning up, as after ``kill -9``: before, in the middle of, or after the commit."""
    write = tables.write_deltalake

    def dying(table: object, rows: object, **settings: object) -> None:
        if moment == "after":
            write(table, rows, **settings)
        if moment == "amid":  # the data file exists, but no commit refers to it
            path = Path(root, "observations", f"part-of-the-dead-{batch}.parquet")
            path.write_bytes(b"PAR1 and not much more")
        os._exit(9)

    tables.write_deltalake = dying
    append(root, first, count, batch)


def flush_and_die(root: Path, folder: Path, step: str, moment: str) -> None:
    """Flush, and exit before or after the commit to the table ``step``, or before or after events are deleted."""
    commit, forget = Tables.commit, SpoolFile.forget

    def dying_commit(tables_: Tables, table: Table, *rest: Any) -> int | None:
        if (table, moment) == (step, "before"):
            os._exit(9)
        version = commit(tables_, table, *rest)
        if (table, moment) == (step, "after"):
            os._exit(9)
        return version

    def dying_forget(spool: SpoolFile, up_to: int) -> None:
        if (step, moment) == ("forget", "after"):
            forget(spool, up_to)
        if step == "forget":
            os._exit(9)

    Tables.commit, SpoolFile.forget = dying_commit, dying_forget  # type: ignore[method-assign]
    flush(KnowledgeBase(make_config(), root), folder)
