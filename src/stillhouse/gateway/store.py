"""The door's records on disk: tasks, captures and counts in one SQLite file.

All workers of a machine write to the same file, in WAL mode. A record may be lost in a power failure (commits are not
synced), and is then one request less to learn from; decisions and outcomes have their own spool, which is synced.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from stillhouse.errors import StoreError
from stillhouse.gateway.deciding import BLIND, Asked
from stillhouse.gateway.questions import Answer
from stillhouse.gateway.settings import Price, gateway_folder
from stillhouse.gateway.tasks import Task, TaskSummary

__all__ = ["CaptureOutline", "CaptureRow", "GatewayStore", "store_path"]

_LOCK_SECONDS = 30.0
_SCHEMA = """
create table if not exists tasks(
    key text primary key, tenant text not null, name text, protocol text not null, model text not null,
    actions text not null,          -- JSON list; empty: learned from the answers
    constant text not null,         -- JSON of what the key covers: the request without its varying text
    first_at integer not null, last_at integer not null,       -- microseconds since 1970 (UTC)
    closed integer not null default 1, referred integer not null default 0
);
create table if not exists captures(
    id integer primary key autoincrement,
    request_id text not null, question_id text not null, task text not null, at integer not null,
    caller text not null,           -- keyed hash
    observation text not null, asked text not null,
    action text, probabilities text, reason text,              -- of the upstream's answer
    model text, fingerprint text, answer_id text, input_tokens integer, output_tokens integer,
    local_action text, local_probabilities text, local_version text, decision_id text,
    would_answer integer,           -- whether the champion answers, or would have without the audit or shadow
    streamed integer not null, first_byte_ms real, ms real
);
create index if not exists captures_by_task on captures(task, at);
create index if not exists captures_by_time on captures(at);
create index if not exists captures_by_answer on captures(answer_id) where answer_id is not null;
create table if not exists counts(name text primary key, value integer not null);
create table if not exists handed_over(        -- to the knowledge base of an agent: all captures up to an id
    agent text not null, task text not null, up_to integer not null default 0, chunk_end integer,
    primary key (agent, task)
);
create table if not exists kept(               -- answers that an agent learns from, by caller
    agent text not null, caller text not null, answers integer not null, primary key (agent, caller)
);
"""

_COMPARED = "(asked in ('shadow', 'audit') and local_action is not null)"


def store_path() -> Path:
    """The file of the door's records."""
    return gateway_folder() / "captures.sqlite"


class CaptureRow:
    """The columns of one capture, in the order of :data:`COLUMNS`."""

    COLUMNS = (
        "request_id",
        "question_id",
        "task",
        "at",
        "caller",
        "observation",
        "asked",
        "action",
        "probabilities",
        "reason",
        "model",
        "fingerprint",
        "answer_id",
        "input_tokens",
        "output_tokens",
        "local_action",
        "local_probabilities",
        "local_version",
        "decision_id",
        "would_answer",
        "streamed",
        "first_byte_ms",
        "ms",
    )


class CaptureOutline(NamedTuple):
    """Of a capture, what its savings are reckoned from: nothing that a caller wrote."""

    request_id: str
    at: int
    """Microseconds since 1970 (UTC)."""
    asked: Asked
    action: str | None
    """What the upstream answered; None: it was not asked, or its answer is none of the actions."""
    local_action: str | None
    local_version: str | None
    would_answer: bool | None
    input_tokens: int | None
    output_tokens: int | None
    ms: float | None


_INSERT = f"insert into captures({', '.join(CaptureRow.COLUMNS)}) values ({', '.join('?' * len(CaptureRow.COLUMNS))})"


