"""Upkeep of the tables: compact small files, delete old rows, remove data files that no needed version uses.

What a registered model was trained or tested on is never removed: the rows of its windows stay in the newest version of
every table, and the files of the table versions that its windows record stay on the disk, so these windows read
identical rows later. If it is not known which windows those are, only compaction is allowed.

Each step may be killed at any time and repeated: a table changes by complete commits, and a file is removed only if no
version in use refers to it.
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
from pydantic import AliasChoices, AwareDatetime, Field

from stillhouse.config import Upkeep
from stillhouse.knowledge.flush import FlushResult
from stillhouse.knowledge.pruning import file_statistics
from stillhouse.knowledge.schemas import COMMIT_HOOKS, FIELDS, MONTH_COLUMN, TABLE_PROPERTIES, Table
from stillhouse.knowledge.tables import Tables
from stillhouse.records import Record, Window

__all__ = [
    "CompactionResult",
    "DeletedRows",
    "UpkeepReport",
    "VacuumResult",
    "compact",
    "delete_old_rows",
    "vacuum",
    "versions_in_use",
]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_WITH_RETENTION: tuple[Table, ...] = (
    "observations",
    "decisions",
    "rankings",
    "outcomes",
    "quarantine",
    "questions",
)
"""Tables whose rows are deleted with their observation.

