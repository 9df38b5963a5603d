"""Asking under a budget: nothing is asked twice, every question is accounted for, what was learned is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from stillhouse.config import PythonTeacher, leaves
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.base import Purpose
from stillhouse.records import Spending
from stillhouse.teachers import ensemble
from stillhouse.teachers.answers import Allowance, Array
from stillhouse.teachers.ensemble import Ensemble, Member

__all__ = ["Account", "ask", "cross_fitted", "for_refresh", "for_watch"]

log = logging.getLogger(__name__)


class Account:
    """What one job may spend on teachers, and why asking ended, if it did.

    :param as_of: the moment of the agent's life that the questions belong to.
    """

    def __init__(
        self, base: KnowledgeBase, purpose: Purpose, job: str, as_of: datetime, allowance: Allowance, limits: str
    ) -> None:
        self.base = base
        self.purpose = purpose
        self.job = job
        self.as_of = as_of
        self.allowance = allowance
        self.limits = limits
        self.stopped: str | None = None

    def pay(self, spent: Spending, teacher: str, version: str) -> None:
        """Book what a round of questions has cost; each round is another, whatever was asked."""
        if spent.calls:
            self.base.spend(
                spent, job=self.job, purpose=self.purpose, teacher=teacher, version=version, as_of=self.as_of,
                batch=f"{self.job}:{uuid4().hex}",
            )  # fmt: skip

    def affordable(self, teacher: Ensemble, rows: int) -> int:
        """About how many of so many rows the calls that are left will do for, one a row and member."""
        calls = self.allowance.calls
        return rows if calls is None else min(rows, calls // len(teacher.members))

    def stop(self, teacher: str, why: str) -> None:
        """End the asking; the first reason stays."""
        budget = why.startswith("the budget")
        self.stopped = self.stopped or (f"{why} ({self.limits})" if budget else f"teacher {teacher!r}: {why}")
        log.warning("asking ended early: %s", self.stopped)


def for_refresh(base: KnowledgeBase, refresh_id: str, as_of: datetime) -> Account:
    """What is left of a refresh's budget; what an interrupted run of it has spent is spent."""
    budgets = base.config.budgets
    spent = base.spending(job=refresh_id).values()
    limits = _limits(max_teacher_calls=budgets.max_teacher_calls, max_teacher_cost=budgets.max_teacher_cost)
    allowance = _left(budgets.max_teacher_calls, budgets.max_teacher_cost, list(spent))
    return Account(base, "refresh", refresh_id, as_of, allowance, limits)


def for_watch(base: KnowledgeBase, as_of: datetime) -> Account:
    """What is left of a day's budget for watching: the day of the agent's life that ends at ``as_of``."""
    budgets = base.config.budgets
    spent = base.spending(purpose="watch", after=as_of - timedelta(days=1), until=as_of).values()
    limits = _limits(max_watch_calls=budgets.max_watch_calls, max_watch_cost=budgets.max_watch_cost)
    allowance = _left(budgets.max_watch_calls, budgets.max_watch_cost, list(spent))
    return Account(base, "watch", f"watch:{as_of.isoformat()}", as_of, allowance, limits)


def ask(teacher: Ensemble, rows: pd.DataFrame, account: Account) -> Array:
    """What ``teacher`` says about ``rows``, float64 ``[n, K]``: remembered, or asked and kept while the account lasts.

    Rows of the same content are asked about once. NaN where a member of the teacher has no usable answer, or was not
    asked for want of money: half a mean would be another teacher. Rows are asked about in the order of their content's
    hash, so that those that a budget pays for are a uniform sample.

    :param rows: observations with ``content_key`` and ``observed_at``.
    :raises LeakageError: if one that is not yet known lies in the window whose outcomes the teacher has seen.
    """
    base, rows = account.base, rows.reset_index(drop=True)
    said = base.knowledge(rows, teacher.version)
    new = _once(rows[np.isnan(said[:, 0])])
    if new.empty:
        return said
    teacher.refuse_seen(new)
    _mean(base, teacher, new, {}, account)
    return base.knowledge(rows, teacher.version)


