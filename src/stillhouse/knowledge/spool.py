"""The write-ahead spool: what is in it survives any crash, and only what is in it was acknowledged.

One SQLite file per writing process (in WAL mode, synced at each commit), in ``STILLHOUSE_HOME/spool/<agent>/``. Its
name is the writer's identity for ever: the flush names it in each Delta commit together with the last number that it
wrote, so an event reaches a table once (see :mod:`stillhouse.knowledge.flush`). A process that ends leaves its file to
the next one that opens a spool; until then the flush empties it like any other.

A file that is damaged is set aside as ``<name>.damaged`` once what can be read of it is in the tables, and is never
deleted. A process whose own file is damaged, replaced or removed while it runs puts what it can still read of it into a
new one of the same name, so that the flush knows which events it has seen.

The spool must lie on a local disk: SQLite's log and file locks are not for network file systems.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from stillhouse.config import home
from stillhouse.errors import SpoolDamagedError, SpoolError, SpoolFullError, StillhouseError
from stillhouse.knowledge.events import Event, encode

__all__ = ["Entry", "Spool", "SpoolFile", "Survey", "set_aside", "spool_folder", "survey"]

_log = logging.getLogger(__name__)

_BUSY_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 1.0
_FORGOTTEN_AT_ONCE = 16  # events
_CHECKPOINTS = 3  # in a row: what is written during one is for the next, and the log begins anew when nothing is left
_LOOK_SECONDS = 1.0  # that somebody who only looks waits for a lock
_LOG_PAGES = 16_384  # of 4 KiB, with which a writer moves the log itself: where nobody flushes

_TABLE = """
create table events(
    seq integer primary key autoincrement,  -- never used twice, whatever is deleted
    rows integer not null,
    total integer not null,                 -- rows of this event and of all before it, since the process began
    body blob not null
)
"""


_LAST = "select cast(seq as integer) from sqlite_sequence where name = 'events'"
_ENTRIES = "select seq, cast(rows as integer), cast(body as blob) from events"  # whatever a foreign file may hold


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

    :param patience: seconds to wait for others' locks.
    :raises SpoolError: if it cannot be opened, here and in every method if it cannot be read or written; of these
    :raises SpoolDamagedError: if it is gone, is no spool, or has parts that cannot be read.
    """

    def __init__(self, path: Path, *, patience: float = _BUSY_SECONDS) -> None:
        self.path = path
        self.name = path.stem
        _require_file(path)
        with _told(path):
            self.connection = _connect(path, "rw", patience)
            try:  # to read first: a database of somebody else's stays as it is
                columns = {row[1] for row in self.connection.execute("pragma table_info(events)")}
                if not columns >= {"seq", "rows", "total", "body"}:
                    raise SpoolDamagedError(f"{path} is a database, but no spool: it has no table of events")
                _begin_log(self.connection)
            except BaseException:
                self.connection.close()
                raise

    @classmethod
    def create(cls, path: Path, entries: Iterable[Entry] = (), last: int = 0) -> SpoolFile:
        """A new spool's file, which appears under its name when it is complete.

        :param entries: that it begins with.
        :param last: the number of the last event that was ever in it.
        """
        unfinished = path.with_suffix(".new")
        for part in _files(unfinished):
            part.unlink(missing_ok=True)
        with _told(path):
            connection = _connect(unfinished, "rwc")
            _begin_log(connection)
            connection.execute(_TABLE)
            if last:
                entries = list(entries)
                totals = itertools.accumulate(entry.rows for entry in entries)
                lines = [(*entry, total) for entry, total in zip(entries, totals, strict=True)]
                connection.execute("begin")
                connection.executemany("insert into events(seq, rows, body, total) values (?, ?, ?, ?)", lines)
                connection.execute("delete from sqlite_sequence")
                connection.execute("insert into sqlite_sequence(name, seq) values ('events', ?)", (last,))
                connection.execute("commit")
            connection.close()
        unfinished.rename(path)
        return cls(path)

    def read(self, after: int, most_rows: int) -> list[Entry]:
        """Events behind number ``after``, in order: the first, and more while all have at most ``most_rows`` rows.

        :raises SpoolDamagedError: if the first of them cannot be read; :meth:`salvage` has what lies behind it.
        """
        found, rows = list[Entry](), 0
        try:
            with _told(self.path):
                lines = self.connection.execute(f"{_ENTRIES} where seq > ? order by seq", (after,))
                for line in lines:
                    entry = Entry(*line)
                    rows += entry.rows
                    if found and rows > most_rows:
                        break
                    found.append(entry)
                lines.close()
        except SpoolDamagedError:
            if not found:
                raise
        return found

    def salvage(self, after: int) -> Iterator[Entry]:
        """Of a damaged file every event behind number ``after`` that can be read, in order."""
        for seq in sorted({*self._readable("asc"), *self._readable("desc")}):
            with suppress(sqlite3.Error):
                found = self.connection.execute(f"{_ENTRIES} where seq = ?", (seq,)).fetchone()
                if found is not None and seq > after:
                    yield Entry(*found)

    def _readable(self, order: str) -> Iterator[int]:
        """Numbers of events, from one end up to where the damage begins."""
        with suppress(sqlite3.Error):
            for (seq,) in self.connection.execute(f"select seq from events order by seq {order}"):
                yield seq

    def require_sound(self) -> None:
        """:raises SpoolDamagedError: if any part of it is damaged."""
        with _told(self.path):
            found = self.connection.execute("pragma quick_check(1)").fetchone()
        if found != ("ok",):
            raise SpoolDamagedError(f"the spool {self.path} is damaged: {found and found[0]}")

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
            first = self.connection.execute("select cast(total - rows as integer) from events order by seq").fetchone()
            last = self.connection.execute("select cast(total as integer) from events order by seq desc").fetchone()
        return max(0, (last[0] or 0) - (first[0] or 0)) if first and last else 0

    def last(self) -> int:
        """The number of the last event that it ever had; 0 before the first."""
        with _told(self.path):
            found = self.connection.execute(_LAST).fetchone()
        return int(found[0] or 0) if found else 0

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
    is taken over, a new one is made where all are in use, or damaged. One that is damaged, replaced or removed while it
    is in use is noticed by the next :meth:`put` or :meth:`check`, and restored from what can be read of it.

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
        self._last = self._file.last()
        self._total = _total(self._file)
        self._places = _places(self._file.path)
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

    def check(self, *, write: bool = False) -> None:
        """Look at it as the flush does, and restore it where it is damaged, replaced or gone.

        :param write: whether to see if the disk takes something, too.
        :raises SpoolError: if nothing can be put now.
        """
        if not self._is_sound():
            with self._write:
                if not self._is_sound():  # nobody has restored it meanwhile
                    self._restore(SpoolDamagedError(f"the spool {self._file.path} was damaged or removed while in use"))
        if write:
            with self._write:
                if not self._has_room(1):
                    raise self._full()
                with _told(self._file.path):
                    self._file.connection.execute("pragma user_version = 1")  # is written and synced like an event

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
        before = self._last
        try:
            self._write_events(bodies)
            self._require_in_place()
        except SpoolDamagedError as error:
            written = self._last
            readable = self._restore(error)
            if written == before or readable < written:
                self._write_events(bodies)

    def _is_sound(self) -> bool:
        try:
            self._require_in_place()
            SpoolFile(self._file.path, patience=_LOOK_SECONDS).close()
        except SpoolDamagedError:
            return False
        except SpoolError:  # another has it locked
            return True
        return True

    def _require_in_place(self) -> None:
        """:raises SpoolDamagedError: if the files that are written to do not lie under their names any more."""
        places = _places(self._file.path)
        if self._places != places:
            inode, log, size = self._places
            now_inode, now_log, now_size = places
            if now_inode != inode or (log and now_log != log) or now_size < size:
                raise SpoolDamagedError(f"the spool {self._file.path} was removed, replaced or cut off while in use")
            self._places = places

    def _write_events(self, bodies: Sequence[tuple[int, bytes]]) -> None:
        before, lines, connection = self._total, list[tuple[int, int, bytes]](), self._file.connection
        for rows, body in bodies:
            self._total += rows
            lines.append((rows, self._total, body))
        with _told(self._file.path):
            try:
                connection.execute("begin immediate")
                connection.executemany("insert into events(rows, total, body) values (?, ?, ?)", lines)
                last = connection.execute("select last_insert_rowid()").fetchone()[0]
                connection.execute("commit")
            except sqlite3.Error:
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("rollback")
                self._total = before
                raise
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
        if lines:
            self._last = last
        self._depth += self._total - before

    def _restore(self, why: SpoolError) -> int:
        """A new file under the same name, with what can still be read of the old one, which is set aside.

        :returns: the number of the last event that could be read.
        :raises SpoolError: if the disk refuses; all is as before.
        """
        old, path = self._file, self._file.path
        entries = list(old.salvage(0))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not Path(self._owner.lock_file).exists():  # went with the folder
                self._owner.release()
                self._owner = FileLock(path.with_suffix(".owner"))
                self._owner.acquire(timeout=0)
            made = SpoolFile.create(path.with_suffix(".restored"), entries, self._last)
            made.close()
            aside = _rename_aside(path)
            old.close()  # and with it, perhaps, the log that lies under its name
            path.with_suffix(".restored").rename(path)
            self._file = SpoolFile(path)
        except (OSError, Timeout) as error:
            raise SpoolError(f"{why}; it cannot be restored: {error}") from error
        self._last, self._total, self._places = self._file.last(), _total(self._file), _places(path)
        self._depth, self._asked = self._file.depth(), time.monotonic()
        _log.error(
            "%s; restored with the %d events that can be read of it%s",
            why,
            len(entries),
            f"; what lay there is {aside}" if aside else "",
        )
        return entries[-1].seq if entries else 0

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


