"""The cascade: where the student is unsure, the champion's teacher answers instead, while the day's budget lasts.

What the teacher has said before about the same content is known and costs nothing. What it says now is recorded with
the decision, and is knowledge from then on. It is given so long and no longer: after ``runtime.cascade.timeout`` the
student's answer stands, and what the teacher says later is kept as knowledge all the same, since it is paid for.
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
from stillhouse.knowledge.events import Taught
from stillhouse.knowledge.spool import Spool
from stillhouse.records import Spending
from stillhouse.runtime.allowances import DayBudget
from stillhouse.runtime.champions import Champions, Loaded
from stillhouse.runtime.rows import Batch, Contract
from stillhouse.runtime.status import Troubles

if TYPE_CHECKING:
    from stillhouse.teachers.ensemble import Ensemble, Member

__all__ = ["Answered", "Asking", "Said"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

_REMEMBERED_NUMBERS = 4_000_000
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_AT_ONCE = 32


class Said:
    """What teachers said lately, by their version and the content: the newest ``most`` of it. For several threads.

    None is remembered of a content to which a teacher had no usable answer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str], Array | None] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, teacher: str, said: Iterable[tuple[str, Array | None]]) -> None:
        """Remember pairs of content key and probabilities ``[K]``."""
        with self._lock:
            for key, answer in said:
                self._kept[teacher, key] = answer
                self._kept.move_to_end((teacher, key))
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def about(self, teacher: str, keys: Sequence[str], actions: int) -> tuple[Array, Flags]:
        """Its probabilities ``[n, K]``, NaN where it said nothing; and where it need not be asked (again), ``[n]``."""
        found, spoken = np.full((len(keys), actions), np.nan), np.zeros(len(keys), dtype=bool)
        with self._lock:
            for place, key in enumerate(keys):
                if (teacher, key) in self._kept:
                    spoken[place] = True
                    if (answer := self._kept[teacher, key]) is not None:
                        found[place] = answer
        return found, spoken


@dataclass(frozen=True)
class _Ready:
    """A champion's teacher that can be asked."""

    teacher: Ensemble
    folder: str
    locks: dict[str, threading.Lock]
    """By member: those that run in this process are asked one question at a time."""


@dataclass(frozen=True)
class Answered:
    """What came of a question about n rows."""

    probabilities: Array
    """``[n, K]``, NaN where the student's answer stands."""
    version: str
    """Of the teacher."""
    taught: list[Taught] = field(default_factory=list)
    """What is to be recorded of it."""


@dataclass
class _Trouble:
    """Why not all that was asked was answered."""

    failed: list[str] = field(default_factory=list)
    limited: bool = False


class _Question:
    """Between the thread that waits for an answer, only so long, and the one that asks."""

    def __init__(self, work: Callable[[], Answered], late: Callable[[Answered], None]) -> None:
        self._work, self._late = work, late
        self._lock, self._done = threading.Lock(), threading.Event()
        self._abandoned = False
        self.answer: Answered | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Ask; an answer that nobody waits for any more goes to ``late``."""
        try:
            self.answer = self._work()
        except StillhouseError as error:  # told by whoever waits
            self.error = error
        except Exception as error:  # a defect: the student goes on all the same
            log.exception("asking the teacher")
            self.error = error
        with self._lock:
            self._done.set()
            abandoned = self._abandoned
        if abandoned and self.answer is not None:
            self._late(self.answer)

    def wait(self, seconds: float) -> bool:
        """Whether it was done within so long; if not, it is nobody's any more."""
        if self._done.wait(seconds):
            return True
        with self._lock:
            self._abandoned = not self._done.is_set()
            return not self._abandoned


