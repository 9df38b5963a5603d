"""Records of what was asked and answered, written beside the traffic: no caller ever waits for one.

The door hands over an :class:`Exchange` when an answer is complete. If too many are unwritten, the newest is dropped
and counted. One thread reads the bodies, recognises the task, and writes; a question becomes a task when it is asked
the second time, or at once if the caller names it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from pydantic import AwareDatetime, Field

from stillhouse.errors import StillhouseError
from stillhouse.gateway.access import Caller
from stillhouse.gateway.deciding import BLIND, Asked, Decider, LocalDecision
from stillhouse.gateway.protocols import WireProtocol
from stillhouse.gateway.protocols.openai_responses import task_of_local_id
from stillhouse.gateway.questions import Answer, ClosedQuestion, Unrecognised
from stillhouse.gateway.settings import GatewaySettings
from stillhouse.gateway.store import GatewayStore, teacher_version
from stillhouse.gateway.tasks import Task, make_task
from stillhouse.records import Record

__all__ = ["Capture", "CaptureLog", "Exchange", "decode_request", "new_counts", "read_questions"]

log = logging.getLogger(__name__)

_MAX_SEEN = 4096  # keys of questions that were asked once
_BATCH = 256  # exchanges of one transaction
_GATHER_SECONDS = 0.1  # in which exchanges gather for one transaction, which costs as much as some of them
_HOUSEKEEPING_SECONDS = 60.0
_MIN_LABEL_ANSWERS = 20  # before a task without a schema can turn out not to be closed
_MIN_LABEL_SHARE = 0.9
_LABEL_CHECK_GROWTH = 5  # a task's labels are counted again when there are a fifth more
_MAX_ID_CHARACTERS = 200
_SECRET_FIELDS = re.compile(r"api[-_]?key|auth|secret|passw|credential|access_?token|id_?token|jwt|headers", re.I)
"""Names of fields of a request that hold a credential, as some gateways take them."""


@dataclass(slots=True)
class Exchange:
    """One request with its answer, as they were on the wire."""

    protocol: WireProtocol
    request_id: str
    at: int
    """Microseconds since 1970 (UTC): when the request had arrived."""
    caller: Caller
    request: bytes = field(repr=False)
    task_name: str | None = None
    content_encoding: str = ""
    streamed: bool = False
    answer: list[bytes] = field(default_factory=list, repr=False)
    size: int = 0
    """Bytes of the answer so far."""
    first_byte_ms: float | None = None
    ms: float | None = None
    questions: tuple[ClosedQuestion, ...] | None = field(default=None, repr=False)
    """If they were read already."""
    asked: Asked = "first"
    decisions: tuple[LocalDecision, ...] = field(default=(), repr=False)
    would_answer: bool | None = None
    """Whether the champions answer the request, or would have if the upstream were not asked blindly; None: they were
    not asked."""

    @property
    def bytes(self) -> int:
        """What it holds in memory, about."""
        return len(self.request) + self.size + 1000


class Capture(Record):
    """One question with its answer, as it was recorded."""

    request_id: str
    question_id: str
    task: Task
    at: AwareDatetime
    caller: str = Field(description="keyed hash of the caller's credential")
    observation: str = Field(repr=False)
    asked: Asked
    action: str | None = Field(description="what the upstream answered; null if that is none of the actions")
    probs: dict[str, float] | None
    teacher: str = Field(description="the upstream's version: the model and fingerprint in its answer")
    local_action: str | None = Field(default=None, description="what the champion said")
    local_confidence: float | None = None
    local_version: str | None = None
    decision_id: str | None = None
    would_answer: bool | None = Field(
        default=None,
        description="whether the champion answers, or would have without the audit or shadow; null: it was not asked",
    )
    known_at: AwareDatetime = Field(description="when the answer had arrived")

    @property
    def blind(self) -> bool:
        """Whether the upstream was asked without regard to what the champion says."""
        return self.asked in BLIND

    @property
    def agreed(self) -> bool | None:
        """Whether the champion said what the upstream answered; None if one of them was not asked.

        An answer that is none of the actions, such as a refusal, is not what the champion said.
        """
        if self.asked == "local" or self.local_action is None:
            return None
        return self.action == self.local_action


def new_counts() -> Counter[tuple[str, str]]:
    """Counts by what (``captures`` or ``unrecognised``) and result or reason."""
    return Counter()


class CaptureLog:
    """The queue and its thread.

    :param path: of the file of records.
    :param decider: hears of each record after it was written, in the thread.
    """

    def __init__(self, settings: GatewaySettings, path: Path, decider: Decider | None = None) -> None:
        self._settings, self._path, self._decider = settings, path, decider
        self._queue = deque[Exchange]()
        self._references = deque[str]()
        self._size = 0
        self._writing = 0
        self._lock = threading.Lock()
        self._wakeup = threading.Event()
        self._stopping = False
        self._counts, self._unsaved = new_counts(), new_counts()
        self._tentative = new_counts()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._store: GatewayStore | None = None
        self._failed = False
        self._housekeeping_at = 0.0
        self._unchecked: dict[str, int] = {}
        self.referred: frozenset[str] = frozenset()
        """Keys of the tasks whose answers are referred to later; replaced as a whole."""
        self._thread = threading.Thread(target=self._run, name="door records", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, exchange: Exchange) -> bool:
        """Hand over a complete exchange; False if it was dropped, because too much is unwritten. Never waits."""
        size = exchange.bytes
        with self._lock:
            is_full = len(self._queue) >= self._settings.max_waiting
            if is_full or self._size + size > self._settings.max_waiting_bytes:
                self._add("captures", "dropped")
                return False
            self._queue.append(exchange)
            self._size += size
        self._wakeup.set()
        return True

    def refer(self, answer_id: str) -> None:
        """Note that a request refers to an earlier answer."""
        if len(answer_id) > _MAX_ID_CHARACTERS:
            return
        key, decider = task_of_local_id(answer_id), self._decider
        # anybody may write an id of this form
        if key is not None and key not in self.referred and decider is not None and decider.serves(key):
            with self._lock:
                self.referred |= {key}
        if len(self._references) < self._settings.max_waiting:
            self._references.append(answer_id)

    def count(self, what: str, result: str) -> None:
        """Count a request that is not recorded."""
        with self._lock:
            self._add(what, result)

    def take_counts(self) -> Counter[tuple[str, str]]:
        """The counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, new_counts()
        return counts

    @property
    def waiting(self) -> int:
        """Exchanges that are not written yet."""
        return len(self._queue) + self._writing

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._failed

    def close(self, timeout: float) -> bool:
        """Write what is unwritten and end the thread; whether that took less than ``timeout`` seconds."""
        self._stopping = True
        self._wakeup.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _add(self, what: str, result: str) -> None:
        self._counts[what, result] += 1
        self._unsaved[what, result] += 1

    # ----------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            self._wakeup.wait(1.0)
            self._wakeup.clear()
            if not self._stopping:
                time.sleep(_GATHER_SECONDS)
            is_last = self._stopping
            try:
                while self._write_batch():
                    pass
            except Exception as error:  # the thread must go on; the text of an error might hold a body
                if not self._failed:
                    log.error("the door's records cannot be written: %s", _describe(error))
                self._failed = True
            else:
                self._failed = False
            if is_last:
                if self._queue:  # the last attempt to write failed
                    log.error("%d records of the door are lost: they could not be written", len(self._queue))
                break
        if self._store is not None:
            self._store.close()

    def _write_batch(self) -> bool:
        """Write some exchanges in one transaction; whether there may be more."""
        with self._lock:
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._size -= sum(exchange.bytes for exchange in batch)
            self._writing = len(batch)
        references = [self._references.popleft() for _ in range(len(self._references))]
        is_due = time.monotonic() >= self._housekeeping_at
        if not (batch or references or self._unsaved or is_due):
            return False
        captures = list[Capture]()
        self._tentative = new_counts()
        try:
            read = [pair for exchange in batch if (pair := self._read_alone(exchange)) is not None]
            store = self._store or GatewayStore(self._path)
            self._store = store
            with store.transaction():
                for exchange, questions, answers in read:
                    captures += self._record_alone(store, exchange, questions, answers)
                for answer_id in references:
                    key = task_of_local_id(answer_id)
                    store.refer(answer_id) if key is None else store.refer_task(key)
                if is_due:
                    before = datetime.now(UTC) - self._settings.retention
                    store.purge(int(before.timestamp() * 1e6))
                with self._lock:
                    unsaved = self._unsaved.copy()
                store.count({f"{what}:{result}": number for (what, result), number in unsaved.items()})
            with self._lock:  # counted only now, because a transaction may fail
                self._unsaved -= unsaved
                self._counts.update(self._tentative)
                self._unsaved.update(self._tentative)
            if is_due or references:
                referred = store.referred()
                with self._lock:  # a union: the event loop may have added a key that is not on the disk yet
                    self.referred |= referred
                self._housekeeping_at = time.monotonic() + _HOUSEKEEPING_SECONDS
        except Exception:
            if self._store is not None:  # it is opened again: its file may have been removed or replaced
                self._store.close()
                self._store = None
            with self._lock:
                for _ in batch:
                    self._add("captures", "unwritten")
            raise
        finally:
            self._writing = 0
        for capture in captures:
            self._tell(capture)
        return bool(self._queue or self._unsaved)

    def _tell(self, capture: Capture) -> None:
        if self._decider is not None:
            try:
                self._decider.note(capture)
            except Exception as error:
                log.error("a record of task %s was not taken in: %s", capture.task.key, type(error).__name__)

    # ----------------------------------------------------------------- reading an exchange

    def _read_alone(
        self, exchange: Exchange
    ) -> tuple[Exchange, tuple[ClosedQuestion, ...], tuple[Answer, ...] | None] | None:
        """:meth:`_read`; an exchange that fails in a way that nobody foresaw takes no other with it."""
        try:
            return self._read(exchange)
        except Exception as error:
            log.error("a record of the door cannot be read: %s", type(error).__name__)
            self.count("captures", "unreadable")
            return None

    def _record_alone(
        self,
        store: GatewayStore,
        exchange: Exchange,
        questions: Sequence[ClosedQuestion],
        answers: Sequence[Answer] | None,
    ) -> list[Capture]:
        """:meth:`_record`; an exchange whose values cannot be stored takes no other with it."""
        counted = self._tentative.copy()
        try:
            with store.part():
                return self._record(store, exchange, questions, answers)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            log.error("a record of the door cannot be stored: %s", type(error).__name__)
            self._tentative = counted
            self._tentative["captures", "unreadable"] += 1
            return []

    def _read(
        self, exchange: Exchange
    ) -> tuple[Exchange, tuple[ClosedQuestion, ...], tuple[Answer, ...] | None] | None:
        """The questions and answers of an exchange; None if it is not recorded."""
        reason = None
        if exchange.questions is None:
            read = read_questions(exchange.protocol, exchange.request, exchange.task_name)
            if isinstance(read, Unrecognised):
                if read.refers_to is not None:
                    self.refer(read.refers_to)
                reason = read.reason
            else:
                exchange.questions = read
        if reason is None and exchange.caller.is_ambiguous:
            reason = "several credentials"
        questions = exchange.questions or ()
        # in the decoded texts too: JSON may write any character as an escape
        if reason is None and (exchange.caller.is_in(exchange.request) or exchange.caller.is_in(_texts_of(questions))):
            reason = "holds a credential"
        if reason is not None:
            self.count("unrecognised", reason)
            return None
        if exchange.asked == "local":
            return exchange, questions, None
        answers: Sequence[Answer]
        try:
            body = _decompress(b"".join(exchange.answer), exchange.content_encoding, self._settings.max_record_bytes)
            if exchange.caller.is_in(body):
                self.count("captures", "holds a credential")
                return None
            answers = exchange.protocol.read_answers(questions, body, exchange.streamed)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error, msgspec.MsgspecError):
            self.count("captures", "unreadable")
            return None
        if any(exchange.caller.is_in((answer.action or "").encode()) for answer in answers):
            self.count("captures", "holds a credential")
            return None
        return exchange, questions, tuple(answers)

    def _record(
        self,
        store: GatewayStore,
        exchange: Exchange,
        questions: Sequence[ClosedQuestion],
        answers: Sequence[Answer] | None,
    ) -> list[Capture]:
        """Write the captures of one exchange, a question each."""
        captures = []
        for index, question in enumerate(questions):
            task = make_task(exchange.caller.tenant, question, exchange.task_name)
            answer = Answer(None) if answers is None else answers[index]
            decision = exchange.decisions[index] if exchange.decisions else None
            if not self._is_task(store, task, question, exchange):
                continue
            self._tentative["captures", "written" if answer.action is not None or answers is None else "unusable"] += 1
            store.add([_row(exchange, question, task, answer, decision)])
            self._close_if_open(store, task)
            if self._decider is not None:
                captures.append(_capture(exchange, question, task, answer, decision))
        return captures

    def _is_task(self, store: GatewayStore, task: Task, question: ClosedQuestion, exchange: Exchange) -> bool:
        """Whether this question is recorded: it was asked before or has a name, and there is room for its task."""
        if exchange.decisions or task.name is not None or task.key in self._seen:
            self._seen.pop(task.key, None)
        elif store.constant(task.key) is None:
            self._seen[task.key] = None
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
            self._tentative["captures", "first time"] += 1
            return False
        limits = (self._settings.max_tasks, self._settings.max_tasks_per_tenant)
        if exchange.decisions:  # where a champion decides, audits must be recorded as long as it does
            store.admit(task, question.constant, exchange.at, (10**9, 10**9))
            return True
        if store.admit(task, question.constant, exchange.at, limits):
            return True
        self._tentative["unrecognised", "too many tasks"] += 1
        return False

    def _close_if_open(self, store: GatewayStore, task: Task) -> None:
        """Stop recording a task without a schema whose answers are not a few labels, unless an agent decides it."""
        if task.actions or (self._decider is not None and self._decider.serves(task.key)):
            return
        self._unchecked[task.key] = self._unchecked.get(task.key, 1) - 1
        if self._unchecked[task.key] > 0:
            return
        different, labels, answers = store.label_counts(task.key)
        self._unchecked[task.key] = max(1, answers // _LABEL_CHECK_GROWTH) if answers >= _MIN_LABEL_ANSWERS else 1
        is_open = answers >= _MIN_LABEL_ANSWERS and labels < _MIN_LABEL_SHARE * answers
        if is_open or different > self._settings.max_labels:
            store.close_task(task.key)
            self._tentative["captures", "task is not closed"] += 1


def decode_request(body: bytes) -> dict[str, Any] | Unrecognised:
    """The JSON object in the body of a request.

    An object that names a key twice is none: which of the two counts, the upstream may see otherwise than we do. Nor is
    a request with a credential in a field of its own: that is neither recorded nor part of who the caller is.

    >>> decode_request(b'{"model": "m"}'), decode_request(b'{"model": "m", "model": "n"}').reason
    ({'model': 'm'}, 'repeated fields')
    >>> decode_request(b'{"model": "m", "api_key": "sk-1"}').reason
    'holds a credential'
    """
    try:
        request = msgspec.json.decode(body)
        if not isinstance(request, dict):
            return Unrecognised("malformed")
        json.loads(body, object_pairs_hook=_require_different)
    except _RepeatedKeyError:
        return Unrecognised("repeated fields")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Unrecognised("malformed")
    if any(_SECRET_FIELDS.search(name) for name, value in request.items() if value):
        return Unrecognised("holds a credential")
    return request


class _RepeatedKeyError(Exception):
    """An object of JSON has a key twice."""


def _require_different(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise _RepeatedKeyError


def _texts_of(questions: Iterable[ClosedQuestion]) -> bytes:
    """What would be recorded of questions, as text without escapes."""
    parts = [f"{question.observation}\n{json.dumps(question.constant, ensure_ascii=False)}" for question in questions]
    return "\n".join(parts).encode("utf-8", "surrogatepass")


def read_questions(
    protocol: WireProtocol, body: bytes, task_name: str | None = None
) -> tuple[ClosedQuestion, ...] | Unrecognised:
    """The closed questions in the body of a request."""
    request = decode_request(body)
    if isinstance(request, Unrecognised):
        return request
    try:
        return protocol.read_request(request, task_name)
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return Unrecognised("malformed")


def _row(
    exchange: Exchange, question: ClosedQuestion, task: Task, answer: Answer, decision: LocalDecision | None
) -> tuple[object, ...]:
    """The columns of a capture: see :class:`~stillhouse.gateway.store.CaptureRow`."""
    return (
        exchange.request_id,
        question.question_id,
        task.key,
        exchange.at,
        exchange.caller.id,
        question.observation,
        exchange.asked,
        answer.action,
        None if answer.probs is None else json.dumps(dict(answer.probs), ensure_ascii=False),
        answer.reason,
        answer.model,
        answer.fingerprint,
        answer.answer_id,
        answer.input_tokens,
        answer.output_tokens,
        None if decision is None else decision.action,
        None if decision is None else json.dumps(dict(decision.probs), ensure_ascii=False),
        None if decision is None else decision.version,
        None if decision is None else decision.decision_id,
        None if decision is None else exchange.would_answer,
        exchange.streamed,
        exchange.first_byte_ms,
        exchange.ms,
    )


def _capture(
    exchange: Exchange, question: ClosedQuestion, task: Task, answer: Answer, decision: LocalDecision | None
) -> Capture:
    at = datetime.fromtimestamp(exchange.at / 1e6, UTC)
    return Capture(
        request_id=exchange.request_id,
        question_id=question.question_id,
        task=task,
        at=at,
        caller=exchange.caller.id,
        observation=question.observation,
        asked=exchange.asked,
        action=answer.action,
        probs=None if answer.probs is None else dict(answer.probs),
        teacher=teacher_version(answer),
        local_action=None if decision is None else decision.action,
        local_confidence=None if decision is None else decision.confidence,
        local_version=None if decision is None else decision.version,
        decision_id=None if decision is None else decision.decision_id,
        would_answer=None if decision is None else exchange.would_answer,
        known_at=at + timedelta(milliseconds=exchange.ms or 0.0),
    )


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """A body without its content encoding.

    :raises ValueError: if the encoding is not one that Python reads, or the content is larger than ``limit`` bytes.
    """
    names = [name.strip().lower() for name in encoding.split(",") if name.strip()]
    for name in reversed(names):
        if name == "identity":
            continue
        if name not in ("gzip", "x-gzip", "deflate"):
            raise ValueError("a content encoding that cannot be read")
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)
        body = decompressor.decompress(body, limit)
        if decompressor.unconsumed_tail or not decompressor.eof:
            raise ValueError("a body that is too large or cut")
    return body


def _describe(error: Exception) -> str:
    """An error without the text of others' errors, which might hold part of a body."""
    return str(error) if isinstance(error, StillhouseError) else type(error).__name__
