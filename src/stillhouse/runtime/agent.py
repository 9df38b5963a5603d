"""The agent in process: ``Agent("flights").decide(observation)``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, overload

import msgspec
import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.errors import NoChampionError, SchemaError, UnknownDecisionError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.events import Decided, Event, Observed, Outcomes, Taught
from stillhouse.knowledge.spool import Spool, spool_folder
from stillhouse.runtime.ids import DecisionIds
from stillhouse.runtime.rows import AHEAD, Batch, Contract, RowEncoder, micros
from stillhouse.variant import Variant

__all__ = ["Agent", "Decision", "Judged", "Loaded"]

Given = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame


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


class Loaded:
    """A champion that is ready to decide. Never changed: another champion is another object."""

    def __init__(self, version: str, variant: Variant, contract: Contract) -> None:
        self.version = version
        self.variant = variant
        self.actions: list[str] = variant.actions
        self._encode = RowEncoder(variant.columns, contract.columns, contract.config.agent)

    def probabilities(self, batch: Batch) -> np.ndarray[Any, Any]:
        """float32 ``[n, K]``; may be called from several threads at once."""
        return self.variant.probabilities(self._encode(batch.values))


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


class Agent:
    """One decision point, as its application sees it."""

    def __init__(self, agent: str) -> None:
        self.config = config.load(agent)
        self.contract = Contract(self.config)
        self.spool = Spool(spool_folder(agent), max_rows=self.config.runtime.max_spool_rows)
        self._ids = DecisionIds(agent, KnowledgeBase(self.config).identity())
        self._champion: Loaded | None = None
        self._replayed = self.config.watch.clock == "newest_observation"

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

    def judge(self, batch: Batch) -> Judged:
        """What the champion says; no input or output, some microseconds.

        :raises NoChampionError: if there is none.
        """
        champion = self._champion
        if champion is None:
            raise NoChampionError(f"agent {self.config.agent!r} has no champion to decide with")
        found = champion.probabilities(batch)
        n = len(batch)
        return Judged(batch, champion, found, self._unsure(found), ["student"] * n, [champion.version] * n)

    def ask_teacher(self, judged: Judged) -> None:
        """Let the teacher answer in the student's place where it is unsure; blocks up to the cascade's timeout."""
        raise NotImplementedError

    def record(self, judged: Sequence[Judged], others: Sequence[Event] = ()) -> list[list[Decision]]:
        """Write them to the spool, with ``others`` all in one commit, and return the decisions of each.

        :raises SpoolFullError: nothing was written.
        """
        events, decisions = list[Event](), list[list[Decision]]()
        for each in judged:
            event, made = self._decided(each)
            events += [event, *each.taught]
            decisions.append(made)
        self.spool.put(*events, *others)
        return decisions

    def _decided(self, judged: Judged) -> tuple[Decided, list[Decision]]:
        batch, actions = judged.batch, judged.champion.actions
        ids = self._ids.give(batch.observation_ids, batch.observed_at)
        probabilities = judged.probabilities.tolist()
        chosen = [actions[i] for i in judged.probabilities.argmax(axis=1).tolist()]
        now = time.time_ns() // 1000
        event = Decided(
            observation_ids=batch.observation_ids, observed_at=batch.observed_at, columns=batch.columns,
            values=batch.values, decision_ids=ids,
            decided_at=batch.observed_at if self._replayed else [now] * len(batch),
            actions=chosen, probabilities=probabilities, deciders=judged.deciders, versions=judged.versions,
        )  # fmt: skip
        made = [
            Decision(
                decision_id=decision_id, observation_id=observation_id, action=action, confidence=max(said),
                probabilities=dict(zip(actions, said, strict=True)), decider=decider, version=version,
            )
            for decision_id, observation_id, action, said, decider, version in zip(
                ids, batch.observation_ids, chosen, probabilities, judged.deciders, judged.versions, strict=True
            )
        ]  # fmt: skip
        return event, made

    def _unsure(self, probabilities: np.ndarray[Any, Any]) -> list[int]:
        cascade = self.config.runtime.cascade
        if cascade is None:
            return []
        return np.flatnonzero(probabilities.max(axis=1) < cascade.below).tolist()

    # ----------------------------------------------------------------- perceiving, learning

    def observe(self, observation: Given) -> list[str]:
        """Record observations that nobody decides, before there is a champion; returns their ids."""
        batch = self.contract.read(observation)
        self.spool.put(
            Observed(
                observation_ids=batch.observation_ids,
                observed_at=batch.observed_at,
                columns=batch.columns,
                values=batch.values,
            )  # fmt: skip
        )
        return batch.observation_ids

    def outcome(self, decision_id: str, action: str, known_at: datetime | None = None) -> None:
        """Record what turned out to be true about a decision: late or again, of several the last known counts.

        :raises SchemaError: if no such decision was handed out, or the agent file has no such action; nothing is
            recorded.
        """
        self.outcomes([(decision_id, action)], known_at)

    def outcomes(self, pairs: Sequence[tuple[str, str]], known_at: datetime | None = None) -> None:
        """:meth:`outcome` for several, all or none."""
        if pairs:
            self.spool.put(self.outcomes_event(pairs, [known_at] * len(pairs)))

    async def outcome_async(self, decision_id: str, action: str, known_at: datetime | None = None) -> None:
        """:meth:`outcome` for asyncio."""
        await asyncio.to_thread(self.outcome, decision_id, action, known_at)

    def outcomes_event(self, pairs: Sequence[tuple[str, str]], known_at: Sequence[datetime | None]) -> Outcomes:
        """What is recorded of outcomes; see :meth:`outcome` for what is refused."""
        subjects = [self._ids.read(decision_id) for decision_id, _ in pairs]
        now = time.time_ns() // 1000
        known = [now if each is None else micros(each) for each in known_at]
        for place, (subject, (decision_id, action)) in enumerate(zip(subjects, pairs, strict=True)):
            if subject is None:
                raise UnknownDecisionError(
                    f"outcome {place}: agent {self.config.agent!r} made no decision {decision_id[:300]!r}"
                )
            if action not in self.config.actions:
                raise SchemaError(
                    f"outcome {place}: agent {self.config.agent!r} has no action {action[:100]!r}; it has: "
                    f"{', '.join(self.config.actions)}"
                )
            if known[place] > now + AHEAD:
                raise SchemaError(f"outcome {place}: known_at lies more than an hour ahead: it, or a clock, is wrong")
        found = [subject for subject in subjects if subject is not None]
        return Outcomes(
            observation_ids=[subject.observation_id for subject in found],
            observed_at=[subject.observed_at for subject in found],
            known_at=known, actions=[action for _, action in pairs],
        )  # fmt: skip

    def close(self) -> None:
        """Let go of the spool; what is in it stays, and is flushed by whoever flushes next."""
        self.spool.close()
