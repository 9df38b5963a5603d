"""Which rows a request is about: ids, texts, times and contents, in all versions of the tables and in the spools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.errors import SchemaError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.content import content_keys, tidy
from stillhouse.knowledge.erasing import matching_rows
from stillhouse.knowledge.spool import spool_folder
from stillhouse.knowledge.spool_erasing import WaitingRows, read_waiting
from stillhouse.knowledge.traces import Traces
from stillhouse.records import ForgetRequest
from stillhouse.values import text_of

__all__ = ["Selection", "select", "select_again"]

_ID = "observation_id"


@dataclass(frozen=True)
class Selection:
    """The rows to forget."""

    observation_ids: frozenset[str]
    content_keys: frozenset[str]
    """Of contents that no remaining row has: a teacher's answers to them go, too."""
    callers: frozenset[str]
    times: tuple[datetime, ...]
    """The distinct times of the observations."""
    traces: Traces
    """Ids, and texts that no remaining row has."""

    @cached_property
    def id_array(self) -> pa.Array:
        """The observation ids as an array."""
        return pa.array(sorted(self.observation_ids), pa.string())

    def are_rows(self, rows: pa.Table) -> pa.Array:
        """Mask of the rows of a table with ``observation_id``."""
        return pc.is_in(rows[_ID], self.id_array)

    def are_contents(self, rows: pa.Table) -> pa.Array:
        """Mask of the rows of a table with ``content_key``."""
        return pc.is_in(rows["content_key"], pa.array(sorted(self.content_keys), pa.string()))


def select(base: KnowledgeBase, request: ForgetRequest, more_ids: Iterable[str] = ()) -> Selection:
    """Find the rows of a request.

    :param more_ids: observation ids that another place knows, such as the captures of a caller.
    :raises SchemaError: if a condition names a column that the observations do not have, or a value that a number
        column cannot have.
    """
    conditions = [(column, _typed(base, column, value)) for column, value in request.where]
    columns = [column for column, _ in conditions]
    ids = {*request.ids, *more_ids}
    for rows in matching_rows(base.tables, "observations", [_ID, *columns], lambda rows: _meets(rows, conditions)):
        ids.update(rows[_ID].to_pylist())
    decisions = pa.array(request.decisions, pa.string())
    for rows in matching_rows(
        base.tables, "decisions", [_ID, "decision_id"], lambda rows: pc.is_in(rows["decision_id"], decisions)
    ):
        ids.update(rows[_ID].to_pylist())
    for waiting in read_waiting(spool_folder(base.config.agent)):
        ids.update(_ids_of_waiting(waiting, request))
    known = _known_ids(base, ids)
    return _complete(base, known, frozenset(request.callers), None)


def select_again(
    base: KnowledgeBase, observation_ids: Iterable[str], keys: Iterable[str], callers: Iterable[str]
) -> Selection:
    """The selection of a request that was begun: its texts are read again from the rows that are still there."""
    return _complete(base, frozenset(observation_ids), frozenset(callers), frozenset(keys))


# --------------------------------------------------------------------------- inside


def _typed(base: KnowledgeBase, column: str, value: str) -> Any:
    observations = base.config.observations
    if column not in (_ID, "content_key", *observations.columns):
        known = ", ".join([_ID, *observations.columns])
        raise SchemaError(
            f"observations of agent {base.config.agent!r} have no column {column!r}: --where takes one of {known}"
        )
    if column not in observations.numbers:
        return value
    try:
        return float(value)
    except ValueError:
        raise SchemaError(
            f"--where {column}={value}: {column!r} is a number column, and {value!r} is no number"
        ) from None


def _meets(rows: pa.Table, conditions: Iterable[tuple[str, Any]]) -> pa.Array:
    mask = pa.array([False] * rows.num_rows)
    for column, value in conditions:
        if column in rows.column_names:
            mask = pc.or_(mask, pc.fill_null(pc.equal(rows[column], pa.scalar(value)), False))
    return mask


def _ids_of_waiting(waiting: WaitingRows, request: ForgetRequest) -> Iterator[str]:
    rows = waiting.rows
    if _ID not in rows.columns:
        return
    chosen = rows[_ID].isin(request.ids)
    if "decision_id" in rows.columns:
        chosen |= rows["decision_id"].isin(request.decisions)
    for column, value in request.where:
        if column in rows.columns:
            chosen |= rows[column].map(lambda one: one is not None and _same(one, value))  # noqa: B023
    yield from rows.loc[chosen, _ID]


