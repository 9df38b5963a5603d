"""The tables' upkeep: small files become large ones, old rows go, and files that nobody needs are removed.

Nothing that a registered model was trained or proved on is ever removed: its windows' rows stay in the newest version
of each table, and the files of the table versions that its windows name stay on the disk, so that such a window reads
the identical rows for ever. Whoever does not know which those are may compact, and must not remove.

Each step may be killed at any moment and run again: a table changes by whole commits, and a file goes only when no
version in use names it.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from deltalake import DeltaTable, WriterProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from pydantic import AwareDatetime, Field

from stillhouse.config import Upkeep
from stillhouse.knowledge.flush import Flushed
from stillhouse.knowledge.tables import FIELDS, HOOKS, MONTH, PROPERTIES, Table, Tables, file_statistics
from stillhouse.records import Record, Window

__all__ = ["Compacted", "Freed", "Maintained", "Removed", "compact", "free", "in_use", "remove_old_rows"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FORGETTABLE: tuple[Table, ...] = ("observations", "decisions", "outcomes", "quarantine", "questions")
"""Tables whose rows go with their observation. What teachers said stays: it was paid for, and names a content only."""

_UNKNOWN_FOR = timedelta(days=1)
"""So long a file may be that no log names: a writer may be about to commit it."""

_ROW_GROUP = 131_072  # rows; a window of a day reads some of a month's row groups
_TRIES = 5


class Compacted(Record):
    """What became of one table's small files in one month."""

    table: str
    month: str | None = Field(default=None, description="None for a table without months")
    files_before: int = Field(ge=0)
    files_after: int = Field(ge=0)
    bytes_before: int = Field(ge=0)
    bytes_after: int = Field(ge=0)


class Removed(Record):
    """Rows that were removed from one table."""

    table: str
    rows: int = Field(ge=0)


class Freed(Record):
    """Files on the disk of one table, those of old versions included."""

    table: str
    files_before: int = Field(ge=0)
    files_after: int = Field(ge=0)
    bytes_before: int = Field(ge=0)
    bytes_after: int = Field(ge=0)
    kept: dict[int, tuple[str, ...]] = Field(description="versions that stay readable, and the models that need each")
    unreadable: dict[int, tuple[str, ...]] = Field(
        default_factory=dict, description="versions that models name and the table does not have (any more)"
    )


class Maintained(Record):
    """All that one round of upkeep did."""

    agent: str
    as_of: AwareDatetime
    flushed: Flushed
    compacted: tuple[Compacted, ...] = ()
    removed: tuple[Removed, ...] = ()
    freed: tuple[Freed, ...] = ()
    models: int = Field(default=0, ge=0, description="registered versions whose windows were kept")
    problems: tuple[str, ...] = Field(default=(), description="what is wrong with the tables, a sentence each")
    nothing_removed: str = Field(default="", description="why neither rows nor files were removed; empty: they were")


def in_use(table: Table, windows: Mapping[str, Sequence[Window]]) -> dict[int, tuple[str, ...]]:
    """The versions of ``table`` that windows name, and the models that they belong to."""
    found: dict[int, list[str]] = {}
    for model, of in windows.items():
        for window in of:
            if table in window.versions and model not in found.setdefault(window.versions[table], []):
                found[window.versions[table]].append(model)
    return {version: tuple(models) for version, models in sorted(found.items())}


def compact(tables: Tables, settings: Upkeep) -> tuple[Compacted, ...]:
    """Join small files, month by month, where ``settings.min_files`` of them are there. Changes no row."""
    months = [(table, month) for table, delta in _opened(tables) for month in _worn(delta, settings)]
    return tuple(filter(None, (_compacted(tables, table, month, settings) for table, month in months)))


def remove_old_rows(tables: Tables, before: datetime, windows: Mapping[str, Sequence[Window]]) -> tuple[Removed, ...]:
    """Remove rows observed before that moment, except those observed in one of the models' windows.

    Old versions of the tables still have them until :func:`free` removes their files.
    """
    kept = _joined((window.start, window.end) for of in windows.values() for window in of)
    condition = f"observed_at < '{_text(before)}'"
    for start, end in kept:
        condition += f" AND NOT (observed_at >= '{_text(start)}' AND observed_at < '{_text(end)}')"
    done = list[Removed]()
    for table, _ in _opened(tables, _FORGETTABLE):
        metrics = _tried(tables, table, partial(_delete, condition=condition))
        if metrics is not None and metrics["num_deleted_rows"]:
            done.append(Removed(table=table, rows=metrics["num_deleted_rows"]))
    return tuple(done)


