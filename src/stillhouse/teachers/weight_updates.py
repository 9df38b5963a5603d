"""Learn the teachers' weights from the knowledge base: in a refresh, and in the watches that follow it.

A refresh learns the weights on its training window alone, from the agent file's weights on. It stores them with the
teachers: the student learns from their mean under these weights, and the evidence on the student uses them too. The
watches continue from there with the outcomes that arrive later. They record and show their weights and change nothing
else; the next refresh learns on a later window and so takes up the same outcomes, without having used its test window.
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
from stillhouse.teachers import labeling, mixture_weights
from stillhouse.teachers.answers import Array
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.teachers.labeling import LabelingBudget

__all__ = ["WeightUpdate", "current_weights", "label_for_weighting", "learn_weights", "update_weights"]


@dataclass(frozen=True)
class WeightUpdate:
    """Weights, and their history at P moments.

    :param times: arrival of the outcome after which the weights are given, ``[P]``.
    :param steps: number of outcomes up to that moment, ``[P]``.
    :param shares: share of each teacher over all rows at that moment, float64 ``[P, M]``; None: no history.
    """

    mixture: TeacherWeights
    times: tuple[datetime, ...] = ()
    steps: tuple[int, ...] = ()
    shares: Array | None = None

    def points(self, prefix: str) -> list[tuple[datetime, int, dict[str, float]]]:
        """The history as points of curves: time, number of outcomes, and each teacher's share by ``prefix + name``."""
        if self.shares is None:
            return []
        names = [f"{prefix}{name}" for name in self.mixture.teachers]
        values = [dict(zip(names, row, strict=True)) for row in self.shares.tolist()]
        return list(zip(self.times, self.steps, values, strict=True))


def learn_weights(base: KnowledgeBase, teacher: Ensemble, as_of: datetime, rows: pd.DataFrame) -> WeightUpdate | None:
    """Weights from the labels of the rows that every member has answered, in the order in which the labels arrived.

    With fewer than ``weights.min_outcomes`` of them, three or more teachers start with weights by their agreement.

    :param rows: labelled observations of a training window, with ``outcome``.
    :returns: None if there is one teacher only, no row that all have answered, or few such rows and the teachers have
        learned weights already.
    """
    names = _weighted_names(base, teacher)
    if len(names) < 2:
        return None
    answered_rows, probs = _rows_answered_by_all(base, teacher, names, base.join_known_at(rows, as_of))
    if not len(answered_rows):
        return None
    is_few = len(answered_rows) < base.config.weights.min_outcomes
    if is_few and teacher.mixture is not None:
        return None
    start, columns = _start_shares(teacher, names).tolist(), base.config.promotion.slices
    if is_few and len(names) > 2:
        start = mixture_weights.estimate_by_agreement(probs, start).tolist()
        mixture = mixture_weights.start_weights(names, start, columns, as_of, "agreement")
    else:
        mixture = mixture_weights.start_weights(names, start, columns, as_of)
    return _apply_outcomes(mixture, answered_rows, probs, as_of)


def update_weights(
    base: KnowledgeBase, teacher: Ensemble, since: datetime, observed: Window, as_of: datetime
) -> WeightUpdate:
    """The teacher's weights, updated with the outcomes that arrived from ``since`` to ``as_of``.

    Once there are enough outcomes, weights by agreement are dropped: learning starts again from the agent file's.

    :param teacher: with learned weights.
    :param observed: rows observed before its start are left out.
    """
    mixture = teacher.mixture
    assert mixture is not None
    arrived = base.read_newly_labelled(since, as_of, since=observed.start)
    answered_rows, probs = _rows_answered_by_all(base, teacher, mixture.teachers, arrived)
    if mixture.by == "agreement" and len(answered_rows) >= base.config.weights.min_outcomes:
        start = _start_shares(teacher, mixture.teachers).tolist()
        mixture = mixture_weights.start_weights(mixture.teachers, start, mixture.columns, mixture.as_of)
    return _apply_outcomes(mixture, answered_rows, probs, as_of) if len(answered_rows) else WeightUpdate(mixture)


