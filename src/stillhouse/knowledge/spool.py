"""The write-ahead spool: an event is acknowledged when it is in the spool, where it survives any crash.

Each writing process has one SQLite file (in WAL mode, synced at each commit) in ``STILLHOUSE_HOME/spool/<agent>/``. The
file name identifies the writer permanently: the flush records it in every Delta commit together with the number of the
last event written, so each event reaches a table once (see :mod:`stillhouse.knowledge.flush`). When a process ends, the
next process that opens a spool takes over its file; until then the flush empties the file like any other.

A damaged file is renamed to ``<name>.damaged`` after its readable events were moved to the tables; it is never deleted.
If a process's own file is damaged, replaced or removed while the process runs, it copies the readable events into a new
file of the same name, so that the flush knows which events it has already moved.

The spool must be on a local disk: SQLite's log and file locks do not work on network file systems.
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

__all__ = ["Entry", "Spool", "SpoolFile", "Survey", "set_aside", "shrink", "spool_folder", "survey"]

_log = logging.getLogger(__name__)

_LOCK_TIMEOUT_SECONDS = 30.0
_SURVEY_LOCK_TIMEOUT_SECONDS = 1.0  # of a reader that only looks
_DEPTH_MAX_AGE_SECONDS = 1.0
_DELETED_AT_ONCE = 16  # events
_MAX_CHECKPOINTS = 3  # in a row: one moves what was written during the one before; the log restarts when it is empty
_AUTO_CHECKPOINT_PAGES = 16_384  # of 4 KiB: at this size a writer checkpoints the log itself, if nobody flushes

_FREE_PAGES = ("freelist_count", "page_size")
_FILLED_AT_ONCE = 4096  # pages

_CREATE_TABLE = """
create table events(
    seq integer primary key autoincrement,  -- never reused, even after a deletion
    rows integer not null,
    total integer not null,                 -- rows of this event and all events before it
    body blob not null
)
"""

_SELECT_LAST = "select cast(seq as integer) from sqlite_sequence where name = 'events'"
_SELECT_ENTRIES = "select seq, cast(rows as integer), cast(body as blob) from events"  # foreign types


def spool_folder(agent: str) -> Path:
    """Folder of the spools of the agent's processes on this machine."""
    return home() / "spool" / agent


class Entry(NamedTuple):
    """An event in a spool: its number, its row count and its MessagePack bytes."""

    seq: int
    rows: int
    body: bytes


