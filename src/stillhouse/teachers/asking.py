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

from stillhouse.config import leaves
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.answers import Purpose
from stillhouse.records import Spending
from stillhouse.teachers import ensemble
from stillhouse.teachers.answers import Allowance, Array
from stillhouse.teachers.ensemble import CrossFit, Ensemble, Member

__all__ = [
    "Account",
    "ask",
    "ask_members",
    "cross_fitted",
    "for_refresh",
    "for_watch",
    "members_said",
    "remember_mean",
]

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

    def halve(self) -> None:
        """Leave half of what is left to others."""
        allowed = self.allowance
        allowed.calls = None if allowed.calls is None else allowed.calls // 2
        allowed.money = None if allowed.money is None else allowed.money / 2

    def pay(self, spent: Spending, teacher: str, version: str) -> None:
        """Book what a round of questions has cost; each round is another, whatever was asked."""
        if spent.calls:
            self.base.answers.append_spending(
                spent,
                job=self.job,
                purpose=self.purpose,
                teacher=teacher,
                version=version,
                as_of=self.as_of,
                batch=f"{self.job}:{uuid4().hex}",
            )

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
    spent = base.answers.spending(job=refresh_id).values()
    limits = _limits(max_teacher_calls=budgets.max_teacher_calls, max_teacher_cost=budgets.max_teacher_cost)
    allowance = _left(budgets.max_teacher_calls, budgets.max_teacher_cost, list(spent))
    return Account(base, "refresh", refresh_id, as_of, allowance, limits)


def for_watch(base: KnowledgeBase, as_of: datetime) -> Account:
    """What is left of a day's budget for watching: the day of the agent's life that ends at ``as_of``."""
    budgets = base.config.budgets
    spent = base.answers.spending(purpose="watch", after=as_of - timedelta(days=1), until=as_of).values()
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
    new = _once(rows[~_has_probs(base, rows, teacher.version)])
    if not new.empty:
        teacher.refuse_seen(new)
        _ask_all(base, teacher, new, account)
    return base.answers.probs(rows, teacher.version)


def cross_fitted(
    teacher: Ensemble,
    rows: pd.DataFrame,
    account: Account,
    wanted: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    cross: CrossFit | None = None,
) -> Array:
    """The same about the rows that ``teacher`` was fitted on, and others of that time.

    What can be fitted answers by cross-fitting (:func:`ensemble.cross_fit`), everything else as in :func:`ask`.

    :param rows: with ``outcome``, −1 where it is not known: nothing is fitted on those.
    :param wanted: bool ``[n]``, the rows to be asked about; None: all.
    :param cross: of these very ``rows``, whose fits are used and kept; None: fitted here and let go.
    """
    base, rows = account.base, rows.reset_index(drop=True)
    unasked = ~_has_probs(base, rows, teacher.version)
    new = _once(rows[unasked if wanted is None else unasked & wanted])
    if not new.empty:
        left = _ask_others(base, teacher, new, account)
        _cross_fit_members(base, teacher, rows, left, account, cross)
        remember_mean(base, teacher, left)
    return base.answers.probs(rows, teacher.version)


def ask_members(teacher: Ensemble, rows: pd.DataFrame, most: int, account: Account, *, fit: bool) -> None:
    """Let every member answer for itself about the same ``most`` of ``rows``, drawn uniformly.

    :param rows: labelled, with an index of their own.
    :param fit: those that learn answer by cross-fitting, and about all rows at once where the lesson will ask about all
        of them: fitting is what costs. Else they answer about those that they have not seen.
    """
    each = _once(rows)
    sample = each.head(most)
    _ask_others(account.base, teacher, sample, account)
    if fit:
        wanted = each if account.base.config.asking.share == 1.0 else sample
        _cross_fit_members(account.base, teacher, rows, wanted, account)
        return
    for member in (each for each in teacher.members if each.version is None):
        _remembered_or_asked(account.base, teacher, member, sample[~teacher.seen(sample)], account)


def members_said(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame) -> dict[str, Array]:
    """What each member has said about ``rows`` by itself, float64 ``[n, K]`` by its name, NaN where it has not."""
    return {member.name: base.answers.probs(rows, teacher.own_version(member)) for member in teacher.members}


