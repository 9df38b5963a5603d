"""The Prefect tasks of ``flows/refresh.py``; each makes one engine call."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from data_checks.check import check
from stillhouse import config
from stillhouse.records import (
    DataReport,
    FinalFit,
    Frontier,
    Proof,
    Refresh,
    RefreshModeName,
    StudentRef,
    TeacherRef,
    Verdict,
)
from stillhouse.refreshing import final_fit, modes, opening, proving, publishing, teaching
from stillhouse.refreshing.session import RefreshRequest, Trigger, get_session
from stillhouse.refreshing.session import request_refresh as request_of
from tasks.common import engine_task, flow_run_address

__all__ = [
    "check_data",
    "compare_teachers",
    "compress",
    "examine_teacher",
    "find_answering_verdict",
    "gather_knowledge",
    "judge",
    "log_models",
    "make_final_fit",
    "make_student",
    "open_refresh",
    "plan",
    "prepare_teacher",
    "prove",
    "request_refresh",
    "require_learnable",
    "settle",
    "weigh_teachers",
]


def request_refresh(
    agent: str,
    as_of: datetime | None,
    trigger: Trigger,
    cause: str,
    teacher: Literal["fit", "keep"],
    mode: RefreshModeName,
) -> RefreshRequest:
    """Return the request as a record, with its window pinned to the current table versions."""
    return request_of(agent, as_of, trigger, cause, teacher, mode)


def find_answering_verdict(request: RefreshRequest) -> Verdict | None:
    """Return the verdict of the refresh that has already answered this alarm, or None."""
    return opening.find_answering_verdict(get_session(request), request)


def require_learnable(request: RefreshRequest) -> None:
    """Raise WindowError if the training window has too few rows with known outcomes."""
    opening.require_learnable(get_session(request), request)


@engine_task("check data: {request.window.name}")
def check_data(request: RefreshRequest) -> DataReport:
    """Check the training and test window against the data contract; bad rows go to quarantine."""
    session, docs = get_session(request), config.home() / "data_docs" / request.agent
    return session.base.quarantine(*check(session.data.raw, request.window, session.settings, docs=docs))


@engine_task("open refresh")
def open_refresh(request: RefreshRequest, data: DataReport) -> Refresh:
    """Open the MLflow run of this refresh, or continue the run of an earlier, identical request."""
    return opening.open_refresh(get_session(request), request, data, prefect_run=flow_run_address())


@engine_task("plan: {job.mode}")
def plan(job: Refresh) -> Refresh:
    """Plan the refresh in its mode, or in the mode that it falls back to."""
    return modes.plan_refresh(get_session(job))


@engine_task("teacher: {job.teacher}")
def prepare_teacher(job: Refresh) -> TeacherRef:
    """Fit the trainable teachers on the training window, or fetch the champion's teachers."""
    return teaching.prepare_teacher(get_session(job))


@engine_task("weigh teachers")
def weigh_teachers(job: Refresh, teacher: TeacherRef) -> TeacherRef:
    """Return the same teachers with mixture weights fitted to the labels of the training window."""
    return teaching.weigh_teachers(get_session(job), teacher) if modes.get_mode(job).weighs_teachers(job) else teacher


@engine_task("examine teacher")
def examine_teacher(job: Refresh, teacher: TeacherRef) -> Verdict:
    """Return the admission verdict: whether the teacher is good enough to label rows."""
    return teaching.examine_teacher(get_session(job), teacher)


@engine_task("gather knowledge")
def gather_knowledge(job: Refresh, teacher: TeacherRef) -> int:
    """Store teacher probabilities for the training rows; return the number of added rows."""
    session = get_session(job)
    rows = modes.get_mode(job).select_rows_to_label(session, teacher)
    return teaching.gather_knowledge(session, rows, teacher) if rows is not None else 0


@engine_task("compare teachers")
def compare_teachers(job: Refresh, teacher: TeacherRef) -> None:
    """Record where the teachers contradict each other, and which of them was right."""
    if modes.get_mode(job).compares_teachers:
        teaching.compare_teachers(get_session(job), teacher)


@engine_task("student: {job.mode}")
def make_student(job: Refresh, teacher: TeacherRef) -> StudentRef | None:
    """Return the student, or None if the refresh must fall back to another mode."""
    return modes.get_mode(job).make_student(get_session(job), teacher)


@engine_task("compress")
def compress(job: Refresh, teacher: TeacherRef, student: StudentRef) -> Frontier:
    """Compress the student in several ways, measure each candidate, and choose the one that fits the budgets best."""
    return modes.get_mode(job).compress(get_session(job), teacher, student)


@engine_task("prove")
def prove(job: Refresh, teacher: TeacherRef, student: StudentRef, frontier: Frontier) -> Proof:
    """Score all models on the validation days, the test window and the champion's own test window."""
    return proving.prove_challenger(get_session(job), teacher, student, frontier)


@engine_task("log to MLflow")
def log_models(job: Refresh, teacher: TeacherRef, student: StudentRef, frontier: Frontier, proof: Proof) -> None:
    """Log the teacher, the student and every candidate, each as a nested run with a logged model."""
    publishing.log_models(get_session(job), teacher, student, frontier, proof)


@engine_task("judge")
def judge(job: Refresh, proof: Proof) -> Verdict:
    """Return the gate's verdict; it is stored before any alias moves."""
    return publishing.judge_challenger(get_session(job), proof)


@engine_task("final fit")
def make_final_fit(job: Refresh, verdict: Verdict) -> FinalFit | None:
    """Train the judged challenger on the test rows too; it joins the pool, and later rows prove it."""
    return final_fit.make_final_fit(get_session(job), verdict)


@engine_task("settle: {verdict.result}")
def settle(job: Refresh, verdict: Verdict) -> None:
    """Carry out the verdict, record it, and close the MLflow run."""
    publishing.settle_refresh(get_session(job), verdict)
