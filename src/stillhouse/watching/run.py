"""Run a watch from its window to its verdict with the engine alone: without Prefect, tasks or Great Expectations."""

from __future__ import annotations

from datetime import datetime

from stillhouse import data_contract
from stillhouse.promoting import record_unrecorded_champion
from stillhouse.records import Verdict
from stillhouse.refreshing.run import ContractCheck
from stillhouse.savings_page import refresh_savings_page
from stillhouse.watching.deciding import decide_response, measure_drift
from stillhouse.watching.evidence import follow_weights, gather_evidence
from stillhouse.watching.payoff import reckon
from stillhouse.watching.pool import score_pool
from stillhouse.watching.promotions import carry_out, complete_promotion
from stillhouse.watching.publishing import draw_watch_figures, log_watch
from stillhouse.watching.window import get_window, open_window, pin_labels

__all__ = ["watch"]


def watch(agent: str, as_of: datetime | None = None, *, contract: ContractCheck = data_contract.check) -> Verdict:
    """Check the current window, audit the champion, measure drift, and decide what to do about it.

    The verdict is recorded and logged to MLflow, and before it a champion that somebody made by moving the alias in
    MLflow. A member of the pool that should be champion becomes it. Any other response is not carried out: see
    ``verdict.response``.

    >>> import stillhouse
    >>> verdict = stillhouse.watch("toy")
    >>> verdict.result, verdict.response
    ('no_drift', 'hold')

    :param agent: name of an agent file.
    :param as_of: time at which the window is watched; None: now, by the clock that the agent file names.
    :param contract: checks the window against the data contract.
    :returns: the verdict; its ``refresh_mode`` is the mode to pass to :func:`stillhouse.refresh`, if any.
    :raises StillhouseError: if no decision is possible; the message says what to do.
    """
    complete_promotion(agent)
    record_unrecorded_champion(agent, as_of)
    now, window = open_window(agent, as_of)
    watched = get_window(agent, window)
    data = watched.base.quarantine(*contract(watched.raw, window, watched.settings))
    watched = get_window(agent, data.window)
    cost = gather_evidence(watched, now, data)
    data = pin_labels(agent, data)
    watched = get_window(agent, data.window)
    mixture = follow_weights(watched, now)
    report = measure_drift(watched, data)
    score_pool(watched, now)
    pool, choice, reckoning = reckon(watched, now)
    verdict = decide_response(watched, now, data, report, cost, reckoning=reckoning, choice=choice, pool=pool)
    carry_out(watched, verdict)
    if report is not None:
        log_watch(watched, verdict, data, report, draw_watch_figures(watched, verdict, report, mixture), mixture)
    refresh_savings_page(watched.settings)
    return verdict
