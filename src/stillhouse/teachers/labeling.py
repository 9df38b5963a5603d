"""Label rows with teacher probabilities under a budget.

No question is asked twice, every call is recorded, and every answer is stored at once.
"""

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
from stillhouse.teachers.answers import BUDGET_REACHED, Allowance, Array
from stillhouse.teachers.cross_fitting import CrossFit, cross_fit
from stillhouse.teachers.ensemble import Ensemble, Member

__all__ = [
    "LabelingBudget",
    "adopt_recorded_answers",
    "ask",
    "ask_cross_fitted",
    "ask_members",
    "estimate_cost",
    "member_probs",
    "open_refresh_budget",
    "open_watch_budget",
    "store_mean_probs",
]

Mask = np.ndarray[Any, np.dtype[np.bool_]]

log = logging.getLogger(__name__)


class LabelingBudget:
    """What one job may still spend on teachers; it records every expense in the knowledge base.

    Its ``stop_reason`` says why labeling stopped early; None: it did not.

    :param as_of: time of the agent's clock that the expenses are recorded at.
    :param allowance: what is left.
    :param limits: the agent file's limits, for messages.
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
        self.stop_reason: str | None = None

    def reserve_half(self) -> None:
        """Give up half of what is left, so that a later step of the job can spend it."""
        left = self.allowance
        left.calls = None if left.calls is None else left.calls // 2
        left.money = None if left.money is None else left.money / 2

    def charge(self, spent: Spending, teacher: str, version: str) -> None:
        """Record what a round of questions has cost. Each call is one record, even if its figures repeat."""
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

    def affordable_rows(self, teacher: Ensemble, rows: int) -> int:
        """About how many of ``rows`` the calls left suffice for, at one call per row and member."""
        calls = self.allowance.calls
        return rows if calls is None else min(rows, calls // len(teacher.members))

    def stop(self, teacher: str, reason: str) -> None:
        """Stop labeling; the first reason is kept."""
        is_budget = reason.startswith("the budget")
        self.stop_reason = self.stop_reason or (
            f"{reason} ({self.limits})" if is_budget else f"teacher {teacher!r}: {reason}"
        )
        log.warning("labeling stopped early: %s", self.stop_reason)


def open_refresh_budget(base: KnowledgeBase, refresh_id: str, as_of: datetime) -> LabelingBudget:
    """What is left of a refresh's budget, after what an interrupted run of the same refresh has spent."""
    budgets = base.config.budgets
    spent = base.answers.spending(job=refresh_id).values()
    limits = _describe_limits(max_teacher_calls=budgets.max_teacher_calls, max_teacher_cost=budgets.max_teacher_cost)
    allowance = _subtract(budgets.max_teacher_calls, budgets.max_teacher_cost, list(spent))
    return LabelingBudget(base, "refresh", refresh_id, as_of, allowance, limits)


def open_watch_budget(base: KnowledgeBase, as_of: datetime) -> LabelingBudget:
    """What is left of the daily budget of watches, for the day of the agent's clock that ends at ``as_of``."""
    budgets = base.config.budgets
    spent = base.answers.spending(purpose="watch", after=as_of - timedelta(days=1), until=as_of).values()
    limits = _describe_limits(max_watch_calls=budgets.max_watch_calls, max_watch_cost=budgets.max_watch_cost)
    allowance = _subtract(budgets.max_watch_calls, budgets.max_watch_cost, list(spent))
    return LabelingBudget(base, "watch", f"watch:{as_of.isoformat()}", as_of, allowance, limits)


def ask(teacher: Ensemble, rows: pd.DataFrame, budget: LabelingBudget) -> Array:
    """Probabilities of ``teacher`` for ``rows``, float64 ``[n, K]``: stored ones, else new ones while the budget lasts.

    Rows of equal content are asked about once. A row is NaN unless every member answered it: a mean over some members
    would mix different teachers. Rows are asked about in the order of their content hash, so that those within the
    budget are a uniform sample.

    >>> from datetime import UTC
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from stillhouse.config import load
    >>> from stillhouse.teachers.answers import wrap_predict
    >>> config, now = load("flights"), datetime(2024, 1, 1, tzinfo=UTC)
    >>> answer = wrap_predict("rules", config.actions, lambda rows: [[0.9, 0.1]] * len(rows))
    >>> teacher = Ensemble(config, [Member("rules", 1.0, answer, "v1")], fit_window=None, version="v1")
    >>> rows = pd.DataFrame({"observation_id": ["a", "b"], "observed_at": [now, now], "content_key": ["k1", "k2"]})
    >>> with TemporaryDirectory() as folder:
    ...     base = KnowledgeBase(config, Path(folder))
    ...     budget = open_refresh_budget(base, "refresh-1", now)
    ...     probs = ask(teacher, rows, budget)
    ...     calls = base.answers.spending(job="refresh-1")["rules"].calls
    >>> probs.tolist(), calls
    ([[0.9, 0.1], [0.9, 0.1]], 2)

    :param rows: observations with ``content_key`` and ``observed_at``.
    :raises LeakageError: if a row without a stored answer lies in the window whose labels the teacher has seen.
    """
    base, rows = budget.base, rows.reset_index(drop=True)
    new_rows = _unique_contents(rows[~_has_probs(base, rows, teacher.version)])
    if not new_rows.empty:
        teacher.require_unseen(new_rows)
        answered_rows = _ask_unfitted_members(base, teacher, new_rows, budget)
        for member in _fitted_members(teacher):
            answered_rows = _complete_answers(base, teacher, member, answered_rows, budget)
        store_mean_probs(base, teacher, answered_rows)
    return base.answers.probs(rows, teacher.version)


