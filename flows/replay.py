"""Replay: which policy would have paid on an agent's history."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from prefect import flow
from pydantic import Field

from stillhouse.config import parse_duration
from stillhouse.replay.report import ReplayReport
from tasks import replaying
from tasks.common import AgentName
from tasks.endings import conclude, keep_result, name_run

__all__ = ["replay"]


@flow(name="replay", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def replay(
    agent: AgentName = "flights",
    policies: Annotated[list[str], Field(min_length=1, max_length=20)] = ["never", "every:4w", "payoff"],  # noqa: B006
    since: datetime | None = None,
    weeks: Annotated[int | None, Field(ge=1, le=520)] = None,
    first_weeks: Annotated[int, Field(ge=1, le=104)] = 8,
    step: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[smhdw]$")] = "1w",
    exchange_rate: Annotated[float | None, Field(ge=0)] = None,
    from_sources: bool = False,
) -> ReplayReport:
    """Play policies on history; the report is an artifact, a figure and an MLflow experiment. No model is registered.

    Args:
        agent: name of the agent file in agents/
        policies: never, always, every:4w, psi:0.25, adwin, page-hinkley, payoff, oracle; each also with @script
        since: begin of the history (UTC); empty: `observations.since`
        weeks: number of weeks to play after the first ones; empty: all
        first_weeks: number of weeks before the first champion is trained
        step: time between two decisions, such as 1w
        exchange_rate: price of a redistillation, points of quality for one week; empty: as in the agent file
        from_sources: whether to read the agent's sources instead of its knowledge base
    """
    report = replaying.play(
        agent,
        policies,
        since=since,
        weeks=weeks,
        first_weeks=first_weeks,
        step=parse_duration(step),
        exchange_rate=exchange_rate,
        from_sources=from_sources,
    )
    replaying.publish(report)
    return conclude("replay", report, replaying.summarize(report))
