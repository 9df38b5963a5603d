"""The hook through which champions decide at the door, and the draw of blind audits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.gateway.tasks import Task

if TYPE_CHECKING:
    from stillhouse.gateway.captures import Capture

__all__ = ["BLIND", "Asked", "AuditDraw", "Decider", "LocalDecision", "Standing"]

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
    audit: float = 0.05
    """Share of the questions that it may answer for which the upstream is asked blindly all the same."""
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

        It is called before the audit is drawn, so it cannot know whether this question is audited. An exception is
        counted, and the request is passed on.

        :param caller: keyed hash of the caller's credential.
        """

    def note(self, capture: Capture) -> None:
        """Learn of a record: called for each one by the thread that writes them, after it is on the disk."""


class AuditDraw:
    """Draws blind audits with a secret key: nobody can choose or foresee them, and whoever has the key can check them.

    >>> draw = AuditDraw(b"0" * 32)
    >>> drawn = sum(draw.is_audit(str(number), 0.05) for number in range(10_000))
    >>> 400 < drawn < 600
    True
    >>> draw.is_audit("any", 0.0), draw.is_audit("any", 1.0)
    (False, True)
    """

    def __init__(self, key: bytes) -> None:
        self._hash = hashlib.blake2b(digest_size=8, key=key, person=b"audit")

    def is_audit(self, request_id: str, share: float) -> bool:
        """Whether the request with this id, which the server chose, is audited.

        :param share: of all requests that are drawn: 0 … 1.
        """
        digest = self._hash.copy()
        digest.update(request_id.encode())
        return int.from_bytes(digest.digest(), "big") < share * 2**64
