"""What ``flows/watch.py`` does, one task per station."""

from __future__ import annotations

from datetime import datetime

from prefect.events import emit_event

from data_checks.check import check
from stillhouse import config
from stillhouse.drift.decide import decide
from stillhouse.drift.measure import confidence, measure
from stillhouse.drift.profile import Profile
from stillhouse.evaluate.scorecard import disagreement, quality
from stillhouse.records import DataReport, DriftReport, Verdict, Window
from tasks.common import champion_parts, engine_task, knowledge_base, registry

__all__ = [
    "announce_drift",
    "check_data",
    "decide_response",
    "measure_drift",
    "moment",
    "take_window",
]


def moment(agent: str, as_of: datetime | None) -> datetime:
    """The time that a run speaks of: as given, else by the clock that the agent file names."""
    return knowledge_base(agent).moment(as_of)


def take_window(agent: str, as_of: datetime) -> Window:
    """The current window, pinned to the table versions of now."""
    length = config.load(agent).windows.current
    return knowledge_base(agent).window("current", as_of - length, as_of)


@engine_task(task_run_name="check data: {window.name}")
def check_data(agent: str, window: Window) -> DataReport:
    """Hold the window against the data contract; bad rows go to quarantine, and the report's window is without them."""
    base = knowledge_base(agent)
    report, bad = check(base.read("observations", window), window, base.config)
    base.append("quarantine", bad, batch=f"check:{window.start:%Y%m%dT%H%M%S}:{window.end:%Y%m%dT%H%M%S}:"
                f"{window.versions.get('observations')}")  # fmt: skip
    return report.model_copy(update={"window": base.with_newest_quarantine(window)})


@engine_task(task_run_name="measure drift")
def measure_drift(agent: str, data: DataReport) -> DriftReport | None:
    """Current window against what the champion was trained on; None where there is nothing to measure with."""
    base, champion = knowledge_base(agent), registry(agent).champion()
    rows = base.observations(data.window)
    if data.broken or champion is None or len(rows) < base.config.observations.min_rows:
        return None
    student, baseline, teacher = champion_parts(agent, champion)
    audited = base.sample(rows, base.config.watch.audit_rows)
    said = base.ask(audited, teacher.ask, teacher=teacher.version)
    lived = base.labelled(data.window, known_by=data.window.end)
    proved = base.observations(baseline.test)
    return measure(
        agent,
        str(champion),
        baseline.train,
        data.window,
        Profile.model_validate(baseline.profile),
        rows,
        confidence_reference=confidence(student.predict_proba(proved)),
        confidence_current=confidence(student.predict_proba(rows)),
        disagreement=disagreement(said, student.predict_proba(audited)),
        disagreement_reference=baseline.disagreement,
        quality=quality(student.predict_proba(lived), lived["outcome"].to_numpy()) if len(lived) else None,
        quality_reference=baseline.quality,
    )


@engine_task(task_run_name="decide")
def decide_response(agent: str, as_of: datetime, data: DataReport, report: DriftReport | None) -> Verdict:
    """What to do about it; the verdict is recorded."""
    base = knowledge_base(agent)
    verdict = decide(report, data, base.config, as_of=as_of, last_refresh=base.last_refresh(before=as_of))
    base.record(verdict)
    return verdict


@engine_task(task_run_name="announce drift")
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
            "summary": verdict.summary,
        },
    )
