"""Decisions that were made elsewhere: by a champion on a device, which hands them in when there is a network again."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.runtime.rows import MAX_AHEAD_MICROS, to_micros
from stillhouse.shown import escape_line

__all__ = ["MadeDecision", "require_decisions"]

_SUM_TOLERANCE, _TIE_TOLERANCE = 1e-3, 1e-6


class MadeDecision(NamedTuple):
    """A decision as whoever made it has recorded it."""

    decision_id: str
    """What it is called where it was made; unique there."""
    decided_at: datetime
    """With a time zone."""
    action: str
    probabilities: dict[str, float]
    """Of every action."""
    version: str
    """Of the champion that decided, such as ``flights@7``."""


def require_decisions(config: AgentConfig, made: Sequence[MadeDecision]) -> None:
    """Check that each is a decision that a champion of this agent can have made.

    :raises SchemaError: for the first one whose version is none of the agent, whose probabilities are not one of each
        action with the sum 1, whose action is not the most probable one, or whose time lies ahead.
    """
    latest = time.time_ns() // 1000 + MAX_AHEAD_MICROS
    for index, decision in enumerate(made):
        if fault := _fault(config, decision, latest):
            raise SchemaError(f"decision {index}, {decision.decision_id[:100]!r}, of agent {config.agent!r}: {fault}")


def _fault(config: AgentConfig, decision: MadeDecision, latest: int) -> str | None:
    probabilities = decision.probabilities
    if not re.fullmatch(re.escape(config.agent) + r"@[1-9][0-9]{0,17}", decision.version):
        return f"version {decision.version[:100]!r} is no champion's: it reads {config.agent}@7, as the archive has it"
    if set(probabilities) != set(config.actions):
        return f"probabilities are given for the actions {', '.join(map(escape_line, config.actions))}, and for all"
    if not all(0 <= p <= 1 for p in probabilities.values()) or abs(sum(probabilities.values()) - 1) > _SUM_TOLERANCE:
        return "probabilities are no distribution: they lie between 0 and 1, and their sum is 1"
    if decision.action not in probabilities:
        return f"there is no action {decision.action[:100]!r}"
    if probabilities[decision.action] < max(probabilities.values()) - _TIE_TOLERANCE:
        return f"action {decision.action!r} is not the most probable one"
    if to_micros(decision.decided_at) > latest:
        return "decided_at lies more than an hour ahead: it, or a clock, is wrong"
    return None