class SpoolFile:
    """The file of one spool: reads events and deletes those that are in the knowledge base. Not thread-safe.

    :param lock_timeout: seconds to wait for locks of other processes.
    :raises SpoolError: if the file cannot be opened; every method raises it if the file cannot be read or written.
    :raises SpoolDamagedError: (a subclass) if the file is missing, is not a spool, or has unreadable parts.
    """

    def __init__(self, path: Path, *, lock_timeout: float = _LOCK_TIMEOUT_SECONDS) -> None:
        self.path = path
        self.name = path.stem
        _require_file(path)
        with _wrap_errors(path):
            self.connection = _connect(path, "rw", lock_timeout)
            try:  # read before writing: a foreign database must not be changed
                columns = {row[1] for row in self.connection.execute("pragma table_info(events)")}
                if not columns >= {"seq", "rows", "total", "body"}:
                    raise SpoolDamagedError(f"{path} is a database, but no spool: it has no table of events")
                _enable_wal(self.connection)
            except BaseException:
                self.connection.close()
                raise

    @classmethod
    def create(cls, path: Path, entries: Iterable[Entry] = (), last: int = 0) -> SpoolFile:
        """Create a spool; the file gets its name when it is complete.

        :param entries: its first events.
        :param last: number of the last event that was ever in it.
        """
        unfinished = path.with_suffix(".new")
        for part in _database_files(unfinished):
            part.unlink(missing_ok=True)
        with _wrap_errors(path):
            connection = _connect(unfinished, "rwc")
            _enable_wal(connection)
            connection.execute(_CREATE_TABLE)
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

    def read(self, after: int, max_rows: int) -> list[Entry]:
        """The events after number ``after``, in order: at least one, and more up to ``max_rows`` rows in total.

        :raises SpoolDamagedError: if the first of them cannot be read; :meth:`salvage` reads those behind it.
        """
        entries, rows = list[Entry](), 0
        try:
            with _wrap_errors(self.path):
                lines = self.connection.execute(f"{_SELECT_ENTRIES} where seq > ? order by seq", (after,))
                for line in lines:
                    entry = Entry(*line)
                    rows += entry.rows
                    if entries and rows > max_rows:
                        break
                    entries.append(entry)
                lines.close()
        except SpoolDamagedError:
            if not entries:
                raise
        return entries

    def salvage(self, after: int) -> Iterator[Entry]:
        """Every readable event after number ``after`` of a damaged file, in order."""
        for seq in sorted({*self._readable_numbers("asc"), *self._readable_numbers("desc")}):
            with suppress(sqlite3.Error):
                row = self.connection.execute(f"{_SELECT_ENTRIES} where seq = ?", (seq,)).fetchone()
                if row is not None and seq > after:
                    yield Entry(*row)

    def _readable_numbers(self, order: str) -> Iterator[int]:
        """Numbers of events, from one end of the file up to the damage."""
        with suppress(sqlite3.Error):
            for (seq,) in self.connection.execute(f"select seq from events order by seq {order}"):
                yield seq

    def require_undamaged(self) -> None:
        """Check the whole file.

        :raises SpoolDamagedError: if any part is damaged.
        """
        with _wrap_errors(self.path):
            result = self.connection.execute("pragma quick_check(1)").fetchone()
        if result != ("ok",):
            raise SpoolDamagedError(f"the spool {self.path} is damaged: {result and result[0]}")

    def forget(self, up_to: int) -> None:
        """Delete the events up to and including number ``up_to``, a few at a time so that writers wait briefly.

        Then checkpoint SQLite's log (WAL); otherwise a writer would have to do it while a decision waits.
        """
        with _wrap_errors(self.path):
            self.connection.execute("pragma synchronous = normal")  # a deletion may be lost: the tables know the event
            first = self.connection.execute("select coalesce(min(seq), ?) from events", (up_to,)).fetchone()[0]
            for last in (*range(first + _DELETED_AT_ONCE - 1, up_to, _DELETED_AT_ONCE), up_to):
                self.connection.execute("delete from events where seq <= ?", (last,))
            for _ in range(_MAX_CHECKPOINTS):
                _, logged, moved = self.connection.execute("pragma wal_checkpoint(passive)").fetchone()
                if logged == moved:
                    break

    def replace(self, seq: int, event: tuple[int, bytes] | None) -> None:
        """Put another content in the place of event number ``seq``: rows and bytes; None deletes it."""
        with _wrap_errors(self.path):
            if event is None:
                self.connection.execute("delete from events where seq = ?", (seq,))
            else:
                self.connection.execute("update events set rows = ?, body = ? where seq = ?", (*event, seq))

    def wipe(self) -> None:
        """Overwrite what is free in the file with zeros and empty its log: it may hold events that are deleted.

        The file does not shrink, so its owner may go on writing.
        """
        with _wrap_errors(self.path):
            self.connection.execute("begin immediate")
            self.connection.execute("create table kept as select seq, rows, total, body from events")
            self.connection.execute("delete from events")  # without a condition: SQLite zeroes whole pages
            self.connection.execute("insert into events(seq, rows, total, body) select * from kept order by seq")
            self.connection.execute("drop table kept")
            self.connection.execute("commit")
            pages, size = (self.connection.execute(f"pragma {name}").fetchone()[0] for name in _FREE_PAGES)
            if pages:
                self.connection.execute("begin immediate")
                self.connection.execute("create table filling(zeros blob)")
                for first in range(0, pages, _FILLED_AT_ONCE):
                    filled = min(_FILLED_AT_ONCE, pages - first) * size
                    self.connection.execute("insert into filling values (zeroblob(?))", (filled,))
                self.connection.execute("drop table filling")
                self.connection.execute("commit")
            for _ in range(_MAX_CHECKPOINTS):
                busy, *_rest = self.connection.execute("pragma wal_checkpoint(truncate)").fetchone()
                if not busy:
                    return
        raise SpoolError(f"the log of the spool {self.path} cannot be emptied: another process reads it all the time")

    def depth(self) -> int:
        """Number of rows of the events in the file."""
        with _wrap_errors(self.path):
            first = self.connection.execute("select cast(total - rows as integer) from events order by seq").fetchone()
            last = self.connection.execute("select cast(total as integer) from events order by seq desc").fetchone()
        return max(0, (last[0] or 0) - (first[0] or 0)) if first and last else 0

    def last(self) -> int:
        """Number of the last event that was ever in the file; 0 before the first."""
        with _wrap_errors(self.path):
            row = self.connection.execute(_SELECT_LAST).fetchone()
        return int(row[0] or 0) if row else 0

    def close(self) -> None:
        """Close the file."""
        self.connection.close()


