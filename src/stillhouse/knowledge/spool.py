"""The write-ahead spool: what is in it survives any crash, and only what is in it was acknowledged.

One SQLite file per writing process (in WAL mode, synced at each commit), in ``STILLHOUSE_HOME/spool/<agent>/``. Its
name is the writer's identity for ever: the flush names it in each Delta commit together with the last number that it
wrote, so an event reaches a table once (see :mod:`stillhouse.knowledge.flush`). A process that ends leaves its file to
the next one that opens a spool; until then the flush empties it like any other.

The spool must lie on a local disk: SQLite's log and file locks are not for network file systems.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from stillhouse.config import home
from stillhouse.errors import SpoolError, SpoolFullError, StillhouseError
from stillhouse.knowledge.events import Event, encode

__all__ = ["Entry", "Spool", "SpoolFile", "spool_folder"]

_log = logging.getLogger(__name__)

_BUSY_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 1.0
_FORGOTTEN_AT_ONCE = 16  # events
_CHECKPOINTS = 3  # in a row: what is written during one is for the next, and the log begins anew when nothing is left
_LOG_PAGES = 16_384  # of 4 KiB, with which a writer moves the log itself: where nobody flushes

_TABLE = """
create table events(
    seq integer primary key autoincrement,  -- never used twice, whatever is deleted
    rows integer not null,
    total integer not null,                 -- rows of this event and of all before it, since the process began
    body blob not null
)
"""


def spool_folder(agent: str) -> Path:
    """Where the spools of an agent's processes lie on this machine."""
    return home() / "spool" / agent


class Entry(NamedTuple):
    """An event as it lies in a spool."""

    seq: int
    rows: int
    body: bytes


class SpoolFile:
    """One spool's file, for reading and for forgetting what has reached the knowledge base. Not for several threads.

    :raises SpoolError: if it cannot be opened, here and in every method if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        with _told(path):
            self.connection = _connect(path, "rw")
            self.connection.execute("select 1 from events limit 1").close()  # a damaged file says so here

    @classmethod
    def create(cls, path: Path) -> SpoolFile:
        """A new spool's file, which appears under its name when it is complete."""
        unfinished = path.with_suffix(".new")
        with _told(path):
            connection = _connect(unfinished, "rwc")
            connection.execute(_TABLE)
            connection.close()
        unfinished.rename(path)
        return cls(path)

    def read(self, after: int, most_rows: int) -> list[Entry]:
        """Events behind number ``after``, in order: the first, and more while all have at most ``most_rows`` rows."""
        found, rows = list[Entry](), 0
        with _told(self.path):
            lines = self.connection.execute("select seq, rows, body from events where seq > ? order by seq", (after,))
            for line in lines:
                entry = Entry(*line)
                rows += entry.rows
                if found and rows > most_rows:
                    break
                found.append(entry)
            lines.close()
        return found

    def forget(self, up_to: int) -> None:
        """Remove the events up to and including number ``up_to``, some at a time: whoever writes waits for no more.

        And move what SQLite's log has into the file, or a writer would have to, while somebody waits for it.
        """
        with _told(self.path):
            self.connection.execute("pragma synchronous = normal")  # one that comes back is known to the tables
            first = self.connection.execute("select coalesce(min(seq), ?) from events", (up_to,)).fetchone()[0]
            for last in (*range(first + _FORGOTTEN_AT_ONCE - 1, up_to, _FORGOTTEN_AT_ONCE), up_to):
                self.connection.execute("delete from events where seq <= ?", (last,))
            for _ in range(_CHECKPOINTS):
                _, logged, moved = self.connection.execute("pragma wal_checkpoint(passive)").fetchone()
                if logged == moved:
                    break

    def depth(self) -> int:
        """Rows of the events that are in it."""
        with _told(self.path):
            first = self.connection.execute("select total - rows from events order by seq limit 1").fetchone()
            last = self.connection.execute("select total from events order by seq desc limit 1").fetchone()
        return max(0, last[0] - first[0]) if first and last else 0

    def last(self) -> int:
        """The number of the last event that it ever had; 0 before the first."""
        with _told(self.path):
            found = self.connection.execute("select seq from sqlite_sequence where name = 'events'").fetchone()
        return int(found[0]) if found else 0

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()