def estimate_cost(teacher: Ensemble, rows: pd.DataFrame, base: KnowledgeBase) -> tuple[int, float]:
    """The most that :func:`ask` can cost for these rows: their number, and the money, in the unit of the prices.

    Rows with a stored answer cost nothing.

    :param rows: observations with ``content_key``.
    :returns: rows that would be asked about, and the money.
    """
    new_rows = _unique_contents(rows[~_has_probs(base, rows, teacher.version)])
    money = 0.0
    for member in teacher.members:
        money += sum(member.max_cost(new_rows[~_has_probs(base, new_rows, teacher.member_version(member))]))
    return len(new_rows), money


def ask_cross_fitted(
    teacher: Ensemble,
    rows: pd.DataFrame,
    budget: LabelingBudget,
    mask: Mask | None = None,
    cross_fits: CrossFit | None = None,
) -> Array:
    """Like :func:`ask`, for the rows that ``teacher`` was fitted on and others of that time.

    The members that learn answer by cross-fitting (:func:`~stillhouse.teachers.cross_fitting.cross_fit`), the others
    as in :func:`ask`.

    :param rows: with ``outcome``, −1 where it is unknown: nothing is fitted on those rows.
    :param mask: bool ``[n]``, the rows to ask about; None: all.
    :param cross_fits: of these very ``rows``, to reuse; None: the teachers are fitted here.
    """
    base, rows = budget.base, rows.reset_index(drop=True)
    unanswered = ~_has_probs(base, rows, teacher.version)
    new_rows = _unique_contents(rows[unanswered if mask is None else unanswered & mask])
    if not new_rows.empty:
        answered_rows = _ask_unfitted_members(base, teacher, new_rows, budget)
        _cross_fit_members(base, teacher, rows, answered_rows, budget, cross_fits)
        store_mean_probs(base, teacher, answered_rows)
    return base.answers.probs(rows, teacher.version)


def ask_members(teacher: Ensemble, rows: pd.DataFrame, max_rows: int, budget: LabelingBudget, *, fit: bool) -> None:
    """Store every member's own answers to the same uniform sample of up to ``max_rows`` of ``rows``.

    :param rows: labelled, with a unique index.
    :param fit: the members that learn answer by cross-fitting. They answer all rows at once if the agent file asks
        about all training rows, as the fits are the expensive part. False: they answer the rows of the sample outside
        their fit window.
    """
    unique_rows = _unique_contents(rows)
    sample = unique_rows.head(max_rows)
    _ask_unfitted_members(budget.base, teacher, sample, budget)
    if fit:
        new_rows = unique_rows if budget.base.config.asking.share == 1.0 else sample
        _cross_fit_members(budget.base, teacher, rows, new_rows, budget)
        return
    for member in _fitted_members(teacher):
        _complete_answers(budget.base, teacher, member, sample[~teacher.in_fit_window(sample)], budget)


def adopt_recorded_answers(base: KnowledgeBase, teacher: str, rows: pd.DataFrame) -> int:
    """Store the labels of an agent without outcomes as answers of its teacher, where that has none yet.

    A recorded answer is an action alone, so it is certain; a content with several answers has the share of each.

    >>> from datetime import UTC
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from stillhouse.config import load
    >>> now = datetime(2024, 1, 1, tzinfo=UTC)
    >>> rows = pd.DataFrame({"observed_at": [now] * 3, "content_key": ["k", "k", "l"], "outcome": [0, 1, 1]})
    >>> with TemporaryDirectory() as folder:
    ...     base = KnowledgeBase(load("flights"), Path(folder))
    ...     adopt_recorded_answers(base, "v1", rows), base.answers.probs(rows, "v1").tolist()
    (2, [[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])

    :param teacher: version of the teacher.
    :param rows: with ``content_key``, ``observed_at`` and ``outcome``, an action index; −1: not answered.
    :returns: the number of contents that are new.
    """
    actions = len(base.config.actions)
    rows = rows[(rows["outcome"] >= 0) & (rows["outcome"] < actions)].reset_index(drop=True)
    rows = rows[~_has_probs(base, rows, teacher)].reset_index(drop=True)
    if rows.empty:
        return 0
    certain = pd.DataFrame(np.eye(actions)[rows["outcome"].to_numpy()])
    shares = certain.groupby(rows["content_key"].to_numpy()).transform("mean").to_numpy()
    return base.answers.append(rows, shares, teacher=teacher)


