"""Refresh: learn what has changed, distil, compress, prove, and let the gate decide."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from stillhouse.records import Frontier, Mode, StudentRef, TeacherRef, Verdict
from tasks import recalibrating, refreshing, reporting, updating, watching
from tasks.common import AgentName, refresh_lock

__all__ = ["refresh"]


@flow(name="refresh", flow_run_name="refresh {agent} ({trigger})", validate_parameters=True)
def refresh(
    agent: AgentName = "flights",
    as_of: datetime | None = None,
    trigger: Literal["bootstrap", "drift", "manual"] = "manual",
    cause: Annotated[str, Field(max_length=500)] = "asked for by hand",
    teacher: Literal["fit", "keep"] = "fit",
    mode: Mode = "redistil",
) -> Verdict:
    """Fit or keep the teacher, weigh and examine it, gather knowledge, distil, make variants, score, judge, settle.

    Asked twice for the same moment, cause and agent file it does the work once. Killed at any moment, the next
    run of the same request goes on: before its verdict from the start, after it with the verdict that was given.
    An alarm is answered once: where another refresh was judged since the watch, its verdict is returned. By hand
    (trigger manual) a refresh can be asked for at any time.

    Args:
        agent: name of an agent file in agents/
        as_of: the moment to speak of (UTC); empty: now, by the clock that the agent file names
        trigger: what started it; recorded with the models
        cause: verdict id of the drift, or who asked for it and why; recorded with the models
        teacher: fit a new teacher on the training window, or keep the champion's
        mode: recalibrate keeps the champion's student and estimates its ranges and its confidence on current rows, in
            seconds; where that cannot be, the refresh redistils. update lets the champion's student take in what is
            new since it learned, from the teacher that it had, in seconds; where that cannot be, or does not repay, the
            refresh redistils. redistil_warm trains on the whole window from the champion's weights, redistil from the
            beginning
    """
    with refresh_lock(agent):
        now = watching.moment(agent, as_of)
        closed = watching.answered(agent, cause, now) if trigger == "drift" else None
        if closed is not None:
            return closed
        window = refreshing.span(agent, now)
        refreshing.require_rows(agent, now, trigger, cause, teacher, mode, window)
        data = watching.check_data(agent, window)
        job = refreshing.open_refresh(agent, now, trigger, cause, teacher, mode, data)
        if job.finished and job.verdict is not None:
            return job.verdict
        with refreshing.closing_run_on_failure(job):
            verdict = job.verdict or _make_and_judge(job)
            reporting.publish_refresh(job, verdict)
            refreshing.settle(job, verdict)
    return verdict


def _make_and_judge(job: refreshing.Refresh) -> Verdict:
    if job.mode == "recalibrate":
        planned = recalibrating.plan_recalibration(job)
        if planned is not None:
            return _recalibrate_and_judge(planned)
        job = job.model_copy(update={"mode": "redistil"})
    if job.mode == "update":
        verdict = _update_and_judge(job)
        if verdict is not None:
            return verdict
        job = job.model_copy(update={"mode": "redistil"})
    teacher = refreshing.weigh_teachers(job, refreshing.prepare_teacher(job))
    admission = refreshing.examine_teacher(job, teacher)
    if admission.outcome == "refused":
        return admission
    refreshing.gather_knowledge(job, teacher)
    refreshing.compare_teachers(job, teacher)
    return _compress_and_judge(job, teacher, refreshing.distil_student(job, teacher))


def _recalibrate_and_judge(job: refreshing.Refresh) -> Verdict:
    teacher = refreshing.prepare_teacher(job)
    admission = refreshing.examine_teacher(job, teacher)
    if admission.outcome == "refused":
        return admission
    frontier = recalibrating.recalibrate(job, teacher)
    return _prove_and_judge(job, teacher, recalibrating.champion_student(job), frontier)


def _update_and_judge(job: refreshing.Refresh) -> Verdict | None:
    """None where an update cannot be made, or does not repay its cost."""
    planned = updating.plan_update(job)
    if planned is None:
        return None
    teacher = refreshing.prepare_teacher(planned)
    if planned.teacher == "fit":  # one that is kept keeps its weights too
        teacher = refreshing.weigh_teachers(planned, teacher)
    admission = refreshing.examine_teacher(planned, teacher)
    if admission.outcome == "refused":
        return admission
    refreshing.gather_knowledge(updating.asked_about(planned, teacher), teacher)
    student = updating.update_student(planned, teacher)
    return None if student is None else _compress_and_judge(planned, teacher, student)


def _compress_and_judge(job: refreshing.Refresh, teacher: TeacherRef, student: StudentRef) -> Verdict:
    return _prove_and_judge(job, teacher, student, refreshing.compress(job, teacher, student))


def _prove_and_judge(job: refreshing.Refresh, teacher: TeacherRef, student: StudentRef, frontier: Frontier) -> Verdict:
    proof = refreshing.prove(job, teacher, student, frontier)
    refreshing.log_models(job, teacher, student, frontier, proof)
    return refreshing.judge(job, proof)
