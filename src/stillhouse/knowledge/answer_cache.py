"""In-memory caches of the table ``knowledge``: every answer of a teacher is read once per process.

For a teacher that has answered for years, a cache holds only the answers from the time range of the rows looked up so
far. Rows whose content is not among them are searched for in the older part of the table, each content once. So the
size of a cache depends on the rows looked up, not on the age of the agent.

Answers that other processes append are read when a lookup finds a newer version of the table: only from the files added
since, and only if their statistics can match the teacher.
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

from stillhouse.knowledge.pruning import Clause, file_statistics, files_with
from stillhouse.knowledge.schemas import TIME
from stillhouse.knowledge.tables import Tables

__all__ = ["AnswerCache", "AnswerCaches"]

Array = np.ndarray[Any, np.dtype[Any]]
Column = Literal["probabilities", "features"]

_MAX_CACHES = 32
"""More than the members of an ensemble, each of which has a teacher version of its own."""

_DTYPES: dict[Column, Any] = {"probabilities": np.float64, "features": np.float32}
_MIN_CAPACITY = 256  # rows of a cache's arrays


class AnswerCache:
    """Maps a content key to one vector; of two answers to the same content, the one asked for first is kept.

    :param width: length of the vectors.

    >>> cache = AnswerCache(width=2)
    >>> cache.add(["a", "a"], np.array([5, 3]), np.array([[0.1, 0.9], [0.3, 0.7]]))
    >>> cache.lookup(["a", "b"]).tolist()
    [[0.3, 0.7], [nan, nan]]
    """

    def __init__(self, width: int, dtype: Any = np.float64) -> None:
        self.width = width
        self._index: dict[str, int] = {}
        self._asked_at = np.empty(_MIN_CAPACITY, dtype=np.int64)
        self._values: Array = np.empty((_MIN_CAPACITY, width), dtype=dtype)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, content_key: str) -> bool:
        return content_key in self._index

    def add(self, content_keys: Sequence[str], asked_at: Array, values: Array) -> None:
        """Store answers.

        :param asked_at: when each answer was asked for, microseconds since 1970, int64 ``[n]``.
        :param values: ``[n, width]``.
        """
        earliest = dict[str, int]()
        for row in np.argsort(asked_at, kind="stable").tolist():
            earliest.setdefault(content_keys[row], row)
        new = {key: row for key, row in earliest.items() if key not in self._index}
        self._reserve(len(self) + len(new))
        start = len(self)
        for key in new:
            self._index[key] = len(self._index)
        new_rows = list(new.values())
        self._asked_at[start : len(self)], self._values[start : len(self)] = asked_at[new_rows], values[new_rows]
        for key, row in earliest.items():
            if key not in new and asked_at[row] < self._asked_at[index := self._index[key]]:
                self._asked_at[index], self._values[index] = asked_at[row], values[row]

    def lookup(self, content_keys: Iterable[str]) -> Array:
        """The stored vectors, ``[n, width]``; NaN for a content without an answer."""
        index = np.fromiter((self._index.get(key, -1) for key in content_keys), dtype=np.int64)
        values = np.full((len(index), self.width), np.nan, dtype=self._values.dtype)
        values[index >= 0] = self._values[index[index >= 0]]
        return values

    def _reserve(self, rows: int) -> None:
        if rows > len(self._asked_at):
            capacity = max(rows, 2 * len(self._asked_at))
            self._asked_at = np.resize(self._asked_at, capacity)
            self._values = np.resize(self._values, (capacity, self.width))


class _Key(NamedTuple):
    teacher: str
    column: Column
    width: int


@dataclass
class _CacheState:
    """A cache, and which part of the table it holds."""

    cache: AnswerCache
    version: int = -1
    """Version of the table; −1: nothing was read."""
    files: frozenset[str] = frozenset()
    """Data files of that version."""
    table: DeltaTable | None = None
    """The table as it was open; a different object if its log was replaced."""
    is_complete: bool = False
    """Whether the cache holds every answer of the teacher."""
    since: datetime | None = None
    """Otherwise: the cache holds every answer to observations of this time and later; None: no answers yet."""
    absent: set[str] = field(default_factory=set)
    """Content keys that have no answer before ``since`` either."""


class AnswerCaches:
    """The caches of one knowledge base: one per teacher version and column, the least recently used are dropped.

    :param tables: with the table ``knowledge``.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._states = OrderedDict[_Key, _CacheState]()
        self._feature_widths: dict[str, int] = {}  # by teacher
        self._lock = threading.RLock()

    def probs(self, rows: pd.DataFrame, teacher: str, actions: int) -> Array:
        """Float64 ``[n, actions]``; NaN where the teacher has no answer with that number of actions."""
        return self._lookup(rows, _Key(teacher, "probabilities", actions))

    def features(self, rows: pd.DataFrame, teacher: str) -> Array | None:
        """Float32 ``[n, D]``, NaN where the teacher has none; None if the teacher has no features at all."""
        width = self.feature_width(teacher)
        return None if width is None else self._lookup(rows, _Key(teacher, "features", width))

    def feature_width(self, teacher: str) -> int | None:
        """Length D of the teacher's feature vectors; None if it has none."""
        if teacher not in self._feature_widths:
            delta = self._tables.open("knowledge")
            if delta is None or not any(column.name == "features" for column in delta.schema().fields):
                return None
            dataset, row_filter = files_with(delta, ("teacher", "=", teacher))
            if not dataset.files:
                return None
            row_filter &= pc.field("features").is_valid()
            first = self._tables.scan("knowledge", dataset, ["features"], row_filter).head(1)["features"].to_pylist()
            if not first:
                return None
            self._feature_widths[teacher] = len(first[0])
        return self._feature_widths[teacher]

    def add(self, teacher: str, column: Column, content_keys: Sequence[str], asked_at: datetime, values: Array) -> None:
        """Store the answers that this process has just appended in one commit, so that they are not read back.

        :param values: probabilities or features, ``[len(content_keys), width]``.
        """
        if column == "features":
            self._feature_widths[teacher] = values.shape[1]
        with self._lock:
            state = self._states.get(_Key(teacher, column, values.shape[1]))
            delta = self._tables.open("knowledge")
            if state is None or delta is None:
                return
            state.cache.add(content_keys, np.full(len(content_keys), _microseconds(asked_at)), values)
            files = _data_files(delta)
            if delta.version() == state.version + 1:  # otherwise other processes have appended, too
                state.version, state.files = delta.version(), files

    # ----------------------------------------------------------------- inside

    def _lookup(self, rows: pd.DataFrame, key: _Key) -> Array:
        delta = None if rows.empty else self._tables.open("knowledge")
        if delta is None:
            return np.full((len(rows), key.width), np.nan, dtype=_DTYPES[key.column])
        content_keys = rows["content_key"].tolist()
        with self._lock:
            state = self._state(key)
            self._read_appended(key, state, delta)
            self._extend_back(key, state, delta, _earliest_time(rows))
            self._search_older(key, state, delta, content_keys)
            return state.cache.lookup(content_keys)

    def _state(self, key: _Key) -> _CacheState:
        if key not in self._states:
            self._states[key] = _CacheState(AnswerCache(key.width, _DTYPES[key.column]))
            if len(self._states) > _MAX_CACHES:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        return self._states[key]

    def _read_appended(self, key: _Key, state: _CacheState, delta: DeltaTable) -> None:
        """Read what was appended since the cached version of the table."""
        version = delta.version()
        if version == state.version and delta is state.table:
            return
        files = _data_files(delta)  # after the version: a file can be read twice, but is never missed
        if not state.files <= files:  # the table was restored from a backup, or its files were compacted
            state.cache, state.is_complete, state.since = AnswerCache(key.width, _DTYPES[key.column]), False, None
            state.absent.clear()
        elif (state.is_complete or state.since is not None) and _can_contain(delta, files - state.files, key.teacher):
            state.absent.clear()
            clauses: list[Clause] = [("teacher", "=", key.teacher)]
            if state.since is not None:
                clauses.append(("observed_at", ">=", state.since))
            dataset, row_filter = files_with(delta, *clauses)
            added = [fragment for fragment in dataset.get_fragments() if fragment.path not in state.files]
            new_files = FileSystemDataset(added, dataset.schema, dataset.format, dataset.filesystem)
            self._read(key, state, new_files, row_filter)
        state.version, state.files, state.table = version, files, delta

    def _extend_back(self, key: _Key, state: _CacheState, delta: DeltaTable, start: datetime | None) -> None:
        """Read the answers to observations from ``start`` on (None: all) that the cache does not hold yet."""
        if state.is_complete or (start is not None and state.since is not None and state.since <= start):
            return
        clauses: list[Clause] = [("teacher", "=", key.teacher)]
        if start is not None:
            clauses.append(("observed_at", ">=", start))
        if state.since is not None:
            clauses.append(("observed_at", "<", state.since))
        self._read(key, state, *files_with(delta, *clauses))
        state.since, state.is_complete = start, start is None

    def _search_older(self, key: _Key, state: _CacheState, delta: DeltaTable, content_keys: Sequence[str]) -> None:
        """Read answers to older observations with the same content; usually there are none."""
        missing = {
            content_key
            for content_key in content_keys
            if content_key not in state.cache and content_key not in state.absent
        }
        if state.is_complete or state.since is None or not missing:
            return
        dataset, row_filter = files_with(delta, ("teacher", "=", key.teacher), ("observed_at", "<", state.since))
        is_missing = pc.field("content_key").isin(pa.array(sorted(missing), pa.string()))
        # first the keys alone, because reading the vectors takes far longer
        keys = self._tables.read_files("knowledge", dataset, ["content_key"], row_filter & is_missing)["content_key"]
        if len(keys):
            self._read(key, state, dataset, row_filter & pc.field("content_key").isin(keys.combine_chunks()))
        state.absent |= missing

    def _read(self, key: _Key, state: _CacheState, dataset: FileSystemDataset, row_filter: pc.Expression) -> None:
        if key.column not in dataset.schema.names:  # a table from before features were stored
            return
        columns = ["content_key", "asked_at", key.column]
        answers = self._tables.read_files("knowledge", dataset, columns, row_filter)
        answers = answers.filter(pc.equal(pc.list_value_length(answers[key.column]), key.width))
        if answers.num_rows:
            values = answers[key.column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            state.cache.add(
                answers["content_key"].to_pylist(),
                answers["asked_at"].cast(pa.int64()).to_numpy(),
                values.reshape(-1, key.width),
            )


def _data_files(delta: DeltaTable) -> frozenset[str]:
    return frozenset(file_statistics(delta, "path").to_pylist())


def _can_contain(delta: DeltaTable, files: Set[str], teacher: str) -> bool:
    """Whether any of the files can contain answers of the teacher, by their statistics."""
    if not files:
        return False
    paths, minima, maxima = (
        file_statistics(delta, name).to_pylist() for name in ("path", "min.teacher", "max.teacher")
    )
    return any(
        path in files and (low is None or high is None or low <= teacher <= high)
        for path, low, high in zip(paths, minima, maxima, strict=True)
    )


def _earliest_time(rows: pd.DataFrame) -> datetime | None:
    """The earliest ``observed_at``; None if a row has none."""
    if "observed_at" not in rows.columns or not isinstance(rows["observed_at"].dtype, pd.DatetimeTZDtype):
        return None
    if rows["observed_at"].isna().any():
        return None
    earliest: datetime = rows["observed_at"].min().floor("us").to_pydatetime()
    return earliest


def _microseconds(time: datetime) -> int:
    return int(pa.scalar(time, TIME).cast(pa.int64()).as_py())
