"""Demo: replay an agent's history week by week and keep its small model fresh."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.refresh import refresh
from flows.watch import watch
from stillhouse.demonstrating import (
    DemoResult,
    Week,
    count_duration,
    find_first_champion,
    find_watch_verdict,
    fit_bootstrap_weeks,
    has_gate_verdict,
    list_week_ends,
    score_week,
)
from stillhouse.stations import listening
from stillhouse.weeks import WeekBoard
from tasks import demonstrating, ingesting
from tasks.common import AgentName
from tasks.endings import conclude, keep_result, name_run

__all__ = ["demo"]


@flow(name="demo", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def demo(
    agent: AgentName = "flights",
    bootstrap_weeks: Annotated[int | None, Field(ge=2, le=26)] = None,
    weeks: Annotated[int | None, Field(ge=1, le=520)] = None,
    watch_days: Literal[1, 7] = 7,
) -> DemoResult:
    """Make the first champion from the first weeks; then replay the later weeks one by one.

    In each week, the champion decides the observations, their outcomes arrive, watches run, and a refresh runs if a
    watch asks for one. An interrupted demo continues where it stopped; a finished demo only writes its summary again.

    Args:
        agent: name of the agent file in agents/; its sources must contain a history
        bootstrap_weeks: number of weeks before the first champion is made; empty: 8, or a third of a history of less
            than 24 weeks
        weeks: number of weeks to replay after that; empty: all weeks that the source contains
        watch_days: days between two watches, 1 or 7
    """
    week = timedelta(weeks=1)
    bootstrap_weeks = bootstrap_weeks or fit_bootstrap_weeks(agent)
    ends = list_week_ends(agent, bootstrap_weeks, weeks)
    start = ends[0] - (bootstrap_weeks + 1) * week
    first, scores = ends[0] - week, list[Week]()
    # `.fn` runs a flow inside this flow run: one page in Prefect then shows the whole demo
    with WeekBoard(agent, len(ends)) as board, listening(board.show_station):
        board.show_status("replaying the first weeks, then making the first champion")
        with count_duration(agent, is_new=not has_gate_verdict(agent, first)):
            ingesting.live(agent, start, first)
            if not has_gate_verdict(agent, first):
                refresh.fn(agent=agent, as_of=first, trigger="bootstrap", cause="the demo's first champion")
        never_refreshed = find_first_champion(agent)
        for end in ends:
            with count_duration(agent, is_new=find_watch_verdict(agent, end) is None):
                for moment in _list_watches(end, watch_days):
                    board.show_status(f"replaying to {moment:%d %b}")
                    ingesting.live(agent, moment - timedelta(days=watch_days), moment)
                    _watch_and_refresh(agent, moment, board)
                scores.append(score_week(agent, end, never_refreshed))
            board.add(scores[-1])
    result = demonstrating.summarize(agent, scores)
    return conclude("demo", result, demonstrating.describe(result))


def _list_watches(end: datetime, watch_days: int) -> list[datetime]:
    """The times of the watches of the week that ends at ``end``."""
    return [end - timedelta(days=days) for days in range(7 - watch_days, -1, -watch_days)]


def _watch_and_refresh(agent: str, moment: datetime, board: WeekBoard) -> None:
    verdict = find_watch_verdict(agent, moment) or watch.fn(agent=agent, as_of=moment)
    if verdict.refresh_mode is not None and not has_gate_verdict(agent, moment):
        board.show_status(f"refreshing at {moment:%d %b}: {verdict.response}")
        refresh.fn(agent=agent, as_of=moment, trigger="drift", cause=verdict.verdict_id, mode=verdict.refresh_mode)
