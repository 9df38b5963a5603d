"""What is wrong with an agent's tables, in sentences: log entries that a loss of power emptied, impossible moments.

Delta writes a commit as a small JSON file and leaves it to the operating system when that reaches the disk. After a
loss of power the newest of them may have no bytes. Delta reads such an entry as a commit that changed nothing: what was
in it is gone, and nobody would say so.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.knowledge import moments
from stillhouse.knowledge.commits import commits
from stillhouse.knowledge.tables import FIELDS, TIME, Table, Tables, file_statistics

__all__ = ["problems"]


def problems(tables: Tables) -> list[str]:
    """A sentence for each table that lost a commit, and for each that has rows outside the possible times."""
    found = [_lostcommits(tables.root / table, table) for table in FIELDS]
    found += [_impossible_times(tables, table) for table in ("observations", "outcomes")]
    return [sentence for sentence in found if sentence]


def _lostcommits(folder: Path, table: Table) -> str:
    empty = [file.name for file in commits(folder / "_delta_log") if not file.stat().st_size]
    if not empty:
        return ""
    return (
        f"table {table}: the log entries {', '.join(empty[:5])} have no bytes, as after a loss of power: what was in "
        "them is not in the table. Observations, decisions and outcomes that were acknowledged are still in "
        "the spool, or were waited for; run again what was running, or restore the table from a backup"
    )


def _impossible_times(tables: Tables, table: Table) -> str:
    delta = tables.open(table)
    if delta is None:
        return ""
    least, most = (pc.drop_null(file_statistics(delta, f"{end}.observed_at")) for end in ("min", "max"))
    first, last = pa.scalar(moments.EARLIEST, TIME), pa.scalar(moments.latest(), TIME)
    wrong = [
        f"{moment.isoformat()}"
        for moment, bad in (
            (pc.min(least).as_py(), len(least) and pc.less(pc.min(least), first).as_py()),
            (pc.max(most).as_py(), len(most) and pc.greater(pc.max(most), last).as_py()),
        )
        if bad
    ]
    if not wrong:
        return ""
    return (
        f"table {table}: rows are dated {' and '.join(wrong)}, before 1700 or after now: a date is wrong, or a clock "
        'was ahead. They do not count as "now"; watches and refreshes reach them only if their windows do'
    )
