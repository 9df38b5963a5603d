"""Demo: an agent's history passes week by week, and its small model is kept fresh."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Annotated

from prefect import flow
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows.refresh import refresh
from flows.watch import watch
from stillhouse import config
from tasks import demonstrating, living, watching
from tasks.common import AgentName

__all__ = ["demo"]


@flow(name="demo", flow_run_name="demo {agent}", validate_parameters=True)
def demo(
    agent: AgentName = "flights",
    bootstrap_weeks: Annotated[int, Field(ge=2, le=26)] = 8,
    weeks: Annotated[int | None, Field(ge=1, le=520)] = None,
) -> demonstrating.Year:
    """Bootstrap a champion on the first weeks; then let each week pass: decide, learn outcomes, watch, refresh.

    A demo that was interrupted goes on where it stopped; one that is finished is summed up again.

    Args:
        agent: name of an agent file in agents/ whose sources hold a history
        bootstrap_weeks: weeks before there is a champion
        weeks: weeks played after that; empty: as many as the source has
    """
    start, week = config.load(agent).observations.since, timedelta(weeks=1)
    ends = demonstrating.week_ends(agent, bootstrap_weeks, weeks)
    first = ends[0] - week
    began = time.monotonic()
    # `.fn`: inside this run; as runs of their own they would each wait a second for their heartbeat to end.
    with _progress() as progress:
        bar = progress.add_task("bootstrap", total=len(ends) + 1)
        living.live(agent, start, first)
        if not demonstrating.refreshed(agent, first):
            refresh.fn(agent=agent, as_of=first, trigger="bootstrap", cause="the demo's first champion")
        for end in ends:
            progress.update(bar, advance=1, description=f"week ending {end:%d %b}")
            living.live(agent, end - week, end)
            verdict = demonstrating.watched(agent, end) or watch.fn(agent=agent, as_of=end)
            if verdict.response != "hold" and not demonstrating.refreshed(agent, end):
                progress.update(bar, description=f"week ending {end:%d %b}: {verdict.response}")
                refresh.fn(
                    agent=agent, as_of=end, trigger="drift", cause=verdict.verdict_id, mode=watching.mode_of(verdict)
                )
        progress.update(bar, advance=1, description="summing up")
        return demonstrating.sum_up(agent, ends, time.monotonic() - began)


def _progress() -> Progress:
    return Progress(TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
