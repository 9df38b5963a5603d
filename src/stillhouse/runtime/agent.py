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
from stillhouse.knowledge.events import Decided, Event, Observed, Outcomes, Taught
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool, spool_folder, survey
from stillhouse.runtime.allowances import DayBudget
from stillhouse.runtime.background import Repeating
from stillhouse.runtime.cascade import Asking
from stillhouse.runtime.champions import Champions, Loaded, Pointer
from stillhouse.runtime.clock import WallClock
from stillhouse.runtime.ids import DecisionIds, Subject
from stillhouse.runtime.outside import Outside
from stillhouse.runtime.rows import AHEAD, Batch, Contract, micros
from stillhouse.runtime.status import Problem, Side, Status, Troubles, merged
from stillhouse.shown import shown
from stillhouse.values import ValueRefused, text_of

if TYPE_CHECKING:
    from stillhouse.registry import Registry

__all__ = ["Agent", "Decision", "Judged", "Loaded"]

log = logging.getLogger(__name__)

Given = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame

_FIRST_ANSWER = 60.0  # seconds that a new agent without a copy on disk waits for the registry
_POINTER_SECONDS = 1.0  # between looks at the pointer's file
_LAST_FLUSH = 60.0  # seconds that closing waits for a flush that is under way
_SPOOL_SECONDS = 1.0  # between looks at the spools
_CLOCK_TOLD = timedelta(hours=1)  # that a clock was set
_LONG_SECONDS = 300.0  # after which a call to the registry or a flush that has not ended is told


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about one observation; it is recorded by the time it is handed out."""

    decision_id: str
    observation_id: str
    action: str
    confidence: float
    """Of the decider: its probability for the action."""
    probabilities: dict[str, float]
    decider: str
    """``student`` or ``teacher``."""
    version: str
    """Of the decider: ``flights@7``, or a teacher's version."""
    warnings: tuple[str, ...] = ()
    """What in the observation lies outside the data contract; it was decided all the same."""


@dataclass(slots=True)
class Judged:
    """A batch with what is to be decided about it, not yet recorded."""

    batch: Batch
    champion: Loaded
    probabilities: np.ndarray[Any, Any]
    """Of the student, then of whoever decides; ``[n, K]``."""
    unsure: list[int]
    """Places of the rows that the teacher is to be asked about."""
    deciders: list[str]
    versions: list[str]
    taught: list[Taught] = field(default_factory=list)
    outside: dict[int, list[Outside]] = field(default_factory=dict)
    """Values outside the data contract, by the row's place."""