class Asking:
    """The cascade of one agent in this process.

    :param budget: of the day.
    :param spool: takes what is said too late for a decision.
    """

    def __init__(
        self,
        config: AgentConfig,
        contract: Contract,
        champions: Champions,
        budget: DayBudget,
        spool: Spool,
        troubles: Troubles,
    ) -> None:
        assert config.runtime.cascade is not None
        self.config = config
        self.budget = budget
        self._counts: Counter[str] = Counter()
        self._timeout = config.runtime.cascade.timeout.total_seconds()
        self._contract, self._champions, self._spool, self._troubles = contract, champions, spool, troubles
        self._said = Said(max(1000, _REMEMBERED_NUMBERS // len(config.actions)))
        self._ready: _Ready | None = None
        self._loading, self._counting = threading.Lock(), threading.Lock()
        self._at_once = threading.BoundedSemaphore(_AT_ONCE)
        self._not_before, self._pause = 0.0, _SHORTEST_PAUSE

    # ----------------------------------------------------------------- the champion's teacher

    def prepare(self, champion: Loaded, *, wait: bool = False) -> None:
        """Load the champion's teacher, in the background unless it is waited for, if it is not the one that is ready.

        Until then, and where it cannot be loaded, the student answers.
        """
        if champion.pointer is None or champion.pointer.teacher_folder is None or self._is_ready(champion):
            return
        if wait:
            with self._loading:
                self._load(champion)
        elif self._loading.acquire(blocking=False):
            threading.Thread(target=self._load_and_free, args=(champion,), name="teacher loads", daemon=True).start()

    def _load_and_free(self, champion: Loaded) -> None:
        try:
            self._load(champion)
        finally:
            self._loading.release()

    def _ready_with(self, champion: Loaded) -> _Ready:
        from stillhouse.registry.foreign import ForeignModels
        from stillhouse.teachers import ensemble

        pointer = champion.pointer
        folder = None if pointer is None else self._champions.teacher(pointer)
        if pointer is None or pointer.teacher_folder is None or folder is None:
            raise PartError(f"no copy of the teacher of {champion.version} is kept on this machine")
        as_it_was = self.config.model_copy(update={"actions": tuple(champion.actions)})
        teacher = ensemble.load(folder, as_it_was, ForeignModels())
        remote = {leaf.name for leaf in leaves(self.config.teachers) if leaf.teacher.is_remote}
        locks = {member.name: threading.Lock() for member in teacher.members if member.name not in remote}
        self._remember(teacher, as_it_was)
        return _Ready(teacher, pointer.teacher_folder, locks)

    def _load(self, champion: Loaded) -> None:
        if self._is_ready(champion):  # while the lock was waited for
            return
        try:
            self._ready = self._ready_with(champion)
        except Exception as error:  # whatever a user's part raises: the student goes on
            self._troubles.tell("teacher", f"the teacher of {champion.version} cannot be loaded: {error}")
        else:
            self._troubles.over("teacher")

    def _is_ready(self, champion: Loaded) -> bool:
        ready, pointer = self._ready, champion.pointer
        return ready is not None and pointer is not None and ready.folder == pointer.teacher_folder

    def _remember(self, teacher: Ensemble, config: AgentConfig) -> None:
        """What the knowledge base has of it, the newest."""
        versions = dict.fromkeys([teacher.version, *map(teacher.member_version, teacher.members)])
        try:
            base = KnowledgeBase(self.config, actions=config.actions)
            for version in versions:
                self._said.keep(version, base.newest_answers(version, self._said._most // len(versions)))
                self._said.keep(version, ((key, None) for key in base.given_up(version)))
        except Exception as error:  # whatever a store raises that does not answer: asking again costs, but works
            log.warning("%s: what the teacher said before is not known: %s", self.config.agent, error)

    # ----------------------------------------------------------------- asking

    def about(self, champion: Loaded, batch: Batch) -> Answered | None:
        """What the champion's teacher says about the observations; None where the student's answers all stand.

        Blocks up to ``runtime.cascade.timeout``.
        """
        ready = self._ready
        if ready is None or not self._is_ready(champion):
            self._count(not_asked=len(batch))
            return None
        rows = self._contract.frame(batch)
        rows["content_key"] = content_keys(rows, self.config)
        known = self._known(ready.teacher, rows)
        asked = np.flatnonzero(np.isnan(known[:, 0]))
        self._count(remembered=len(batch) - len(asked))
        found = self._answer(ready, rows.iloc[asked], batch.part(asked.tolist()), known.shape[1])
        if found is None:
            return Answered(known, ready.teacher.version) if len(asked) < len(batch) else None
        known[asked] = found.probabilities
        return Answered(known, ready.teacher.version, found.taught)

    def _answer(self, ready: _Ready, rows: pd.DataFrame, batch: Batch, actions: int) -> Answered | None:
        """Ask about rows that it has not yet spoken about."""
        if rows.empty:
            return None
        if time.monotonic() < self._not_before or not self._at_once.acquire(blocking=False):
            self._count(not_asked=len(rows))
            return None

        def work() -> Answered:
            try:
                return self._ask(ready, rows, batch)
            finally:
                self._at_once.release()

        question = _Question(work, self._keep_late)
        threading.Thread(target=question.run, name="stillhouse question", daemon=True).start()
        if not question.wait(self._timeout):
            self._count(late=len(rows))
            self._fails(f"no answer within runtime.cascade.timeout ({self._timeout:g} s); the student's answer stands")
            return None
        if question.answer is None:
            self._count(failed=len(rows))
            self._fails(str(question.error))
            return None
        answered = int((~np.isnan(question.answer.probabilities[:, 0])).sum())
        self._count(answered=answered, unanswered=len(rows) - answered)
        return question.answer

    def _ask(self, ready: _Ready, rows: pd.DataFrame, batch: Batch) -> Answered:
        """Each member about the contents that it has not spoken about, and the mean of all."""
        teacher = ready.teacher
        known = self._known(teacher, rows)
        new = np.flatnonzero(~rows.duplicated("content_key").to_numpy() & ~teacher.in_fit_window(rows))
        said, taught, trouble = dict[str, Array](), list[Taught](), _Trouble()
        for member in teacher.members:
            version = teacher.member_version(member)
            answers, spoken = self._said.about(version, rows["content_key"].tolist(), known.shape[1])
            places = new[~spoken[new]]
            if len(places):
                part = batch.part(places.tolist())
                with ready.locks.get(member.name) or nullcontext():
                    taught += self._ask_member(member, version, rows.iloc[places], part, trouble)
                answers, _ = self._said.about(version, rows["content_key"].tolist(), known.shape[1])
            said[member.name] = answers
        shares = teacher.member_shares(rows)
        mean = sum(share[:, None] * answer for share, answer in zip(shares.T, said.values(), strict=True))
        found = np.asarray(mean, dtype=np.float64)
        answered = ~np.isnan(found[:, 0])
        if len(teacher.members) > 1 and answered.any():
            taught.append(self._mean(teacher, rows, batch, found))
        if trouble.failed:
            self._fails("; ".join(trouble.failed))
        elif trouble.limited:
            self._troubles.tell("teacher", "the day's budget of runtime.cascade is spent: the student answers")
        elif answered.any():
            self._answers()
        return Answered(found, teacher.version, taught)

    def _ask_member(
        self, member: Member, version: str, rows: pd.DataFrame, batch: Batch, trouble: _Trouble
    ) -> list[Taught]:
        """Ask one member about contents that are new to it; what it says is remembered, and why it did not, told."""
        from stillhouse.teachers.answers import Allowance

        limits = self.budget.limits
        granted = self.budget.reserve(member.max_cost(rows), (1, member.max_calls_per_row))
        trouble.limited |= granted.rows < len(rows)
        if not granted.rows:
            self._not_before = time.monotonic() + _LONGEST_PAUSE
            return []
        calls = None if limits.calls_per_day is None else granted.calls
        money = None if limits.cost_per_day is None else granted.cost
        spent = Spending()
        try:
            answers = member.answer(rows.iloc[: granted.rows], Allowance(calls, money))
            spent = answers.spending
        except StillhouseError as error:
            trouble.failed.append(str(error))
            return []
        finally:
            self.budget.settle(granted, spent)
        usable = np.flatnonzero(~np.isnan(answers.probabilities[:, 0]))
        keys = rows["content_key"].tolist()
        self._said.keep(version, [(keys[i], answers.probabilities[i]) for i in usable])
        self._said.keep(version, [(keys[i], None) for i in answers.refused])
        if answers.stop_reason or len(usable) + len(answers.refused) < granted.rows:
            trouble.failed.append(f"teacher {member.name!r}: {answers.stop_reason or 'did not answer'}")
        spending = {member.name: spent.model_dump()} if spent.calls else {}
        return [_taught(version, batch, usable.tolist(), answers.probabilities, spending)]

    def _mean(self, teacher: Ensemble, rows: pd.DataFrame, batch: Batch, mean: Array) -> Taught:
        """The mean of several is knowledge of its own."""
        keys = rows["content_key"].tolist()
        usable = np.flatnonzero(~np.isnan(mean[:, 0]) & ~rows.duplicated("content_key").to_numpy())
        self._said.keep(teacher.version, [(keys[i], mean[i]) for i in usable])
        return _taught(teacher.version, batch, usable.tolist(), mean, {})

    def _known(self, teacher: Ensemble, rows: pd.DataFrame) -> Array:
        found, _ = self._said.about(teacher.version, rows["content_key"].tolist(), len(teacher.config.actions))
        return found

    # ----------------------------------------------------------------- what came of it

    def _keep_late(self, answered: Answered) -> None:
        if answered.taught:
            try:
                self._spool.put(*answered.taught)
            except StillhouseError as error:
                log.warning("%s: what the teacher said too late is lost: %s", self.config.agent, error)

    def _fails(self, why: str) -> None:
        """Ask nobody for a while, each time longer."""
        with self._counting:
            self._not_before = time.monotonic() + self._pause
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        self._troubles.tell("teacher", why)

    def _answers(self) -> None:
        with self._counting:
            self._pause = _SHORTEST_PAUSE
        self._troubles.over("teacher")

    def counted(self) -> dict[str, int]:
        """Rows that the student was unsure about, by what came of it."""
        with self._counting:
            return dict(self._counts)

    def _count(self, **rows: int) -> None:
        with self._counting:
            self._counts.update({name: number for name, number in rows.items() if number})


def _taught(
    teacher: str, batch: Batch, places: Sequence[int], probabilities: Array, spending: dict[str, dict[str, float]]
) -> Taught:
    part = batch.part(places)
    return Taught(
        teacher=teacher,
        observed_at=part.observed_at,
        asked_at=time.time_ns() // 1000,
        columns=part.columns,
        values=part.values,
        probabilities=[probabilities[i].tolist() for i in places],
        spending=spending,
    )
