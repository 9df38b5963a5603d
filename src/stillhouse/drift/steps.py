"""Steps of evidence: which rows of a step are audited, and which losses the step counts.

A step is ``watch.every`` of observed time, however often a watch runs: a late watch catches up on several steps, a
repeated one has none left to do. So the guaranteed average run length does not depend on the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import Watch
from stillhouse.drift import audit, evidence
from stillhouse.drift.audit import Draws
from stillhouse.records import EvidenceRows, EvidenceStep, short_id
from stillhouse.stats import cluster_ids, nanoseconds, total_variation

__all__ = [
    "AuditPlan",
    "Span",
    "assign_clusters",
    "count_audit",
    "count_outcomes",
    "join_outcomes",
    "list_complete_steps",
    "measure_audit_losses",
    "plan_audit",
    "skip_steps",
]

Array = np.ndarray[Any, Any]
Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class AuditPlan:
    """The audit of one step: its observations in order of time, and the draws among them."""

    span: Span
    rows: pd.DataFrame
    draws: Draws

    @property
    def drawn(self) -> pd.DataFrame:
        """The drawn observations, one row per draw."""
        return self.rows.iloc[self.draws.rows]

    def is_uniform(self, watch: Watch, key: str) -> Array:
        """Which draws ignored the scores, bool ``[draws]``: a sample that the student's answers had no part in.

        A draw mixes two choices, and each row is assigned to one of them by its probability under either (thinning): a
        row of weight ``w = 1 / (rows of its cell · p)`` was drawn uniformly with probability ``uniform_share · w``. So
        each row of a cell is among these draws with the same probability. A row that is a cell by itself is drawn
        whatever its score. The same plan and key give the same draws.
        """
        seed = int(short_id("uniform", key, self.span[0].isoformat()), 16)
        chance = np.random.default_rng(seed).random(len(self.draws.rows))
        uniform: Array = (chance < watch.audit.uniform_share * self.draws.weight) | (self.draws.probability >= 1.0)
        return uniform

    def select_contents(self, content_keys: pd.Series[str]) -> AuditPlan:
        """The plan without the draws of other contents: those that the teacher did not answer.

        The mean of a cluster is then that of its remaining draws, which is unbiased if answers fail at random.
        """
        mask = self.drawn["content_key"].isin(content_keys).to_numpy()
        ids = np.unique(self.draws.cluster_ids[mask], return_inverse=True)[1]
        draws = Draws(self.draws.rows[mask], ids, self.draws.probability[mask], self.draws.weight[mask])
        return AuditPlan(self.span, self.rows, draws)


def list_complete_steps(start: datetime, until: datetime, every: timedelta) -> list[Span]:
    """The complete steps ``[start, start + every), …`` that have ended by ``until``.

    >>> begin = datetime(2026, 1, 1)
    >>> [end.hour for _, end in list_complete_steps(begin, begin + timedelta(hours=17), timedelta(hours=6))]
    [6, 12]
    """
    return [(start + i * every, start + (i + 1) * every) for i in range(max(0, (until - start) // every))]


def plan_audit(
    rows: pd.DataFrame, scores: Array, steps: Sequence[Span], watch: Watch, cluster: timedelta, key: str
) -> list[AuditPlan]:
    """Draw the rows to audit in each of ``steps``; the same rows and key give the same draws.

    :param rows: observations ordered by ``observed_at`` that cover the steps.
    :param scores: float ``[len(rows)]`` ≥ 0, rows with a higher score are drawn more often
        (:func:`stillhouse.drift.audit.audit_scores`).
    :param cluster: rows observed within the same interval of this length are one cluster.
    :param key: seed of the draws, together with the start of the step.
    """
    times = nanoseconds(rows["observed_at"])
    plans = []
    for start, end in steps:
        first, last = np.searchsorted(times, [pd.Timestamp(start).value, pd.Timestamp(end).value])
        strata = cluster_ids(times[first:last], cluster) if cluster else None
        seed = int(short_id(key, start.isoformat()), 16)
        draws = audit.draw_rows(scores[first:last], strata, watch.audit.rows, watch.audit.uniform_share, seed)
        plans.append(AuditPlan((start, end), rows.iloc[first:last], draws))
    return plans


def count_audit(state: EvidenceStep, plans: Sequence[AuditPlan], losses: Sequence[Array]) -> list[EvidenceRows]:
    """Add the audited steps to the evidence.

    :param losses: for each plan a float ``[draws]`` in 0…1.
    """
    counted = []
    for plan, loss in zip(plans, losses, strict=True):
        ids = plan.drawn["observation_id"].tolist()
        means = audit.cluster_means(plan.draws, loss)
        state = evidence.advance(state, means, start=plan.span[0], end=plan.span[1], rows=len(set(ids)))
        counted.append(
            EvidenceRows(
                step=state,
                observation_ids=tuple(ids),
                cluster_ids=tuple(plan.draws.cluster_ids.tolist()),
                probabilities=tuple(plan.draws.probability.tolist()),
                sampling_weights=tuple(plan.draws.weight.tolist()),
                losses=tuple(np.asarray(loss, dtype=np.float64).tolist()),
            )
        )
    return counted


def join_outcomes(audited: Sequence[EvidenceRows], outcomes: pd.DataFrame) -> pd.DataFrame:
    """The outcomes of audited rows, one row per draw, with the draw's ``probability``, ``weight`` and ``cluster_id``.

    :param outcomes: ``observation_id, known_at`` and any further columns, each observation once.
    """
    draws = pd.DataFrame(
        [
            (observation_id, probability, weight, f"{number}/{cluster}")
            for number, step in enumerate(audited)
            for observation_id, probability, weight, cluster in zip(
                step.observation_ids, step.probabilities, step.sampling_weights, step.cluster_ids, strict=True
            )
        ],
        columns=["observation_id", "probability", "weight", "cluster_id"],
    )
    return draws.merge(outcomes, on="observation_id", how="inner")


def count_outcomes(state: EvidenceStep, outcomes: pd.DataFrame, steps: Sequence[Span]) -> list[EvidenceRows]:
    """Add the losses on outcomes to the evidence, each in the step in which its outcome became known.

    The rows are not stored with the step: the table of outcomes says when each one became known.

    :param outcomes: ``observation_id, known_at, loss`` (0…1), ``weight`` and ``cluster_id``: the losses of one cluster
        that become known in the same step are one bet, on their weighted mean.
    """
    counted = []
    for start, end in steps:
        in_step = outcomes[(outcomes["known_at"] >= start) & (outcomes["known_at"] < end)]
        means = (in_step["loss"] * in_step["weight"]).groupby(in_step["cluster_id"], sort=False).mean().to_numpy()
        state = evidence.advance(state, means, start=start, end=end, rows=in_step["observation_id"].nunique())
        counted.append(EvidenceRows(step=state))
    return counted


def assign_clusters(rows: pd.DataFrame, cluster: timedelta) -> pd.DataFrame:
    """The rows with weight 1 and, as ``cluster_id``, the interval of length ``cluster`` in which each was observed.

    :param cluster: zero: each row is a cluster of its own.
    """
    return rows.assign(weight=1.0, cluster_id=cluster_ids(rows["observed_at"], cluster))


def skip_steps(state: EvidenceStep, steps: Sequence[Span]) -> list[EvidenceRows]:
    """Advance over the steps of a refused window: none of its rows is counted."""
    if not steps:
        return []
    return [EvidenceRows(step=evidence.advance(state, np.empty(0), start=steps[0][0], end=steps[-1][1], rows=0))]


def measure_audit_losses(
    plans: Sequence[AuditPlan], student: Callable[[pd.DataFrame], Array], teacher: Callable[[pd.DataFrame], Array]
) -> list[Array]:
    """Total variation between teacher and student, 0…1, for each plan a float64 ``[draws]``.

    :param student: rows → probabilities ``[n, K]``.
    :param teacher: likewise; it is called once for all steps.
    """
    drawn_by_step = [plan.drawn for plan in plans]
    drawn = pd.concat(drawn_by_step, ignore_index=True) if drawn_by_step else pd.DataFrame()
    if drawn.empty:
        return [np.empty(0) for _ in plans]
    distance = total_variation(teacher(drawn), student(drawn))
    return np.split(distance, np.cumsum([len(rows) for rows in drawn_by_step])[:-1])
