"""The promise of an agent on this machine: which rows the student may answer, shared by all processes.

``STILLHOUSE_HOME/runtime/<agent>/promise.json`` holds the state of the present champion's promise. It is replaced
atomically, under a lock, by whoever has asked the teacher; every process notices a new file before its next decision.
A new champion begins with what its refresh measured on blind rows (``promise.json`` in the variant's signed folder),
or with nothing. Whatever is wrong with the file, the teacher is asked: no row is answered on a state that is not known.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from pydantic import ValidationError

from stillhouse.agreement import NoveltyGuard, PromiseKeeper
from stillhouse.agreement.audits import load_audit_draw
from stillhouse.agreement.describe import describe_promise
from stillhouse.config import AgentConfig
from stillhouse.errors import RuntimeStateError
from stillhouse.files import write_atomic
from stillhouse.records import Promise, PromiseState, PromiseStatus, Record
from stillhouse.runtime.champions import LoadedChampion, runtime_folder
from stillhouse.runtime.rows import Batch
from stillhouse.runtime.status import ProblemLog

__all__ = [
    "NOVELTY_FILE",
    "PROMISE_FILE",
    "AnsweredRow",
    "AskedRows",
    "SharedPromise",
    "join_texts",
    "read_promise_status",
]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

PROMISE_FILE, NOVELTY_FILE = "promise.json", "novelty.bin"
"""In a variant's folder: the state that its refresh has fitted, and the novelty guard of its student."""

_LOCK_SECONDS = 5.0


class SharedState(Record):
    """``promise.json`` of an agent."""

    champion: str
    state: PromiseState


@dataclass(frozen=True, slots=True)
class AskedRows:
    """The rows of a batch that the teacher is to be asked about."""

    rows: list[int]
    """Their indices."""
    confidences: list[float]
    """The student's largest probability of each of them."""
    novelties: list[float]
    blind: list[bool]
    """Whether the teacher is asked without regard to the student's answer."""
    allowed: list[bool]
    """Whether the student may answer it: true only for a blind row, which without the audit it would have answered."""

    @classmethod
    def none(cls) -> AskedRows:
        """No row."""
        return cls([], [], [], [], [])

    @classmethod
    def below(cls, probs: Array, threshold: float) -> AskedRows:
        """The rows below a fixed threshold, of probabilities ``[n, K]``."""
        confidences = probs.max(axis=1)
        rows = np.flatnonzero(confidences < threshold).tolist()
        nothing = [False] * len(rows)
        return cls(rows, confidences[rows].tolist(), [0.0] * len(rows), nothing, nothing)


class AnsweredRow(NamedTuple):
    """A row that the teacher has answered."""

    confidence: float
    novelty: float
    blind: bool
    agrees: bool


