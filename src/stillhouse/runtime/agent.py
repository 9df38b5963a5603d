"""The agent in process: ``Agent("flights").decide(observation)``."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import msgspec
import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.errors import (
    NoChampionError,
    PartError,
    RegistryError,
    RuntimeStateError,
    SchemaError,
    SpoolError,
    StillhouseError,
    UnknownDecisionError,
)
from stillhouse.knowledge import KnowledgeBase, tidy_outcomes
from stillhouse.knowledge.events import Decided, Event, Observed, Outcomes, TeacherAnswered
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool, spool_folder, survey
from stillhouse.runtime.background import PeriodicTask
from stillhouse.runtime.cascade import Cascade
from stillhouse.runtime.champions import Champions, LoadedChampion, Pointer
from stillhouse.runtime.clock import WallClock
from stillhouse.runtime.contract_warnings import ContractWarning
from stillhouse.runtime.day_budget import DayBudget
from stillhouse.runtime.handing_in import MadeDecision, require_decisions
from stillhouse.runtime.ids import DecisionIds, IdSubject
from stillhouse.runtime.promise import AnsweredRow, AskedRows, SharedPromise
from stillhouse.runtime.ranking import PendingRanking, Ranking, best_rows, offer, ranked_action
from stillhouse.runtime.rows import MAX_AHEAD_MICROS, Batch, ObservationSchema, to_micros
from stillhouse.runtime.status import Component, Problem, ProblemLog, Status, merge_problems
from stillhouse.shown import escape_line
from stillhouse.values import ValueRefused, text_of

if TYPE_CHECKING:
    from stillhouse.registry import Registry

__all__ = ["Agent", "Decision", "LoadedChampion", "PendingDecisions"]

log = logging.getLogger(__name__)

ObservationInput = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame

_FIRST_FOLLOW_TIMEOUT_SECONDS = 60.0  # for the registry's first answer, if there is no local copy of a champion
_POINTER_POLL_SECONDS = 1.0  # between checks of champion.json
_CLOSE_TIMEOUT_SECONDS = 60.0  # for a flush that runs when the agent is closed
_CHECK_SECONDS = 1.0  # between checks of the spools and of the clock
_CLOCK_PROBLEM_AGE = timedelta(hours=1)  # for which a change of the clock is reported
_STUCK_SECONDS = 300.0  # after which a running call to the registry, or a flush, is reported as a problem


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The decision about one observation; it is recorded before it is returned."""

    decision_id: str
    observation_id: str
    action: str
    confidence: float
    """The decider's probability for the action."""
    probabilities: dict[str, float]
    decider: str
    """``student`` or ``teacher``."""
    version: str
    """The decider's version: ``flights@7``, or a teacher's version."""
    warnings: tuple[str, ...] = ()
    """Values of the observation outside the data contract; it was decided all the same."""


@dataclass(slots=True)
class PendingDecisions:
    """A batch with its decisions, not yet recorded."""

    batch: Batch
    champion: LoadedChampion
    probs: np.ndarray[Any, Any]
    """``[n, K]``: the student's, or the teacher's for rows that the teacher decides."""
    asked: AskedRows
    """The rows that the teacher is to be asked about."""
    deciders: list[str]
    versions: list[str]
    teacher_events: list[TeacherAnswered] = field(default_factory=list)
    warnings: dict[int, list[ContractWarning]] = field(default_factory=dict)
    """Values outside the data contract, by row index."""

    @property
    def unsure_rows(self) -> list[int]:
        """Indices of the rows that the teacher is to be asked about."""
        return self.asked.rows


