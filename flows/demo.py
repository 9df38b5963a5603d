"""Demo: an agent's history passes week by week, and its small model is kept fresh."""

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
from tasks import demonstrating, living
from tasks.common import AgentName

__all__ = ["demo"]


@flow(name="demo", flow_run_name="demo {agent}", validate_parameters=True)
def demo(
    agent: AgentName = "flights",
    bootstrap_weeks: Annotated[int, Field(ge=2, le=26)] = 8,
    weeks: Annotated[int | None, Field(ge=1, le=520)] = None,
) -> DemoResult:
    """Bootstrap a champion on the first weeks; then let each week pass: decide, learn outcomes, watch, refresh.

    A demo that was interrupted goes on where it stopped; one that is finished is summed up again.

    Args:
        agent: name of an agent file in agents/ whose sources hold a history
        bootstrap_weeks: weeks before there is a champion
        weeks: weeks played after that; empty: as many as the source has
    """
    start, week = config.load(agent).observations.since, timedelta(weeks=1)
    ends = list_week_ends(agent, bootstrap_weeks, weeks)
    first, began, past = ends[0] - week, time.monotonic(), []
    # `.fn`: inside this run, whose page then shows the whole demo
    with WeekBoard(agent, len(ends)) as board:
        board.show_status("the first weeks pass, and the first champion is made")
        living.live(agent, start, first)
        if not has_gate_verdict(agent, first):
            refresh.fn(agent=agent, as_of=first, trigger="bootstrap", cause="the demo's first champion")
        never_refreshed = find_first_champion(agent)
        for end in ends:
            board.show_status(f"the week to {end:%d %b} passes")
            living.live(agent, end - week, end)
            verdict = find_watch_verdict(agent, end) or watch.fn(agent=agent, as_of=end)
            if verdict.refresh_mode is not None and not has_gate_verdict(agent, end):
                board.show_status(f"week to {end:%d %b}: {verdict.response}")
                refresh.fn(agent=agent, as_of=end, trigger="drift", cause=verdict.verdict_id, mode=verdict.refresh_mode)
            past.append(score_week(agent, end, never_refreshed))
            board.add(past[-1])
    return demonstrating.summarize(agent, past, time.monotonic() - began)