class SharedPromise:
    """The promise of one agent in this process. Thread-safe.

    :param config: with ``runtime.cascade.agreement``.
    :param problems: an alarm, and a state that cannot be read or written, are reported here.
    """

    def __init__(self, config: AgentConfig, problems: ProblemLog) -> None:
        settings = config.runtime.cascade
        assert settings is not None and settings.promise is not None
        self.promise = settings.promise
        self._share = settings.audit
        self._folder = runtime_folder(config.agent)
        self._file = self._folder / PROMISE_FILE
        self._problems = problems
        self._draw = load_audit_draw()
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._champion: str | None = None
        self._shared_champion: str | None = None
        self._keeper: PromiseKeeper | None = None
        self._guard: NoveltyGuard | None = None
        self._variant_folder: Path | None = None
        self._text_positions: list[int] | None = None
        self._texts = frozenset(config.observations.texts)

    # ----------------------------------------------------------------- the champion

    def follow(self, champion: LoadedChampion) -> None:
        """Go on with the state of this champion, or begin with what its refresh has measured."""
        folder = None if champion.pointer is None else self._folder / champion.pointer.folder
        guard = None if folder is None else _read_guard(folder / NOVELTY_FILE)
        with self._lock:
            self._champion, self._guard, self._variant_folder = champion.version, guard, folder
            try:
                with self._file_lock():
                    shared = _read(self._file)
                    if shared is None or (shared.champion, shared.state.promise) != (champion.version, self.promise):
                        self._write(_begin(self.promise, folder, guard))
                    self._load()
            except (OSError, RuntimeStateError) as error:
                self._fail(error)

    # ----------------------------------------------------------------- deciding

    def select(self, champion: str, batch: Batch, probs: Array, *, ask_all: bool = False) -> AskedRows:
        """The rows that the teacher is to be asked about: drawn for the audit, unsure, or too novel.

        :param champion: the version whose probabilities ``[n, K]`` these are.
        :param ask_all: all rows, and so all of them blindly.
        """
        keeper = self._current(champion)
        asked = AskedRows([], [], [], [], [])
        share = 1.0 if keeper is None or ask_all else keeper.audit_share(self._share)
        for row, confidence in enumerate(np.clip(probs.max(axis=1), 0.0, 1.0).tolist()):
            blind = share >= 1 or self._draw.is_drawn(batch.observation_ids[row], share)
            novelty = 0.0 if self._guard is None else self._guard.score(self._text(batch, row))
            allowed = keeper is not None and keeper.may_answer(confidence, novelty)
            if blind or not allowed:
                asked.rows.append(row)
                asked.confidences.append(confidence)
                asked.novelties.append(novelty)
                asked.blind.append(blind)
                asked.allowed.append(allowed)
        return asked

    def asks_all(self, champion: str) -> bool:
        """Whether the teacher is asked about every row at present."""
        keeper = self._current(champion)
        return keeper is None or keeper.asks_all

    def observe(self, champion: str, answered: Sequence[AnsweredRow]) -> None:
        """Learn from rows that the teacher has answered, for all processes of this agent.

        If another champion decides by now, they say nothing about it and are left out.
        """
        if not answered:
            return
        try:
            with self._lock, self._file_lock():
                shared = _read(self._file)
                if shared is None or shared.champion != champion or shared.state.promise != self.promise:
                    return
                keeper = PromiseKeeper(self.promise, shared.state)
                alarms = shared.state.epoch
                for row in answered:
                    keeper.observe(row.confidence, row.agrees, novelty=row.novelty, blind=row.blind)
                self._write(keeper, champion)
                self._load()
        except (OSError, RuntimeStateError) as error:
            self._fail(error)
            return
        if keeper.state.epoch > alarms or (keeper.state.alarm is not None and _is_reduced(keeper)):
            self._problems.report("promise", describe_promise(keeper, champion).why)
        else:
            self._problems.resolve("promise")

    def status(self) -> PromiseStatus | None:
        """How far the promise is held; None if there is no champion, or no state that can be read."""
        champion = self._champion
        keeper = None if champion is None else self._current(champion)
        return None if keeper is None or champion is None else describe_promise(keeper, champion)

    # ----------------------------------------------------------------- inside

    def _current(self, champion: str) -> PromiseKeeper | None:
        """The newest state, if it is of that champion; else None: answer nothing. A damaged one begins anew."""
        try:
            if self._stamp != _stamp_of(self._file):
                with self._lock:
                    if _read(self._file) is None:
                        with self._file_lock():
                            log.warning("%s is missing or damaged: the promise begins anew", self._file)
                            self._write(_begin(self.promise, self._variant_folder, self._guard))
                    self._load()
        except (OSError, RuntimeStateError) as error:
            self._fail(error)
            return None
        return self._keeper if self._shared_champion == champion else None

    def _load(self) -> None:
        """Read the file; the caller holds the lock of this process."""
        stamp, shared = _stamp_of(self._file), _read(self._file)
        is_usable = shared is not None and shared.state.promise == self.promise
        self._keeper = PromiseKeeper(self.promise, shared.state) if shared is not None and is_usable else None
        self._shared_champion = shared.champion if shared is not None else None
        self._stamp = stamp

    def _write(self, keeper: PromiseKeeper, champion: str | None = None) -> None:
        shared = SharedState(champion=champion or self._champion or "", state=keeper.state)
        write_atomic(self._file, shared.model_dump_json(), mode=0o600)

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        """The lock of all processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._folder / "promise.lock", timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise RuntimeStateError(
                f"{self._file} is locked by another process for more than {_LOCK_SECONDS:g} s"
            ) from error

    def _fail(self, error: Exception) -> None:
        self._problems.report("promise", f"the state of the promise cannot be read or written: {error}")

    def _text(self, batch: Batch, row: int) -> str:
        if self._text_positions is None:
            self._text_positions = [i for i, name in enumerate(batch.columns) if name in self._texts]
        return join_texts(batch.values[row][position] for position in self._text_positions)


def join_texts(values: Iterable[str | None]) -> str:
    """The texts of one row as the novelty guard reads them.

    >>> join_texts(["a", None, "b"])
    'a\\nb'
    """
    return "\n".join(value for value in values if value)


def read_promise_status(config: AgentConfig) -> PromiseStatus | None:
    """How far an agent's promise is held on this machine; None if it promises nothing, or nothing was decided yet."""
    settings = config.runtime.cascade
    if settings is None or settings.promise is None:
        return None
    shared = _read(runtime_folder(config.agent) / PROMISE_FILE)
    if shared is None or shared.state.promise != settings.promise:
        return None
    return describe_promise(PromiseKeeper(settings.promise, shared.state), shared.champion)


def _read(file: Path) -> SharedState | None:
    """The content; None if there is no file, or it is damaged."""
    try:
        return SharedState.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _stamp_of(file: Path) -> tuple[int, int] | None:
    """Inode and modification time; None if there is no file."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _read_guard(file: Path) -> NoveltyGuard | None:
    try:
        return NoveltyGuard.load(file)
    except (OSError, ValueError):
        return None


def _begin(promise: Promise, folder: Path | None, guard: NoveltyGuard | None) -> PromiseKeeper:
    """The keeper of a champion that has not decided here yet."""
    limit = None if guard is None else guard.limit
    try:
        fitted = None if folder is None else PromiseState.model_validate_json((folder / PROMISE_FILE).read_bytes())
    except (OSError, ValidationError):
        fitted = None
    if fitted is None:
        return PromiseKeeper(promise, novelty_limit=limit)
    return PromiseKeeper.begin(promise, fitted, novelty_limit=limit)


def _is_reduced(keeper: PromiseKeeper) -> bool:
    """Whether fewer rows are answered since an alarm."""
    state = keeper.state
    return state.threshold is None or state.threshold == state.fallback