# --------------------------------------------------------------------------- all of an agent's spools


class Survey(NamedTuple):
    """How the spools in a folder stand."""

    rows: int
    """That wait for the flush, in those that can be read."""
    problems: tuple[str, ...]
    """One sentence for each that is damaged, cannot be read, or was set aside."""


def survey(folder: Path) -> Survey:
    """Look at every spool in the folder; what cannot be read is told, never raised."""
    rows, problems = 0, list[str]()
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return Survey(0, ())
    except OSError as error:
        return Survey(0, (f"the spools in {folder} cannot be listed: {error}",))
    for path in paths:
        if path.suffix == ".damaged":
            problems.append(
                f"{path} is a damaged spool that was set aside: what could be read of it went on; look at "
                "it, then move or remove it"
            )
        if path.suffix != ".sqlite":
            continue
        try:
            file = SpoolFile(path, patience=_LOOK_SECONDS)
            try:
                rows += file.depth()
            finally:
                file.close()
        except SpoolError as error:
            problems.append(str(error))
    return Survey(rows, tuple(problems))


def set_aside(path: Path) -> Path | None:
    """Rename a damaged spool, with its log, to ``<name>.damaged``, so that nobody takes it for a spool any more.

    :returns: its new path; None while a process owns it, which will restore it itself.
    :raises OSError: if it cannot be renamed.
    """
    try:
        with FileLock(path.with_suffix(".owner"), timeout=0):
            return _rename_aside(path)
    except Timeout:
        return None


