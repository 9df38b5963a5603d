"""The flush: moves the events in the spools into the Delta tables, each exactly once, whichever process dies when.

A chunk of events becomes rows of several tables. Each table gets its rows in one commit, which carries the spool's name
and the number of the chunk's last event as a Delta application transaction. So every table records which events it has:
if a flush is killed between two tables, or before the events are deleted from the spool, the next flush writes only the
missing rows. Events are deleted when their rows are synced to the disk.

Decisions that a device hands in may arrive more than once, and in several spools. Their rows are also compared with
those of the tables, by decision id and observation id, one flush at a time.

An event that cannot become rows (damaged bytes, or a column whose type differs between agent file, event and table)
does not block the others: it goes to the dead letters ``<spool>.dead``, one JSON object per line (``seq``, ``at``,
``why``, ``body`` in base64), and an error is logged.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import Transaction
from deltalake.exceptions import DeltaError
from filelock import FileLock, Timeout
from pydantic import Field

from stillhouse.errors import RuntimeStateError, SchemaError, SpoolDamagedError, SpoolError
from stillhouse.knowledge.base import KnowledgeBase
from stillhouse.knowledge.content import content_keys, tidy
from stillhouse.knowledge.events import Decided, Event, Observed, Offered, Outcomes, TeacherAnswered, decode
from stillhouse.knowledge.pruning import files_with, observed_in
from stillhouse.knowledge.schemas import Table
from stillhouse.knowledge.spool import Entry, SpoolFile, set_aside, spool_folder
from stillhouse.knowledge.tables import Tables
from stillhouse.records import Record, Spending

__all__ = ["FlushResult", "flush"]

_log = logging.getLogger(__name__)

_ANSWER_KEY = ["teacher", "content_key", "actions"]
"""The key of an answer; the first answer of a key is kept."""

_HANDED_IN_KEYS: dict[Table, str] = {"observations": "observation_id", "decisions": "decision_id"}
"""By which column rows that were handed in are compared with those of the table."""

_HANDED_IN_LOCK = ".handed_in.lock"

_EVENT_ERRORS = (SchemaError, ValueError, TypeError, OverflowError, msgspec.MsgspecError)
"""Raised if an event cannot become rows."""


class FlushResult(Record):
    """What a flush moved."""

    events: int = Field(default=0, ge=0)
    rows: dict[str, int] = Field(default_factory=dict, description="rows written, by table")
    spools: int = Field(default=0, ge=0, description="spools that were read; not those that another flush had locked")
    dead: int = Field(default=0, ge=0, description="events that could not become rows")
    problems: tuple[str, ...] = Field(default=(), description="a sentence per spool that could not be read completely")
    seconds: float = Field(default=0.0, ge=0.0)


def flush(base: KnowledgeBase, folder: Path | None = None, *, max_rows: int = 50_000) -> FlushResult:
    """Move the events of all spools in the folder into the tables, whether their processes are alive or dead.

    Several processes may flush at once, each another spool, and each may be killed at any time.

    :param folder: by default where the agent's processes on this machine have their spools.
    :param max_rows: maximum of one commit, unless a single event has more.
    :raises RuntimeStateError: if the tables cannot be written; what was not written stays in the spools.
    """
    began = time.perf_counter()
    total, failures = FlushResult(), list[RuntimeStateError]()
    for path in sorted((folder or spool_folder(base.config.agent)).glob("*.sqlite")):
        problem = ""
        try:
            with FileLock(path.with_suffix(".flush"), timeout=0):
                try:
                    for moved in _move_chunks(base.tables, path, max_rows):
                        total = _add(total, moved)
                except SpoolDamagedError as error:
                    problem = f"{error}; {_set_aside_damaged(path)}"
            total = total.model_copy(update={"spools": total.spools + 1})
        except Timeout:
            continue
        except SpoolError as error:
            problem = str(error)
        except (DeltaError, OSError) as error:
            failures.append(
                RuntimeStateError(
                    f"the events in {path} could not be written to the knowledge base in {base.root}: {error}; they "
                    "stay in the spool for the next flush"
                )
            )
        if problem:
            _log.error("%s", problem)
            total = total.model_copy(update={"problems": (*total.problems, problem)})
    if failures:
        raise failures[0]
    return total.model_copy(update={"seconds": time.perf_counter() - began})


def _set_aside_damaged(path: Path) -> str:
    """Rename a damaged spool after its readable events were moved, and say what to do about it."""
    try:
        aside = set_aside(path)
    except OSError as error:
        return f"it cannot be set aside: {error}"
    if aside is None:
        return "the process that owns it must restore it"
    return f"its readable events are in the tables, and it is set aside as {aside}: look at it, then remove it"


def _add(total: FlushResult, moved: FlushResult) -> FlushResult:
    tables = dict.fromkeys([*total.rows, *moved.rows])
    return total.model_copy(
        update={
            "events": total.events + moved.events,
            "dead": total.dead + moved.dead,
            "rows": {table: total.rows.get(table, 0) + moved.rows.get(table, 0) for table in tables},
        }
    )


def _move_chunks(tables: Tables, path: Path, max_rows: int) -> Iterator[FlushResult]:
    """Move the events that are in the spool now, in chunks.

    Events that are added meanwhile are left to the next flush; otherwise this one might never end.
    """
    spool = SpoolFile(path)
    after = 0
    try:
        last = spool.last()
        while after < last and (entries := spool.read(after, max_rows)):
            moved = _move(tables, spool, entries)
            after = entries[-1].seq
            yield moved
            spool.forget(after)
    except SpoolDamagedError:
        for chunk in _chunks(spool.salvage(after), max_rows):
            yield _move(tables, spool, chunk, is_damaged=True)
        raise
    finally:
        spool.close()


def _chunks(entries: Iterable[Entry], max_rows: int) -> Iterator[list[Entry]]:
    chunk, rows = list[Entry](), 0
    for entry in entries:
        if chunk and rows + entry.rows > max_rows:
            yield chunk
            chunk, rows = [], 0
        chunk.append(entry)
        rows += entry.rows
    if chunk:
        yield chunk


def _move(tables: Tables, spool: SpoolFile, entries: Sequence[Entry], *, is_damaged: bool = False) -> FlushResult:
    """Write the rows of a chunk to the tables, and unusable events to the dead letters; returns when all are synced.

    :param is_damaged: skip the check of the spool's last event number, which cannot be trusted.
    """
    flushed = {table: tables.transaction_version(table, spool.name) or 0 for table in _TO_ROWS}
    if not is_damaged:
        _require_newer_than_tables(tables, spool, flushed)
    last, row_counts, versions = entries[-1].seq, dict[str, int](), dict[Table, int]()
    events, dead = _decode(tables, entries, flushed)
    with _comparing(tables, [event for _, event in events]):
        new_rows = _to_new_rows(tables, entries, events, flushed, dead)
        if dead:
            _write_dead_letters(spool.path, dead)
        for table, rows in new_rows.items():
            version = tables.commit(table, rows, Transaction(spool.name, last))
            if version is not None:
                row_counts[table], versions[table] = rows.num_rows, version
    for table, version in versions.items():  # one after another at the end, because syncing slows down spool writers
        tables.sync_commit(table, version)
    if max(flushed.values()) >= entries[0].seq:  # a flush was killed, perhaps before its commits were synced
        os.sync()
    return FlushResult(events=len(entries) - len(dead), rows=row_counts, dead=len(dead))


def _require_newer_than_tables(tables: Tables, spool: SpoolFile, flushed: dict[Table, int]) -> None:
    """The tables must not have more events of the spool than it ever had.

    :raises SpoolError: if they do: an older copy of the spool was put in its place.
    """
    if max(flushed.values()) > (last := spool.last()):
        raise SpoolError(
            f"the spool {spool.path} has had {last:,} events, and the knowledge base in {tables.root} took "
            f"{max(flushed.values()):,} from it: an older copy was put in its place. Its events would count as written "
            "already; rename the file if they are to be written (again), else remove it"
        )


@contextmanager
def _comparing(tables: Tables, events: Sequence[Event]) -> Iterator[None]:
    """Where decisions were handed in: no other flush commits such rows between their comparison and their commit."""
    if not any(map(_was_handed_in, events)):
        yield
        return
    tables.root.mkdir(parents=True, exist_ok=True)
    with FileLock(tables.root / _HANDED_IN_LOCK):
        yield


def _decode(
    tables: Tables, entries: Sequence[Entry], flushed: dict[Table, int]
) -> tuple[list[tuple[int, Event]], dict[Entry, str]]:
    """The events with their numbers, and the entries that are none or do not fit the tables, with the reason.

    :param flushed: number of the last event that each table has.
    """
    dead = dict[Entry, str]()
    events = list[tuple[int, Event]]()
    for entry in entries:
        try:
            events.append((entry.seq, decode(entry.body)))
        except _EVENT_ERRORS as error:
            dead[entry] = str(error)
    try:
        tables.require_column_types()
    except SchemaError as error:  # observations cannot be written until the agent file is corrected; other rows can
        with_observations = {
            seq for seq, event in events if isinstance(event, Observed | Decided) and seq > flushed["observations"]
        }
        dead |= {entry: str(error) for entry in entries if entry.seq in with_observations}
        events = [(seq, event) for seq, event in events if seq not in with_observations]
    return events, dead


def _to_new_rows(
    tables: Tables,
    entries: Sequence[Entry],
    events: Sequence[tuple[int, Event]],
    flushed: dict[Table, int],
    dead: dict[Entry, str],
) -> dict[Table, pa.Table]:
    """The rows that each table lacks; entries that cannot become rows are added to ``dead``, with the reason."""
    try:
        return _to_arrow(tables, events, flushed)
    except _EVENT_ERRORS:  # at least one event is unusable
        entry_of = {entry.seq: entry for entry in entries}
        unusable = dict(_find_unusable(tables, events))
        dead |= {entry_of[seq]: reason for seq, reason in unusable.items()}
        return _to_arrow(tables, [(seq, event) for seq, event in events if seq not in unusable], flushed)


def _find_unusable(tables: Tables, events: Sequence[tuple[int, Event]]) -> Iterator[tuple[int, str]]:
    """The events that cannot become rows, with the reason; found by bisection."""
    try:
        _to_arrow(tables, events, dict.fromkeys(_TO_ROWS, 0))
    except _EVENT_ERRORS as error:
        if len(events) == 1:
            yield events[0][0], str(error)
        else:
            yield from _find_unusable(tables, events[: len(events) // 2])
            yield from _find_unusable(tables, events[len(events) // 2 :])


def _to_arrow(tables: Tables, events: Sequence[tuple[int, Event]], flushed: dict[Table, int]) -> dict[Table, pa.Table]:
    arrow = dict[Table, pa.Table]()
    for table, to_rows in _TO_ROWS.items():
        missing = [event for seq, event in events if seq > flushed[table]]
        handed_in = [event for event in missing if _was_handed_in(event)]
        frame = to_rows(tables, [event for event in missing if not _was_handed_in(event)])
        parts = [tables.to_arrow(table, frame)] if len(frame) else []
        if handed_in and table in _HANDED_IN_KEYS:
            parts.append(_new_ones(tables, table, tables.to_arrow(table, to_rows(tables, handed_in))))
        if any(part.num_rows for part in parts):
            arrow[table] = pa.concat_tables(parts)
    return arrow


def _was_handed_in(event: Event) -> bool:
    return isinstance(event, Decided) and event.handed_in


def _new_ones(tables: Tables, table: Table, rows: pa.Table) -> pa.Table:
    """The rows whose key the table does not have, each key once; only files of the rows' time are read."""
    key, delta = _HANDED_IN_KEYS[table], tables.open(table)
    stored = pa.array([], pa.string())
    if delta is not None and rows.num_rows:
        end = pc.max(rows["observed_at"]).as_py() + timedelta(microseconds=1)
        dataset, row_filter = observed_in(delta, pc.min(rows["observed_at"]).as_py(), end)
        stored = tables.read_files(table, dataset, [key], row_filter & pc.field(key).isin(rows[key]))[key]
    first = dict.fromkeys(stored.to_pylist(), -1)
    kept = [index for index, value in enumerate(rows[key].to_pylist()) if first.setdefault(value, index) == index]
    return rows.take(pa.array(kept, pa.int64()))


