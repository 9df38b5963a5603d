"""The hook through which champions decide at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.gateway.tasks import Task

if TYPE_CHECKING:
    from stillhouse.gateway.captures import Capture

__all__ = ["BLIND", "Asked", "Decider", "LocalDecision", "Standing"]

Asked = Literal["first", "shadow", "audit", "unsure", "credential", "not_local", "local"]
"""Why the upstream was asked: there is no champion; it is not allowed to answer yet; a random blind audit; it is
unsure; the caller's credential was not accepted lately; the answer cannot be said locally. ``local``: it was not."""

Standing = Literal["answers", "audit", "unsure", "shadow"]
BLIND: frozenset[Asked] = frozenset({"first", "shadow", "audit"})
"""The upstream was asked without regard to what the champion says."""


@dataclass(frozen=True, slots=True)
class LocalDecision:
    """What a champion says about a question."""

    action: str
    probs: Mapping[str, float]
    version: str
    """Such as ``router@7``."""
    decision_id: str
    standing: Standing
    """``answers``: it may answer in the upstream's place. ``audit``: the question was drawn for the audit. ``unsure``:
    it may not answer this question. ``shadow``: it may not answer any question at present."""
    allowed: bool = False
    """Of a question of the audit or in shadow: whether it might have answered it otherwise."""

    @property
    def may_answer(self) -> bool:
        """Whether it may answer this question, or might have if the upstream were not asked blindly."""
        return self.standing == "answers" or (self.standing in ("audit", "shadow") and self.allowed)

    @property
    def confidence(self) -> float:
        """The probability of the action."""
        return self.probs.get(self.action, 0.0)


class Decider(Protocol):
    """The champions behind the door. Without one, everything is passed on."""

    def serves(self, key: str) -> bool:
        """Whether there is an agent for the task with this key; called for each request, so it must be fast."""

    async def decide(self, task: Task, tenant: str, caller: str, question: ClosedQuestion) -> LocalDecision | None:
        """What the task's champion says; None if it has none.

        An exception is counted, and the request is passed on.

        :param caller: keyed hash of the caller's credential.
        """

    def note(self, capture: Capture) -> None:
        """Learn of a record: called for each one by the thread that writes them, after it is on the disk."""