def _rename_aside(path: Path) -> Path | None:
    """None where nothing lies there."""
    if not any(part.exists() for part in _files(path)):
        return None
    names = itertools.chain([path.stem], (f"{path.stem}.{number}" for number in itertools.count(2)))
    targets = (path.with_name(f"{name}.damaged") for name in names)
    aside = next(target for target in targets if not any(part.exists() for part in _files(target)))
    for part, target in zip(_files(path), _files(aside), strict=True):
        if part.exists():
            part.rename(target)
    return aside


def _files(path: Path) -> list[Path]:
    """A database's file, its log, and the log's index."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _require_file(path: Path) -> None:
    """Without opening it, which would let go of the locks that this process may hold on it.

    :raises SpoolDamagedError: if there is no such file, or nothing in it.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SpoolDamagedError(f"the spool {path} cannot be found: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise SpoolError(f"{path} is not a file, and so no spool: move it elsewhere")
    if found.st_size == 0:
        raise SpoolDamagedError(f"the spool {path} is empty, without even a database's head")


def _places(path: Path) -> tuple[int, int, int]:
    """What tells whether the files are those that were opened: inodes of file and log (0: not there), and its size."""
    try:
        found = os.stat(path)  # noqa: PTH116 — at each commit
        inode, size = found.st_ino, found.st_size
    except OSError:
        inode = size = 0
    try:
        log = os.stat(f"{path}-wal").st_ino  # noqa: PTH116
    except OSError:
        log = 0
    return inode, log, size


def _total(file: SpoolFile) -> int:
    with _told(file.path):
        found = file.connection.execute("select cast(total as integer) from events order by seq desc").fetchone()
    return int(found[0] or 0) if found else 0


def _own(folder: Path) -> tuple[FileLock, SpoolFile]:
    """A spool of the folder, and the lock that says whose it is: an abandoned one that is sound, else a new one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(folder.glob("*.sqlite"))
    except OSError as error:
        raise SpoolError(f"the spool's folder {folder} cannot be written: {error}") from error
    for path in there:
        try:
            lock = FileLock(path.with_suffix(".owner"))
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except OSError as error:
            _log.error("%s; it is left as it is, and another spool is taken", error)
            continue
        try:
            return lock, _sound(path)
        except SpoolError as error:
            lock.release()
            _log.error("%s; it is left as it is, and another spool is taken", error)
    path = folder / f"{uuid.uuid4().hex}.sqlite"
    lock = FileLock(path.with_suffix(".owner"))
    try:
        lock.acquire(timeout=0)
        return lock, SpoolFile.create(path)
    except OSError as error:
        lock.release()
        raise SpoolError(f"the spool's folder {folder} cannot be written: {error}") from error
    except SpoolError:
        lock.release()
        raise


def _sound(path: Path) -> SpoolFile:
    file = SpoolFile(path)
    try:
        file.require_sound()
    except SpoolError:
        file.close()
        raise
    return file


def _connect(path: Path, mode: str, patience: float = _BUSY_SECONDS) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=patience)


def _begin_log(connection: sqlite3.Connection) -> None:
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute(f"pragma wal_autocheckpoint = {_LOG_PAGES}")


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in _DAMAGED or code == sqlite3.SQLITE_READONLY_DBMOVED:
            raise SpoolDamagedError(f"the spool {path} is damaged: {error}") from error
        raise SpoolError(
            f"the spool {path}: {error}; it needs a local disk that is writable and not full, and a file that nobody "
            "else changes"
        ) from error
