"""One watch from its window to its verdict, by the engine alone: without Prefect, tasks or Great Expectations."""

from __future__ import annotations

from datetime import datetime

from stillhouse import data_contract
from stillhouse.records import Verdict
from stillhouse.refreshing.run import Contract
from stillhouse.watching.deciding import decide_response, measure_drift
from stillhouse.watching.evidence import follow_weights, gather_evidence
from stillhouse.watching.publishing import log_watch, watch_figures
from stillhouse.watching.window import open_window, window_of

__all__ = ["watch"]


def watch(agent: str, as_of: datetime | None = None, *, contract: Contract = data_contract.check) -> Verdict:
    """Check the current window, audit the champion, measure drift, and decide what to do about it.

    The verdict is recorded and logged to MLflow. What it asks for is not done: see ``verdict.response``.

    :param agent: name of an agent file.
    :param as_of: the moment to speak of; None: now, by the clock that the agent file names.
    :param contract: asks the window whether it keeps the data contract.
    :raises StillhouseError: if nothing could be decided; the message says what to do.
    """
    now, window = open_window(agent, as_of)
    watched = window_of(agent, window)
    data = watched.base.quarantine(*contract(watched.raw, window, watched.settings))
    watched = window_of(agent, data.window)
    cost = gather_evidence(watched, now, data)
    weights = follow_weights(watched, now)
    report = measure_drift(watched, data)
    verdict = decide_response(watched, now, data, report, cost)
    if report is not None:
        log_watch(watched, verdict, data, report, watch_figures(watched, verdict, report, weights), weights)
    return verdict
