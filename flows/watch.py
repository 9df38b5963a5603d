"""Watch: check the current data, measure drift, and decide whether a refresh is needed."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from prefect import flow

from flows.refresh import refresh
from stillhouse.records import Verdict
from tasks import events, promoting, reporting, watching
from tasks.common import AgentName
from tasks.endings import conclude_verdict, keep_result, name_run

__all__ = ["watch"]


@flow(name="watch", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def watch(
    agent: AgentName = "flights",
    as_of: datetime | None = None,
    on_drift: Literal["announce", "refresh"] = "announce",
) -> Verdict:
    """Check the current window against the data contract, audit the student, measure drift, and decide.

    The members of the pool are scored on the outcomes that are complete by now. One that should be champion becomes
    it, under every policy; which response pays is reckoned under the policy payoff.

    A champion that somebody made by moving the alias in MLflow is recorded first, as a promotion of its own.

    A window that breaks the data contract is refused; a window with too few rows gives "not enough evidence". A refresh
    is needed if the accumulated evidence exceeds the limit that the false alarm budget sets, or if a fixed threshold is
    exceeded. Drift of the inputs is benign as long as the student agrees with its teacher.

    Args:
        agent: name of the agent file in agents/
        as_of: time (UTC) at which the current window ends; empty: now, by the clock that the agent file names
        on_drift: announce emits the event stillhouse.drift, which starts the refresh deployment; refresh runs the
            refresh inside this flow run, for use without deployments
    """
    if completed := watching.complete_promotion(agent):
        events.announce_verdict(completed)
    if moved_by_hand := promoting.record_unrecorded_champion(agent, as_of):
        events.announce_verdict(moved_by_hand)
        reporting.publish_champion(moved_by_hand)
    now, window = watching.open_window(agent, as_of)
    data = watching.check_data(agent, window)
    cost = watching.gather_evidence(agent, now, data)
    data = watching.pin_labels(agent, data)
    mixture = watching.follow_weights(agent, now, data)
    report = watching.measure_drift(agent, data)
    watching.score_pool(agent, now, data)
    pool, choice, reckoning = watching.reckon(agent, now, data)
    verdict = watching.decide_response(agent, now, data, report, cost, reckoning, choice, pool)
    if promotion := watching.carry_out_choice(data, verdict):
        reporting.publish_promotion(promotion)
        if promotion.result in ("promoted", "rolled_back"):
            reporting.publish_champion(promotion)
        events.announce_verdict(promotion)
    reporting.publish_watch(verdict, data, report, mixture)
    if verdict.refresh_mode is not None:
        watching.announce_drift(verdict)
        if on_drift == "refresh":
            refresh(agent=agent, as_of=now, trigger="drift", cause=verdict.verdict_id, mode=verdict.refresh_mode)
    return conclude_verdict("watch", verdict)