# --------------------------------------------------------------------------- events to rows


def _observations(tables: Tables, events: Sequence[Event]) -> pd.DataFrame:
    observed = [event for event in events if isinstance(event, Observed | Decided)]
    return _contract_rows(tables, observed, [name for event in observed for name in event.observation_ids])


def _decisions(_: Tables, events: Sequence[Event]) -> pd.DataFrame:
    decided = [event for event in events if isinstance(event, Decided)]
    return _frame(
        decision_id=_concat(event.decision_ids for event in decided),
        observation_id=_concat(event.observation_ids for event in decided),
        observed_at=_times(event.observed_at for event in decided),
        decided_at=_times(event.decided_at for event in decided),
        action=_concat(event.actions for event in decided),
        probabilities=_concat(event.probabilities for event in decided),
        decider=_concat(event.deciders for event in decided),
        version=_concat(event.versions for event in decided),
    )


def _rankings(_: Tables, events: Sequence[Event]) -> pd.DataFrame:
    offered = [event for event in events if isinstance(event, Offered)]
    rows = _frame(
        ranking_id=_concat([event.ranking_id] * event.rows for event in offered),
        observation_id=_concat(event.observation_ids for event in offered),
        observed_at=_times(event.observed_at for event in offered),
        ranked_at=_times([event.ranked_at] * event.rows for event in offered),
        action=_concat([event.action] * event.rows for event in offered),
        probability=_concat(event.probabilities for event in offered),
        position=_concat(event.positions for event in offered),
        version=_concat([event.version] * event.rows for event in offered),
    )
    return rows.astype({"position": "Int32"})