class GatewayStore:
    """The file, opened by one thread.

    :param path: of the file; a missing one is made, readable by its owner only.
    :raises StoreError: if it cannot be opened; every method raises it if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._wrapped():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = normal")
            self._connection.execute("pragma secure_delete = on")  # what is deleted must not stay in free pages
            self._connection.executescript(_SCHEMA)

    @classmethod
    def exists(cls) -> bool:
        """Whether anything was recorded here."""
        return store_path().is_file()

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: cannot be read or written ({type(error).__name__}: {error})") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written within the context."""
        with self._wrapped():
            self._connection.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._connection.execute("rollback")
                raise
            self._connection.execute("commit")

    @contextmanager
    def part(self) -> Iterator[None]:
        """Within a transaction: all or nothing of what is written within this context."""
        self._connection.execute("savepoint part")
        try:
            yield
        except BaseException:
            self._connection.execute("rollback to part")
            self._connection.execute("release part")
            raise
        self._connection.execute("release part")

    # ----------------------------------------------------------------- writing, within a transaction

    def admit(self, task: Task, constant: Mapping[str, object], at: int, limits: tuple[int, int]) -> bool:
        """Whether the task is recorded: it is known and closed, or there is room for it.

        :param limits: tasks in all, and of one tenant.
        """
        row = self._connection.execute("select closed from tasks where key = ?", (task.key,)).fetchone()
        if row is not None:
            return bool(row[0])
        total = self._connection.execute("select count(*) from tasks").fetchone()[0]
        own = self._connection.execute("select count(*) from tasks where tenant = ?", (task.tenant,)).fetchone()[0]
        if total >= limits[0] or own >= limits[1]:
            return False
        values = (task.key, task.tenant, task.name, task.protocol, task.model, json.dumps(task.actions))
        self._connection.execute(
            "insert into tasks(key, tenant, name, protocol, model, actions, constant, first_at, last_at) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*values, json.dumps(constant, ensure_ascii=False), at, at),
        )
        return True

    def add(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Add captures, each with the values of :class:`CaptureRow`."""
        for row in rows:
            self._connection.execute(_INSERT, row)
            self._connection.execute("update tasks set last_at = max(last_at, ?) where key = ?", (row[3], row[2]))

    def close_task(self, key: str) -> None:
        """Mark a task as not closed, and delete what was recorded of it."""
        self._connection.execute("update tasks set closed = 0, constant = '{}' where key = ?", (key,))
        self._connection.execute("delete from captures where task = ?", (key,))

    def label_counts(self, key: str) -> tuple[int, int, int]:
        """Of a task: different labels, answers that were labels, and answers in all."""
        row = self._connection.execute(
            "select count(distinct action), count(action), count(*) from captures where task = ? and asked != 'local'",
            (key,),
        ).fetchone()
        return int(row[0]), int(row[1]), int(row[2])

    def refer(self, answer_id: str) -> None:
        """Mark the task of an answer as one whose answers are referred to."""
        self._connection.execute(
            "update tasks set referred = 1 where key in (select task from captures where answer_id = ?)", (answer_id,)
        )

    def refer_task(self, key: str) -> None:
        """Mark a task as one whose answers are referred to."""
        self._connection.execute("update tasks set referred = 1 where key = ?", (key,))

    def count(self, counts: Mapping[str, int]) -> None:
        """Add to the counts."""
        self._connection.executemany(
            "insert into counts(name, value) values (?, ?) "
            "on conflict(name) do update set value = value + excluded.value",
            list(counts.items()),
        )

    def purge(self, before: int) -> None:
        """Delete captures before a moment, and tasks without any since then.

        :param before: microseconds since 1970 (UTC).
        """
        self._connection.execute("delete from captures where at < ?", (before,))
        self._connection.execute("delete from tasks where last_at < ?", (before,))

    # ----------------------------------------------------------------- handing over

    def next_chunk(self, agent: str, key: str, size: int) -> tuple[int, int] | None:
        """The ids of the next captures of a task to hand over to an agent, first to last; None if there are none.

        It is noted, so that after a kill the same chunk comes again.
        """
        with self.transaction():
            self._connection.execute("insert or ignore into handed_over(agent, task) values (?, ?)", (agent, key))
            up_to, end = self._connection.execute(
                "select up_to, chunk_end from handed_over where agent = ? and task = ?", (agent, key)
            ).fetchone()
            if end is None:
                ids = self._connection.execute(
                    "select id from captures where task = ? and id > ? order by id limit ?", (key, up_to, size)
                ).fetchall()
                if not ids:
                    return None
                end = ids[-1][0]
                self._connection.execute(
                    "update handed_over set chunk_end = ? where agent = ? and task = ?", (end, agent, key)
                )
        return int(up_to) + 1, int(end)

    def captures_between(self, key: str, first: int, last: int) -> list[dict[str, object]]:
        """The captures of a task with ids from ``first`` to ``last``, by column."""
        return [capture for capture in self.captures(key, after=first - 1) if int(str(capture["id"])) <= last]

    def kept_by_caller(self, agent: str) -> dict[str, int]:
        """How many answers to each caller an agent learns from."""
        with self._wrapped():
            rows = self._connection.execute("select caller, answers from kept where agent = ?", (agent,))
            return {str(caller): int(answers) for caller, answers in rows}

    def finish_chunk(self, agent: str, key: str, chunk: tuple[int, int], kept: Mapping[str, int]) -> None:
        """Note that a chunk was handed over, and how many answers to each caller are learned from by now."""
        with self.transaction():
            self._connection.execute(
                "update handed_over set up_to = ?, chunk_end = null where agent = ? and task = ?",
                (chunk[1], agent, key),
            )
            self._connection.executemany(
                "insert into kept(agent, caller, answers) values (?, ?, ?) "
                "on conflict(agent, caller) do update set answers = excluded.answers",
                [(agent, caller, answers) for caller, answers in kept.items()],
            )

    def forget(self, ids: Sequence[int]) -> None:
        """Delete captures by their ids, and overwrite what the file and its log held of them."""
        with self.transaction():
            self._connection.executemany("delete from captures where id = ?", [(capture,) for capture in ids])
        with self._wrapped():
            is_busy = self._connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
        if is_busy:
            raise StoreError(f"{self.path}: its log still holds what was deleted, because it is being read: repeat it")

    # ----------------------------------------------------------------- reading

    def referred(self) -> frozenset[str]:
        """Keys of the tasks whose answers are referred to."""
        with self._wrapped():
            return frozenset(key for (key,) in self._connection.execute("select key from tasks where referred"))

    def counts(self) -> dict[str, int]:
        """The counts by name."""
        with self._wrapped():
            return {str(name): int(value) for name, value in self._connection.execute("select name, value from counts")}

    def constant(self, key: str) -> dict[str, object] | None:
        """What a task's key covers: the request without its varying text; None if there is no such task."""
        with self._wrapped():
            row = self._connection.execute("select constant from tasks where key = ?", (key,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def captures(self, key: str, *, after: int = 0) -> Iterator[dict[str, object]]:
        """The captures of a task, oldest first, by column.

        :param after: only those with a larger ``id``.
        """
        names = ("id", *CaptureRow.COLUMNS)
        query = f"select {', '.join(names)} from captures where task = ? and id > ? order by id"
        with self._wrapped():
            for row in self._connection.execute(query, (key, after)):
                yield dict(zip(names, row, strict=True))

    def outlines(self, key: str) -> Iterator[CaptureOutline]:
        """The captures of a task without texts, oldest first."""
        query = f"select {', '.join(CaptureOutline._fields)} from captures where task = ? order by id"
        with self._wrapped():
            for row in self._connection.execute(query, (key,)):
                outline = CaptureOutline(*row)
                would = outline.would_answer
                yield outline._replace(would_answer=None if would is None else bool(would))

    def model_of(self, key: str) -> str | None:
        """The model that a task's requests name; None if there is no such task."""
        with self._wrapped():
            row = self._connection.execute("select model from tasks where key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def count_local(self, key: str, since: int) -> tuple[int, int]:
        """Of a task: requests since a moment, and those that were answered locally.

        :param since: microseconds since 1970 (UTC).
        """
        query = "select count(*), coalesce(sum(asked = 'local'), 0) from captures where task = ? and at >= ?"
        with self._wrapped():
            requests, local = self._connection.execute(query, (key, since)).fetchone()
        return int(requests), int(local)

    def tasks(self, prices: Mapping[str, Price] | None = None) -> list[TaskSummary]:
        """All tasks, the most frequent first."""
        query = "select key, tenant, name, protocol, model, actions, first_at, last_at, closed, referred from tasks"
        with self._wrapped():
            found = [self._summary(row, prices or {}) for row in self._connection.execute(query).fetchall()]
        return sorted(found, key=lambda summary: (-summary.requests, summary.task.key))

    def _summary(self, row: tuple[object, ...], prices: Mapping[str, Price]) -> TaskSummary:
        key, tenant, name, protocol, model, actions, first_at, last_at, closed, referred = row
        totals = self._connection.execute(
            "select count(*), coalesce(sum(asked = 'local'), 0), count(action), count(distinct action), "
            "count(distinct caller), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), "
            f"coalesce(sum({_COMPARED}), 0), coalesce(sum({_COMPARED} and action = local_action), 0) "
            "from captures where task = ?",
            (key,),
        ).fetchone()
        requests, local, usable, answers, callers, sent, received, compared, agreed = map(int, totals)
        timed = requests - local
        median = self._connection.execute(
            "select ms from captures where task = ? and asked != 'local' order by ms limit 1 offset ?",
            (key, timed // 2),
        ).fetchone()
        price = prices.get(str(model))
        money = None
        if price is not None:
            money = (sent * price.per_million_input + received * price.per_million_output) / 1e6
        return TaskSummary.model_validate(
            {
                "task": {
                    "key": key,
                    "tenant": tenant,
                    "name": name,
                    "protocol": protocol,
                    "model": model,
                    "actions": json.loads(str(actions)),
                },
                "first_at": _moment(first_at),
                "last_at": _moment(last_at),
                "requests": requests,
                "answered_locally": local,
                "compared": compared,
                "agreed": agreed,
                "usable": usable,
                "answers": answers,
                "callers": callers,
                "input_tokens": sent,
                "output_tokens": received,
                "money": money,
                "median_ms": None if median is None else median[0],
                "is_closed": bool(closed),
                "is_referred": bool(referred),
            }
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _moment(microseconds: object) -> datetime:
    return datetime.fromtimestamp(int(str(microseconds)) / 1e6, UTC)


def is_blind(asked: Asked) -> bool:
    """Whether the upstream was asked without regard to what the champion says.

    >>> is_blind("audit"), is_blind("unsure")
    (True, False)
    """
    return asked in BLIND


def teacher_version(answer: Answer) -> str:
    """What changes when the upstream answers by another model.

    >>> teacher_version(Answer("a", model="m-2026-05", fingerprint="fp_1"))
    'm-2026-05 fp_1'
    """
    return " ".join(part for part in (answer.model, answer.fingerprint) if part) or "unknown"