def label_for_weighting(
    base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, budget: LabelingBudget, *, fit: bool
) -> None:
    """Ask every member about up to ``weights.rows`` of ``rows``, for at most half of the budget.

    The answers are stored and serve training too.

    :param fit: the members that learn were fitted on ``rows``, so they answer by cross-fitting; False: they are not
        asked about rows in their fit window.
    """
    if len(_weighted_names(base, teacher)) < 2:
        return
    budget.reserve_half()
    rows = rows.reset_index(drop=True)
    labeling.ask_members(teacher, rows, base.config.weights.rows, budget, fit=fit)


def current_weights(mixture: TeacherWeights | None, recorded: Sequence[WeightChange]) -> dict[tuple[str, str], float]:
    """Share by (slice, teacher) as last recorded; slice '' stands for all rows.

    :param mixture: that the teacher was stored with.
    :param recorded: changes since then, oldest first.
    """
    shares: dict[tuple[str, str], float] = {}
    if mixture is not None:
        for name in ("", *mixture.slices):
            values = mixture_weights.slice_shares(mixture, name).tolist()
            shares |= {(name, teacher): share for teacher, share in zip(mixture.teachers, values, strict=True)}
    return shares | {(change.slice, change.teacher): change.after for change in recorded}


# --------------------------------------------------------------------------- inside


def _weighted_names(base: KnowledgeBase, teacher: Ensemble) -> tuple[str, ...]:
    """Names of the teachers, and of the ensembles with fixed weights, that have one learned weight each.

    Those of the agent file without a member in ``teacher`` are left out.
    """
    members = {member.name for member in teacher.members}
    return tuple(
        unit.name for unit in weighted_teachers(base.config) if any(leaf.name in members for leaf in unit.leaves)
    )


def _start_shares(teacher: Ensemble, names: Sequence[str]) -> Array:
    """Shares by the agent file, float64 ``[len(names)]``."""
    shares = np.array([member.share for member in teacher.members])
    sums = (teacher.shares_within(names) > 0) @ shares
    start: Array = sums / sums.sum()
    return start


def _rows_answered_by_all(
    base: KnowledgeBase, teacher: Ensemble, names: Sequence[str], rows: pd.DataFrame
) -> tuple[pd.DataFrame, Array]:
    """The rows that every member has answered, by the arrival of their labels, and the answers ``[n, U, K]``."""
    rows = _order_by_arrival(rows, base.config.promotion.cluster)
    probs: Mapping[str, Array] = labeling.member_probs(base, teacher, rows)
    stacked = np.stack([probs[member.name] for member in teacher.members], axis=1)
    answered = ~np.isnan(stacked[:, :, 0]).any(axis=1)
    weighted: Array = np.einsum("um,nmk->nuk", teacher.shares_within(names), stacked[answered])
    answered_rows: pd.DataFrame = rows.iloc[np.flatnonzero(answered)].reset_index(drop=True)
    return answered_rows, weighted


def _order_by_arrival(rows: pd.DataFrame, length: timedelta) -> pd.DataFrame:
    """Rows in the order in which their labels arrived, with a column ``time_block``.

    Rows of one time block (of ``observed_at``) whose labels arrived in one time block stand together.

    :param length: of a time block; zero: each row is a block of its own.
    """
    if not length:
        ordered = rows.sort_values(["known_at", "observed_at", "observation_id"], ignore_index=True)
        return ordered.assign(time_block=np.arange(len(ordered)))
    epoch = pd.Timestamp(0, tz="UTC")
    with_blocks = rows.assign(
        arrival_block=(rows["known_at"] - epoch) // length, time_block=(rows["observed_at"] - epoch) // length
    )
    return with_blocks.sort_values(["arrival_block", "time_block", "observed_at", "observation_id"], ignore_index=True)


def _apply_outcomes(mixture: TeacherWeights, rows: pd.DataFrame, probs: Array, as_of: datetime) -> WeightUpdate:
    """:param probs: of the teachers for ``rows``, ``[n, U, K]``."""
    trajectory = mixture_weights.learn(
        mixture, probs, rows["outcome"].to_numpy(), rows, as_of, rows["time_block"].to_numpy()
    )
    times = tuple(rows["known_at"].cummax().iloc[trajectory.indices].dt.to_pydatetime())
    steps = tuple((trajectory.indices + mixture.everywhere.outcomes + 1).tolist())
    return WeightUpdate(trajectory.mixture, times, steps, trajectory.shares)