def _knowledge(tables: Tables, events: Sequence[Event]) -> pd.DataFrame:
    """Answers that the table does not have yet, the first of each teacher to each content."""
    answered = [event for event in events if isinstance(event, TeacherAnswered)]
    no_ids = [""] * sum(event.rows for event in answered)
    rows = _contract_rows(tables, answered, no_ids)
    rows = _frame(
        content_key=rows["content_key"].tolist(),
        observed_at=rows["observed_at"],
        teacher=_concat([event.teacher] * event.rows for event in answered),
        asked_at=_times([event.asked_at] * event.rows for event in answered),
        probabilities=_concat(event.probabilities for event in answered),
        features=[None] * len(rows),
    )
    rows = rows.assign(actions=rows["probabilities"].map(len)).drop_duplicates(_ANSWER_KEY)
    return rows[~_is_stored(tables, rows)]


def _is_stored(tables: Tables, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask of the answers for which the table has one of the same teacher, content and number of actions."""
    delta = None if rows.empty else tables.open("knowledge")
    if delta is None:
        return np.zeros(len(rows), dtype=bool)
    dataset, row_filter = files_with(delta, ("teacher", "in", rows["teacher"].unique().tolist()))
    row_filter &= pc.field("content_key").isin(rows["content_key"].tolist())
    stored = tables.read_files("knowledge", dataset, ["teacher", "content_key", "probabilities"], row_filter)
    stored = stored.append_column("actions", pc.list_value_length(stored["probabilities"])).select(_ANSWER_KEY)
    mask: np.ndarray[Any, np.dtype[np.bool_]] = pd.MultiIndex.from_frame(rows[_ANSWER_KEY]).isin(
        pd.MultiIndex.from_frame(stored.to_pandas())
    )
    return mask


def _spending(_: Tables, events: Sequence[Event]) -> pd.DataFrame:
    costs = [
        (name, fields, event)
        for event in events
        if isinstance(event, TeacherAnswered)
        for name, fields in event.spending.items()
    ]
    spent = pd.DataFrame(
        [Spending.model_validate(fields).model_dump() for _, fields, _ in costs], columns=list(Spending.model_fields)
    )
    return spent.assign(
        job="runtime",
        purpose="runtime",
        teacher=[name for name, _, _ in costs],
        version=[event.teacher for _, _, event in costs],
        observed_at=_times([max(event.observed_at, default=event.asked_at)] for _, _, event in costs),
        asked_at=_times([event.asked_at] for _, _, event in costs),
    )


def _outcomes(_: Tables, events: Sequence[Event]) -> pd.DataFrame:
    learned = [event for event in events if isinstance(event, Outcomes)]
    return _frame(
        observation_id=_concat(event.observation_ids for event in learned),
        observed_at=_times(event.observed_at for event in learned),
        known_at=_times(event.known_at for event in learned),
        action=_concat(event.actions for event in learned),
    )


_TO_ROWS: dict[Table, Callable[[Tables, Sequence[Event]], pd.DataFrame]] = {
    "observations": _observations,
    "decisions": _decisions,
    "rankings": _rankings,
    "knowledge": _knowledge,
    "spending": _spending,
    "outcomes": _outcomes,
}


def _contract_rows(
    tables: Tables, events: Sequence[Observed | Decided | TeacherAnswered], observation_ids: list[str]
) -> pd.DataFrame:
    """Rows with the contract's columns and content keys; null where an event lacks a column.

    :raises ValueError: if an event has fewer or more values, times or ids than rows and columns.
    """
    config = tables.config
    parts = list[pd.DataFrame]()
    for columns, group in itertools.groupby(events, key=lambda event: event.columns):
        values = [row for event in group for row in event.values]
        if any(len(row) != len(columns) for row in values):
            raise ValueError(f"rows that have not one value for each of the columns {columns}")
        frame = pd.DataFrame(values, columns=columns, dtype=object)
        parts.append(frame.reindex(columns=list(config.observations.columns)))
    if not parts:
        return pd.DataFrame({"observed_at": _times([]), "content_key": []})
    times = _times(event.observed_at for event in events)
    rows = pd.concat(parts, ignore_index=True)
    if not len(rows) == len(times) == len(observation_ids):
        raise ValueError(f"{len(observation_ids)} observations with {len(rows)} rows and {len(times)} times")
    rows = tidy(rows.assign(observation_id=observation_ids, observed_at=times), config)
    return rows.assign(content_key=content_keys(rows, config))


def _frame(**columns: Any) -> pd.DataFrame:
    """:raises ValueError: if the columns have different lengths."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {lengths}")
    return pd.DataFrame(columns)


def _concat(lists: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def _times(lists: Any) -> pd.DatetimeIndex:
    """Microseconds since 1970 as UTC timestamps."""
    return pd.DatetimeIndex(np.array(_concat(lists), dtype=np.int64).view("datetime64[us]")).tz_localize("UTC")


# --------------------------------------------------------------------------- dead letters


def _write_dead_letters(spool: Path, dead: dict[Entry, str]) -> None:
    """Append the entries to ``<spool>.dead``, each once, and return when they are synced to the disk."""
    path = spool.with_suffix(".dead")
    lines = path.read_bytes().splitlines() if path.exists() else []
    written = set()
    for line in lines:
        try:
            written.add(json.loads(line)["seq"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill cut off: it is written again
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("ab") as file:
        for entry, reason in dead.items():
            _log.error("event %d of spool %s cannot become rows and goes to %s: %s", entry.seq, spool, path, reason)
            if entry.seq not in written:
                body = base64.b64encode(entry.body).decode()
                letter = json.dumps({"seq": entry.seq, "at": now, "why": reason, "body": body})
                file.write(f"\n{letter}\n".encode())
        file.flush()
        os.fsync(file.fileno())
