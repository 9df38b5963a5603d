"""Live: what the agent perceived and what became known since comes into the knowledge base, decided by the champion."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks import living
from tasks.common import AgentName

__all__ = ["live"]


@flow(name="live", flow_run_name="live {agent}", validate_parameters=True)
def live(
    agent: AgentName,
    end: Annotated[datetime, Field(description="up to when (UTC)")],
    start: Annotated[
        datetime | None,
        Field(description="from when (UTC); empty: where the knowledge base ends, or `observations.since`"),
    ] = None,
) -> int:
    """Take observations and known outcomes from the agent file's sources; returns how many observations were added.

    For agents whose application does not speak to stillhouse itself: their history is played stretch by stretch.
    """
    return living.live(agent, living.beginning(agent, start), end)
