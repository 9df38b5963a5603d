"""The stations of ``flows/watch.py`` as Prefect tasks, one engine call each."""

from __future__ import annotations

from datetime import datetime

from prefect.events import emit_event

from data_checks.check import check
from stillhouse import config
from stillhouse.records import Cost, DataReport, DriftReport, TeacherWeights, Verdict, Window
from stillhouse.watching import deciding, evidence
from stillhouse.watching.window import get_window, open_window
from tasks.common import engine_task

__all__ = [
    "announce_drift",
    "check_data",
    "decide_response",
    "follow_weights",
    "gather_evidence",
    "measure_drift",
    "open_window",
]


@engine_task("check data: {window.name}")
def check_data(agent: str, window: Window) -> DataReport:
    """Hold the window against the data contract; bad rows go to quarantine.

    It is held against the champion's profile too: drift shows in the Data Docs, and refuses nothing.
    """
    watched, champion = get_window(agent, window), get_window(agent, window).champion
    report, bad = check(
        watched.raw,
        window,
        watched.settings,
        reference=champion.profile if champion else None,
        limits=watched.psi_limits,
        docs=config.home() / "data_docs" / agent,
        pages="on_failure",
    )
    return watched.base.quarantine(report, bad)


@engine_task("gather evidence")
def gather_evidence(agent: str, as_of: datetime, data: DataReport) -> Cost | None:
    """Audit the steps that have ended since the last watch and count what outcomes arrived; what that cost."""
    return evidence.gather_evidence(get_window(agent, data.window), as_of, data)


@engine_task("follow weights")
def follow_weights(agent: str, as_of: datetime, data: DataReport) -> TeacherWeights | None:
    """Where the weights of the champion's teachers stand by the outcomes known since."""
    return evidence.follow_weights(get_window(agent, data.window), as_of)


@engine_task("measure drift")
def measure_drift(agent: str, data: DataReport) -> DriftReport | None:
    """Current window against what the champion was trained on."""
    return deciding.measure_drift(get_window(agent, data.window), data)


@engine_task("decide")
def decide_response(
    agent: str, as_of: datetime, data: DataReport, report: DriftReport | None, cost: Cost | None = None
) -> Verdict:
    """What to do about it; the verdict is recorded."""
    return deciding.decide_response(get_window(agent, data.window), as_of, data, report, cost)


@engine_task("announce drift")
def announce_drift(verdict: Verdict) -> None:
    """Emit ``stillhouse.drift``, which the deployment of ``refresh`` waits for."""
    emit_event(
        event="stillhouse.drift",
        resource={"prefect.resource.id": f"stillhouse.agent.{verdict.agent}", "stillhouse.agent": verdict.agent},
        payload={
            "agent": verdict.agent,
            "as_of": verdict.as_of.isoformat(),
            "verdict_id": verdict.verdict_id,
            "response": verdict.response,
            "mode": verdict.refresh_mode,
            "summary": verdict.summary,
        },
    )
