"""The answers of teachers, read from the table ``knowledge`` once per teacher version and process.

Of a teacher version that answers for years only the answers about the time of the rows that are looked up are kept in
memory. What is older is searched for the contents that are not among them, each content once; so what a lookup keeps
follows from the rows, never from how long the agent has lived.

What other processes append meanwhile is read when a lookup finds a newer version of the table: from the files that were
added since, and from those only where their statistics admit the teacher.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow.dataset import FileSystemDataset

from stillhouse.knowledge.tables import Clause, Tables, file_statistics, files_with

__all__ = ["AnswerCache", "AnswerCaches"]

Array = np.ndarray[Any, np.dtype[Any]]
Column = Literal["probabilities", "features"]

_MOST_CACHES = 32
"""More than an ensemble has members, each of which is a teacher version of its own."""

_DTYPES: dict[Column, Any] = {"probabilities": np.float64, "features": np.float32}
_SMALLEST = 256  # rows of a cache's arrays


class AnswerCache:
    """One vector per content: of two answers to one content the one that was asked first.

    :param width: of the vectors.
    """

    def __init__(self, width: int, dtype: Any = np.float64) -> None:
        self.width = width
        self._index: dict[str, int] = {}
        self._asked_at = np.empty(_SMALLEST, dtype=np.int64)
        self._values: Array = np.empty((_SMALLEST, width), dtype=dtype)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, content_key: str) -> bool:
        return content_key in self._index

    def add(self, content_keys: Sequence[str], asked_at: Array, values: Array) -> None:
        """Keep answers.

        :param asked_at: when each was asked, microseconds since 1970, int64 ``[n]``.
        :param values: ``[n, width]``.
        """
        first = dict[str, int]()
        for place in np.argsort(asked_at, kind="stable").tolist():
            first.setdefault(content_keys[place], place)
        new = {key: place for key, place in first.items() if key not in self._index}
        self._reserve(len(self) + len(new))
        begin = len(self)
        for key in new:
            self._index[key] = len(self._index)
        places = list(new.values())
        self._asked_at[begin : len(self)], self._values[begin : len(self)] = asked_at[places], values[places]
        for key, place in first.items():
            if key not in new and asked_at[place] < self._asked_at[at := self._index[key]]:
                self._asked_at[at], self._values[at] = asked_at[place], values[place]

    def lookup(self, content_keys: Iterable[str]) -> Array:
        """``[n, width]``, NaN for a content that has no answer here."""
        at = np.fromiter((self._index.get(key, -1) for key in content_keys), dtype=np.int64)
        found = np.full((len(at), self.width), np.nan, dtype=self._values.dtype)
        found[at >= 0] = self._values[at[at >= 0]]
        return found

    def _reserve(self, rows: int) -> None:
        if rows > len(self._asked_at):
            size = max(rows, 2 * len(self._asked_at))
            self._asked_at = np.resize(self._asked_at, size)
            self._values = np.resize(self._values, (size, self.width))


class _Key(NamedTuple):
    teacher: str
    column: Column
    width: int


@dataclass
class _Reading:
    """A cache, and what of the table it holds."""

    cache: AnswerCache
    version: int = -1
    """Of the table; −1: nothing was read."""
    files: frozenset[str] = frozenset()
    """Those of that version."""
    table: DeltaTable | None = None
    """As it was open then: another one where its log was replaced."""
    whole: bool = False
    """Whether it holds every answer of the teacher."""
    since: datetime | None = None
    """Otherwise it holds every answer about observations of this moment and later; None: nothing yet."""
    absent: set[str] = field(default_factory=set)
    """Contents that have no answer from before ``since`` either."""


class AnswerCaches:
    """The answers of one knowledge base's teachers, of the versions that were looked up last.

    :param tables: with the table ``knowledge``.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._readings = OrderedDict[_Key, _Reading]()
        self._widths: dict[str, int] = {}  # of the features, by teacher
        self._lock = threading.RLock()

    def probabilities(self, rows: pd.DataFrame, teacher: str, actions: int) -> Array:
        """Float64 ``[n, actions]``, NaN where the teacher has no answer of that many actions."""
        return self._lookup(rows, _Key(teacher, "probabilities", actions))

    def features(self, rows: pd.DataFrame, teacher: str) -> Array | None:
        """Float32 ``[n, D]``, NaN where the teacher has none; None where it has none at all."""
        width = self.features_width(teacher)
        return None if width is None else self._lookup(rows, _Key(teacher, "features", width))

    def features_width(self, teacher: str) -> int | None:
        """Width of the teacher's features; None where it has none."""
        if teacher not in self._widths:
            delta = self._tables._open("knowledge")
            if delta is None or not any(each.name == "features" for each in delta.schema().fields):
                return None
            dataset, condition = files_with(delta, ("teacher", "=", teacher))
            if not dataset.files:
                return None
            condition &= pc.field("features").is_valid()
            first = self._tables._scan("knowledge", dataset, ["features"], condition).head(1)["features"].to_pylist()
            if not first:
                return None
            self._widths[teacher] = len(first[0])
        return self._widths[teacher]

    def add(self, teacher: str, column: Column, content_keys: Sequence[str], asked_at: datetime, values: Array) -> None:
        """Keep what this process has just appended in one commit, so that it need not be read."""
        if column == "features":
            self._widths[teacher] = values.shape[1]
        with self._lock:
            reading = self._readings.get(_Key(teacher, column, values.shape[1]))
            delta = self._tables._open("knowledge")
            if reading is None or delta is None:
                return
            reading.cache.add(content_keys, np.full(len(content_keys), _microseconds(asked_at)), values)
            files = _files(delta)
            if delta.version() == reading.version + 1:  # else others have appended, too
                reading.version, reading.files = delta.version(), files

    # ----------------------------------------------------------------- inside

    def _lookup(self, rows: pd.DataFrame, key: _Key) -> Array:
        delta = None if rows.empty else self._tables._open("knowledge")
        if delta is None:
            return np.full((len(rows), key.width), np.nan, dtype=_DTYPES[key.column])
        content_keys = rows["content_key"].tolist()
        with self._lock:
            reading = self._reading(key)
            self._catch_up(key, reading, delta)
            self._extend(key, reading, delta, _earliest(rows))
            self._search_older(key, reading, delta, content_keys)
            return reading.cache.lookup(content_keys)

    def _reading(self, key: _Key) -> _Reading:
        if key not in self._readings:
            self._readings[key] = _Reading(AnswerCache(key.width, _DTYPES[key.column]))
            if len(self._readings) > _MOST_CACHES:
                self._readings.popitem(last=False)
        self._readings.move_to_end(key)
        return self._readings[key]

    def _catch_up(self, key: _Key, reading: _Reading, delta: DeltaTable) -> None:
        """Read what was appended since, where anything was."""
        version = delta.version()
        if version == reading.version and delta is reading.table:
            return
        files = _files(delta)  # after the version: a file may be taken for unread, never for read
        if not reading.files <= files:  # the table was restored from a backup, or its files were joined
            reading.cache, reading.whole, reading.since = AnswerCache(key.width, _DTYPES[key.column]), False, None
            reading.absent.clear()
        elif (reading.whole or reading.since is not None) and _may_hold(delta, files - reading.files, key.teacher):
            reading.absent.clear()
            clauses: list[Clause] = [("teacher", "=", key.teacher)]
            if reading.since is not None:
                clauses.append(("observed_at", ">=", reading.since))
            dataset, condition = files_with(delta, *clauses)
            added = [each for each in dataset.get_fragments() if each.path not in reading.files]
            new = FileSystemDataset(added, dataset.schema, dataset.format, dataset.filesystem)
            self._read(key, reading, new, condition)
        reading.version, reading.files, reading.table = version, files, delta

    def _extend(self, key: _Key, reading: _Reading, delta: DeltaTable, start: datetime | None) -> None:
        """Read the answers about observations of ``start`` (None: the beginning) and later, as far as they are not."""
        if reading.whole or (start is not None and reading.since is not None and reading.since <= start):
            return
        clauses: list[Clause] = [("teacher", "=", key.teacher)]
        if start is not None:
            clauses.append(("observed_at", ">=", start))
        if reading.since is not None:
            clauses.append(("observed_at", "<", reading.since))
        self._read(key, reading, *files_with(delta, *clauses))
        reading.since, reading.whole = start, start is None

    def _search_older(self, key: _Key, reading: _Reading, delta: DeltaTable, content_keys: Sequence[str]) -> None:
        """Read the answers about older observations of the same content: as a rule there are none."""
        missing = {each for each in content_keys if each not in reading.cache and each not in reading.absent}
        if reading.whole or reading.since is None or not missing:
            return
        dataset, condition = files_with(delta, ("teacher", "=", key.teacher), ("observed_at", "<", reading.since))
        asked = pc.field("content_key").isin(pa.array(sorted(missing), pa.string()))
        # their keys alone at first, as whole vectors take far longer to read
        found = self._tables._rows("knowledge", dataset, ["content_key"], condition & asked)["content_key"]
        if len(found):
            self._read(key, reading, dataset, condition & pc.field("content_key").isin(found.combine_chunks()))
        reading.absent |= missing

    def _read(self, key: _Key, reading: _Reading, dataset: FileSystemDataset, condition: pc.Expression) -> None:
        if key.column not in dataset.schema.names:  # the table is older than features are
            return
        columns = ["content_key", "asked_at", key.column]
        table = self._tables._rows("knowledge", dataset, columns, condition)
        table = table.filter(pc.equal(pc.list_value_length(table[key.column]), key.width))
        if table.num_rows:
            flat = table[key.column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            reading.cache.add(
                table["content_key"].to_pylist(),
                table["asked_at"].cast(pa.int64()).to_numpy(),
                flat.reshape(-1, key.width),
            )


def _files(delta: DeltaTable) -> frozenset[str]:
    return frozenset(file_statistics(delta, "path").to_pylist())


def _may_hold(delta: DeltaTable, files: Set[str], teacher: str) -> bool:
    """Whether any of the files may have answers of the teacher, by their statistics."""
    if not files:
        return False
    paths, least, most = (file_statistics(delta, name).to_pylist() for name in ("path", "min.teacher", "max.teacher"))
    return any(
        path in files and (low is None or high is None or low <= teacher <= high)
        for path, low, high in zip(paths, least, most, strict=True)
    )


def _earliest(rows: pd.DataFrame) -> datetime | None:
    """None where it is not known of every row."""
    if "observed_at" not in rows.columns or not isinstance(rows["observed_at"].dtype, pd.DatetimeTZDtype):
        return None
    if rows["observed_at"].isna().any():
        return None
    earliest: datetime = rows["observed_at"].min().floor("us").to_pydatetime()
    return earliest


def _microseconds(moment: datetime) -> int:
    return int(pa.scalar(moment, pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py())
