"""The cascade: if the student is unsure, the champion's teacher answers instead, within the day's budget.

The teacher's earlier answers to the same content are reused at no cost. New answers are recorded with the decision and
become knowledge. The teacher has ``runtime.cascade.timeout`` to answer; after that the student's answer stands, and a
late answer is still stored as knowledge, because it was paid for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, leaves
from stillhouse.errors import PartError, StillhouseError
from stillhouse.knowledge import KnowledgeBase, content_keys
from stillhouse.knowledge.events import TeacherAnswered
from stillhouse.knowledge.spool import Spool
from stillhouse.records import Spending
from stillhouse.runtime.champions import Champions, LoadedChampion
from stillhouse.runtime.day_budget import DayBudget
from stillhouse.runtime.rows import Batch, ObservationSchema
from stillhouse.runtime.status import ProblemLog

if TYPE_CHECKING:
    from stillhouse.teachers.ensemble import Ensemble, Member

__all__ = ["Cascade", "CascadeResult", "LatestAnswers"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_MAX_CACHED_PROBS = 4_000_000  # probabilities, over all cached answers
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 1.0, 60.0  # after a failure
_MAX_CONCURRENT = 32  # questions


class LatestAnswers:
    """The latest ``max_answers`` answers of teachers, by teacher version and content key. Thread-safe.

    The answer None means that the teacher had no usable answer to this content.

    >>> cache = LatestAnswers(1000)
    >>> cache.put("rule-v1", [("a", np.array([0.2, 0.8]))])
    >>> probs, is_cached = cache.get("rule-v1", ["a", "b"], 2)
    >>> probs.tolist(), is_cached.tolist()
    ([[0.2, 0.8], [nan, nan]], [True, False])
    """

    def __init__(self, max_answers: int) -> None:
        self.max_answers = max_answers
        self._answers: OrderedDict[tuple[str, str], Array | None] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, teacher: str, answers: Iterable[tuple[str, Array | None]]) -> None:
        """Store pairs of content key and probabilities ``[K]``."""
        with self._lock:
            for key, probs in answers:
                self._answers[teacher, key] = probs
                self._answers.move_to_end((teacher, key))
            while len(self._answers) > self.max_answers:
                self._answers.popitem(last=False)

    def get(self, teacher: str, keys: Sequence[str], action_count: int) -> tuple[Array, Mask]:
        """The teacher's probabilities ``[n, K]``, NaN without a usable answer, and the mask ``[n]`` of cached keys."""
        probs, is_cached = np.full((len(keys), action_count), np.nan), np.zeros(len(keys), dtype=bool)
        with self._lock:
            for index, key in enumerate(keys):
                if (teacher, key) in self._answers:
                    is_cached[index] = True
                    if (answer := self._answers[teacher, key]) is not None:
                        probs[index] = answer
        return probs, is_cached


@dataclass(frozen=True)
class _LoadedTeacher:
    """A champion's teacher that is ready to be asked."""

    teacher: Ensemble
    folder: str
    locks: dict[str, threading.Lock]
    """By member: members that run in this process answer one question at a time."""


@dataclass(frozen=True)
class CascadeResult:
    """The teacher's answers to n rows."""

    probs: Array
    """``[n, K]``, NaN where the student's answer stands."""
    version: str
    """The teacher's version."""
    events: list[TeacherAnswered] = field(default_factory=list)
    """The events to record."""


@dataclass
class _Failures:
    """Why some rows have no answer."""

    texts: list[str] = field(default_factory=list)
    budget_exhausted: bool = False


