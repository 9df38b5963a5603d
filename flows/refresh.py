"""Refresh: distil a new student, compress and evaluate it, and let the gate decide."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from stillhouse.locks import refresh_lock
from stillhouse.records import Refresh, RefreshModeName, Verdict
from stillhouse.refreshing.modes import fall_back
from stillhouse.refreshing.publishing import closing_on_failure
from stillhouse.refreshing.session import RefreshRequest, session_scope
from tasks import events, refreshing, reporting
from tasks.common import AgentName
from tasks.endings import conclude_verdict, keep_result, name_run

__all__ = ["refresh"]


@flow(name="refresh", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def refresh(
    agent: AgentName = "flights",
    as_of: datetime | None = None,
    trigger: Literal["bootstrap", "drift", "manual"] = "manual",
    cause: Annotated[str, Field(max_length=500)] = "asked for by hand",
    teacher: Literal["fit", "keep"] = "fit",
    mode: RefreshModeName = "redistil",
) -> Verdict:
    """Fit or keep the teacher, label rows, distil a student, compress and evaluate it; the gate decides on promotion.

    Two requests with the same time, cause and agent file do the work once. If a run is killed at any time, the next run
    of the same request continues: from the start if there is no verdict yet, else with the stored verdict. Each alarm
    starts at most one refresh: if the gate has judged another refresh since the watch, that verdict is returned. A
    refresh by hand (trigger manual) may be requested at any time.

    Args:
        agent: name of the agent file in agents/
        as_of: time (UTC) at which the training and test windows end; empty: now, by the clock that the agent file names
        trigger: what started the refresh; recorded with the models
        cause: id of the watch's verdict, or who asked for the refresh and why; recorded with the models
        teacher: fit a new teacher on the training window, or keep the champion's teacher
        mode: recalibrate keeps the champion's student and estimates its quantization ranges and confidence on current
            rows, in seconds. update fine-tunes the champion's student on the rows since its training window, labelled
            by its own teacher, in seconds. If either is not possible, or the update is not worth it, the refresh
            redistils. redistil_warm trains on the whole window from the champion's weights, redistil from random
            weights
    """
    with refresh_lock(agent):
        request = refreshing.request_refresh(agent, as_of, trigger, cause, teacher, mode)
        with session_scope(request):
            return conclude_verdict("refresh", _answer(request))


def _answer(request: RefreshRequest) -> Verdict:
    closed = refreshing.find_answering_verdict(request)
    if closed is not None:
        return closed
    refreshing.require_learnable(request)
    job = refreshing.open_refresh(request, refreshing.check_data(request))
    if job.finished and job.verdict is not None:
        return job.verdict
    with closing_on_failure(job):
        verdict = job.verdict or _make_and_judge(job)
        refreshing.make_final_fit(job, verdict)
        reporting.publish_refresh(job, verdict)
        refreshing.settle(job, verdict)
        events.announce_verdict(verdict)
    reporting.publish_timeline(verdict, job.run_id)
    if verdict.result == "promoted":
        reporting.publish_champion(verdict)
    return verdict


def _make_and_judge(job: Refresh) -> Verdict:
    planned = refreshing.plan(job)
    teacher = refreshing.weigh_teachers(planned, refreshing.prepare_teacher(planned))
    admission = refreshing.examine_teacher(planned, teacher)
    if admission.result == "refused":
        return admission
    refreshing.gather_knowledge(planned, teacher)
    refreshing.compare_teachers(planned, teacher)
    student = refreshing.make_student(planned, teacher)
    if student is None:
        return _make_and_judge(fall_back(job, planned.mode))
    frontier = refreshing.compress(planned, teacher, student)
    proof = refreshing.prove(planned, teacher, student, frontier)
    refreshing.log_models(planned, teacher, student, frontier, proof)
    return refreshing.judge(planned, proof)
