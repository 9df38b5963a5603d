"""Live: what the agent perceived and what became known since comes into the knowledge base, decided by the champion."""

from __future__ import annotations

from datetime import datetime

from prefect import flow

from tasks import living
from tasks.common import AgentName

__all__ = ["live"]


@flow(name="live", flow_run_name="live {agent}", validate_parameters=True)
def live(agent: AgentName, end: datetime, start: datetime | None = None) -> int:
    """Take observations and known outcomes from the agent file's sources; returns how many observations were added.

    For agents whose application does not speak to stillhouse itself: their history is played stretch by stretch.

    Args:
        agent: name of an agent file in agents/
        end: up to when (UTC)
        start: from when (UTC); empty: where the knowledge base ends, or `observations.since`
    """
    return living.live(agent, living.find_start(agent, start), end)