def _same(stored: Any, wanted: str) -> bool:
    if isinstance(stored, float):
        try:
            return stored == float(wanted)
        except ValueError:
            return False
    return str(text_of(stored)) == wanted


def _known_ids(base: KnowledgeBase, ids: set[str]) -> frozenset[str]:
    """Those of the ids that a table or a spool has."""
    wanted, known = pa.array(sorted(ids), pa.string()), set[str]()
    for table in ("observations", "decisions", "rankings", "outcomes", "quarantine", "questions"):
        for rows in matching_rows(base.tables, table, [_ID], lambda rows: pc.is_in(rows[_ID], wanted)):
            known.update(rows[_ID].to_pylist())
    for waiting in read_waiting(spool_folder(base.config.agent)):
        if _ID in waiting.rows.columns:
            known |= ids & set(waiting.rows[_ID])
    return frozenset(known)


def _complete(
    base: KnowledgeBase, ids: frozenset[str], callers: frozenset[str], keys: frozenset[str] | None
) -> Selection:
    """Read what the rows hold, and what of it other rows hold, too.

    :param keys: the contents, if they are known already.
    """
    config = base.config.observations
    texts = [*config.categories, *config.texts]
    columns = [_ID, "observed_at", "content_key", *texts]
    wanted = pa.array(sorted(ids), pa.string())
    own_keys, own_texts, times = set[str](), set[str](), set[datetime]()
    for rows in matching_rows(base.tables, "observations", columns, lambda rows: pc.is_in(rows[_ID], wanted)):
        own_keys.update(rows["content_key"].to_pylist())
        times.update(rows["observed_at"].to_pylist())
        for name in set(texts) & set(rows.column_names):
            own_texts.update(filter(None, rows[name].to_pylist()))
    for waiting in read_waiting(spool_folder(base.config.agent)):
        if _ID in waiting.rows.columns:
            chosen = waiting.rows[waiting.rows[_ID].isin(ids)]
            for name in set(texts) & set(chosen.columns):
                own_texts.update(str(text_of(value)) for value in chosen[name] if value)
            own_keys.update(_keys(base, chosen))
    if own_keys or own_texts:
        own_keys, own_texts = _not_shared(base, wanted, own_keys, own_texts, texts)
    content = frozenset(own_keys) if keys is None else keys
    return Selection(ids, content, callers, tuple(sorted(times)), Traces({*ids, *own_texts}))


def _keys(base: KnowledgeBase, rows: pd.DataFrame) -> list[str]:
    """Content keys of rows of an event; none if they do not keep the contract."""
    columns = list(base.config.observations.columns)
    filled = rows.reindex(columns=[_ID, *columns]).assign(observed_at=pd.Timestamp(0, tz="UTC"))
    try:
        return content_keys(tidy(filled, base.config), base.config) if len(rows) else []
    except (SchemaError, ValueError, TypeError):
        return []


def _not_shared(
    base: KnowledgeBase, ids: pa.Array, keys: set[str], texts: set[str], columns: list[str]
) -> tuple[set[str], set[str]]:
    """The contents and texts that no other row has."""
    key_array, text_array = pa.array(sorted(keys), pa.string()), pa.array(sorted(texts), pa.string())

    def is_other(rows: pa.Table) -> pa.Array:
        mask = pc.is_in(rows["content_key"], key_array)
        for name in set(columns) & set(rows.column_names):
            mask = pc.or_(mask, pc.is_in(rows[name], text_array))
        return pc.and_(mask, pc.invert(pc.is_in(rows[_ID], ids)))

    kept_keys, kept_texts = set[str](), set[str]()
    for rows in matching_rows(base.tables, "observations", [_ID, "content_key", *columns], is_other):
        kept_keys.update(rows["content_key"].to_pylist())
        for name in set(columns) & set(rows.column_names):
            kept_texts.update(filter(None, rows[name].to_pylist()))
    own = set(ids.to_pylist())
    for waiting in read_waiting(spool_folder(base.config.agent)):
        if _ID in waiting.rows.columns:
            kept_keys.update(_keys(base, waiting.rows[~waiting.rows[_ID].isin(own)]))
    return keys - kept_keys, texts - kept_texts
