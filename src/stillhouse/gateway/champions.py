"""The champions behind the door: agents that have adopted a task decide its questions where their promise allows it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import NamedTuple

from stillhouse.errors import SchemaError
from stillhouse.gateway.captures import Capture
from stillhouse.gateway.deciding import LocalDecision, Standing
from stillhouse.gateway.handing_over import CallerQuota
from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.gateway.tasks import Task
from stillhouse.runtime.agent import Agent, PendingDecisions

__all__ = ["Champions"]

_MAX_OPEN = 10_000  # decisions whose record has not come yet
_MAX_CALLERS = 10_000  # whose shares are counted
_NO_ACTION = ""  # an upstream's answer that is none of the actions: the champion does not agree with it


class _Open(NamedTuple):
    """A decision whose record has not come yet."""

    agent: Agent
    pending: PendingDecisions


class Champions:
    """Decides the questions of adopted tasks with the champions of their agents.

    A decision is recorded with the request, and comes to the knowledge base with the records of the door
    (:mod:`stillhouse.gateway.handing_over`). What the upstream answered is compared as soon as its record is written.

    :param agents: those without the section ``front_door`` are left out.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        self._agents = {agent.config.front_door.task: agent for agent in agents if agent.config.front_door is not None}
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._quotas: dict[tuple[str, bool], tuple[str, CallerQuota]] = {}
        self._lock = Lock()

    def serves(self, key: str) -> bool:
        """Whether an agent with a champion has adopted the task."""
        agent = self._agents.get(key)
        return agent is not None and agent.champion is not None

    async def decide(self, task: Task, _tenant: str, _caller: str, question: ClosedQuestion) -> LocalDecision | None:
        """What the champion says; None if there is none, or the message does not fit the agent's columns."""
        agent = self._agents[task.key]
        door = agent.config.front_door
        if agent.champion is None or door is None:
            return None
        try:
            row = door.read_row(question.observation, list(agent.config.observations.columns))
            batch = agent.schema.read(row)
        except (ValueError, SchemaError):  # callers write what they like: this is no failure
            return None
        pending = agent.predict(batch, ask_all=door.shadow)
        (decision_id,) = agent.decision_ids(pending.batch)
        probs = dict(zip(pending.champion.actions, pending.probs[0].tolist(), strict=True))
        asked = pending.asked
        standing: Standing
        if door.shadow or agent.answers_nothing:
            standing = "shadow"
        elif not asked.rows:
            standing = "answers"
        else:
            standing = "audit" if asked.blind[0] else "unsure"
        if asked.rows:
            self._remember(decision_id, _Open(agent, replace(pending, batch=pending.batch.select([]), warnings={})))
        return LocalDecision(
            action=max(probs, key=probs.__getitem__),
            probs=probs,
            version=pending.champion.version,
            decision_id=decision_id,
            standing=standing,
            allowed=not asked.rows or asked.allowed[0],
        )

    def note(self, capture: Capture) -> None:
        """Compare the champion's answer with the upstream's."""
        if capture.decision_id is None or capture.asked == "local":
            return
        with self._lock:
            found = self._open.pop(capture.decision_id, None)
        if found is not None and self._counts(found, capture.caller):
            found.agent.compare(found.pending, [_NO_ACTION if capture.action is None else capture.action])

    def _counts(self, decision: _Open, caller: str) -> bool:
        """Whether the promise may learn from a further answer to this caller; decided whatever the answer is.

        One caller's requests, such as the same easy text again and again, must not prove a promise to all others.
        """
        door, version = decision.agent.config.front_door, decision.pending.champion.version
        assert door is not None
        of = door.task, decision.pending.asked.blind[0]
        counted, quota = self._quotas.get(of, (None, CallerQuota(door.caller_share, {})))
        if counted != version or len(quota.kept) > _MAX_CALLERS:
            quota = CallerQuota(door.caller_share, {})
            self._quotas[of] = version, quota
        return quota.take(caller)

    def _remember(self, decision_id: str, decision: _Open) -> None:
        with self._lock:
            self._open[decision_id] = decision
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
