"""Weights from what the knowledge base holds: learned for a refresh, followed by the watches after it.

A refresh learns its weights on the training window alone, from the agent file's weights on, and keeps them with its
teachers: they are those that the student learns from, and that the evidence on it is measured with. The watches go on
from there with the outcomes that become known afterwards. What they find is recorded and shown; the next refresh, which
learns on a later window, comes to it by itself, without ever having looked at its test window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from stillhouse.config import weighted_teachers
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import TeacherWeights, WeightChange, Window
from stillhouse.teachers import asking, weighing
from stillhouse.teachers.answers import Array
from stillhouse.teachers.asking import Account
from stillhouse.teachers.ensemble import Ensemble

__all__ = ["Followed", "followed", "ready_to_weigh", "standing", "weigh"]


@dataclass(frozen=True)
class Followed:
    """Weights, and how they came to be.

    :param times: when the outcomes became known after which the trail stops, ``[P]``.
    :param steps: how many outcomes there were by then, ``[P]``.
    :param trail: share of each teacher everywhere, float64 ``[P, M]``.
    """

    weights: TeacherWeights
    times: tuple[datetime, ...] = ()
    steps: tuple[int, ...] = ()
    trail: Array | None = None

    def points(self, prefix: str) -> list[tuple[datetime, int, dict[str, float]]]:
        """The trail as curves: the moment, how many outcomes there were by then, and each teacher's share."""
        if self.trail is None:
            return []
        names = [f"{prefix}{name}" for name in self.weights.teachers]
        shares = [dict(zip(names, row, strict=True)) for row in self.trail.tolist()]
        return list(zip(self.times, self.steps, shares, strict=True))


def weigh(base: KnowledgeBase, teacher: Ensemble, as_of: datetime, rows: pd.DataFrame) -> Followed | None:
    """Weights by the outcomes of ``rows`` that every member has spoken about, in the order they became known.

    With fewer than ``weights.min_outcomes`` of them, three or more teachers start at weights by their agreement.

    :param rows: labelled observations of a training window, with ``outcome``.
    :returns: None where there is nothing to weigh: one teacher, none of the rows known to all, or so few that weights
        which the teachers have already tell more.
    """
    names = _units(base, teacher)
    if len(names) < 2:
        return None
    heard, said = _heard(base, teacher, names, base.join_known_at(rows, as_of))
    if not len(heard):
        return None
    few = len(heard) < base.config.weights.min_outcomes
    if few and teacher.weights is not None:
        return None
    start, columns, agree = _start(teacher, names), base.config.promotion.slices, few and len(names) > 2
    if agree:
        start = weighing.by_agreement(said, start.tolist())
    begun = weighing.begin(names, start.tolist(), columns, as_of, "agreement" if agree else "file")
    return _learn(begun, heard, said, as_of)


def followed(base: KnowledgeBase, teacher: Ensemble, since: datetime, observed: Window, as_of: datetime) -> Followed:
    """Where the weights of ``teacher`` stand: what it was made with, and what became known from ``since`` to ``as_of``.

    Once there are enough outcomes, weights by agreement are dropped: they begin anew at the agent file's.

    :param teacher: with learned weights.
    :param observed: no row before its start is looked at.
    """
    weights = teacher.weights
    assert weights is not None
    heard, said = _heard(base, teacher, weights.teachers, base.read_newly_labelled(since, as_of, since=observed.start))
    if weights.by == "agreement" and len(heard) >= base.config.weights.min_outcomes:
        weights = weighing.begin(
            weights.teachers, _start(teacher, weights.teachers).tolist(), weights.columns, weights.as_of
        )
    return _learn(weights, heard, said, as_of) if len(heard) else Followed(weights)


def ready_to_weigh(base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, account: Account, *, fit: bool) -> None:
    """Ask the members about enough of ``rows`` to weigh them: ``weights.rows`` each, for at most half of the budget.

    What is said is kept and serves the lesson too. Those that learn are cross-fitted where they were just fitted
    (``fit``), and else not asked about what they have seen.
    """
    if len(_units(base, teacher)) < 2:
        return
    account.halve()
    rows = rows.reset_index(drop=True)
    asking.ask_members(teacher, rows, base.config.weights.rows, account, fit=fit)


def standing(weights: TeacherWeights | None, recorded: Sequence[WeightChange]) -> dict[tuple[str, str], float]:
    """Share by (slice, teacher) as last made known: what a teacher was made with, then what was recorded, oldest first.

    :param recorded: changes since it was made.
    """
    found: dict[tuple[str, str], float] = {}
    if weights is not None:
        for name in ("", *weights.slices):
            shares = weighing.share_in(weights, name).tolist()
            found |= {(name, teacher): share for teacher, share in zip(weights.teachers, shares, strict=True)}
    return found | {(change.slice, change.teacher): change.after for change in recorded}


# --------------------------------------------------------------------------- inside


def _units(base: KnowledgeBase, teacher: Ensemble) -> tuple[str, ...]:
    """Names of what has one weight each, as far as the teacher has it."""
    there = {member.name for member in teacher.members}
    return tuple(
        unit.name for unit in weighted_teachers(base.config) if any(leaf.name in there for leaf in unit.leaves)
    )


def _start(teacher: Ensemble, names: Sequence[str]) -> Array:
    shares = np.array([member.share for member in teacher.members])
    together = (teacher.within(names) > 0) @ shares
    start: Array = together / together.sum()
    return start


def _heard(
    base: KnowledgeBase, teacher: Ensemble, names: Sequence[str], rows: pd.DataFrame
) -> tuple[pd.DataFrame, Array]:
    """Those of ``rows`` to which all have an answer, in the order of ``known_at``, and the answers ``[n, U, K]``."""
    rows = _in_order(rows, base.config.promotion.cluster)
    answers: Mapping[str, Array] = asking.members_said(base, teacher, rows)
    stacked = np.stack([answers[member.name] for member in teacher.members], axis=1)
    all_known = ~np.isnan(stacked[:, :, 0]).any(axis=1)
    said: Array = np.einsum("um,nmk->nuk", teacher.within(names), stacked[all_known])
    heard: pd.DataFrame = rows.iloc[np.flatnonzero(all_known)].reset_index(drop=True)
    return heard, said


def _in_order(rows: pd.DataFrame, cluster: timedelta) -> pd.DataFrame:
    """Rows as their outcomes became known, those of one ``stretch`` of time together where they became known together.

    Without a ``promotion.cluster`` each row is a stretch.
    """
    if not cluster:
        ordered = rows.sort_values(["known_at", "observed_at", "observation_id"], ignore_index=True)
        return ordered.assign(stretch=np.arange(len(ordered)))
    beginning = pd.Timestamp(0, tz="UTC")
    placed = rows.assign(
        arrival=(rows["known_at"] - beginning) // cluster, stretch=(rows["observed_at"] - beginning) // cluster
    )
    return placed.sort_values(["arrival", "stretch", "observed_at", "observation_id"], ignore_index=True)


def _learn(weights: TeacherWeights, heard: pd.DataFrame, said: Array, as_of: datetime) -> Followed:
    stretches = heard["stretch"].to_numpy()
    course = weighing.learn(weights, said, heard["outcome"].to_numpy(), heard, as_of, stretches)
    times = tuple(heard["known_at"].cummax().iloc[course.places].dt.to_pydatetime())
    before = weights.everywhere.outcomes
    return Followed(course.weights, times, tuple((course.places + before + 1).tolist()), course.trail)
