"""Live: add the agent's new observations and outcomes to the knowledge base; the champion decides the observations."""

from __future__ import annotations

from datetime import datetime

from prefect import flow

from tasks import ingesting
from tasks.common import AgentName
from tasks.endings import conclude, keep_result, name_run

__all__ = ["live"]


@flow(name="live", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def live(agent: AgentName, end: datetime, start: datetime | None = None) -> int:
    """Read observations and known outcomes from the agent file's sources; returns the number of added observations.

    This flow is for agents whose application does not use the runtime or the HTTP server: it replays their history, one
    period per run.

    Args:
        agent: name of the agent file in agents/
        end: end of the period (UTC)
        start: start of the period (UTC); empty: where the knowledge base ends, or `observations.since`
    """
    added = ingesting.live(agent, ingesting.find_start(agent, start), end)
    return conclude("live", added, f"{added:,} observations added until {end:%Y-%m-%d %H:%M}")