def member_probs(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame) -> dict[str, Array]:
    """Stored probabilities of each member by its name, float64 ``[n, K]``, NaN where it has not answered."""
    return {member.name: base.answers.probs(rows, teacher.member_version(member)) for member in teacher.members}


def store_mean_probs(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame) -> None:
    """Store the weighted mean for the rows that every member has answered. No teacher is asked."""
    probs = member_probs(base, teacher, rows)
    answered = ~np.any([np.isnan(member[:, 0]) for member in probs.values()], axis=0)
    if not answered.any():
        return
    shares, rows = teacher.member_shares(rows[answered]), rows[answered]
    mean = sum(share[:, None] * member[answered] for share, member in zip(shares.T, probs.values(), strict=True))
    base.answers.append(rows, np.asarray(mean), teacher=teacher.version)


# --------------------------------------------------------------------------- inside


def _fitted_members(teacher: Ensemble) -> list[Member]:
    return [member for member in teacher.members if member.version is None]


def _ask_unfitted_members(
    base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, budget: LabelingBudget
) -> pd.DataFrame:
    """Ask the members that are not fitted; return the rows that all of them have answered."""
    for member in (member for member in teacher.members if member.version is not None):
        rows = _complete_answers(base, teacher, member, rows, budget)
    return rows


def _cross_fit_members(
    base: KnowledgeBase,
    teacher: Ensemble,
    rows: pd.DataFrame,
    new_rows: pd.DataFrame,
    budget: LabelingBudget,
    cross_fits: CrossFit | None = None,
) -> None:
    """Store the cross-fitted answers of each fitted member to ``new_rows``, a part of ``rows``.

    Each row costs one call of each of these members, even if some of them have answered it before.
    """
    learns = {leaf.name for leaf in leaves(base.config.teachers) if leaf.teacher.is_fitted}
    members = [member for member in teacher.members if member.name in learns]
    if not members:
        return
    answered = [_has_probs(base, new_rows, teacher.member_version(member)) for member in members]
    new_rows = new_rows[~np.all(answered, axis=0)]
    granted = new_rows.iloc[: budget.allowance.take_calls(len(new_rows) * len(members)) // len(members)]
    if len(granted) < len(new_rows):
        budget.stop(members[0].name, BUDGET_REACHED)
    if granted.empty:
        return
    began = perf_counter()
    probs = cross_fit(base.config, rows, mask=rows.index.isin(granted.index), cross_fits=cross_fits)
    seconds = (perf_counter() - began) / len(members)
    indices = rows.index.get_indexer(granted.index)
    for member in members:
        version = teacher.member_version(member)
        budget.charge(Spending(calls=len(granted), rows=len(granted), seconds=seconds), member.name, version)
        base.answers.append(granted, probs[member.name][indices], teacher=version)


def _complete_answers(
    base: KnowledgeBase, teacher: Ensemble, member: Member, rows: pd.DataFrame, budget: LabelingBudget
) -> pd.DataFrame:
    """Ask one member about the rows it has not answered, in chunks; return the rows that it has answered.

    The answers to a chunk are stored before the next chunk is asked about.
    """
    version = teacher.member_version(member)
    answered = _has_probs(base, rows, version)
    if answered.all():
        return rows
    given_up = rows["content_key"].isin(base.answers.unanswerable_keys(version)).to_numpy()
    for chunk in _split(rows[~answered & ~given_up], member.chunk_rows):
        if budget.stop_reason:
            break
        answers = member.answer(chunk, budget.allowance)
        budget.charge(answers.spending, member.name, version)
        usable = ~np.isnan(answers.probabilities[:, 0])
        features = None if answers.features is None else answers.features[usable]
        base.answers.append(chunk[usable], answers.probabilities[usable], teacher=version, features=features)
        if answers.refused:
            base.answers.append_unanswered(
                chunk.iloc[list(answers.refused)], list(answers.refused.values()), teacher=version
            )
        if answers.stop_reason:
            budget.stop(member.name, answers.stop_reason)
    return rows[_has_probs(base, rows, version)]


def _has_probs(base: KnowledgeBase, rows: pd.DataFrame, version: str) -> Mask:
    """Which rows have a stored answer of this teacher version, bool ``[n]``."""
    has_probs: Mask = ~np.isnan(base.answers.probs(rows, version)[:, 0])
    return has_probs


def _unique_contents(rows: pd.DataFrame) -> pd.DataFrame:
    """The first row of each content, in the order of the content hash."""
    return rows.drop_duplicates("content_key").sort_values("content_key")


def _split(rows: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    for start in range(0, len(rows), size):
        yield rows.iloc[start : start + size]


def _subtract(calls: int | None, money: float | None, spent: list[Spending]) -> Allowance:
    """What is left of the limits; None stays None."""
    total = sum(spent, Spending())
    return Allowance(
        None if calls is None else max(0, calls - total.calls),
        None if money is None else max(0.0, money - total.money),
    )


def _describe_limits(**limits: float | None) -> str:
    return ", ".join(f"budgets.{name}: {value:g}" for name, value in limits.items() if value is not None)
