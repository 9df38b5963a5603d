"""Refresh: learn what has changed, distil, compress, prove, and let the gate decide."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from stillhouse.locks import refresh_lock
from stillhouse.records import Refresh, RefreshModeName, Verdict
from stillhouse.refreshing.modes import fall_back
from stillhouse.refreshing.publishing import closing_on_failure
from stillhouse.refreshing.session import session_scope
from tasks import refreshing, reporting
from tasks.common import AgentName

__all__ = ["refresh"]


@flow(name="refresh", flow_run_name="refresh {agent} ({trigger})", validate_parameters=True)
def refresh(
    agent: AgentName = "flights",
    as_of: datetime | None = None,
    trigger: Literal["bootstrap", "drift", "manual"] = "manual",
    cause: Annotated[str, Field(max_length=500)] = "asked for by hand",
    teacher: Literal["fit", "keep"] = "fit",
    mode: RefreshModeName = "redistil",
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
        request = refreshing.request_refresh(agent, as_of, trigger, cause, teacher, mode)
        with session_scope(request):
            closed = refreshing.find_answering_verdict(request)
            if closed is not None:
                return closed
            refreshing.require_learnable(request)
            job = refreshing.open_refresh(request, refreshing.check_data(request))
            if job.finished and job.verdict is not None:
                return job.verdict
            with closing_on_failure(job):
                verdict = job.verdict or _make_and_judge(job)
                reporting.publish_refresh(job, verdict)
                refreshing.settle(job, verdict)
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