def remember_mean(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame) -> None:
    """Keep the mean about those of ``rows`` to which every member has an answer. Nobody is asked."""
    said = members_said(base, teacher, rows)
    answered = ~np.any([np.isnan(answer[:, 0]) for answer in said.values()], axis=0)
    if not answered.any():
        return
    shares, rows = teacher.shares(rows[answered]), rows[answered]
    mean = sum(share[:, None] * answer[answered] for share, answer in zip(shares.T, said.values(), strict=True))
    base.answers.append(rows, np.asarray(mean), teacher=teacher.version)


# --------------------------------------------------------------------------- inside


def _ask_all(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, account: Account) -> None:
    """Ask every member about ``rows`` and keep what each says, and their mean."""
    left = _ask_others(base, teacher, rows, account)
    for member in (each for each in teacher.members if each.version is None):
        left = _remembered_or_asked(base, teacher, member, left, account)
    remember_mean(base, teacher, left)


def _ask_others(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, account: Account) -> pd.DataFrame:
    """Ask the members that are not fitted; the rows to which all of them have an answer."""
    for member in (each for each in teacher.members if each.version is not None):
        rows = _remembered_or_asked(base, teacher, member, rows, account)
    return rows


def _cross_fit_members(
    base: KnowledgeBase,
    teacher: Ensemble,
    rows: pd.DataFrame,
    wanted: pd.DataFrame,
    account: Account,
    cross: CrossFit | None = None,
) -> None:
    """Keep what each fitted member, fitted on other blocks of ``rows``, says about ``wanted`` ones, once each."""
    fitted = {leaf.name for leaf in leaves(base.config.teachers) if leaf.teacher.is_fitted}
    members = [member for member in teacher.members if member.name in fitted]
    if not members:
        return
    answered = [_has_probs(base, wanted, teacher.own_version(member)) for member in members]
    new = wanted[~np.all(answered, axis=0)]
    granted = new.iloc[: account.allowance.rows(len(new) * len(members)) // len(members)]
    if len(granted) < len(new):
        account.stop(members[0].name, "the budget is reached")
    if granted.empty:
        return
    began = perf_counter()
    found = ensemble.cross_fit(base.config, rows, wanted=rows.index.isin(granted.index), cross=cross)
    seconds = (perf_counter() - began) / len(members)
    for member in members:
        answer, version = found[member.name][rows.index.get_indexer(granted.index)], teacher.own_version(member)
        account.pay(Spending(calls=len(granted), rows=len(granted), seconds=seconds), member.name, version)
        base.answers.append(granted, answer, teacher=version)


def _remembered_or_asked(
    base: KnowledgeBase, teacher: Ensemble, member: Member, rows: pd.DataFrame, account: Account
) -> pd.DataFrame:
    """Ask one member in chunks, each kept before the next is asked; the rows to which it has an answer."""
    version = teacher.own_version(member)
    known = _has_probs(base, rows, version)
    if known.all():
        return rows
    useless = rows["content_key"].isin(base.answers.unanswerable_keys(version)).to_numpy()
    for chunk in _chunks(rows[~known & ~useless], member.chunk):
        if account.stopped:
            break
        answers = member.answer(chunk, account.allowance)
        account.pay(answers.spending, member.name, version)
        usable = ~np.isnan(answers.probabilities[:, 0])
        features = None if answers.features is None else answers.features[usable]
        base.answers.append(chunk[usable], answers.probabilities[usable], teacher=version, features=features)
        if answers.refused:
            base.answers.append_unanswered(
                chunk.iloc[list(answers.refused)], list(answers.refused.values()), teacher=version
            )
        if answers.stopped:
            account.stop(member.name, answers.stopped)
    return rows[_has_probs(base, rows, version)]


def _has_probs(base: KnowledgeBase, rows: pd.DataFrame, version: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """To which of ``rows`` a teacher version has an answer, bool ``[n]``."""
    has_probs: np.ndarray[Any, np.dtype[np.bool_]] = ~np.isnan(base.answers.probs(rows, version)[:, 0])
    return has_probs


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