Retention keeps teacher answers: they cost money and are keyed by a content hash, not by an observation.
"""

_UNCOMMITTED_FILE_AGE = timedelta(days=1)
"""Minimum age of a file without a commit before it is removed: a writer may be about to commit it."""

_ROW_GROUP_ROWS = 131_072  # a window of a day reads a few of a month's row groups
_TRIES = 5


class CompactionResult(Record):
    """Small files of one table and month that were joined."""

    table: str
    month: str | None = Field(default=None, description="None for a table without month partitions")
    files_before: int = Field(ge=0)
    files_after: int = Field(ge=0)
    bytes_before: int = Field(ge=0)
    bytes_after: int = Field(ge=0)


class DeletedRows(Record):
    """Number of rows that were deleted from one table."""

    table: str
    rows: int = Field(ge=0)


class VacuumResult(Record):
    """Data files of one table before and after unneeded ones were removed."""

    table: str
    files_before: int = Field(ge=0)
    files_after: int = Field(ge=0)
    bytes_before: int = Field(ge=0)
    bytes_after: int = Field(ge=0)
    readable_versions: dict[int, tuple[str, ...]] = Field(
        validation_alias=AliasChoices("readable_versions", "kept"),
        serialization_alias="kept",
        description="versions that stay readable, and the models that need them",
    )
    unreadable: dict[int, tuple[str, ...]] = Field(
        default_factory=dict, description="versions that models need but that cannot be read (any more)"
    )


class UpkeepReport(Record):
    """The results of one run of the upkeep."""

    agent: str
    as_of: AwareDatetime
    flushed: FlushResult
    compacted: tuple[CompactionResult, ...] = ()
    removed: tuple[DeletedRows, ...] = ()
    freed: tuple[VacuumResult, ...] = ()
    models: int = Field(default=0, ge=0, description="registered versions whose windows were kept")
    problems: tuple[str, ...] = Field(default=(), description="problems of the tables, one sentence each")
    nothing_removed: str = Field(
        default="", description="why neither rows nor files were removed; empty if they could be"
    )


def versions_in_use(table: Table, windows: Mapping[str, Sequence[Window]]) -> dict[int, tuple[str, ...]]:
    """The versions of ``table`` that windows record, with the models to which the windows belong.

    :param windows: by model.

    >>> day = Window(
    ...     name="test",
    ...     start=datetime(2013, 1, 1, tzinfo=UTC),
    ...     end=datetime(2013, 1, 2, tzinfo=UTC),
    ...     versions={"outcomes": 3},
    ... )
    >>> versions_in_use("outcomes", {"flights@1": [day], "flights@2": [day]})
    {3: ('flights@1', 'flights@2')}
    """
    models_by_version: dict[int, list[str]] = {}
    for model, model_windows in windows.items():
        for window in model_windows:
            if table in window.versions and model not in models_by_version.setdefault(window.versions[table], []):
                models_by_version[window.versions[table]].append(model)
    return {version: tuple(models) for version, models in sorted(models_by_version.items())}


def compact(tables: Tables, settings: Upkeep) -> tuple[CompactionResult, ...]:
    """Join the small files of every month that has at least ``settings.min_files`` of them. No row changes."""
    months = [(table, month) for table, delta in _existing(tables) for month in _fragmented_months(delta, settings)]
    return tuple(filter(None, (_compact_month(tables, table, month, settings) for table, month in months)))


def delete_old_rows(
    tables: Tables, before: datetime, windows: Mapping[str, Sequence[Window]]
) -> tuple[DeletedRows, ...]:
    """Delete rows observed before that time, except rows in a window of a registered model.

    Older table versions still have the rows until :func:`vacuum` removes their files.

    :param windows: by model.
    """
    kept_ranges = _merge_ranges(
        (window.start, window.end) for model_windows in windows.values() for window in model_windows
    )
    condition = f"observed_at < '{_sql_time(before)}'"
    for start, end in kept_ranges:
        condition += f" AND NOT (observed_at >= '{_sql_time(start)}' AND observed_at < '{_sql_time(end)}')"
    deleted = list[DeletedRows]()
    for table, _ in _existing(tables, _WITH_RETENTION):
        metrics = _retry(tables, table, partial(_delete, condition=condition))
        if metrics is not None and metrics["num_deleted_rows"]:
            deleted.append(DeletedRows(table=table, rows=metrics["num_deleted_rows"]))
    return tuple(deleted)


def vacuum(tables: Tables, grace: timedelta, windows: Mapping[str, Sequence[Window]]) -> tuple[VacuumResult, ...]:
    """Remove files of table versions older than ``grace``, except versions that a window of a model records.

    A file without a commit, which a killed writer leaves, is removed after a day.

    :param windows: by model.
    """
    return tuple(
        _vacuum_table(tables, table, delta, grace, versions_in_use(table, windows))
        for table, delta in _existing(tables)
    )


# --------------------------------------------------------------------------- inside


def _existing(tables: Tables, names: Iterable[Table] = tuple(FIELDS)) -> Iterable[tuple[Table, DeltaTable]]:
    for table in names:
        if delta := tables.open(table):
            yield table, delta


def _retry(tables: Tables, table: Table, change: Callable[[DeltaTable], _T]) -> _T | None:
    """Apply a change to the newest version, again if other processes changed the same rows; None if that fails."""
    for _ in range(_TRIES):
        delta = tables.open(table)
        if delta is None:
            return None
        try:
            return change(delta)
        except CommitFailedError as error:
            failure = error
    _log.warning(
        "table %s in %s is being changed by other processes; its upkeep is left to the next run: %s",
        table,
        tables.root,
        failure,
    )
    return None


def _delete(delta: DeltaTable, condition: str) -> dict[str, Any]:
    metrics: dict[str, Any] = delta.delete(condition, post_commithook_properties=COMMIT_HOOKS)
    return metrics


def _compact_month(tables: Tables, table: Table, month: str | None, settings: Upkeep) -> CompactionResult | None:
    metrics = _retry(tables, table, partial(_join_files, month=month, settings=settings))
    if not metrics or not metrics["numFilesRemoved"]:
        return None
    return CompactionResult(
        table=table,
        month=month,
        files_before=metrics["numFilesRemoved"],
        files_after=metrics["numFilesAdded"],
        bytes_before=_total_bytes(metrics["filesRemoved"]),
        bytes_after=_total_bytes(metrics["filesAdded"]),
    )


def _join_files(delta: DeltaTable, month: str | None, settings: Upkeep) -> dict[str, Any]:
    if missing := {
        name: value for name, value in TABLE_PROPERTIES.items() if name not in delta.metadata().configuration
    }:
        delta.alter.set_table_properties(missing)  # a table created before these properties were introduced
    is_partitioned = MONTH_COLUMN in delta.metadata().partition_columns
    metrics: dict[str, Any] = delta.optimize.compact(
        partition_filters=[(MONTH_COLUMN, "=", month or "")] if is_partitioned else None,
        target_size=settings.target_bytes,
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=_ROW_GROUP_ROWS),
        post_commithook_properties=COMMIT_HOOKS,
    )
    return metrics


def _fragmented_months(delta: DeltaTable, settings: Upkeep) -> list[str | None]:
    """Months with many files of less than half the target size; None for the whole of an unpartitioned table."""
    months, sizes = (file_statistics(delta, name).to_pylist() for name in (f"partition.{MONTH_COLUMN}", "size_bytes"))
    small = Counter(month for month, size in zip(months, sizes, strict=True) if size < settings.target_bytes / 2)
    return [month for month in sorted(small, key=str) if small[month] >= settings.min_files]


def _total_bytes(metrics: str | Mapping[str, Any]) -> int:
    """Size of the files that a compaction removed or added; Delta gives it as JSON."""
    return int((json.loads(metrics) if isinstance(metrics, str) else metrics)["totalSize"])


def _vacuum_table(
    tables: Tables, table: Table, delta: DeltaTable, grace: timedelta, in_use: Mapping[int, tuple[str, ...]]
) -> VacuumResult:
    folder = tables.root / table
    before = _file_sizes(folder)
    readable = {version: models for version, models in in_use.items() if _is_readable(folder, version)}
    for full, age in ((False, grace), (True, max(grace, _UNCOMMITTED_FILE_AGE))):
        remove = partial(
            DeltaTable.vacuum,
            retention_hours=math.ceil(age / timedelta(hours=1)),
            enforce_retention_duration=False,
            full=full,
            keep_versions=list(readable),
            post_commithook_properties=COMMIT_HOOKS,
        )
        # A vacuum makes a commit, and Delta lists files again that it has removed: run it only if there is work to do.
        if any((folder / name).exists() for name in remove(delta, dry_run=True)):
            _retry(tables, table, partial(remove, dry_run=False))
    after = _file_sizes(folder)
    return VacuumResult(
        table=table,
        files_before=len(before),
        files_after=len(after),
        bytes_before=sum(before.values()),
        bytes_after=sum(after.values()),
        readable_versions=readable,
        unreadable={version: models for version, models in in_use.items() if version not in readable},
    )


def _is_readable(folder: Path, version: int) -> bool:
    try:
        DeltaTable(str(folder), version=version)
    except DeltaError:
        return False
    return True


def _file_sizes(folder: Path) -> dict[Path, int]:
    """Size in bytes of every data file on the disk."""
    sizes = dict[Path, int]()
    for path in folder.rglob("*.parquet"):
        if "_delta_log" not in path.parts:
            try:
                sizes[path] = path.stat().st_size
            except FileNotFoundError:  # another process has removed it
                continue
    return sizes


def _merge_ranges(ranges: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Time ranges in order, with overlapping and adjacent ones merged."""
    merged = list[tuple[datetime, datetime]]()
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _sql_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
