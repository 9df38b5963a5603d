"""Watch: is the data sound, has the world moved, and what should be done about it?"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.refresh import refresh
from stillhouse.records import Verdict
from tasks import reporting, watching
from tasks.common import AgentName

__all__ = ["watch"]


@flow(name="watch", flow_run_name="watch {agent}", validate_parameters=True)
def watch(
    agent: AgentName = "flights",
    as_of: Annotated[datetime | None, Field(description="the moment to speak of (UTC); empty: now")] = None,
    on_drift: Annotated[
        Literal["announce", "refresh"],
        Field(
            description="announce: emit stillhouse.drift, which starts the refresh deployment; "
            "refresh: run the refresh inside this run, for use without deployments"
        ),
    ] = "announce",
) -> Verdict:
    """Check the current window, measure drift against the champion's training window, and decide.

    A window that breaks the data contract is refused; too few rows are "not enough evidence"; a threshold of the
    agent file that is crossed calls for a refresh.
    """
    now = watching.moment(agent, as_of)
    window = watching.take_window(agent, now)
    data = watching.check_data(agent, window)
    report = watching.measure_drift(agent, data)
    verdict = watching.decide_response(agent, now, data, report)
    reporting.publish_watch(verdict, data, report)
    if verdict.response != "hold":
        watching.announce_drift(verdict)
        if on_drift == "refresh":
            refresh(agent=agent, as_of=now, trigger="drift", cause=verdict.verdict_id)
    return verdict
