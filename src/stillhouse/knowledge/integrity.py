"""Checks of an agent's tables: commits that a power failure emptied, and times outside the allowed range.

Delta writes a commit as a small JSON file and leaves it to the operating system when the file reaches the disk. After a
power failure the newest commit file may be empty. Delta reads an empty file as a commit without changes: the rows are
lost, and no error is raised.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.knowledge import forget_requests, time_range
from stillhouse.knowledge.commits import list_commits
from stillhouse.knowledge.pruning import file_statistics
from stillhouse.knowledge.schemas import FIELDS, TIME, Table
from stillhouse.knowledge.tables import Tables

__all__ = ["find_problems"]


def find_problems(tables: Tables) -> list[str]:
    """A sentence for each table that lost a commit or has times outside the allowed range, and unfinished request."""
    sentences = [_describe_empty_commits(tables.root / table, table) for table in FIELDS]
    sentences += [_describe_impossible_times(tables, table) for table in ("observations", "outcomes")]
    agent = tables.config.agent
    sentences += [
        f"the request {request.request_id} of {request.requested_at:%Y-%m-%d} to forget "
        f"{len(request.observation_ids):,} rows is not carried out: `stillhouse forget {agent}` completes it"
        for request in forget_requests.pending(agent)
    ]
    return [sentence for sentence in sentences if sentence]


def _describe_empty_commits(folder: Path, table: Table) -> str:
    empty = [file.name for file in list_commits(folder / "_delta_log") if not file.stat().st_size]
    if not empty:
        return ""
    return (
        f"table {table}: the commit files {', '.join(empty[:5])} are empty, as after a power failure: their rows are "
        "not in the table. Acknowledged observations, decisions and outcomes are still in the spool, or were synced; "
        "repeat what was running, or restore the table from a backup"
    )


def _describe_impossible_times(tables: Tables, table: Table) -> str:
    delta = tables.open(table)
    if delta is None:
        return ""
    minima, maxima = (pc.drop_null(file_statistics(delta, f"{bound}.observed_at")) for bound in ("min", "max"))
    earliest, latest = pa.scalar(time_range.EARLIEST, TIME), pa.scalar(time_range.latest_allowed(), TIME)
    impossible = [
        f"{value.isoformat()}"
        for value, is_impossible in (
            (pc.min(minima).as_py(), len(minima) and pc.less(pc.min(minima), earliest).as_py()),
            (pc.max(maxima).as_py(), len(maxima) and pc.greater(pc.max(maxima), latest).as_py()),
        )
        if is_impossible
    ]
    if not impossible:
        return ""
    return (
        f"table {table}: rows are dated {' and '.join(impossible)}, before 1700 or after now: a date is wrong, or a "
        'clock was ahead. They do not count as "now"; a watch or refresh reads them only if its window covers them'
    )