class _Question:
    """A question to the teacher that runs in its own thread, while the caller waits for a limited time."""

    def __init__(self, ask: Callable[[], CascadeResult], on_late: Callable[[CascadeResult], None]) -> None:
        self._ask, self._on_late = ask, on_late
        self._lock, self._done = threading.Lock(), threading.Event()
        self._timed_out = False
        self.result: CascadeResult | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Ask the teacher; a result that arrives after the timeout goes to ``on_late``."""
        try:
            self.result = self._ask()
        except StillhouseError as error:  # reported by the caller
            self.error = error
        except Exception as error:  # a defect: the student's answer stands
            log.exception("asking the teacher")
            self.error = error
        with self._lock:
            self._done.set()
            timed_out = self._timed_out
        if timed_out and self.result is not None:
            self._on_late(self.result)

    def wait(self, seconds: float) -> bool:
        """Whether the question ended within so many seconds; if not, its result counts as late."""
        if self._done.wait(seconds):
            return True
        with self._lock:
            self._timed_out = not self._done.is_set()
            return not self._timed_out


class Cascade:
    """The cascade of one agent in this process.

    :param budget: the day's budget.
    :param spool: records late answers.
    """

    def __init__(
        self,
        config: AgentConfig,
        schema: ObservationSchema,
        champions: Champions,
        budget: DayBudget,
        spool: Spool,
        problems: ProblemLog,
    ) -> None:
        assert config.runtime.cascade is not None
        self.config = config
        self.budget = budget
        self._counts: Counter[str] = Counter()
        self._timeout = config.runtime.cascade.timeout.total_seconds()
        self._schema, self._champions, self._spool, self._problems = schema, champions, spool, problems
        self._cache = LatestAnswers(max(1000, _MAX_CACHED_PROBS // len(config.actions)))
        self._loaded: _LoadedTeacher | None = None
        self._load_lock, self._counts_lock = threading.Lock(), threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_CONCURRENT)
        self._paused_until, self._pause_seconds = 0.0, _MIN_PAUSE_SECONDS

    # ----------------------------------------------------------------- the champion's teacher

    def prepare(self, champion: LoadedChampion, *, wait: bool = False) -> None:
        """Load the champion's teacher unless it is loaded already; in the background, or with ``wait`` here.

        Until it is loaded, and if it cannot be loaded, the student answers.
        """
        if champion.pointer is None or champion.pointer.teacher_folder is None or self._is_loaded(champion):
            return
        if wait:
            with self._load_lock:
                self._load(champion)
        elif self._load_lock.acquire(blocking=False):
            threading.Thread(target=self._load_and_release, args=(champion,), name="teacher loads", daemon=True).start()

    def _load_and_release(self, champion: LoadedChampion) -> None:
        try:
            self._load(champion)
        finally:
            self._load_lock.release()

    def _load_teacher(self, champion: LoadedChampion) -> _LoadedTeacher:
        from stillhouse.registry.foreign import ForeignModels
        from stillhouse.teachers import ensemble

        pointer = champion.pointer
        folder = None if pointer is None else self._champions.teacher_folder(pointer)
        if pointer is None or pointer.teacher_folder is None or folder is None:
            raise PartError(f"there is no copy of the teacher of {champion.version} on this machine")
        teacher_config = self.config.model_copy(update={"actions": tuple(champion.actions)})
        teacher = ensemble.load(folder, teacher_config, ForeignModels())
        remote = {leaf.name for leaf in leaves(self.config.teachers) if leaf.teacher.is_remote}
        locks = {member.name: threading.Lock() for member in teacher.members if member.name not in remote}
        self._fill_cache(teacher, teacher_config)
        return _LoadedTeacher(teacher, pointer.teacher_folder, locks)

    def _load(self, champion: LoadedChampion) -> None:
        if self._is_loaded(champion):  # another thread loaded it while this one waited for the lock
            return
        try:
            self._loaded = self._load_teacher(champion)
        except Exception as error:  # any exception of a user's part: the student goes on
            self._problems.report("teacher", f"the teacher of {champion.version} cannot be loaded: {error}")
        else:
            self._problems.resolve("teacher")

    def _is_loaded(self, champion: LoadedChampion) -> bool:
        loaded, pointer = self._loaded, champion.pointer
        return loaded is not None and pointer is not None and loaded.folder == pointer.teacher_folder

    def _fill_cache(self, teacher: Ensemble, config: AgentConfig) -> None:
        """Cache the teacher's newest answers in the knowledge base."""
        versions = dict.fromkeys([teacher.version, *map(teacher.member_version, teacher.members)])
        try:
            base = KnowledgeBase(self.config, actions=config.actions)
            for version in versions:
                self._cache.put(version, base.answers.newest(version, self._cache.max_answers // len(versions)))
                self._cache.put(version, ((key, None) for key in base.answers.unanswerable_keys(version)))
        except Exception as error:  # any exception of a store that does not answer: asking again costs, but works
            log.warning("%s: the teacher's earlier answers cannot be read: %s", self.config.agent, error)

    # ----------------------------------------------------------------- asking

    def answer(
        self, champion: LoadedChampion, batch: Batch, on_late: Callable[[Sequence[int], Array], None] | None = None
    ) -> CascadeResult | None:
        """The answers of the champion's teacher to the observations; None if the student's answers all stand.

        Blocks up to ``runtime.cascade.timeout``.

        :param on_late: is called with answers that come too late: indices of rows, and their probabilities ``[m, K]``.
        """
        loaded = self._loaded
        if loaded is None or not self._is_loaded(champion):
            self._count(not_asked=len(batch))
            return None
        rows = self._schema.to_frame(batch)
        rows["content_key"] = content_keys(rows, self.config)
        probs = self._cached_probs(loaded.teacher, rows)
        missing = np.flatnonzero(np.isnan(probs[:, 0]))
        self._count(remembered=len(batch) - len(missing))

        def take_late(result: CascadeResult) -> None:
            self._record_late(result)
            if on_late is not None:
                on_late(missing.tolist(), result.probs)

        result = self._ask_in_time(loaded, rows.iloc[missing], batch.select(missing.tolist()), take_late)
        if result is None:
            return CascadeResult(probs, loaded.teacher.version) if len(missing) < len(batch) else None
        probs[missing] = result.probs
        return CascadeResult(probs, loaded.teacher.version, result.events)

    def _ask_in_time(
        self, loaded: _LoadedTeacher, rows: pd.DataFrame, batch: Batch, on_late: Callable[[CascadeResult], None]
    ) -> CascadeResult | None:
        """Ask about rows that are not cached; None if there is no result within the timeout."""
        if rows.empty:
            return None
        if time.monotonic() < self._paused_until or not self._slots.acquire(blocking=False):
            self._count(not_asked=len(rows))
            return None

        def ask() -> CascadeResult:
            try:
                return self._ask(loaded, rows, batch)
            finally:
                self._slots.release()

        question = _Question(ask, on_late)
        threading.Thread(target=question.run, name="stillhouse question", daemon=True).start()
        if not question.wait(self._timeout):
            self._count(late=len(rows))
            self._pause(f"no answer within runtime.cascade.timeout ({self._timeout:g} s); the student's answer stands")
            return None
        if question.result is None:
            self._count(failed=len(rows))
            self._pause(str(question.error))
            return None
        answered = int((~np.isnan(question.result.probs[:, 0])).sum())
        self._count(answered=answered, unanswered=len(rows) - answered)
        return question.result

    def _ask(self, loaded: _LoadedTeacher, rows: pd.DataFrame, batch: Batch) -> CascadeResult:
        """Ask each member about the contents that it has not answered yet, and average the members' answers."""
        teacher = loaded.teacher
        action_count = len(teacher.config.actions)
        keys = rows["content_key"].tolist()
        may_ask = np.flatnonzero(~rows.duplicated("content_key").to_numpy() & ~teacher.in_fit_window(rows))
        member_probs, events, failures = dict[str, Array](), list[TeacherAnswered](), _Failures()
        for member in teacher.members:
            version = teacher.member_version(member)
            answers, is_cached = self._cache.get(version, keys, action_count)
            new = may_ask[~is_cached[may_ask]]
            if len(new):
                with loaded.locks.get(member.name) or nullcontext():
                    events += self._ask_member(member, version, rows.iloc[new], batch.select(new.tolist()), failures)
                answers, _ = self._cache.get(version, keys, action_count)
            member_probs[member.name] = answers
        mixture = teacher.member_shares(rows)
        mean = sum(share[:, None] * probs for share, probs in zip(mixture.T, member_probs.values(), strict=True))
        probs = np.asarray(mean, dtype=np.float64)
        answered = ~np.isnan(probs[:, 0])
        if len(teacher.members) > 1 and answered.any():
            events.append(self._store_mean(teacher, rows, batch, probs))
        if failures.texts:
            self._pause("; ".join(failures.texts))
        elif failures.budget_exhausted:
            self._problems.report("teacher", "the day's budget of runtime.cascade is spent: the student answers")
        elif answered.any():
            self._reset_pause()
        return CascadeResult(probs, teacher.version, events)

    def _ask_member(
        self, member: Member, version: str, rows: pd.DataFrame, batch: Batch, failures: _Failures
    ) -> list[TeacherAnswered]:
        """Ask one member about new contents and cache its answers; the reasons for missing ones go to ``failures``."""
        from stillhouse.teachers.answers import Allowance

        limits = self.budget.limits
        reservation = self.budget.reserve(member.max_cost(rows), (1, member.max_calls_per_row))
        failures.budget_exhausted |= reservation.rows < len(rows)
        if not reservation.rows:
            self._paused_until = time.monotonic() + _MAX_PAUSE_SECONDS
            return []
        max_calls = None if limits.calls_per_day is None else reservation.calls
        max_cost = None if limits.cost_per_day is None else reservation.cost
        spent = Spending()
        try:
            answers = member.answer(rows.iloc[: reservation.rows], Allowance(max_calls, max_cost))
            spent = answers.spending
        except StillhouseError as error:
            failures.texts.append(str(error))
            return []
        finally:
            self.budget.settle(reservation, spent)
        usable = np.flatnonzero(~np.isnan(answers.probabilities[:, 0]))
        keys = rows["content_key"].tolist()
        self._cache.put(version, [(keys[i], answers.probabilities[i]) for i in usable])
        self._cache.put(version, [(keys[i], None) for i in answers.refused])
        if answers.stop_reason or len(usable) + len(answers.refused) < reservation.rows:
            failures.texts.append(f"teacher {member.name!r}: {answers.stop_reason or 'did not answer'}")
        spending = {member.name: spent.model_dump()} if spent.calls else {}
        return [_answer_event(version, batch, usable.tolist(), answers.probabilities, spending)]

    def _store_mean(self, teacher: Ensemble, rows: pd.DataFrame, batch: Batch, mean: Array) -> TeacherAnswered:
        """Cache the mean over the members, which is stored as the ensemble's own knowledge; returns its event."""
        keys = rows["content_key"].tolist()
        usable = np.flatnonzero(~np.isnan(mean[:, 0]) & ~rows.duplicated("content_key").to_numpy())
        self._cache.put(teacher.version, [(keys[i], mean[i]) for i in usable])
        return _answer_event(teacher.version, batch, usable.tolist(), mean, {})

    def _cached_probs(self, teacher: Ensemble, rows: pd.DataFrame) -> Array:
        probs, _ = self._cache.get(teacher.version, rows["content_key"].tolist(), len(teacher.config.actions))
        return probs

    # ----------------------------------------------------------------- results

    def _record_late(self, result: CascadeResult) -> None:
        if result.events:
            try:
                self._spool.put(*result.events)
            except StillhouseError as error:
                log.warning("%s: late answers of the teacher are lost: %s", self.config.agent, error)

    def _pause(self, reason: str) -> None:
        """Ask nothing for a while; the pause doubles with each failure in a row."""
        with self._counts_lock:
            self._paused_until = time.monotonic() + self._pause_seconds
            self._pause_seconds = min(_MAX_PAUSE_SECONDS, 2 * self._pause_seconds)
        self._problems.report("teacher", reason)

    def _reset_pause(self) -> None:
        with self._counts_lock:
            self._pause_seconds = _MIN_PAUSE_SECONDS
        self._problems.resolve("teacher")

    def counts(self) -> dict[str, int]:
        """Number of rows for the teacher, by result: see ``cascade`` of :class:`Status`."""
        with self._counts_lock:
            return dict(self._counts)

    def _count(self, **rows: int) -> None:
        with self._counts_lock:
            self._counts.update({name: number for name, number in rows.items() if number})


def _answer_event(
    teacher: str, batch: Batch, indices: Sequence[int], probs: Array, spending: dict[str, dict[str, float]]
) -> TeacherAnswered:
    answered = batch.select(indices)
    return TeacherAnswered(
        teacher=teacher,
        observed_at=answered.observed_at,
        asked_at=time.time_ns() // 1000,
        columns=answered.columns,
        values=answered.values,
        probabilities=[probs[i].tolist() for i in indices],
        spending=spending,
    )