class Agent:
    """One decision point, used by its application. Works with threads and asyncio; not across a fork.

    If there is a local copy of the champion, the agent decides with it at once; otherwise it waits for the registry's
    first answer. Later outages are reported by :meth:`status`, and the agent goes on deciding. Recorded decisions
    survive the death of the process.

    For example, with ``agents/flights.yaml`` and a promoted champion::

        with Agent("flights") as agent:
            decision = agent.decide({"wind": 12.5, "hour": 7, "origin": "EWR"})
            agent.outcome(decision.decision_id, "late")

    Without a champion an agent records observations:

    >>> import os, tempfile
    >>> from unittest.mock import patch
    >>> with tempfile.TemporaryDirectory() as home, patch.dict(os.environ, {"STILLHOUSE_HOME": home}):
    ...     with Agent("router", follow=False, flush=False) as agent:
    ...         ids = agent.observe([{"text": "book a table for two"}, {"text": None}])
    ...         agent.status().champion, agent.status().spool_rows
    (None, 2)

    :param follow: ask the registry for a new champion every ``runtime.poll``; False: only notice what another process
        fetched, as the workers of ``stillhouse serve`` do.
    :param flush: flush the spools into the knowledge base every ``runtime.flush`` and on closing; False: leave that to
        another process on this machine.
    :raises ConfigError: if there is no such agent file, or it is invalid.
    :raises SpoolError: if nothing can be recorded here.
    """

    def __init__(self, agent: str, *, follow: bool = True, flush: bool = True) -> None:
        self.config = config.load(agent)
        self.schema = ObservationSchema(self.config)
        self.spool = Spool(spool_folder(agent), max_rows=self.config.runtime.max_spool_rows)
        self._process_id = os.getpid()
        self._decides_at_observation_time = self.config.watch.clock == "newest_observation"
        self._champions = Champions(self.config, self.schema)
        self._champion: LoadedChampion | None = None
        self._deciding_since: datetime | None = None
        self._decision_ids: DecisionIds | None = None
        self._pointer_stamp: tuple[int, int] | None = None
        self._swap_lock, self._flush_lock, self._counts_lock = threading.RLock(), threading.Lock(), threading.Lock()
        self._registry: Registry | None = None
        self._problems = ProblemLog(agent)
        self._decision_counts: Counter[str] = Counter()
        self._warning_counts: Counter[str] = Counter()
        self._last_flush: datetime | None = None
        self._closed, self._rows_at_close = False, 0
        limits = self.config.runtime.cascade
        self._budget = None if limits is None else DayBudget(self._champions.folder / "cascade.sqlite", limits)
        self._cascade = (
            None
            if self._budget is None
            else Cascade(self.config, self.schema, self._champions, self._budget, self.spool, self._problems)
        )
        has_promise = limits is not None and limits.promise is not None
        self._promise = SharedPromise(self.config, self._problems) if has_promise else None
        self._spool_failed, self._flush_problems = False, tuple[str, ...]()
        self._clock = WallClock()
        self._check_pointer()
        self._flushes = flush
        self._tasks = self._start_tasks(follow, flush)

    def _start_tasks(self, follow: bool, flush: bool) -> list[PeriodicTask]:
        name, runtime = self.config.agent, self.config.runtime
        if follow:
            first = PeriodicTask(f"{name} follows", self._try_follow, runtime.poll.total_seconds())
            if self._champion is None:
                first.first_run_done.wait(_FIRST_FOLLOW_TIMEOUT_SECONDS)
        else:
            seconds = min(_POINTER_POLL_SECONDS, runtime.poll.total_seconds())
            first = PeriodicTask(f"{name} looks", self._check_pointer, seconds)
        tasks = [
            first,
            PeriodicTask(f"{name} spools", self._check_spools, _CHECK_SECONDS),
            PeriodicTask(f"{name} clock", self._check_clock, _CHECK_SECONDS),
        ]
        if flush:
            tasks.append(PeriodicTask(f"{name} flushes", self._try_flush, runtime.flush.total_seconds()))
        return tasks

    # ----------------------------------------------------------------- deciding

    @overload
    def decide(self, observation: Mapping[str, Any]) -> Decision: ...
    @overload
    def decide(self, observation: Sequence[Mapping[str, Any]] | pd.DataFrame) -> list[Decision]: ...
    def decide(self, observation: ObservationInput) -> Decision | list[Decision]:
        """Decide about an observation, and record the decision before it is returned.

        :param observation: values by column, None if missing; or several observations; or a frame of them.
        :raises SchemaError: if it does not have the agent file's columns and types; nothing is recorded.
        :raises NoChampionError: if there is no champion to decide with.
        :raises SpoolFullError: if the knowledge base has been out of reach for too long.
        """
        pending = self.predict(self.schema.read(observation))
        if pending.unsure_rows:
            self.ask_teacher(pending)
        (decisions,) = self.record([pending])
        return decisions[0] if isinstance(observation, Mapping) else decisions

    async def decide_async(self, observation: ObservationInput) -> Decision | list[Decision]:
        """:meth:`decide` for asyncio: the event loop runs on while it waits for the disk or the teacher."""
        return await asyncio.to_thread(self.decide, observation)

    def rank(
        self, candidates: Sequence[Mapping[str, Any]] | pd.DataFrame, top: int = 10, *, action: str | None = None
    ) -> Ranking:
        """Show the ``top`` best of several candidates: those with the largest probability of one action.

        All candidates are scored in one batch, by the student alone: the cascade asks no teacher. One decision is
        recorded for each candidate that is shown, and of every candidate its id, probability and position.

        For example, with an agent whose actions are ``pass`` and ``like``::

            ranking = agent.rank([{"genre": "Drama", "age": 3}, {"genre": "War", "age": 40}], top=1)
            agent.outcome(ranking.decisions[0].decision_id, "like")

        :param candidates: observations, as :meth:`decide` takes them; where they have ids, all different.
        :param top: how many are shown, from 1; all, if there are fewer candidates.
        :param action: the action to sort by; None: the second of the agent's two.
        :raises SchemaError: if the candidates do not have the agent file's columns and types, two have one id, or
            ``top`` or ``action`` is wrong; nothing is recorded.
        :raises NoChampionError: if there is no champion to rank with.
        :raises RuntimeStateError: if the agent promises an agreement with its teacher.
        :raises SpoolFullError: if the knowledge base has been out of reach for too long.
        """
        if isinstance(candidates, Mapping):
            raise SchemaError(
                f"candidates of agent {self.config.agent!r} are a list of observations or a frame, not one observation"
            )
        pending = self.predict_ranking(self.schema.read(candidates), top, action)
        (decisions,) = self.record([pending.shown], [pending.offered] if pending.offered.rows else [])
        return pending.finish(decisions)

    async def rank_async(
        self, candidates: Sequence[Mapping[str, Any]] | pd.DataFrame, top: int = 10, *, action: str | None = None
    ) -> Ranking:
        """:meth:`rank` for asyncio: the event loop runs on while it waits for the disk."""
        return await asyncio.to_thread(self.rank, candidates, top, action=action)

    @property
    def champion(self) -> LoadedChampion | None:
        """The champion that decides now; None if there is none yet."""
        return self._champion

    def predict(self, batch: Batch, *, ask_all: bool = False) -> PendingDecisions:
        """The champion's predictions; takes microseconds, without input or output.

        :param ask_all: the teacher is to be asked about every row, whatever the champion says.
        :raises NoChampionError: if there is none.
        """
        champion = self._require_champion()
        probs = champion.probabilities(batch)
        return self._pending(champion, batch, probs, self._rows_to_ask(champion, batch, probs, ask_all))

    def predict_ranking(self, batch: Batch, top: int, action: str | None = None) -> PendingRanking:
        """The candidates sorted by the champion's predictions, not yet recorded; raises the errors of :meth:`rank`."""
        if self._promise is not None:
            raise RuntimeStateError(
                f"agent {self.config.agent!r} promises an agreement with its teacher (runtime.cascade.agreement), and "
                "a ranking asks no teacher: decide about each candidate, or remove the promise"
            )
        champion = self._require_champion()
        index = ranked_action(self.config, action, champion.actions, champion.version)
        probs = champion.probabilities(batch)
        shown = best_rows(probs[:, index], top)
        now = max(batch.observed_at, default=0) if self._decides_at_observation_time else time.time_ns() // 1000
        offered = offer(batch, probs[:, index].tolist(), shown, champion.actions[index], champion.version, now)
        return PendingRanking(self._pending(champion, batch.select(shown), probs[shown], AskedRows.none()), offered)

    def _require_champion(self) -> LoadedChampion:
        """:raises NoChampionError: if there is none."""
        champion = self._champion  # read once: another thread may replace it
        if champion is None:
            problem = self._problems.all().get("champion") or self._problems.all().get("registry")
            reason = f": {problem.text}" if problem else "; refresh it with --trigger bootstrap, or promote a version"
            raise NoChampionError(f"agent {self.config.agent!r} has no champion to decide with{reason}")
        return champion

    def _pending(
        self, champion: LoadedChampion, batch: Batch, probs: np.ndarray[Any, Any], asked: AskedRows
    ) -> PendingDecisions:
        n = len(batch)
        return PendingDecisions(
            batch,
            champion,
            probs,
            asked,
            ["student"] * n,
            [champion.version] * n,
            warnings=self.schema.contract_checker.check(batch.values),
        )

    def ask_teacher(self, pending: PendingDecisions) -> None:
        """Replace the student's answers by the teacher's where it is to be asked.

        Blocks up to the cascade's timeout. Rows that the teacher does not answer keep the student's answer.
        """
        if self._cascade is None or not pending.unsure_rows:
            return
        students = pending.probs[pending.unsure_rows].argmax(axis=1)
        result = self._cascade.answer(
            pending.champion,
            pending.batch.select(pending.unsure_rows),
            on_late=lambda rows, probs: self._observe(pending, students, rows, probs),
        )
        if result is None:
            return
        self._observe(pending, students, range(len(students)), result.probs)
        pending.teacher_events += result.events
        for row, teacher_probs in zip(pending.unsure_rows, result.probs, strict=True):
            if not np.isnan(teacher_probs[0]):
                pending.probs[row] = teacher_probs
                pending.deciders[row], pending.versions[row] = "teacher", result.version

    def record(
        self, pending_batches: Sequence[PendingDecisions], other_events: Sequence[Event] = ()
    ) -> list[list[Decision]]:
        """Write the decisions and ``other_events`` to the spool in one commit; returns the decisions by batch.

        :raises SpoolFullError: nothing was written.
        """
        events, decisions = list[Event](), list[list[Decision]]()
        for pending in pending_batches:
            event, batch_decisions = self._make_decisions(pending)
            events += [event, *pending.teacher_events] if batch_decisions else []
            decisions.append(batch_decisions)
        self._write(*events, *other_events)
        with self._counts_lock:
            for pending in pending_batches:
                self._decision_counts.update(pending.deciders)
                self._warning_counts.update(warning.column for row in pending.warnings.values() for warning in row)
        return decisions

    def _make_decisions(self, pending: PendingDecisions) -> tuple[Decided, list[Decision]]:
        batch, actions = pending.batch, pending.champion.actions
        ids = self._id_codec.create(batch.observation_ids, batch.observed_at)
        probabilities = pending.probs.tolist()
        chosen_actions = [actions[i] for i in pending.probs.argmax(axis=1).tolist()]
        now = time.time_ns() // 1000
        event = Decided(
            observation_ids=batch.observation_ids,
            observed_at=batch.observed_at,
            columns=batch.columns,
            values=batch.values,
            decision_ids=ids,
            decided_at=batch.observed_at if self._decides_at_observation_time else [now] * len(batch),
            actions=chosen_actions,
            probabilities=probabilities,
            deciders=pending.deciders,
            versions=pending.versions,
        )
        decisions = [
            Decision(
                decision_id=decision_id,
                observation_id=observation_id,
                action=action,
                confidence=max(probs),
                probabilities=dict(zip(actions, probs, strict=True)),
                decider=decider,
                version=version,
                warnings=tuple(warning.message for warning in pending.warnings.get(row, ())),
            )
            for row, decision_id, observation_id, action, probs, decider, version in zip(
                range(len(ids)),
                ids,
                batch.observation_ids,
                chosen_actions,
                probabilities,
                pending.deciders,
                pending.versions,
                strict=True,
            )
        ]
        return event, decisions

    def _rows_to_ask(
        self, champion: LoadedChampion, batch: Batch, probs: np.ndarray[Any, Any], ask_all: bool
    ) -> AskedRows:
        if self._promise is not None:
            return self._promise.select(champion.version, batch, probs, ask_all=ask_all)
        cascade = self.config.runtime.cascade
        if cascade is None or cascade.below is None:
            return AskedRows.none()
        return AskedRows.below(probs, cascade.below)

    def _observe(
        self,
        pending: PendingDecisions,
        students: np.ndarray[Any, Any],
        rows: Sequence[int],
        teacher_probs: np.ndarray[Any, Any],
    ) -> None:
        """Tell the promise what the teacher has answered.

        :param students: the student's action of each row that the teacher was asked about.
        :param rows: positions among these, one per row of ``teacher_probs`` ``[m, K]``; NaN: no answer.
        """
        if self._promise is None:
            return
        asked = pending.asked
        answered = [
            AnsweredRow(asked.confidences[i], asked.novelties[i], asked.blind[i], bool(probs.argmax() == students[i]))
            for i, probs in zip(rows, teacher_probs, strict=True)
            if not np.isnan(probs[0])
        ]
        self._promise.observe(pending.champion.version, answered)

    @property
    def answers_nothing(self) -> bool:
        """Whether the promise allows no answer at present: the teacher is asked about every row."""
        return (
            self._promise is not None and self._champion is not None and self._promise.asks_all(self._champion.version)
        )

    def decision_ids(self, batch: Batch) -> list[str]:
        """New decision ids for observations that are recorded elsewhere: at the front door."""
        return self._id_codec.create(batch.observation_ids, batch.observed_at)

    def handed_in_event(self, batch: Batch, made: Sequence[MadeDecision]) -> Decided:
        """The event that records decisions made elsewhere by a champion; recorded again, they count once.

        :raises SchemaError: if one is no decision of this agent; see :func:`.handing_in.require_decisions`.
        """
        require_decisions(self.config, made)
        return Decided(
            observation_ids=batch.observation_ids,
            observed_at=batch.observed_at,
            columns=batch.columns,
            values=batch.values,
            decision_ids=self._id_codec.derive(
                batch.observation_ids, batch.observed_at, [decision.decision_id for decision in made]
            ),
            decided_at=batch.observed_at
            if self._decides_at_observation_time
            else [to_micros(decision.decided_at) for decision in made],
            actions=[decision.action for decision in made],
            probabilities=[[decision.probabilities[name] for name in self.config.actions] for decision in made],
            deciders=["student"] * len(batch),
            versions=[decision.version for decision in made],
            handed_in=True,
        )

    def compare(self, pending: PendingDecisions, actions: Sequence[str | None]) -> None:
        """Tell the promise what somebody else's question to the teacher has brought.

        :param actions: the teacher's answer to each of ``pending.asked.rows``; None: not known. An answer that is no
            action of the champion is one on which it does not agree.
        """
        if self._promise is None:
            return
        asked, known = pending.asked, pending.champion.actions
        students = [known[index] for index in pending.probs[asked.rows].argmax(axis=1).tolist()]
        columns = zip(asked.confidences, asked.novelties, asked.blind, students, actions, strict=True)
        answered = [
            AnsweredRow(confidence, novelty, blind, student == action)
            for confidence, novelty, blind, student, action in columns
            if action is not None
        ]
        self._promise.observe(pending.champion.version, answered)

    # ----------------------------------------------------------------- observations and outcomes

    def observe(self, observation: ObservationInput) -> list[str]:
        """Record observations without a decision, such as before there is a champion; returns their ids.

        :raises SchemaError: as :meth:`decide`; nothing is recorded.
        """
        batch = self.schema.read(observation)
        if len(batch):
            self._write(
                Observed(
                    observation_ids=batch.observation_ids,
                    observed_at=batch.observed_at,
                    columns=batch.columns,
                    values=batch.values,
                )
            )
        return batch.observation_ids

    def outcome(self, decision_id: str, action: str | float, known_at: datetime | None = None) -> None:
        """Record the outcome of a decision: its true action. Of several outcomes the one known last counts.

        :param action: its name, or a number or truth value that is the name when written as text: 1 as "1", True as
            "true".
        :param known_at: when it became known, with a time zone; None: now.
        :raises UnknownDecisionError: if this decision id was never issued; as with every error here, nothing is
            recorded.
        :raises SchemaError: if the agent file has no such action, or the time lies ahead or has no time zone.
        """
        self.outcomes([(decision_id, action)], known_at)

    def outcomes(self, pairs: Sequence[tuple[str, str | float]], known_at: datetime | None = None) -> None:
        """:meth:`outcome` for several pairs of decision id and action; all are recorded, or none."""
        if pairs:
            self._write(self.outcomes_event(pairs, [known_at] * len(pairs)))

    async def outcome_async(self, decision_id: str, action: str | float, known_at: datetime | None = None) -> None:
        """:meth:`outcome` for asyncio."""
        await asyncio.to_thread(self.outcome, decision_id, action, known_at)

    def outcomes_event(self, pairs: Sequence[tuple[str, str | float]], known_at: Sequence[datetime | None]) -> Outcomes:
        """The event that records these outcomes; raises the errors of :meth:`outcome`."""
        subjects, actions = list[IdSubject](), list[str]()
        for index, (decision_id, action) in enumerate(pairs):
            subject = self._id_codec.parse(decision_id)
            if subject is None:
                raise UnknownDecisionError(
                    f"outcome {index}: agent {self.config.agent!r} made no decision {decision_id[:300]!r}"
                )
            actions.append(self._action_name(index, action))
            subjects.append(subject)
        return Outcomes(
            observation_ids=[subject.observation_id for subject in subjects],
            observed_at=[subject.observed_at for subject in subjects],
            known_at=self._known_at_micros(known_at),
            actions=actions,
        )

    def learn(self, outcomes: pd.DataFrame) -> None:
        """Record outcomes by observation id, for an application that keeps these ids itself; all or none.

        :param outcomes: ``observation_id``, ``observed_at`` (as the observation's), ``known_at``, ``action``.
        :raises SchemaError: if a column is missing, a time has no time zone, or the agent file lacks an action.
        """
        outcomes = tidy_outcomes(outcomes, self.config)
        if outcomes.empty:
            return
        times = {name: outcomes[name] for name in ("observed_at", "known_at")}
        for name, values in times.items():
            if not isinstance(values.dtype, pd.DatetimeTZDtype) or values.isna().any():
                raise SchemaError(f"{name} of outcomes of agent {self.config.agent!r} must be times with a time zone")
        actions = [self._action_name(index, action) for index, action in enumerate(outcomes["action"])]
        micros = {
            name: values.dt.tz_convert("UTC").dt.as_unit("us").astype("int64").tolist()
            for name, values in times.items()
        }
        ids = outcomes["observation_id"].tolist()
        if None in ids:
            raise SchemaError(f"outcome {ids.index(None)} of agent {self.config.agent!r} has no observation_id")
        self._write(Outcomes(observation_ids=ids, actions=actions, **micros))

    def _action_name(self, index: int, value: object) -> str:
        """The action's name: a number or truth value is written as text.

        :raises SchemaError: if the agent file has no action of that name.
        """
        try:
            action = text_of(value)
        except ValueRefused as error:
            raise SchemaError(f"outcome {index} of agent {self.config.agent!r}: {error}") from error
        if action is None or action not in self.config.actions:
            raise SchemaError(
                f"outcome {index}: agent {self.config.agent!r} has no action {str(action)[:100]!r}; it has: "
                f"{', '.join(map(escape_line, self.config.actions))}"
            )
        return action

    def _known_at_micros(self, moments: Sequence[datetime | None]) -> list[int]:
        now = time.time_ns() // 1000
        for index, moment in enumerate(moments):
            if moment is not None and moment.tzinfo is None:
                raise SchemaError(f"outcome {index}: known_at {moment.isoformat()} has no time zone")
        known_at = [now if moment is None else to_micros(moment) for moment in moments]
        for index, micros in enumerate(known_at):
            if micros > now + MAX_AHEAD_MICROS:
                raise SchemaError(f"outcome {index}: known_at lies more than an hour ahead: it, or a clock, is wrong")
        return known_at

    # ----------------------------------------------------------------- following, flushing, status

    def follow(self, registry: Registry | None = None) -> str | None:
        """Load the registry's present champion now; returns its version, None if there is none.

        After any error the previous champion decides on. If there is a cascade, the teacher is loaded too.

        :raises RegistryError: if MLflow does not answer.
        :raises NoChampionError: if the champion does not run here.
        :raises SchemaError: if it reads other columns than the agent file has.
        """
        self._follow(registry or self._connect_registry())
        champion = self._champion
        if champion is not None and self._cascade is not None:
            self._cascade.prepare(champion, wait=True)
        return champion.version if champion else None

    def flush(self) -> None:
        """Flush the spools of all processes of this agent on this machine into the knowledge base.

        :raises Exception: any exception of a store that does not answer; the recorded events stay in the spools.
        """
        with self._flush_lock:
            result = flush(KnowledgeBase(self.config))
            self._flush_problems = result.problems
            self._last_flush = datetime.now(UTC)

    @property
    def can_record(self) -> bool:
        """Whether the last write to the spool succeeded, or a later check did; otherwise nothing is decided."""
        return not self._spool_failed

    def problems(self) -> dict[Component, Problem]:
        """The latest problem with each component, including those that are over."""
        return merge_problems(self._problems.all(), self._stuck_problems())

    def status(self) -> Status:
        """The agent's present status in this process."""
        champion = self._champion
        pointer = champion.pointer if champion else None
        try:
            calls, cost = self._budget.spent() if self._budget else (0, 0.0)
        except RuntimeStateError as error:
            self._problems.report("teacher", str(error))
            calls, cost = 0, 0.0
        with self._counts_lock:
            decisions, outside_contract = dict(self._decision_counts), dict(self._warning_counts)
        return Status(
            agent=self.config.agent,
            champion=champion.version if champion else None,
            promoted_at=pointer.promoted_at if pointer else None,
            deciding_since=self._deciding_since,
            problems=self.problems(),
            decisions=decisions,
            outside_contract=outside_contract,
            spool_rows=self._rows_at_close if self._closed else self._spool_rows(),
            cascade=self._cascade.counts() if self._cascade else {},
            teacher_calls=calls,
            teacher_cost=cost,
            promise=self._promise.status() if self._promise else None,
            last_flush=self._last_flush,
        )

    def _spool_rows(self) -> int:
        try:
            return self.spool.depth()
        except SpoolError as error:
            self._problems.report("spool", str(error))
            return 0

    def _stuck_problems(self) -> dict[Component, Problem]:
        """Problems of background tasks that have been running for so long that they may hang."""
        components: dict[str, Component] = {"follows": "registry", "flushes": "knowledge_base"}
        problems: dict[Component, Problem] = {}
        for task in self._tasks:
            component, seconds = components.get(task.name.rpartition(" ")[2]), task.running_seconds
            if component is not None and seconds > _STUCK_SECONDS:
                now = datetime.now(UTC)
                text = f"has not answered for {seconds:.0f} s; still waiting"
                problems[component] = Problem(since=now - timedelta(seconds=seconds), at=now, text=text)
        return problems

    def close(self) -> None:
        """Stop the background tasks, flush if this agent flushes, and close the spool.

        Rows left in the spool are flushed by the next process that flushes on this machine.
        """
        if self._closed or os.getpid() != self._process_id:
            return
        self._closed = True
        ended = [task.stop(_CLOSE_TIMEOUT_SECONDS) for task in self._tasks]
        if self._flushes and all(ended):
            self._try_flush()
        self._rows_at_close = self._spool_rows()
        self.spool.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ----------------------------------------------------------------- background tasks

    def _follow(self, registry: Registry) -> None:
        with self._swap_lock:
            try:
                self._champions.follow(registry)
            except Exception:  # the champion may have arrived without its teacher
                with suppress(StillhouseError):
                    self._load_champion(self._champions.read())
                raise
            self._load_champion(self._champions.read())

    def _try_follow(self) -> None:
        try:
            self._follow(self._connect_registry())
        except RegistryError as error:
            self._problems.report("registry", str(error))
        except PartError as error:
            self._problems.report("teacher", str(error))
        except StillhouseError as error:
            self._problems.resolve("registry")
            self._problems.report("champion", str(error))
        except Exception as error:  # any exception of MLflow's stores: the loop must go on
            log.debug("following", exc_info=True)
            self._problems.report("registry", f"{type(error).__name__}: {error}")
        else:
            self._problems.resolve("registry")
            self._problems.resolve("champion")

    def _check_pointer(self) -> None:
        """Load the champion that ``champion.json`` names, if the file has changed."""
        with self._swap_lock:
            try:
                stamp = self._champions.file_stamp()
                if stamp == self._pointer_stamp:
                    self._prepare_teacher()
                    return
                self._load_champion(self._champions.read())
            except (StillhouseError, OSError) as error:
                self._problems.report("champion", str(error))
            else:
                self._pointer_stamp = stamp
                self._problems.resolve("champion")

    def _load_champion(self, pointer: Pointer | None) -> None:
        """Load the champion, try it out, and only then decide with it; the caller holds the lock."""
        champion = self._champion
        if pointer is not None and (champion is None or champion.pointer != pointer):
            loaded = self._champions.load(pointer)
            self._decision_ids = DecisionIds(self.config.agent, pointer.knowledge_base)
            if self._promise is not None:
                self._promise.follow(loaded)
            self._champion, self._deciding_since = loaded, datetime.now(UTC)
        self._prepare_teacher()

    def _prepare_teacher(self) -> None:
        if self._cascade is not None and self._champion is not None:
            self._cascade.prepare(self._champion)

    def _try_flush(self) -> None:
        try:
            self.flush()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # any error of a store, and panics after a fork: the rows stay in the spool
            log.debug("flushing", exc_info=True)
            self._problems.report("knowledge_base", f"{type(error).__name__}: {error}")
        else:
            self._problems.resolve("knowledge_base")

    def _check_clock(self) -> None:
        """Report a change of the system clock: events without a time of their own get the clock's."""
        if seconds := self._clock.jump_seconds():
            self._problems.report(
                "clock",
                f"it was set {'forwards' if seconds > 0 else 'back'} by {timedelta(seconds=round(abs(seconds)))}: "
                "timestamps recorded before or after are wrong by that much",
            )
        elif (problem := self._problems.all().get("clock")) and abs(
            datetime.now(UTC) - problem.at
        ) > _CLOCK_PROBLEM_AGE:
            self._problems.resolve("clock")

    def _check_spools(self) -> None:
        """Check this process's spool; if this agent flushes, all spools of the agent on this machine."""
        texts = list[str]()
        try:
            self.spool.check(write=self._spool_failed)
            self._spool_failed = False
        except SpoolError as error:
            self._spool_failed = True
            texts.append(str(error))
        if self._flushes:
            texts += self._flush_problems
            texts += survey(spool_folder(self.config.agent)).problems
        if texts:
            self._problems.report("spool", "; ".join(dict.fromkeys(texts)))
        elif not self._spool_failed:
            self._problems.resolve("spool")

    def _connect_registry(self) -> Registry:
        """The registry's client, made at its first use: importing MLflow takes seconds."""
        if self._registry is None:
            from stillhouse.registry import Registry

            self._registry = Registry(self.config.agent)
        return self._registry

    @property
    def _id_codec(self) -> DecisionIds:
        """Codec of decision ids; their knowledge base is named by ``champion.json``, or by its own tables."""
        if self._decision_ids is None:
            self._decision_ids = DecisionIds(self.config.agent, KnowledgeBase(self.config).tables.identity())
        return self._decision_ids

    def _write(self, *events: Event) -> None:
        if self._closed:
            raise RuntimeStateError(f"the agent {self.config.agent!r} was closed: make another")
        if os.getpid() != self._process_id:
            raise RuntimeStateError(
                f"this agent {self.config.agent!r} was made before the process forked; its threads and files do not "
                "exist in the child: make an Agent in each process, after the fork, or spawn the processes"
            )
        if events:
            try:
                self.spool.put(*events)
            except SpoolError as error:
                self._spool_failed = True
                self._problems.report("spool", str(error))
                raise