class _WriteRequest:
    """Events that a thread wants to write, and the result."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.bodies = [(event.rows, encode(event)) for event in events]
        self.rows = sum(rows for rows, _ in self.bodies)
        self.done = False
        self.error: BaseException | None = None


class Spool:
    """This process's spool of one agent: :meth:`put` returns when the events are synced to the disk.

    Threads that call :meth:`put` at the same time share one commit: the first writes for all that wait (group commit).
    The process takes over an abandoned spool, or creates one if all are in use or damaged. If its file is damaged,
    replaced or removed, the next :meth:`put` or :meth:`check` notices, and restores it from the readable events.

    :param folder: of the agent's spools, :func:`spool_folder`.
    :param max_rows: of all events in the spool; more are refused.
    :raises SpoolError: if the folder or file cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> from stillhouse.knowledge.events import Outcomes
    >>> with TemporaryDirectory() as folder:
    ...     spool = Spool(Path(folder))
    ...     spool.put(Outcomes(observation_ids=["o1"], observed_at=[0], known_at=[0], actions=["move"]))
    ...     spool.depth()
    ...     spool.close()
    1
    """

    def __init__(self, folder: Path, *, max_rows: int = 1_000_000) -> None:
        self.max_rows = max_rows
        self._owner, self._file = _acquire_spool(folder)
        self._process = os.getpid()
        self.name = self._file.name
        self._write_lock, self._queue_lock = threading.Lock(), threading.Lock()
        self._queue = list[_WriteRequest]()
        self._last = self._file.last()
        self._total = _total(self._file)
        self._file_ids = _file_ids(self._file.path)
        self._depth, self._depth_at = self._file.depth(), time.monotonic()

    def put(self, *events: Event) -> None:
        """Write the events, all or none, and return when they survive any crash.

        :raises SpoolFullError: if the spool would have more than ``max_rows`` rows; nothing was written.
        :raises SpoolError: if the disk cannot be written, or in a forked process; nothing was written.
        """
        if os.getpid() != self._process:  # SQLite's connections and locks must not cross a fork
            raise SpoolError(f"the spool {self._file.path} belongs to the process that opened it: open another here")
        request = _WriteRequest(events)
        with self._queue_lock:
            self._queue.append(request)
        with self._write_lock:
            if not request.done:
                with self._queue_lock:
                    requests, self._queue = self._queue, []
                self._commit(requests)
        if request.error is not None:
            raise request.error

    def depth(self) -> int:
        """Number of rows that wait for the flush; the value may be a second old."""
        if time.monotonic() - self._depth_at > _DEPTH_MAX_AGE_SECONDS:
            with self._write_lock:
                self._depth, self._depth_at = self._file.depth(), time.monotonic()
        return self._depth

    def check(self, *, write: bool = False) -> None:
        """Check the file as the flush does, and restore it if it is damaged, replaced or missing.

        :param write: also check that the disk can be written.
        :raises SpoolError: if :meth:`put` would fail now.
        """
        if not self._is_undamaged():
            with self._write_lock:
                if not self._is_undamaged():  # another thread has not restored it meanwhile
                    self._restore(SpoolDamagedError(f"the spool {self._file.path} was damaged or removed while in use"))
        if write:
            with self._write_lock:
                if not self._has_room(1):
                    raise self._full_error()
                with _wrap_errors(self._file.path):
                    self._file.connection.execute("pragma user_version = 1")  # is written and synced like an event

    def close(self) -> None:
        """Release the spool to the next process; its events stay."""
        with self._write_lock:
            self._file.close()
            self._owner.release()

    def _commit(self, requests: Sequence[_WriteRequest]) -> None:
        """Write the events of all requests for which there is room in one transaction; needs the write lock."""
        accepted = list[_WriteRequest]()
        try:
            for request in requests:
                if self._has_room(sum(other.rows for other in accepted) + request.rows):
                    accepted.append(request)
                else:
                    request.error = self._full_error()
            self._insert([body for request in accepted for body in request.bodies])
        except StillhouseError as error:
            for request in accepted:
                request.error = error
        except BaseException:
            for request in accepted:
                request.error = SpoolError(f"the spool {self._file.path}: writing was interrupted; it may be written")
            raise
        finally:
            for request in requests:
                request.done = True

    def _insert(self, bodies: Sequence[tuple[int, bytes]]) -> None:
        """Write all of them or, if the disk cannot be written, none."""
        before = self._last
        try:
            self._write_events(bodies)
            self._require_in_place()
        except SpoolDamagedError as error:
            written = self._last
            readable = self._restore(error)
            if written == before or readable < written:
                self._write_events(bodies)

    def _is_undamaged(self) -> bool:
        try:
            self._require_in_place()
            SpoolFile(self._file.path, lock_timeout=_SURVEY_LOCK_TIMEOUT_SECONDS).close()
        except SpoolDamagedError:
            return False
        except SpoolError:  # another process has locked it
            return True
        return True

    def _require_in_place(self) -> None:
        """Check that the open files are still those under the spool's names.

        :raises SpoolDamagedError: if they were removed, replaced or truncated.
        """
        file_ids = _file_ids(self._file.path)
        if self._file_ids != file_ids:
            inode, log, size = self._file_ids
            now_inode, now_log, now_size = file_ids
            if now_inode != inode or (log and now_log != log) or now_size < size:
                raise SpoolDamagedError(f"the spool {self._file.path} was removed, replaced or truncated while in use")
            self._file_ids = file_ids

    def _write_events(self, bodies: Sequence[tuple[int, bytes]]) -> None:
        before, lines, connection = self._total, list[tuple[int, int, bytes]](), self._file.connection
        for rows, body in bodies:
            self._total += rows
            lines.append((rows, self._total, body))
        with _wrap_errors(self._file.path):
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

    def _restore(self, damage: SpoolError) -> int:
        """Create a new file of the same name with the readable events of the old one, which is set aside.

        :returns: number of the last readable event.
        :raises SpoolError: if the disk cannot be written; nothing was changed.
        """
        old, path = self._file, self._file.path
        entries = list(old.salvage(0))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not Path(self._owner.lock_file).exists():  # removed with the folder
                self._owner.release()
                self._owner = FileLock(path.with_suffix(".owner"))
                self._owner.acquire(timeout=0)
            restored = SpoolFile.create(path.with_suffix(".restored"), entries, self._last)
            restored.close()
            aside = _rename_aside(path)
            old.close()  # this may remove the log under its name
            path.with_suffix(".restored").rename(path)
            self._file = SpoolFile(path)
        except (OSError, Timeout) as error:
            raise SpoolError(f"{damage}; it cannot be restored: {error}") from error
        self._last, self._total, self._file_ids = self._file.last(), _total(self._file), _file_ids(path)
        self._depth, self._depth_at = self._file.depth(), time.monotonic()
        _log.error(
            "%s; restored with its %d readable events%s",
            damage,
            len(entries),
            f"; the old file is {aside}" if aside else "",
        )
        return entries[-1].seq if entries else 0

    def _has_room(self, new: int) -> bool:
        if self._depth + new > self.max_rows:
            self._depth, self._depth_at = self._file.depth(), time.monotonic()
        return self._depth + new <= self.max_rows

    def _full_error(self) -> SpoolFullError:
        return SpoolFullError(
            f"{self._depth:,} rows wait in the spool {self._file.path}, which may hold {self.max_rows:,} "
            "(`runtime.max_spool_rows`), for a flush into the knowledge base: check that `stillhouse serve` or a flush "
            "is running, and that the knowledge base can be written"
        )


# --------------------------------------------------------------------------- all of an agent's spools


class Survey(NamedTuple):
    """The state of the spools in a folder."""

    rows: int
    """Rows that wait for the flush, in the readable spools."""
    problems: tuple[str, ...]
    """One sentence for each spool that is damaged, unreadable or set aside."""


def survey(folder: Path) -> Survey:
    """Check every spool in the folder; an unreadable spool is reported as a problem, not raised.

    >>> survey(Path("no such folder"))
    Survey(rows=0, problems=())
    """
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
                f"{path} is a damaged spool that was set aside: its readable events were moved on; look at it, "
                "then move or remove it"
            )
        if path.suffix != ".sqlite":
            continue
        try:
            file = SpoolFile(path, lock_timeout=_SURVEY_LOCK_TIMEOUT_SECONDS)
            try:
                rows += file.depth()
            finally:
                file.close()
        except SpoolError as error:
            problems.append(str(error))
    return Survey(rows, tuple(problems))


def set_aside(path: Path) -> Path | None:
    """Rename a damaged spool and its log to ``<name>.damaged``, so that it no longer counts as a spool.

    :returns: its new path; None if a process owns the spool, which will restore it itself.
    :raises OSError: if it cannot be renamed.
    """
    try:
        with FileLock(path.with_suffix(".owner"), timeout=0):
            return _rename_aside(path)
    except Timeout:
        return None


def shrink(path: Path) -> None:
    """Write the file of a spool without an owner again, so that nothing of deleted events is left in it.

    :raises SpoolError: if it cannot be written.
    """
    with _wrap_errors(path):
        connection = _connect(path, "rw")
        try:
            connection.execute("vacuum")
            connection.execute("pragma wal_checkpoint(truncate)")
        finally:
            connection.close()


def _rename_aside(path: Path) -> Path | None:
    """The new path; None if there is no file."""
    if not any(part.exists() for part in _database_files(path)):
        return None
    names = itertools.chain([path.stem], (f"{path.stem}.{number}" for number in itertools.count(2)))
    targets = (path.with_name(f"{name}.damaged") for name in names)
    aside = next(target for target in targets if not any(part.exists() for part in _database_files(target)))
    for part, target in zip(_database_files(path), _database_files(aside), strict=True):
        if part.exists():
            part.rename(target)
    return aside


def _database_files(path: Path) -> list[Path]:
    """The SQLite database, its log and the log's index."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _require_file(path: Path) -> None:
    """Check that the spool exists and is not empty, without opening it: that would release this process's own locks.

    :raises SpoolDamagedError: if there is no such file, or it is empty.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise SpoolDamagedError(f"the spool {path} cannot be found: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SpoolError(f"{path} is not a file, so it cannot be a spool: move it elsewhere")
    if status.st_size == 0:
        raise SpoolDamagedError(f"the spool {path} is empty: it has not even a database header")


def _file_ids(path: Path) -> tuple[int, int, int]:
    """Identifies the files of a spool: inodes of file and log (0: missing), and the size of the file."""
    try:
        status = os.stat(path)  # noqa: PTH116 — at each commit
        inode, size = status.st_ino, status.st_size
    except OSError:
        inode = size = 0
    try:
        log = os.stat(f"{path}-wal").st_ino  # noqa: PTH116
    except OSError:
        log = 0
    return inode, log, size


def _total(file: SpoolFile) -> int:
    with _wrap_errors(file.path):
        row = file.connection.execute("select cast(total as integer) from events order by seq desc").fetchone()
    return int(row[0] or 0) if row else 0


def _acquire_spool(folder: Path) -> tuple[FileLock, SpoolFile]:
    """Take over an abandoned, undamaged spool of the folder, or create one; returns it with its owner's lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(folder.glob("*.sqlite"))
    except OSError as error:
        raise SpoolError(f"the spool's folder {folder} cannot be written: {error}") from error
    for path in paths:
        try:
            lock = FileLock(path.with_suffix(".owner"))
            lock.acquire(timeout=0)
        except Timeout:
            continue
        except OSError as error:
            _log.error("%s; it is left as it is, and another spool is taken", error)
            continue
        try:
            return lock, _open_undamaged(path)
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


def _open_undamaged(path: Path) -> SpoolFile:
    file = SpoolFile(path)
    try:
        file.require_undamaged()
    except SpoolError:
        file.close()
        raise
    return file


def _connect(path: Path, mode: str, lock_timeout: float = _LOCK_TIMEOUT_SECONDS) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=lock_timeout)


def _enable_wal(connection: sqlite3.Connection) -> None:
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute("pragma secure_delete = on")  # the bytes of deleted events are overwritten
    connection.execute(f"pragma wal_autocheckpoint = {_AUTO_CHECKPOINT_PAGES}")


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def _wrap_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in _DAMAGED or code == sqlite3.SQLITE_READONLY_DBMOVED:
            raise SpoolDamagedError(f"the spool {path} is damaged: {error}") from error
        raise SpoolError(
            f"the spool {path}: {error}; it needs a local disk that is writable and not full, and a file that no "
            "other program changes"
        ) from error