def cross_fitted(
    teacher: Ensemble, rows: pd.DataFrame, account: Account, wanted: np.ndarray[Any, np.dtype[np.bool_]] | None = None
) -> Array:
    """The same about the rows that ``teacher`` was fitted on, and others of that time.

    What can be fitted answers by cross-fitting (:func:`ensemble.cross_fit`), everything else as in :func:`ask`.

    :param rows: with ``outcome``, −1 where it is not known: nothing is fitted on those.
    :param wanted: bool ``[n]``, the rows to be asked about; None: all.
    """
    base, rows = account.base, rows.reset_index(drop=True)
    said = base.knowledge(rows, teacher.version)
    unasked = np.isnan(said[:, 0])
    new = _once(rows[unasked if wanted is None else unasked & wanted])
    if new.empty:
        return said
    asked, left = _ask_others(base, teacher, new, account)
    fitted = [leaf.name for leaf in leaves(base.config.teachers) if isinstance(leaf.teacher, PythonTeacher)]
    granted = left.iloc[: account.allowance.rows(len(left) * len(fitted)) // len(fitted)] if fitted else left
    if len(granted) < len(left):
        account.stop(fitted[0], "the budget is reached")
    if fitted and len(granted):
        wanted = rows.index.isin(granted.index)
        began = perf_counter()
        found = ensemble.cross_fit(base.config, rows, wanted=wanted)
        seconds = (perf_counter() - began) / len(fitted)
        places = rows.index.get_indexer(granted.index)
        for name, answer in found.items():
            account.pay(Spending(calls=len(granted), rows=len(granted), seconds=seconds), name, teacher.version)
            asked[name] = pd.DataFrame(answer[places], index=granted.index)
    _keep_mean(base, teacher, granted, asked)
    return base.knowledge(rows, teacher.version)


# --------------------------------------------------------------------------- inside

Said = dict[str, pd.DataFrame]
"""Probabilities by the member's name, indexed as the rows; NaN where there is no answer."""


def _mean(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, asked: Said, account: Account) -> None:
    """Ask every member about ``rows`` and keep their mean."""
    asked, left = _ask_others(base, teacher, rows, account)
    for member in (each for each in teacher.members if each.version is None):
        answers = member.answer(left, account.allowance)
        account.pay(answers.spending, member.name, teacher.version)
        if answers.stopped:
            account.stop(member.name, answers.stopped)
        asked[member.name] = pd.DataFrame(answers.probabilities, index=left.index)
        left = left[~np.isnan(answers.probabilities[:, 0])]
    _keep_mean(base, teacher, left, asked)


def _ask_others(
    base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, account: Account
) -> tuple[Said, pd.DataFrame]:
    """What the members that are not fitted say, and the rows to which all of them have an answer."""
    asked: Said = {}
    for member in (each for each in teacher.members if each.version is not None):
        answer = _remembered_or_asked(base, member, rows, account)
        asked[member.name] = pd.DataFrame(answer, index=rows.index)
        rows = rows[~np.isnan(answer[:, 0])]
    return asked, rows


def _remembered_or_asked(base: KnowledgeBase, member: Member, rows: pd.DataFrame, account: Account) -> Array:
    """One member's answers, asked in chunks, each kept before the next is asked."""
    version = str(member.version)
    known = ~np.isnan(base.knowledge(rows, version)[:, 0])
    useless = rows["content_key"].isin(base.unanswered(version)["content_key"]).to_numpy()
    for chunk in _chunks(rows[~known & ~useless], member.chunk):
        if account.stopped:
            break
        answers = member.answer(chunk, account.allowance)
        account.pay(answers.spending, member.name, version)
        usable = ~np.isnan(answers.probabilities[:, 0])
        base.append_knowledge(chunk[usable], answers.probabilities[usable], teacher=version)
        if answers.refused:
            base.append_unanswered(chunk.iloc[list(answers.refused)], list(answers.refused.values()), teacher=version)
        if answers.stopped:
            account.stop(member.name, answers.stopped)
    return base.knowledge(rows, version)


def _keep_mean(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, asked: Said) -> None:
    if rows.empty:
        return
    mean = np.zeros((len(rows), len(base.config.actions)))
    for member in teacher.members:
        mean += member.share * asked[member.name].loc[rows.index].to_numpy()
    base.append_knowledge(rows, mean, teacher=teacher.version)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    """Each content once, in the order of its hash."""
    return rows.drop_duplicates("content_key").sort_values("content_key")


def _chunks(rows: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    for start in range(0, len(rows), size):
        yield rows.iloc[start : start + size]


def _left(calls: int | None, money: float | None, spent: list[Spending]) -> Allowance:
    together = sum(spent, Spending())
    return Allowance(
        None if calls is None else max(0, calls - together.calls),
        None if money is None else max(0.0, money - together.money),
    )


def _limits(**limits: float | None) -> str:
    return ", ".join(f"budgets.{name}: {value:g}" for name, value in limits.items() if value is not None)
