"""A ranking: the best of many candidates, in the order of the probability of one action."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.knowledge.events import Offered
from stillhouse.runtime.rows import Batch
from stillhouse.shown import escape_line

if TYPE_CHECKING:
    from stillhouse.runtime.agent import Decision, PendingDecisions

__all__ = ["PendingRanking", "Ranking", "best_rows", "offer", "ranked_action"]


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates that are shown, best first; recorded before it is returned."""

    ranking_id: str
    action: str
    """The candidates are sorted by the probability of this action."""
    offered: int
    """How many candidates there were."""
    decisions: tuple[Decision, ...]
    """One for each candidate that is shown; its outcome is reported by its id."""


@dataclass(slots=True)
class PendingRanking:
    """A ranking that is not yet recorded."""

    shown: PendingDecisions
    """The candidates that are shown, best first."""
    offered: Offered

    def finish(self, decisions: Sequence[Decision]) -> Ranking:
        """The ranking with its recorded decisions."""
        offered = self.offered
        return Ranking(
            ranking_id=offered.ranking_id, action=offered.action, offered=offered.rows, decisions=tuple(decisions)
        )


def ranked_action(config: AgentConfig, action: str | None, known: Sequence[str], version: str) -> int:
    """The index, in the champion's probabilities, of the action to sort by.

    :param action: None: the second of two, which is the positive class of the AUC, too.
    :param known: the champion's actions.
    :raises SchemaError: if the agent has no such action, the champion does not know it, or none is named among several.
    """
    names = ", ".join(map(escape_line, config.actions))
    if action is None:
        if len(config.actions) > 2:
            raise SchemaError(
                f"a ranking sorts by the probability of one action, and agent {config.agent!r} has "
                f"{len(config.actions)}: name it, action=…, one of: {names}"
            )
        action = config.actions[1]
    if not isinstance(action, str) or action not in config.actions:
        raise SchemaError(f"agent {config.agent!r} has no action {str(action)[:100]!r} to rank by; it has: {names}")
    if action not in known:
        raise SchemaError(
            f"{version} does not know the action {action!r} yet, so it cannot rank by it: refresh agent "
            f"{config.agent!r}, or rank by one of: {', '.join(map(escape_line, known))}"
        )
    return known.index(action)


def best_rows(probs: np.ndarray[Any, Any], top: int) -> list[int]:
    """The indices of the ``top`` largest probabilities ``[n]``, best first; of equal ones the first offered.

    :raises SchemaError: if ``top`` is no whole number from 1.

    >>> best_rows(np.array([0.2, 0.9, 0.2, 0.5]), 3)
    [1, 3, 0]
    """
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
        raise SchemaError(f"top is how many candidates are shown, a whole number from 1, not {top!r}")
    order: list[int] = np.argsort(-probs, kind="stable")[:top].tolist()
    return order


def offer(batch: Batch, probs: Sequence[float], shown: Sequence[int], action: str, version: str, now: int) -> Offered:
    """The event that records all candidates of a ranking.

    :param probs: of ``action``, one a candidate.
    :param shown: indices of the candidates that are shown, best first.
    :param now: microseconds since 1970 (UTC).
    :raises SchemaError: if two candidates have one id: neither a decision nor an outcome could tell them apart.
    """
    first = dict[str, int]()
    for index, name in enumerate(batch.observation_ids):
        if (earlier := first.setdefault(name, index)) != index:
            raise SchemaError(
                f"candidates {earlier} and {index} have the same observation_id {name[:50]!r}: give each its own, or "
                "leave it out"
            )
    positions: list[int | None] = [None] * len(batch)
    for position, index in enumerate(shown, start=1):
        positions[index] = position
    return Offered(
        ranking_id=uuid.uuid4().hex,
        observation_ids=batch.observation_ids,
        observed_at=batch.observed_at,
        ranked_at=now,
        action=action,
        probabilities=list(probs),
        positions=positions,
        version=version,
    )