class _Waiting:
    """Events that a thread wants to be written, and how that went."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.bodies = [(event.rows, encode(event)) for event in events]
        self.rows = sum(rows for rows, _ in self.bodies)
        self.done = False
        self.error: BaseException | None = None


class Spool:
    """This process's spool of one agent: :meth:`put` returns when the events are on the disk.

    Threads that put at once share one commit: the first writes for all that wait (group commit). An abandoned spool
    is taken over, a new one is made where all are in use; one that is damaged is left for a person to look at.

    :param folder: where the agent's spools lie, :func:`spool_folder`.
    :param max_rows: rows that may lie in it before more are refused.
    :raises SpoolError: if the folder or file cannot be written.
    """

    def __init__(self, folder: Path, *, max_rows: int = 1_000_000) -> None:
        self.max_rows = max_rows
        self._owner, self._file = _own(folder)
        self._process = os.getpid()
        self.name = self._file.name
        self._write, self._line = threading.Lock(), threading.Lock()
        self._waiting = list[_Waiting]()
        with _told(self._file.path):
            last = self._file.connection.execute("select max(total) from events").fetchone()
        self._total: int = last[0] or 0
        self._depth, self._asked = self._file.depth(), time.monotonic()

    def put(self, *events: Event) -> None:
        """Write the events, all or none, and return when they will survive any crash.

        :raises SpoolFullError: if more rows than ``max_rows`` wait for the flush; nothing was written.
        :raises SpoolError: if the disk refuses; nothing was written. Or in a process that was forked from the spool's.
        """
        if os.getpid() != self._process:  # SQLite's connections and locks must not cross a fork
            raise SpoolError(f"the spool {self._file.path} belongs to the process that opened it: open another here")
        mine = _Waiting(events)
        with self._line:
            self._waiting.append(mine)
        with self._write:
            if not mine.done:
                with self._line:
                    all_, self._waiting = self._waiting, []
                self._commit(all_)
        if mine.error is not None:
            raise mine.error

    def depth(self) -> int:
        """Rows that wait for the flush; up to a second old."""
        if time.monotonic() - self._asked > _ASK_AGAIN_SECONDS:
            with self._write:
                self._depth, self._asked = self._file.depth(), time.monotonic()
        return self._depth

    def close(self) -> None:
        """Leave the spool to whoever comes next; what is in it stays."""
        with self._write:
            self._file.close()
            self._owner.release()

    def _commit(self, waiting: Sequence[_Waiting]) -> None:
        """Write what those want for whom there is room, in one transaction; with the lock held."""
        accepted = list[_Waiting]()
        try:
            for each in waiting:
                if self._has_room(sum(one.rows for one in accepted) + each.rows):
                    accepted.append(each)
                else:
                    each.error = self._full()
            self._insert([one for each in accepted for one in each.bodies])
        except StillhouseError as error:
            for each in accepted:
                each.error = error
        except BaseException:
            for each in accepted:
                each.error = SpoolError(f"the spool {self._file.path}: writing was interrupted; it may be written")
            raise
        finally:
            for each in waiting:
                each.done = True

    def _insert(self, bodies: Sequence[tuple[int, bytes]]) -> None:
        """All of them or, where the disk refuses, none."""
        before, lines, connection = self._total, list[tuple[int, int, bytes]](), self._file.connection
        for rows, body in bodies:
            self._total += rows
            lines.append((rows, self._total, body))
        with _told(self._file.path):
            connection.execute("begin immediate")
            try:
                connection.executemany("insert into events(rows, total, body) values (?, ?, ?)", lines)
                connection.execute("commit")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("rollback")
                self._total = before
                raise
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
        self._depth += self._total - before

    def _has_room(self, new: int) -> bool:
        if self._depth + new > self.max_rows:
            self._depth, self._asked = self._file.depth(), time.monotonic()
        return self._depth + new <= self.max_rows

    def _full(self) -> SpoolFullError:
        return SpoolFullError(
            f"{self._depth:,} rows wait in the spool {self._file.path}, which may hold {self.max_rows:,} "
            "(`runtime.max_spool_rows`): they wait for a flush into the knowledge base; is `stillhouse serve` or a "
            "flush running, and is the knowledge base there?"
        )


def _own(folder: Path) -> tuple[FileLock, SpoolFile]:
    """A spool of the folder, and the lock that says whose it is: an abandoned one that can be read, else a new one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{uuid.uuid4().hex}.sqlite"
        for path in (*sorted(folder.glob("*.sqlite")), new):
            lock = FileLock(path.with_suffix(".owner"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                return lock, SpoolFile.create(path) if path == new else SpoolFile(path)
            except SpoolError as error:
                lock.release()
                if path == new:
                    raise
                _log.error("%s; it is left as it is, and another spool is taken", error)
    except OSError as error:
        raise SpoolError(f"the spool's folder {folder} cannot be written: {error}") from error
    raise AssertionError("a new name is nobody's")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS
    )
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute(f"pragma wal_autocheckpoint = {_LOG_PAGES}")
    return connection


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SpoolError(
            f"the spool {path}: {error}; it needs a local disk that is writable and not full, and a file that nobody "
            "else changes"
        ) from error
