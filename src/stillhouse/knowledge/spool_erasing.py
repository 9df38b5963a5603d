"""Erase rows from the spools of an agent: events that wait, dead letters, and what SQLite left of events that are gone.

The caller has flushed the spools, so that few events wait. A spool is changed under the lock of its flush; the process
that owns it may go on writing. Damaged spools that were set aside are removed: their readable events are in the tables.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pandas as pd
from filelock import FileLock, Timeout

from stillhouse.errors import SpoolError
from stillhouse.files import write_atomic
from stillhouse.knowledge.events import Decided, Event, Observed, Offered, Outcomes, TeacherAnswered, decode, encode
from stillhouse.knowledge.spool import SpoolFile, shrink

__all__ = ["WaitingRows", "erase_events", "flush_locks", "read_waiting"]

_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, KeyError)


class WaitingRows(NamedTuple):
    """The rows of one event that waits in a spool or is a dead letter."""

    event: Event
    rows: pd.DataFrame
    """``observation_id`` (not of a teacher's answers), ``decision_id`` (of decisions), and the columns of the event."""


@contextmanager
def flush_locks(folder: Path) -> Iterator[None]:
    """Hold the locks of all flushes: none moves an event meanwhile."""
    with ExitStack() as stack:
        for path in sorted(folder.glob("*.sqlite")):
            stack.enter_context(FileLock(path.with_suffix(".flush")))
        yield


def read_waiting(folder: Path) -> Iterator[WaitingRows]:
    """The events of all spools and dead letters that can be read."""
    for path in sorted(folder.glob("*.sqlite")):
        try:
            spool = SpoolFile(path)
        except SpoolError:
            continue
        try:
            for entry in spool.salvage(0):
                yield from _read(entry.body)
        finally:
            spool.close()
    for path in sorted(folder.glob("*.dead")):
        for letter in _letters(path):
            yield from _read(base64.b64decode(letter.get("body", "")))


def erase_events(
    folder: Path, drop: Callable[[WaitingRows], Iterable[bool]], holds: Callable[[bytes], bool]
) -> tuple[int, list[str]]:
    """Drop rows from the events of all spools and dead letters; call it under :func:`flush_locks`.

    :param drop: for each row of an event whether it is dropped.
    :param holds: whether bytes that cannot be read as an event hold something of the rows.
    :returns: number of dropped rows, and a sentence for each spool that could not be cleaned.
    """
    dropped, problems = 0, list[str]()
    for path in sorted(folder.glob("*.sqlite")):
        try:
            dropped += _erase_spool(path, drop)
        except SpoolError as error:
            problems.append(f"{error}: remove the file, if it may be lost")
    for path in sorted(folder.glob("*.dead")):
        dropped += _erase_letters(path, drop, holds)
    for path in sorted(folder.glob("*.damaged*")):
        if holds(path.read_bytes()):
            path.unlink()
    return dropped, problems


def _read(body: bytes) -> Iterator[WaitingRows]:
    try:
        event = decode(body)
        yield WaitingRows(event, _rows(event))
    except _UNREADABLE:
        return


def _rows(event: Event) -> pd.DataFrame:
    if isinstance(event, Outcomes | Offered):
        return pd.DataFrame({"observation_id": event.observation_ids}, dtype=object)
    assert isinstance(event, Observed | Decided | TeacherAnswered)
    rows = pd.DataFrame(event.values, columns=event.columns, dtype=object)
    if not isinstance(event, TeacherAnswered):
        rows = rows.assign(observation_id=event.observation_ids)
    return rows.assign(decision_id=event.decision_ids) if isinstance(event, Decided) else rows


def _without(waiting: WaitingRows, drop: Callable[[WaitingRows], Iterable[bool]]) -> Event | None:
    """The event without the dropped rows; the same event if there are none, None if no row is left."""
    event, flags = waiting.event, list(drop(waiting))
    if not any(flags):
        return event
    if all(flags):
        return None
    kept = [index for index, flag in enumerate(flags) if not flag]
    lists = {
        name: [values[index] for index in kept]
        for name in event.__struct_fields__
        if name != "columns" and isinstance(values := getattr(event, name), list)
    }
    return msgspec.structs.replace(event, **lists)


def _erase_spool(path: Path, drop: Callable[[WaitingRows], Iterable[bool]]) -> int:
    spool, dropped = SpoolFile(path), 0
    try:
        for entry in list(spool.salvage(0)):
            for waiting in _read(entry.body):
                kept = _without(waiting, drop)
                if kept is waiting.event:
                    continue
                dropped += waiting.event.rows - (kept.rows if kept else 0)
                spool.replace(entry.seq, None if kept is None else (kept.rows, encode(kept)))
        spool.wipe()
    finally:
        spool.close()
    try:  # of a process that ended: SQLite may write the whole file again
        with FileLock(path.with_suffix(".owner"), timeout=0):
            shrink(path)
    except Timeout:
        pass
    return dropped


def _letters(path: Path) -> Iterator[dict[str, str]]:
    for line in path.read_bytes().splitlines():
        try:
            letter = json.loads(line)
        except ValueError:
            continue
        if isinstance(letter, dict):
            yield letter


def _erase_letters(path: Path, drop: Callable[[WaitingRows], Iterable[bool]], holds: Callable[[bytes], bool]) -> int:
    """Rewrite the dead letters; one that is no event is dropped as a whole if it holds something."""
    kept, dropped, changed = list[bytes](), 0, False
    for line in filter(None, path.read_bytes().splitlines()):
        try:
            letter = json.loads(line)
            body = base64.b64decode(letter["body"])
        except _UNREADABLE:
            changed = True  # a line that a kill cut off: the flush writes it again
            continue
        events = list(_read(body))
        left = _without(events[0], drop) if events else None
        if (not events and not holds(body) and not holds(line)) or (
            events and left is events[0].event and not holds(line)
        ):
            kept.append(line)
        else:
            changed = True
            dropped += events[0].event.rows - (left.rows if left else 0) if events else 1
            if left is not None:
                letter |= {"why": "rows of it were forgotten", "body": base64.b64encode(encode(left)).decode()}
                kept.append(json.dumps(letter).encode())
    if changed:
        write_atomic(path, b"".join(b"\n" + line + b"\n" for line in kept), durable=True)
    return dropped
