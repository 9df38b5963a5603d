"""The Prefect tasks of ``flows/watch.py``; each makes one engine call."""

from __future__ import annotations

from datetime import datetime

from prefect.events import emit_event

from data_checks.check import check
from stillhouse import config
from stillhouse.records import (
    ChampionChoice,
    Cost,
    DataReport,
    DriftReport,
    PoolState,
    Reckoning,
    TeacherWeights,
    Verdict,
    Window,
)
from stillhouse.watching import deciding, evidence, payoff, pool, promotions
from stillhouse.watching.window import get_window, open_window, pin_labels
from tasks.common import engine_task

__all__ = [
    "announce_drift",
    "carry_out_choice",
    "check_data",
    "complete_promotion",
    "decide_response",
    "follow_weights",
    "gather_evidence",
    "measure_drift",
    "open_window",
    "pin_labels",
    "reckon",
    "score_pool",
]


@engine_task("check data: {window.name}")
def check_data(agent: str, window: Window) -> DataReport:
    """Check the window against the data contract; bad rows go to quarantine.

    The window is also compared with the champion's profile: the Data Docs show the drift, which refuses no window.
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
    """Audit the steps that ended since the last watch, add their outcomes to the evidence, and return the cost."""
    return evidence.gather_evidence(get_window(agent, data.window), as_of, data)


@engine_task("follow weights")
def follow_weights(agent: str, as_of: datetime, data: DataReport) -> TeacherWeights | None:
    """Return the weights of the champion's teachers, updated by the outcomes known since its promotion."""
    return evidence.follow_weights(get_window(agent, data.window), as_of)


@engine_task("measure drift")
def measure_drift(agent: str, data: DataReport) -> DriftReport | None:
    """Compare the current window with the champion's training window."""
    return deciding.measure_drift(get_window(agent, data.window), data)


@engine_task("decide")
def decide_response(
    agent: str,
    as_of: datetime,
    data: DataReport,
    report: DriftReport | None,
    cost: Cost | None = None,
    reckoning: Reckoning | None = None,
    choice: ChampionChoice | None = None,
    members: PoolState | None = None,
) -> Verdict:
    """Decide on the response and record the verdict."""
    return deciding.decide_response(
        get_window(agent, data.window), as_of, data, report, cost, reckoning=reckoning, choice=choice, pool=members
    )


@engine_task("complete promotion")
def complete_promotion(agent: str) -> Verdict | None:
    """Complete a promotion by the pool that was decided on and killed."""
    return promotions.complete_promotion(agent)


@engine_task("score pool")
def score_pool(agent: str, as_of: datetime, data: DataReport) -> int:
    """Score the members of the pool on the blocks that are complete by now; returns how many scores are new."""
    return pool.score_pool(get_window(agent, data.window), as_of).stored


@engine_task("reckon")
def reckon(
    agent: str, as_of: datetime, data: DataReport
) -> tuple[PoolState | None, ChampionChoice | None, Reckoning | None]:
    """What the pool shows, who should be champion, and which response pays."""
    return payoff.reckon(get_window(agent, data.window), as_of)


@engine_task("carry out choice")
def carry_out_choice(data: DataReport, verdict: Verdict) -> Verdict | None:
    """Make the member of the pool champion that the verdict names, if it names one."""
    return promotions.carry_out(get_window(verdict.agent, data.window), verdict)


@engine_task("announce drift")
def announce_drift(verdict: Verdict) -> None:
    """Emit the event ``stillhouse.drift``, which starts the deployment of ``refresh``."""
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
