"""One refresh from its request to its verdict, by the engine alone: without Prefect, tasks or Great Expectations."""

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
from stillhouse.refreshing import opening, proving, publishing, teaching
from stillhouse.refreshing.modes import fall_back, mode_of, plan_refresh
from stillhouse.refreshing.session import Session, Trigger, opened_session, request_refresh

__all__ = ["Contract", "refresh"]

_ONE_AT_A_TIME = threading.Lock()  # in a process: the exporters of torch keep what they are at in globals

Contract = Callable[[pd.DataFrame, Window, AgentConfig], tuple[DataReport, pd.DataFrame]]
"""Asks rows of a window whether they keep the data contract: the report, and the rows to set aside."""


def refresh(
    agent: str,
    as_of: datetime | None = None,
    *,
    trigger: Trigger = "manual",
    cause: str = "asked for by hand",
    teacher: Literal["fit", "keep"] = "fit",
    mode: RefreshModeName = "redistil",
    contract: Contract = data_contract.check,
) -> Verdict:
    """Make a challenger of the agent's champion, and let the gate decide whether it is promoted.

    Asked twice for the same moment, cause and agent file it does the work once. Killed at any moment, the next call
    of the same request goes on: before its verdict from the start, after it with the verdict that was given. Threads of
    one process take turns; several processes may refresh several agents at once.

    :param agent: name of an agent file.
    :param as_of: the moment to speak of; None: now, by the clock that the agent file names.
    :param trigger: what started it. ``drift``: an alarm that another refresh has answered since is not answered again.
    :param cause: verdict id of the drift, or who asked for it and why.
    :param teacher: fit a new teacher on the training window, or keep the champion's.
    :param mode: how the student is made; see :mod:`stillhouse.refreshing.modes`.
    :param contract: asks the training and test window whether it keeps the data contract.
    :returns: the verdict of the gate, or of the admission of the teacher where that refuses it.
    :raises StillhouseError: if the refresh could not be decided; the message says what to do.
    """
    with _ONE_AT_A_TIME, refresh_lock(agent):
        request = request_refresh(agent, as_of, trigger, cause, teacher, mode)
        with opened_session(request) as session:
            closed = opening.answered_alarm(session, request)
            if closed is not None:
                return closed
            opening.require_learnable(session, request)
            data = session.base.quarantine(*contract(session.data.raw, request.window, session.settings))
            job = opening.open_refresh(session, request, data)
            if job.finished and job.verdict is not None:
                return job.verdict
            with publishing.closing_on_failure(job):
                verdict = job.verdict or make_and_judge(session, job)
                publishing.settle_refresh(session, verdict)
            return verdict


def make_and_judge(session: Session, job: Refresh) -> Verdict:
    """Teachers, student, smaller forms and proof in turn; the verdict, of which nothing has been carried out yet."""
    session.job = job
    session.job = planned = plan_refresh(session)
    mode = mode_of(planned)
    teacher = teaching.prepare_teacher(session)
    if mode.weighs_teachers(planned):
        teacher = teaching.weigh_teachers(session, teacher)
    admission = teaching.examine_teacher(session, teacher)
    if admission.result == "refused":
        return admission
    if (rows := mode.rows_to_teach(session, teacher)) is not None:
        teaching.gather_knowledge(session, rows, teacher)
    if mode.compares_teachers:
        teaching.compare_teachers(session, teacher)
    student = mode.student(session, teacher)
    if student is None:
        return make_and_judge(session, fall_back(job, planned.mode))
    frontier = mode.compress(session, teacher, student)
    proof = proving.prove_challenger(session, teacher, student, frontier)
    publishing.log_models(session, teacher, student, frontier, proof)
    return publishing.judge_challenger(session, proof)
