"""File pruning: which data files of a Delta table can contain the rows of a query, by the statistics in its log.

>>> from datetime import UTC, datetime
>>> clause: Clause = ("observed_at", ">=", datetime(2013, 1, 1, tzinfo=UTC))
>>> _file_predicate(clause)
"observed_at >= '2013-01-01T00:00:00+00:00'"
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow.dataset import Dataset

from stillhouse.knowledge.schemas import TIME

__all__ = [
    "Clause",
    "file_statistics",
    "files_with",
    "newest_observed_at",
    "observed_in",
    "oldest_observed_at",
    "upper_bounds",
]

Clause = tuple[str, Literal["=", "<", "<=", ">", ">=", "in"], Any]
"""``(column, operator, value)`` that a row must satisfy; the value is a string, a datetime, or strings for ``in``."""

_OPERATORS: dict[str, Any] = {
    "=": lambda field, value: field == value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
    "in": lambda field, value: field.isin(value),
}


def files_with(delta: DeltaTable, *clauses: Clause) -> tuple[Dataset, pc.Expression]:
    """The files that can contain rows which satisfy every clause, and the row filter for them."""
    row_filter, predicates = pc.scalar(True), list[str]()
    for clause in clauses:
        column, operator, value = clause
        row_filter &= _OPERATORS[operator](pc.field(column), _arrow_value(value))
        predicates.append(_file_predicate(clause))
    return delta.to_pyarrow_dataset(file_pruning_predicate=" AND ".join(predicates) or None), row_filter


def observed_in(
    delta: DeltaTable, start: datetime | None = None, end: datetime | None = None
) -> tuple[Dataset, pc.Expression]:
    """The files that can contain rows observed in ``[start, end)``, and the row filter for them."""
    clauses = list[Clause]()
    if start is not None:
        clauses.append(("observed_at", ">=", start))
    if end is not None:
        clauses.append(("observed_at", "<", end))
    return files_with(delta, *clauses)


def upper_bounds(delta: DeltaTable, clauses: Sequence[Clause]) -> list[datetime]:
    """The distinct maxima of ``observed_at`` of the files that can contain matching rows, newest first.

    Empty if a file has no statistics. Only string equality and ``observed_at < …`` are used to exclude files.
    """
    maxima = file_statistics(delta, "max.observed_at")
    if maxima.null_count:
        return []
    mask = pc.is_valid(maxima)
    for column, operator, value in clauses:
        file_min, file_max = (file_statistics(delta, f"{bound}.{column}") for bound in ("min", "max"))
        if operator == "=" and isinstance(value, str):
            can_contain = pc.and_(pc.less_equal(file_min, value), pc.greater_equal(file_max, value))
            mask = pc.and_(mask, pc.fill_null(can_contain, True))
        elif operator == "<" and column == "observed_at":
            limit = pa.scalar(value, TIME)
            mask = pc.and_(mask, pc.fill_null(pc.less(file_min, limit), True))
            maxima = pc.if_else(pc.less(maxima, limit), maxima, limit)
    return sorted(pc.unique(pc.filter(maxima, mask)).to_pylist(), reverse=True)


def newest_observed_at(delta: DeltaTable, before: datetime | None = None) -> datetime | None:
    """The latest ``observed_at`` before ``before``; None if there is no such row.

    Statistics are truncated to milliseconds, so the column of the newest file is read.
    """
    maxima = pc.drop_null(file_statistics(delta, "max.observed_at"))
    if before is not None:  # a file with later rows can contain earlier ones, too: read all from the others' maximum on
        maxima = pc.filter(maxima, pc.less(maxima, pa.scalar(before, TIME)))
    dataset, row_filter = observed_in(delta, pc.max(maxima).as_py() if len(maxima) else None, before)
    times = dataset.to_table(columns=["observed_at"], filter=row_filter)["observed_at"]
    newest: datetime | None = pc.max(times).as_py()
    return newest


def oldest_observed_at(delta: DeltaTable) -> datetime | None:
    """The earliest ``observed_at``; None if there is no row. Only files that can contain it are read."""
    minima = pc.drop_null(file_statistics(delta, "min.observed_at"))
    end = pc.min(minima).as_py() + timedelta(seconds=1) if len(minima) else None  # statistics are truncated
    dataset, row_filter = observed_in(delta, None, end)
    oldest: datetime | None = pc.min(
        dataset.to_table(columns=["observed_at"], filter=row_filter)["observed_at"]
    ).as_py()
    return oldest


def file_statistics(delta: DeltaTable, name: str) -> pa.ChunkedArray:
    """One statistic of every file of the table, such as ``max.observed_at``; null where a file does not have it."""
    files = pa.table(delta.get_add_actions(flatten=True))
    return files[name] if name in files.schema.names else pa.chunked_array([pa.nulls(files.num_rows)])


def _file_predicate(clause: Clause) -> str:
    """The SQL condition on a file's statistics that the clause implies."""
    column, operator, value = clause
    if operator == "in":
        return f"{column} IN ({', '.join(map(_sql, sorted(value)))})" if value else "false"
    if operator == "=" and isinstance(value, datetime):  # statistics of times are too coarse for equality
        return f"{column} >= {_sql(value)} AND {column} <= {_sql(value)}"
    return f"{column} {operator} {_sql(value)}"


def _arrow_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return pa.scalar(value, TIME)
    return value if isinstance(value, str) else pa.array(sorted(value), pa.string())


def _sql(value: str | datetime) -> str:
    text = value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value.replace("'", "''")
    return f"'{text}'"
