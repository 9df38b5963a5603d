"""What lies in the spools goes on into the tables, each event once, whoever dies in between.

A chunk of events becomes rows, table by table, each in one commit that carries the spool's name and the chunk's last
number as Delta's application transaction. So a table says itself which events it has: after a kill between two tables,
or between the last table and the forgetting, the next flush writes only what is missing. Events are forgotten when
their rows are on the disk.

An event that cannot become rows, since its bytes are damaged or the agent file has a column of another type than the
event or the table, blocks nothing: it goes to ``<spool>.dead`` beside the spool, one JSON object a line (``seq``,
``at``, ``why``, ``body`` in base64), and an error is logged.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
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
from stillhouse.knowledge.events import Decided, Event, Observed, Outcomes, Taught, decode
from stillhouse.knowledge.spool import Entry, SpoolFile, set_aside, spool_folder
from stillhouse.knowledge.tables import Table, files_with
from stillhouse.records import Record, Spending

__all__ = ["Flushed", "flush"]

_log = logging.getLogger(__name__)

_ANSWER = ["teacher", "content_key", "actions"]
"""What the first answer to stays: of another number of actions it is another one."""

_UNUSABLE = (SchemaError, ValueError, TypeError, OverflowError, msgspec.MsgspecError)


class Flushed(Record):
    """What one flush moved."""

    events: int = Field(default=0, ge=0)
    rows: dict[str, int] = Field(default_factory=dict, description="by table; events that it had already count as none")
    spools: int = Field(default=0, ge=0, description="that were looked into; those that another flush was at are not")
    dead: int = Field(default=0, ge=0, description="events that could not become rows")
    problems: tuple[str, ...] = Field(default=(), description="of spools that could not be read, or not wholly")
    seconds: float = Field(default=0.0, ge=0.0)


def flush(base: KnowledgeBase, folder: Path | None = None, *, most_rows: int = 50_000) -> Flushed:
    """Move what lies in the folder's spools into the tables: those of living processes and of dead ones.

    May run in several processes at once, each at another spool, and be killed at any moment.

    :param folder: by default where the agent's processes spool on this machine.
    :param most_rows: that one commit takes, unless a single event has more.
    :raises RuntimeStateError: if the tables cannot be written; what is not there yet stays in the spools.
    """
    began = time.perf_counter()
    found, failed = Flushed(), list[RuntimeStateError]()
    for path in sorted((folder or spool_folder(base.config.agent)).glob("*.sqlite")):
        problem = ""
        try:
            with FileLock(path.with_suffix(".flush"), timeout=0):
                try:
                    for moved in _emptied(base, path, most_rows):
                        found = _added(found, moved)
                except SpoolDamagedError as error:
                    problem = f"{error}; {_put_aside(path)}"
            found = found.model_copy(update={"spools": found.spools + 1})
        except Timeout:
            continue
        except SpoolError as error:
            problem = str(error)
        except (DeltaError, OSError) as error:
            failed.append(
                RuntimeStateError(
                    f"what waits in {path} could not be written to the knowledge base in {base.root}: {error}; it "
                    "stays there for the next flush"
                )
            )
        if problem:
            _log.error("%s", problem)
            found = found.model_copy(update={"problems": (*found.problems, problem)})
    if failed:
        raise failed[0]
    return found.model_copy(update={"seconds": time.perf_counter() - began})


def _put_aside(path: Path) -> str:
    """What becomes of a damaged spool, once what can be read of it is in the tables."""
    try:
        aside = set_aside(path)
    except OSError as error:
        return f"it cannot be set aside: {error}"
    if aside is None:
        return "the process that it belongs to is to restore it"
    return f"what can be read of it is in the tables, and it is set aside as {aside}: look at it, then remove it"


def _added(one: Flushed, other: Flushed) -> Flushed:
    tables = dict.fromkeys([*one.rows, *other.rows])
    return one.model_copy(
        update={
            "events": one.events + other.events,
            "dead": one.dead + other.dead,
            "rows": {table: one.rows.get(table, 0) + other.rows.get(table, 0) for table in tables},
        }
    )


def _emptied(base: KnowledgeBase, path: Path, most_rows: int) -> Iterator[Flushed]:
    """Chunk by chunk what is there now: what is put meanwhile is for the next flush, or one could take for ever."""
    spool = SpoolFile(path)
    after = 0
    try:
        last = spool.last()
        while after < last and (entries := spool.read(after, most_rows)):
            moved = _move(base, spool, entries)
            after = entries[-1].seq
            yield moved
            spool.forget(after)
    except SpoolDamagedError:
        for part in _chunks(spool.salvage(after), most_rows):
            yield _move(base, spool, part, whole=False)
        raise
    finally:
        spool.close()


def _chunks(entries: Iterable[Entry], most_rows: int) -> Iterator[list[Entry]]:
    chunk, rows = list[Entry](), 0
    for entry in entries:
        if chunk and rows + entry.rows > most_rows:
            yield chunk
            chunk, rows = [], 0
        chunk.append(entry)
        rows += entry.rows
    if chunk:
        yield chunk


def _move(base: KnowledgeBase, spool: SpoolFile, entries: Sequence[Entry], *, whole: bool = True) -> Flushed:
    """A chunk's rows to their tables, and what cannot become rows to the dead letters; settled when it returns.

    :param whole: whether the spool is; of a damaged one nobody knows how many events it has had.
    """
    there = {table: base.transaction(table, spool.name) or 0 for table in _ROWS}
    if whole:
        _require_its_own(base, spool, there)
    last, rows, versions = entries[-1].seq, dict[str, int](), dict[Table, int]()
    tables, dead = _usable(base, entries, there)
    if dead:
        _bury(spool.path, dead)
    for table, arrow in tables.items():
        version = base.commit(table, arrow, Transaction(spool.name, last))
        if version is not None:
            rows[table], versions[table] = arrow.num_rows, version
    for table, version in versions.items():  # at once, since the disk makes writers of spools wait meanwhile
        base.settle(table, version)
    if max(there.values()) >= entries[0].seq:  # a flush was killed, perhaps before what it wrote was settled
        os.sync()
    return Flushed(events=len(entries) - len(dead), rows=rows, dead=len(dead))


def _require_its_own(base: KnowledgeBase, spool: SpoolFile, there: dict[Table, int]) -> None:
    """A spool never has fewer events behind it than the tables know of, unless an old copy was put in its place."""
    if max(there.values()) > (last := spool.last()):
        raise SpoolError(
            f"the spool {spool.path} has had {last:,} events, and the knowledge base in {base.root} took "
            f"{max(there.values()):,} from it: an older copy was put in its place. Events that it has would be taken "
            "for written; rename the file where they are to be written (again), else remove it"
        )


def _usable(
    base: KnowledgeBase, entries: Sequence[Entry], there: dict[Table, int]
) -> tuple[dict[Table, pa.Table], dict[Entry, str]]:
    """The rows that each table still lacks, and the entries that cannot become rows, with the reason."""
    dead = dict[Entry, str]()
    events = list[tuple[int, Event]]()
    for entry in entries:
        try:
            events.append((entry.seq, decode(entry.body)))
        except _UNUSABLE as error:
            dead[entry] = str(error)
    try:
        base.require_types()
    except SchemaError as error:  # no observation can be written before the agent file is put right: others can
        seqs = {seq for seq, event in events if isinstance(event, Observed | Decided) and seq > there["observations"]}
        dead |= {entry: str(error) for entry in entries if entry.seq in seqs}
        events = [(seq, event) for seq, event in events if seq not in seqs]
    try:
        return _tables(base, events, there), dead
    except _UNUSABLE:  # one of them at least
        of = {entry.seq: entry for entry in entries}
        refused = dict(_refused(base, events))
        dead |= {of[seq]: why for seq, why in refused.items()}
        return _tables(base, [(seq, event) for seq, event in events if seq not in refused], there), dead


def _refused(base: KnowledgeBase, events: Sequence[tuple[int, Event]]) -> Iterator[tuple[int, str]]:
    """Which of the events cannot become rows, and why; found by halves."""
    try:
        _tables(base, events, dict.fromkeys(_ROWS, 0))
    except _UNUSABLE as error:
        if len(events) == 1:
            yield events[0][0], str(error)
        else:
            yield from _refused(base, events[: len(events) // 2])
            yield from _refused(base, events[len(events) // 2 :])


def _tables(base: KnowledgeBase, events: Sequence[tuple[int, Event]], there: dict[Table, int]) -> dict[Table, pa.Table]:
    found = dict[Table, pa.Table]()
    for table, make in _ROWS.items():
        frame = make(base, [event for seq, event in events if seq > there[table]])
        if len(frame):
            found[table] = base._arrow(table, frame)
    return found


# --------------------------------------------------------------------------- events to rows


def _observations(base: KnowledgeBase, events: Sequence[Event]) -> pd.DataFrame:
    seen = [event for event in events if isinstance(event, Observed | Decided)]
    return _keyed(base, seen, [name for event in seen for name in event.observation_ids])


def _decisions(_: KnowledgeBase, events: Sequence[Event]) -> pd.DataFrame:
    made = [event for event in events if isinstance(event, Decided)]
    return _frame(
        decision_id=_all(event.decision_ids for event in made),
        observation_id=_all(event.observation_ids for event in made),
        observed_at=_times(event.observed_at for event in made),
        decided_at=_times(event.decided_at for event in made),
        action=_all(event.actions for event in made),
        probabilities=_all(event.probabilities for event in made),
        decider=_all(event.deciders for event in made),
        version=_all(event.versions for event in made),
    )


def _knowledge(base: KnowledgeBase, events: Sequence[Event]) -> pd.DataFrame:
    """What is new: of two answers of one teacher about one content the first stays."""
    said = [event for event in events if isinstance(event, Taught)]
    rows = _keyed(base, said, list(itertools.chain.from_iterable([""] * event.rows for event in said)))
    rows = _frame(
        content_key=rows["content_key"].tolist(),
        observed_at=rows["observed_at"],
        teacher=_all([event.teacher] * event.rows for event in said),
        asked_at=_times([event.asked_at] * event.rows for event in said),
        probabilities=_all(event.probabilities for event in said),
        features=[None] * len(rows),
    )
    rows = rows.assign(actions=rows["probabilities"].map(len)).drop_duplicates(_ANSWER)
    return rows[~_known(base, rows)]


def _known(base: KnowledgeBase, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """About which of the rows their teacher has spoken before, of as many actions."""
    delta = None if rows.empty else base._open("knowledge")
    if delta is None:
        return np.zeros(len(rows), dtype=bool)
    dataset, asked = files_with(delta, ("teacher", "in", rows["teacher"].unique().tolist()))
    asked &= pc.field("content_key").isin(rows["content_key"].tolist())
    found = base._rows("knowledge", dataset, ["teacher", "content_key", "probabilities"], asked)
    found = found.append_column("actions", pc.list_value_length(found["probabilities"])).select(_ANSWER)
    known: np.ndarray[Any, np.dtype[np.bool_]] = pd.MultiIndex.from_frame(rows[_ANSWER]).isin(
        pd.MultiIndex.from_frame(found.to_pandas())
    )
    return known


def _spending(_: KnowledgeBase, events: Sequence[Event]) -> pd.DataFrame:
    said = [
        (name, spent, event) for event in events if isinstance(event, Taught) for name, spent in event.spending.items()
    ]
    spent = pd.DataFrame(
        [Spending.model_validate(fields).model_dump() for _, fields, _ in said], columns=list(Spending.model_fields)
    )
    return spent.assign(
        job="runtime",
        purpose="runtime",
        teacher=[name for name, _, _ in said],
        version=[event.teacher for _, _, event in said],
        observed_at=_times([max(event.observed_at, default=event.asked_at)] for _, _, event in said),
        asked_at=_times([event.asked_at] for _, _, event in said),
    )


def _outcomes(_: KnowledgeBase, events: Sequence[Event]) -> pd.DataFrame:
    known = [event for event in events if isinstance(event, Outcomes)]
    return _frame(
        observation_id=_all(event.observation_ids for event in known),
        observed_at=_times(event.observed_at for event in known),
        known_at=_times(event.known_at for event in known),
        action=_all(event.actions for event in known),
    )


_ROWS: dict[Table, Callable[[KnowledgeBase, Sequence[Event]], pd.DataFrame]] = {
    "observations": _observations,
    "decisions": _decisions,
    "knowledge": _knowledge,
    "spending": _spending,
    "outcomes": _outcomes,
}


def _keyed(base: KnowledgeBase, events: Sequence[Observed | Decided | Taught], names: list[str]) -> pd.DataFrame:
    """Rows of the contract's columns, null where an event has none of that name, with their content's key."""
    columns = base.config.observations.columns
    parts = list[pd.DataFrame]()
    for known, alike in itertools.groupby(events, key=lambda event: event.columns):
        values = [row for event in alike for row in event.values]
        if any(len(row) != len(known) for row in values):
            raise ValueError(f"rows that have not one value for each of the columns {known}")
        parts.append(pd.DataFrame(values, columns=known, dtype=object).reindex(columns=list(columns)))
    if not parts:
        return pd.DataFrame({"observed_at": _times([]), "content_key": []})
    times = _times(event.observed_at for event in events)
    rows = pd.concat(parts, ignore_index=True)
    if not len(rows) == len(times) == len(names):
        raise ValueError(f"{len(names)} observations with {len(rows)} rows and {len(times)} times")
    rows = tidy(rows.assign(observation_id=names, observed_at=times), base.config)
    return rows.assign(content_key=content_keys(rows, base.config))


def _frame(**columns: Any) -> pd.DataFrame:
    """:raises ValueError: if the columns are not equally long."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {lengths}")
    return pd.DataFrame(columns)


def _all(parts: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def _times(parts: Any) -> pd.DatetimeIndex:
    """Microseconds since 1970 as moments in UTC."""
    return pd.DatetimeIndex(np.array(_all(parts), dtype=np.int64).view("datetime64[us]")).tz_localize("UTC")


# --------------------------------------------------------------------------- dead letters


def _bury(spool: Path, dead: dict[Entry, str]) -> None:
    """Write the entries to ``<spool>.dead``, each once, and return when they are on the disk."""
    path = spool.with_suffix(".dead")
    lines = path.read_bytes().splitlines() if path.exists() else []
    there = set()
    for line in lines:
        try:
            there.add(json.loads(line)["seq"])
        except (ValueError, KeyError, TypeError):
            continue  # the end of one that a kill cut off: it is written again
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("ab") as file:
        for entry, why in dead.items():
            _log.error("event %d of spool %s cannot become rows and goes to %s: %s", entry.seq, spool, path, why)
            if entry.seq not in there:
                body = base64.b64encode(entry.body).decode()
                said = json.dumps({"seq": entry.seq, "at": now, "why": why, "body": body})
                file.write(f"\n{said}\n".encode())
        file.flush()
        os.fsync(file.fileno())