class Agent:
    """One decision point, as its application sees it. For threads and asyncio; not across a fork.

    A copy of the champion on this machine decides at once; without one, the registry's first answer is waited for. What
    is out of reach later on is told by :meth:`status`, and the agent decides on. Nothing is lost when the process dies.

    :param follow: ask the registry for a new champion every ``runtime.poll``; False: only heed what another process
        fetches, as the workers of ``stillhouse serve`` do.
    :param flush: move what was recorded on into the knowledge base every ``runtime.flush`` and on closing; False: leave
        that to another process on this machine.
    :raises ConfigError: if there is no such agent file, or it is wrong.
    :raises SpoolError: if nothing can be recorded here.
    """

    def __init__(self, agent: str, *, follow: bool = True, flush: bool = True) -> None:
        self.config = config.load(agent)
        self.contract = Contract(self.config)
        self.spool = Spool(spool_folder(agent), max_rows=self.config.runtime.max_spool_rows)
        self._process = os.getpid()
        self._replayed = self.config.watch.clock == "newest_observation"
        self._champions = Champions(self.config, self.contract)
        self._champion: Loaded | None = None
        self._since: datetime | None = None
        self._ids_by: DecisionIds | None = None
        self._seen: tuple[int, int] | None = None
        self._swapping, self._flushing, self._counting = threading.RLock(), threading.Lock(), threading.Lock()
        self._models: Registry | None = None
        self._troubles = Troubles(agent)
        self._decided_by: Counter[str] = Counter()
        self._outside: Counter[str] = Counter()
        self._last_flush: datetime | None = None
        self._closed, self._left = False, 0
        limits = self.config.runtime.cascade
        self._budget = None if limits is None else DayBudget(self._champions.folder / "cascade.sqlite", limits)
        self._asking = (
            None
            if self._budget is None
            else Asking(self.config, self.contract, self._champions, self._budget, self.spool, self._troubles)
        )
        self._unrecorded, self._flush_problems = False, tuple[str, ...]()
        self._clock = WallClock()
        self._look()
        self._flushes = flush
        self._repeating = self._begin(follow, flush)

    def _begin(self, follow: bool, flush: bool) -> list[Repeating]:
        name, runtime = self.config.agent, self.config.runtime
        if follow:
            first = Repeating(f"{name} follows", self._follow_quietly, runtime.poll.total_seconds())
            if self._champion is None:
                first.once.wait(_FIRST_ANSWER)
        else:
            first = Repeating(f"{name} looks", self._look, min(_POINTER_SECONDS, runtime.poll.total_seconds()))
        found = [
            first,
            Repeating(f"{name} spools", self._look_at_spools, _SPOOL_SECONDS),
            Repeating(f"{name} clock", self._look_at_clock, _SPOOL_SECONDS),
        ]
        if flush:
            found.append(Repeating(f"{name} flushes", self._flush_quietly, runtime.flush.total_seconds()))
        return found

    # ----------------------------------------------------------------- deciding

    @overload
    def decide(self, observation: Mapping[str, Any]) -> Decision: ...
    @overload
    def decide(self, observation: Sequence[Mapping[str, Any]] | pd.DataFrame) -> list[Decision]: ...
    def decide(self, observation: Given) -> Decision | list[Decision]:
        """Decide, and record it before the answer is given.

        :param observation: the contract's columns by name, missing values as None; or several; or a frame of them.
        :raises SchemaError: if it does not keep the contract's columns and types; nothing is recorded.
        :raises NoChampionError: if there is nothing to decide with.
        :raises SpoolFullError: if the knowledge base has been out of reach for too long.
        """
        judged = self.judge(self.contract.read(observation))
        if judged.unsure:
            self.ask_teacher(judged)
        (decisions,) = self.record([judged])
        return decisions[0] if isinstance(observation, Mapping) else decisions

    async def decide_async(self, observation: Given) -> Decision | list[Decision]:
        """:meth:`decide` for asyncio: the loop runs on while the disk, or the teacher, is waited for."""
        return await asyncio.to_thread(self.decide, observation)

    @property
    def champion(self) -> Loaded | None:
        """What decides now; None: there is nothing to decide with yet."""
        return self._champion

    def judge(self, batch: Batch) -> Judged:
        """What the champion says; no input or output, some microseconds.

        :raises NoChampionError: if there is none.
        """
        champion = self._champion
        if champion is None:
            problem = self._troubles.all().get("champion") or self._troubles.all().get("registry")
            why = f": {problem.text}" if problem else "; refresh it with --trigger bootstrap, or promote a version"
            raise NoChampionError(f"agent {self.config.agent!r} has no champion to decide with{why}")
        found = champion.probabilities(batch)
        n = len(batch)
        return Judged(
            batch,
            champion,
            found,
            self._unsure(found),
            ["student"] * n,
            [champion.version] * n,
            outside=self.contract.outside(batch.values),
        )

    def ask_teacher(self, judged: Judged) -> None:
        """Let the teacher answer in the student's place where it is unsure; blocks up to the cascade's timeout.

        Where the teacher does not answer, the student's answers stand.
        """
        if self._asking is None or not judged.unsure:
            return
        answered = self._asking.about(judged.champion, judged.batch.part(judged.unsure))
        if answered is None:
            return
        judged.taught += answered.taught
        for place, said in zip(judged.unsure, answered.probabilities, strict=True):
            if not np.isnan(said[0]):
                judged.probabilities[place] = said
                judged.deciders[place], judged.versions[place] = "teacher", answered.version

    def record(self, judged: Sequence[Judged], others: Sequence[Event] = ()) -> list[list[Decision]]:
        """Write them to the spool, with ``others`` all in one commit, and return the decisions of each.

        :raises SpoolFullError: nothing was written.
        """
        events, decisions = list[Event](), list[list[Decision]]()
        for each in judged:
            event, made = self._decided(each)
            events += [event, *each.taught] if made else []
            decisions.append(made)
        self._put(*events, *others)
        with self._counting:
            for each in judged:
                self._decided_by.update(each.deciders)
                self._outside.update(found.column for row in each.outside.values() for found in row)
        return decisions

    def _decided(self, judged: Judged) -> tuple[Decided, list[Decision]]:
        batch, actions = judged.batch, judged.champion.actions
        ids = self._ids.give(batch.observation_ids, batch.observed_at)
        probabilities = judged.probabilities.tolist()
        chosen = [actions[i] for i in judged.probabilities.argmax(axis=1).tolist()]
        now = time.time_ns() // 1000
        event = Decided(
            observation_ids=batch.observation_ids,
            observed_at=batch.observed_at,
            columns=batch.columns,
            values=batch.values,
            decision_ids=ids,
            decided_at=batch.observed_at if self._replayed else [now] * len(batch),
            actions=chosen,
            probabilities=probabilities,
            deciders=judged.deciders,
            versions=judged.versions,
        )
        made = [
            Decision(
                decision_id=decision_id,
                observation_id=observation_id,
                action=action,
                confidence=max(said),
                probabilities=dict(zip(actions, said, strict=True)),
                decider=decider,
                version=version,
                warnings=tuple(found.message for found in judged.outside.get(place, ())),
            )
            for place, decision_id, observation_id, action, said, decider, version in zip(
                range(len(ids)),
                ids,
                batch.observation_ids,
                chosen,
                probabilities,
                judged.deciders,
                judged.versions,
                strict=True,
            )
        ]
        return event, made

    def _unsure(self, probabilities: np.ndarray[Any, Any]) -> list[int]:
        cascade = self.config.runtime.cascade
        if cascade is None:
            return []
        return np.flatnonzero(probabilities.max(axis=1) < cascade.below).tolist()

    # ----------------------------------------------------------------- perceiving, learning

    def observe(self, observation: Given) -> list[str]:
        """Record observations that nobody decides, before there is a champion; returns their ids.

        :raises SchemaError: as :meth:`decide`; nothing is recorded.
        """
        batch = self.contract.read(observation)
        if len(batch):
            self._put(
                Observed(
                    observation_ids=batch.observation_ids,
                    observed_at=batch.observed_at,
                    columns=batch.columns,
                    values=batch.values,
                )
            )
        return batch.observation_ids

    def outcome(self, decision_id: str, action: str | float, known_at: datetime | None = None) -> None:
        """Record what turned out to be true about a decision: late or again, of several the last known counts.

        :param action: its name; of a number or truth value what it is written as: 1 as "1", True as "true".
        :param known_at: when it became known, with a time zone; None: now.
        :raises UnknownDecisionError: if no such decision was handed out; nothing is recorded, here and below.
        :raises SchemaError: if the agent file has no such action, or the time lies ahead or has no zone.
        """
        self.outcomes([(decision_id, action)], known_at)

    def outcomes(self, pairs: Sequence[tuple[str, str | float]], known_at: datetime | None = None) -> None:
        """:meth:`outcome` for several, all or none."""
        if pairs:
            self._put(self.outcomes_event(pairs, [known_at] * len(pairs)))

    async def outcome_async(self, decision_id: str, action: str | float, known_at: datetime | None = None) -> None:
        """:meth:`outcome` for asyncio."""
        await asyncio.to_thread(self.outcome, decision_id, action, known_at)

    def outcomes_event(self, pairs: Sequence[tuple[str, str | float]], known_at: Sequence[datetime | None]) -> Outcomes:
        """What is recorded of outcomes; see :meth:`outcome` for what is refused."""
        found, actions = list[Subject](), list[str]()
        for place, (decision_id, action) in enumerate(pairs):
            subject = self._ids.read(decision_id)
            if subject is None:
                raise UnknownDecisionError(
                    f"outcome {place}: agent {self.config.agent!r} made no decision {decision_id[:300]!r}"
                )
            actions.append(self._action(place, action))
            found.append(subject)
        return Outcomes(
            observation_ids=[subject.observation_id for subject in found],
            observed_at=[subject.observed_at for subject in found],
            known_at=self._known(known_at),
            actions=actions,
        )

    def learn(self, outcomes: pd.DataFrame) -> None:
        """Record outcomes of observations whose ids the application keeps itself, all or none.

        :param outcomes: ``observation_id``, ``observed_at`` (as the observation's), ``known_at``, ``action``.
        :raises SchemaError: if a column is missing, a time has no zone, or the agent file lacks an action.
        """
        outcomes = tidy_outcomes(outcomes, self.config)
        if outcomes.empty:
            return
        times = {name: outcomes[name] for name in ("observed_at", "known_at")}
        for name, values in times.items():
            if not isinstance(values.dtype, pd.DatetimeTZDtype) or values.isna().any():
                raise SchemaError(f"{name} of outcomes of agent {self.config.agent!r} must be times with a time zone")
        actions = [self._action(place, action) for place, action in enumerate(outcomes["action"])]
        stamps = {
            name: values.dt.tz_convert("UTC").dt.as_unit("us").astype("int64").tolist()
            for name, values in times.items()
        }
        ids = outcomes["observation_id"].tolist()
        if None in ids:
            raise SchemaError(f"outcome {ids.index(None)} of agent {self.config.agent!r} has no observation_id")
        self._put(Outcomes(observation_ids=ids, actions=actions, **stamps))

    def _action(self, place: int, given: object) -> str:
        """The action's name: that of a number or truth value is as it is written.

        :raises SchemaError: if the agent file has none of that name.
        """
        try:
            action = text_of(given)
        except ValueRefused as error:
            raise SchemaError(f"outcome {place} of agent {self.config.agent!r}: {error}") from error
        if action is None or action not in self.config.actions:
            raise SchemaError(
                f"outcome {place}: agent {self.config.agent!r} has no action {str(action)[:100]!r}; it has: "
                f"{', '.join(map(shown, self.config.actions))}"
            )
        return action

    def _known(self, moments: Sequence[datetime | None]) -> list[int]:
        now = time.time_ns() // 1000
        for place, moment in enumerate(moments):
            if moment is not None and moment.tzinfo is None:
                raise SchemaError(f"outcome {place}: known_at {moment.isoformat()} has no time zone")
        known = [now if moment is None else micros(moment) for moment in moments]
        for place, each in enumerate(known):
            if each > now + AHEAD:
                raise SchemaError(f"outcome {place}: known_at lies more than an hour ahead: it, or a clock, is wrong")
        return known

    # ----------------------------------------------------------------- following, flushing, status

    def follow(self, registry: Registry | None = None) -> str | None:
        """Ask the registry now, and decide with its champion from now on; returns its version, None if there is none.

        Whatever fails, the champion of before decides on. Where there is a cascade, the teacher is loaded too.

        :raises RegistryError: if MLflow does not answer.
        :raises NoChampionError: if the champion does not run here.
        :raises SchemaError: if it reads other columns than the agent file has.
        """
        self._follow(registry or self._registry())
        champion = self._champion
        if champion is not None and self._asking is not None:
            self._asking.prepare(champion, wait=True)
        return champion.version if champion else None

    def flush(self) -> None:
        """Move all that this machine's processes have recorded for this agent on into the knowledge base.

        :raises Exception: whatever a store raises that does not answer; what was recorded stays in the spools.
        """
        with self._flushing:
            done = flush(KnowledgeBase(self.config))
            self._flush_problems = done.problems
            self._last_flush = datetime.now(UTC)

    @property
    def can_record(self) -> bool:
        """Whether the spool took what was put last, or has taken something since; without that nothing is decided."""
        return not self._unrecorded

    def problems(self) -> dict[Side, Problem]:
        """The newest with each side, those that are over included."""
        return merged(self._troubles.all(), self._stuck())

    def status(self) -> Status:
        """How it stands."""
        champion = self._champion
        pointer = champion.pointer if champion else None
        try:
            calls, cost = self._budget.spent() if self._budget else (0, 0.0)
        except RuntimeStateError as error:
            self._troubles.tell("teacher", str(error))
            calls, cost = 0, 0.0
        with self._counting:
            decided, outside = dict(self._decided_by), dict(self._outside)
        return Status(
            agent=self.config.agent,
            champion=champion.version if champion else None,
            promoted_at=pointer.promoted_at if pointer else None,
            deciding_since=self._since,
            problems=self.problems(),
            decisions=decided,
            outside_contract=outside,
            spool_rows=self._left if self._closed else self._waiting_rows(),
            cascade=self._asking.counted() if self._asking else {},
            teacher_calls=calls,
            teacher_cost=cost,
            last_flush=self._last_flush,
        )

    def _waiting_rows(self) -> int:
        try:
            return self.spool.depth()
        except SpoolError as error:
            self._troubles.tell("spool", str(error))
            return 0

    def _stuck(self) -> dict[Side, Problem]:
        """What has waited for so long for an answer that it may never come."""
        sides: dict[str, Side] = {"follows": "registry", "flushes": "knowledge_base"}
        found: dict[Side, Problem] = {}
        for each in self._repeating:
            side, seconds = sides.get(each.name.rpartition(" ")[2]), each.under_way
            if side is not None and seconds > _LONG_SECONDS:
                now = datetime.now(UTC)
                text = f"has not answered for {seconds:.0f} s; it is waited for"
                found[side] = Problem(since=now - timedelta(seconds=seconds), at=now, text=text)
        return found

    def close(self) -> None:
        """Flush if this agent does, and let go of the spool; what is in it is flushed by whoever flushes next."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        ended = [each.stop(_LAST_FLUSH) for each in self._repeating]
        if self._flushes and all(ended):
            self._flush_quietly()
        self._left = self._waiting_rows()
        self.spool.close()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ----------------------------------------------------------------- in the background

    def _follow(self, registry: Registry) -> None:
        with self._swapping:
            try:
                self._champions.follow(registry)
            except Exception:  # the champion may have come without its teacher
                with suppress(StillhouseError):
                    self._take(self._champions.read())
                raise
            self._take(self._champions.read())

    def _follow_quietly(self) -> None:
        try:
            self._follow(self._registry())
        except RegistryError as error:
            self._troubles.tell("registry", str(error))
        except PartError as error:
            self._troubles.tell("teacher", str(error))
        except StillhouseError as error:
            self._troubles.over("registry")
            self._troubles.tell("champion", str(error))
        except Exception as error:  # whatever MLflow's stores raise: the loop must go on
            log.debug("following", exc_info=True)
            self._troubles.tell("registry", f"{type(error).__name__}: {error}")
        else:
            self._troubles.over("registry")
            self._troubles.over("champion")

    def _look(self) -> None:
        """Take up what the pointer's file names, if it is another than before."""
        with self._swapping:
            try:
                seen = self._champions.seen()
                if seen == self._seen:
                    self._prepare_teacher()
                    return
                self._take(self._champions.read())
            except (StillhouseError, OSError) as error:
                self._troubles.tell("champion", str(error))
            else:
                self._seen = seen
                self._troubles.over("champion")

    def _take(self, pointer: Pointer | None) -> None:
        """Decide with what is pointed to: loaded and tried first, then swapped at once; with the lock held."""
        champion = self._champion
        if pointer is not None and (champion is None or champion.pointer != pointer):
            loaded = self._champions.load(pointer)
            self._ids_by = DecisionIds(self.config.agent, pointer.knowledge_base)
            self._champion, self._since = loaded, datetime.now(UTC)
        self._prepare_teacher()

    def _prepare_teacher(self) -> None:
        if self._asking is not None and self._champion is not None:
            self._asking.prepare(self._champion)

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever a store raises, and panics in a forked process: it waits in the spool
            log.debug("flushing", exc_info=True)
            self._troubles.tell("knowledge_base", f"{type(error).__name__}: {error}")
        else:
            self._troubles.over("knowledge_base")

    def _look_at_clock(self) -> None:
        """Whether it was set: what is recorded without a moment of its own has the clock's."""
        if moved := self._clock.jumped():
            self._troubles.tell(
                "clock",
                f"it was set {'forwards' if moved > 0 else 'back'} by {timedelta(seconds=round(abs(moved)))}: moments "
                "recorded before or after are wrong by that much",
            )
        elif (told := self._troubles.all().get("clock")) and abs(datetime.now(UTC) - told.at) > _CLOCK_TOLD:
            self._troubles.over("clock")

    def _look_at_spools(self) -> None:
        """This process's, whether it takes something again; where it flushes, all of the agent's on this machine."""
        problems = list[str]()
        try:
            self.spool.check(write=self._unrecorded)
            self._unrecorded = False
        except SpoolError as error:
            self._unrecorded = True
            problems.append(str(error))
        if self._flushes:
            problems += self._flush_problems
            problems += survey(spool_folder(self.config.agent)).problems
        if problems:
            self._troubles.tell("spool", "; ".join(dict.fromkeys(problems)))
        elif not self._unrecorded:
            self._troubles.over("spool")

    def _registry(self) -> Registry:
        """Connected when first asked for: MLflow takes seconds to import."""
        if self._models is None:
            from stillhouse.registry import Registry

            self._models = Registry(self.config.agent)
        return self._models

    @property
    def _ids(self) -> DecisionIds:
        """By the identity that the copy of the champion knows; without a copy, the knowledge base is asked."""
        if self._ids_by is None:
            self._ids_by = DecisionIds(self.config.agent, KnowledgeBase(self.config).identity())
        return self._ids_by

    def _put(self, *events: Event) -> None:
        if self._closed:
            raise RuntimeStateError(f"the agent {self.config.agent!r} was closed: make another")
        if os.getpid() != self._process:
            raise RuntimeStateError(
                f"this agent {self.config.agent!r} was made before the process forked, and its threads and files did "
                "not come along: make an Agent in each process, after the fork, or let the processes be spawned"
            )
        if events:
            try:
                self.spool.put(*events)
            except SpoolError as error:
                self._unrecorded = True
                self._troubles.tell("spool", str(error))
                raise
