"""Run a refresh from request to verdict with the engine alone: without Prefect, tasks or Great Expectations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Literal

import pandas as pd

from stillhouse import data_contract
from stillhouse.config import AgentConfig
from stillhouse.locks import refresh_lock
from stillhouse.records import DataReport, Refresh, RefreshModeName, Verdict, Window
from stillhouse.refreshing import final_fit, opening, proving, publishing, teaching
from stillhouse.refreshing.modes import fall_back, get_mode, plan_refresh
from stillhouse.refreshing.session import Session, Trigger, request_refresh, session_scope

__all__ = ["ContractCheck", "refresh"]

_PROCESS_LOCK = threading.Lock()  # the exporters of torch keep their state in globals

ContractCheck = Callable[[pd.DataFrame, Window, AgentConfig], tuple[DataReport, pd.DataFrame]]
"""Checks the rows of a window against the data contract; returns the report and the rows for quarantine."""


def refresh(
    agent: str,
    as_of: datetime | None = None,
    *,
    trigger: Trigger = "manual",
    cause: str = "asked for by hand",
    teacher: Literal["fit", "keep"] = "fit",
    mode: RefreshModeName = "redistil",
    contract: ContractCheck = data_contract.check,
) -> Verdict:
    """Make a challenger, and let the gate decide whether it replaces the agent's champion.

    A second call with the same time, cause and agent file does the work only once. If a call is killed, the next call
    of the same request resumes it: before its verdict from the start, after it with that verdict. Threads of one
    process take turns; several processes may refresh several agents at once.

    >>> import stillhouse
    >>> verdict = stillhouse.refresh("toy", teacher="keep", cause="new widths of the student")
    >>> verdict.kind, verdict.result
    ('gate', 'promoted')
    >>> [reason.measure for reason in verdict.reasons if reason.failed]
    []

    :param agent: name of an agent file.
    :param as_of: time of the refresh; later outcomes are ignored. None: now, by the clock that the agent file names.
    :param trigger: what started it. With ``drift``, an alarm that another refresh has closed is not answered again.
    :param cause: verdict id of the watch, or who requests the refresh and why.
    :param teacher: fit a new teacher on the training window, or keep the champion's.
    :param mode: how the student is made: see :mod:`stillhouse.refreshing.modes`.
    :param contract: checks the training and test window against the data contract.
    :returns: the verdict of the gate, or of the teacher's admission if that refuses the teacher.
    :raises StillhouseError: if no verdict is possible; the message says what to do.
    """
    with _PROCESS_LOCK, refresh_lock(agent):
        request = request_refresh(agent, as_of, trigger, cause, teacher, mode)
        with session_scope(request) as session:
            closing_verdict = opening.find_answering_verdict(session, request)
            if closing_verdict is not None:
                return closing_verdict
            opening.require_learnable(session, request)
            data = session.base.quarantine(*contract(session.data.raw, request.window, session.settings))
            job = opening.open_refresh(session, request, data)
            if job.finished and job.verdict is not None:
                return job.verdict
            with publishing.closing_on_failure(job):
                verdict = job.verdict or make_and_judge(session, job)
                final_fit.make_final_fit(session, verdict)
                publishing.settle_refresh(session, verdict)
            return verdict


def make_and_judge(session: Session, job: Refresh) -> Verdict:
    """Make teachers, student, variants and proof; return the verdict, which is not carried out yet."""
    session.job = job
    session.job = planned = plan_refresh(session)
    mode = get_mode(planned)
    teacher = teaching.prepare_teacher(session)
    if mode.weighs_teachers(planned):
        teacher = teaching.weigh_teachers(session, teacher)
    admission = teaching.examine_teacher(session, teacher)
    if admission.result == "refused":
        return admission
    if (rows := mode.select_rows_to_label(session, teacher)) is not None:
        teaching.gather_knowledge(session, rows, teacher)
    if mode.compares_teachers:
        teaching.compare_teachers(session, teacher)
    student = mode.make_student(session, teacher)
    if student is None:
        return make_and_judge(session, fall_back(job, planned.mode))
    frontier = mode.compress(session, teacher, student)
    proof = proving.prove_challenger(session, teacher, student, frontier)
    teaching.compare_with_student(session, teacher, frontier)
    publishing.log_models(session, teacher, student, frontier, proof)
    return publishing.judge_challenger(session, proof)