def free(tables: Tables, grace: timedelta, windows: Mapping[str, Sequence[Window]]) -> tuple[Freed, ...]:
    """Remove files of table versions older than ``grace`` that none of the models' windows name.

    A file that no log names, as a killed writer leaves it, goes after a day.
    """
    return tuple(_free(tables, table, delta, grace, in_use(table, windows)) for table, delta in _opened(tables))


# --------------------------------------------------------------------------- inside


def _opened(tables: Tables, names: Iterable[Table] = tuple(FIELDS)) -> Iterable[tuple[Table, DeltaTable]]:
    for table in names:
        if delta := tables._open(table):
            yield table, delta


def _tried(tables: Tables, table: Table, change: Callable[[DeltaTable], _T]) -> _T | None:
    """Make a change on the newest version, again where another process changes the same rows; None: not this time."""
    for _ in range(_TRIES):
        delta = tables._open(table)
        if delta is None:
            return None
        try:
            return change(delta)
        except CommitFailedError as error:
            failure = error
    _log.warning("table %s in %s is changed by others, and is left until next time: %s", table, tables.root, failure)
    return None


def _delete(delta: DeltaTable, condition: str) -> dict[str, Any]:
    metrics: dict[str, Any] = delta.delete(condition, post_commithook_properties=HOOKS)
    return metrics


def _compacted(tables: Tables, table: Table, month: str | None, settings: Upkeep) -> Compacted | None:
    metrics = _tried(tables, table, partial(_join, month=month, settings=settings))
    if not metrics or not metrics["numFilesRemoved"]:
        return None
    return Compacted(
        table=table,
        month=month,
        files_before=metrics["numFilesRemoved"],
        files_after=metrics["numFilesAdded"],
        bytes_before=_bytes(metrics["filesRemoved"]),
        bytes_after=_bytes(metrics["filesAdded"]),
    )


def _join(delta: DeltaTable, month: str | None, settings: Upkeep) -> dict[str, Any]:
    if missing := {name: value for name, value in PROPERTIES.items() if name not in delta.metadata().configuration}:
        delta.alter.set_table_properties(missing)  # a table of before these were
    by_month = MONTH in delta.metadata().partition_columns
    metrics: dict[str, Any] = delta.optimize.compact(
        partition_filters=[(MONTH, "=", month or "")] if by_month else None,
        target_size=settings.target_bytes,
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=_ROW_GROUP),
        post_commithook_properties=HOOKS,
    )
    return metrics


def _worn(delta: DeltaTable, settings: Upkeep) -> list[str | None]:
    """Months with many files that are less than half of what they should be; None for all of a table without months."""
    months, sizes = (file_statistics(delta, name).to_pylist() for name in (f"partition.{MONTH}", "size_bytes"))
    small = Counter(month for month, size in zip(months, sizes, strict=True) if size < settings.target_bytes / 2)
    return [month for month in sorted(small, key=str) if small[month] >= settings.min_files]


def _bytes(told: str | Mapping[str, Any]) -> int:
    """Of the files that a compaction took or made, which it tells as JSON."""
    return int((json.loads(told) if isinstance(told, str) else told)["totalSize"])


def _free(
    tables: Tables, table: Table, delta: DeltaTable, grace: timedelta, used: Mapping[int, tuple[str, ...]]
) -> Freed:
    folder = tables.root / table
    before = _on_disk(folder)
    kept = {version: models for version, models in used.items() if _readable(folder, version)}
    for full, age in ((False, grace), (True, max(grace, _UNKNOWN_FOR))):
        remove = partial(
            DeltaTable.vacuum,
            retention_hours=math.ceil(age / timedelta(hours=1)),
            enforce_retention_duration=False,
            full=full,
            keep_versions=list(kept),
            post_commithook_properties=HOOKS,
        )
        # a vacuum is a commit, and Delta lists again what it removed before: only where there is something to do
        if any((folder / name).exists() for name in remove(delta, dry_run=True)):
            _tried(tables, table, partial(remove, dry_run=False))
    after = _on_disk(folder)
    return Freed(
        table=table,
        files_before=len(before),
        files_after=len(after),
        bytes_before=sum(before.values()),
        bytes_after=sum(after.values()),
        kept=kept,
        unreadable={version: models for version, models in used.items() if version not in kept},
    )


def _readable(folder: Path, version: int) -> bool:
    try:
        DeltaTable(str(folder), version=version)
    except DeltaError:
        return False
    return True


def _on_disk(folder: Path) -> dict[Path, int]:
    """Data files with their sizes (bytes)."""
    found = dict[Path, int]()
    for path in folder.rglob("*.parquet"):
        if "_delta_log" not in path.parts:
            try:
                found[path] = path.stat().st_size
            except FileNotFoundError:  # another process is at the same
                continue
    return found


def _joined(spans: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Overlapping and touching spans as one, in order."""
    found = list[tuple[datetime, datetime]]()
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
