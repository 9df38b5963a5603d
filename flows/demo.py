"""Demo: replay an agent's history week by week and keep its small model fresh."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.refresh import refresh
from flows.watch import watch
from stillhouse import config
from stillhouse.demonstrating import (
    DemoResult,
    find_first_champion,
    find_watch_verdict,
    has_gate_verdict,
    list_week_ends,
    score_week,
)
from stillhouse.weeks import WeekBoard
from tasks import demonstrating, ingesting
from tasks.common import AgentName

__all__ = ["demo"]


@flow(name="demo", flow_run_name="demo {agent}", validate_parameters=True)
def demo(
    agent: AgentName = "flights",
    bootstrap_weeks: Annotated[int, Field(ge=2, le=26)] = 8,
    weeks: Annotated[int | None, Field(ge=1, le=520)] = None,
) -> DemoResult:
    """Make the first champion from the first weeks; then replay the later weeks one by one.

    In each week, the champion decides the observations, their outcomes arrive, a watch runs, and a refresh runs if the
    watch asks for one. An interrupted demo continues where it stopped; a finished demo only writes its summary again.

    Args:
        agent: name of the agent file in agents/; its sources must contain a history
        bootstrap_weeks: number of weeks before the first champion is made
        weeks: number of weeks to replay after that; empty: all weeks that the source contains
    """
    start, week = config.load(agent).observations.since, timedelta(weeks=1)
    ends = list_week_ends(agent, bootstrap_weeks, weeks)
    first, began, scores = ends[0] - week, time.monotonic(), []
    # `.fn` runs a flow inside this flow run: one page in Prefect then shows the whole demo
    with WeekBoard(agent, len(ends)) as board:
        board.show_status("replaying the first weeks, then making the first champion")
        ingesting.live(agent, start, first)
        if not has_gate_verdict(agent, first):
            refresh.fn(agent=agent, as_of=first, trigger="bootstrap", cause="the demo's first champion")
        never_refreshed = find_first_champion(agent)
        for end in ends:
            board.show_status(f"replaying the week to {end:%d %b}")
            ingesting.live(agent, end - week, end)
            verdict = find_watch_verdict(agent, end) or watch.fn(agent=agent, as_of=end)
            if verdict.refresh_mode is not None and not has_gate_verdict(agent, end):
                board.show_status(f"refreshing after the week to {end:%d %b}: {verdict.response}")
                refresh.fn(agent=agent, as_of=end, trigger="drift", cause=verdict.verdict_id, mode=verdict.refresh_mode)
            scores.append(score_week(agent, end, never_refreshed))
            board.add(scores[-1])
    return demonstrating.summarize(agent, scores, time.monotonic() - began)
