"""From observations and outcomes to evidence, step by step: which rows are audited, and what each step counts.

A step is ``watch.every`` of the agent's life, however often a watch runs: one that comes late catches up, one that is
repeated finds nothing left to do. So the promised average run length holds whatever the schedule does.
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
    "Planned",
    "Span",
    "arrivals",
    "audited_losses",
    "by_cluster",
    "complete_steps",
    "count_audit",
    "count_outcomes",
    "pass_over",
    "plan_audit",
]

Array = np.ndarray[Any, Any]
Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class Planned:
    """The audit of one step: its observations, in time's order, and the draws among them."""

    span: Span
    rows: pd.DataFrame
    draws: Draws

    @property
    def drawn(self) -> pd.DataFrame:
        """The drawn observations, one row per draw."""
        return self.rows.iloc[self.draws.rows]

    def only(self, content_keys: pd.Series[str]) -> Planned:
        """The same without the draws of other contents: those that a teacher gave no answer to.

        A unit's mean is then that of its other draws, which is unbiased where answers fail by chance.
        """
        kept = self.drawn["content_key"].isin(content_keys).to_numpy()
        unit = np.unique(self.draws.unit[kept], return_inverse=True)[1]
        draws = Draws(self.draws.rows[kept], unit, self.draws.probability[kept], self.draws.weight[kept])
        return Planned(self.span, self.rows, draws)


def complete_steps(start: datetime, until: datetime, every: timedelta) -> list[Span]:
    """The whole steps ``[start, start + every), …`` that have ended by ``until``."""
    return [(start + i * every, start + (i + 1) * every) for i in range(max(0, (until - start) // every))]


def plan_audit(
    rows: pd.DataFrame, scores: Array, steps: Sequence[Span], watch: Watch, cluster: timedelta, key: str
) -> list[Planned]:
    """Draw the rows to be audited in each of ``steps``; the same rows and key give the same draws.

    :param rows: observations ordered by ``observed_at``, covering the steps.
    :param scores: float ``[len(rows)]`` ≥ 0, where to look (:func:`stillhouse.drift.audit.scores`).
    :param cluster: rows observed in the same such stretch are one piece of evidence.
    :param key: what the draws are seeded by beside the step's start.
    """
    times = nanoseconds(rows["observed_at"])
    planned = []
    for start, end in steps:
        first, last = np.searchsorted(times, [pd.Timestamp(start).value, pd.Timestamp(end).value])
        chosen = rows.iloc[first:last]
        strata = cluster_ids(times[first:last], cluster) if cluster else None
        seed = int(short_id(key, start.isoformat()), 16)
        draws = audit.plan(scores[first:last], strata, watch.audit.rows, watch.audit.uniform_share, seed)
        planned.append(Planned((start, end), chosen, draws))
    return planned


def count_audit(state: EvidenceStep, planned: Sequence[Planned], losses: Sequence[Array]) -> list[EvidenceRows]:
    """Let the evidence take in the audited steps; ``losses`` has one float ``[draws]`` in 0…1 for each."""
    counted = []
    for plan, loss in zip(planned, losses, strict=True):
        ids = plan.drawn["observation_id"].tolist()
        units = audit.unit_means(plan.draws, loss)
        state = evidence.advance(state, units, start=plan.span[0], end=plan.span[1], rows=len(set(ids)))
        counted.append(
            EvidenceRows(
                step=state,
                observation_ids=tuple(ids),
                units=tuple(plan.draws.unit.tolist()),
                probabilities=tuple(plan.draws.probability.tolist()),
                weights=tuple(plan.draws.weight.tolist()),
                losses=tuple(np.asarray(loss, dtype=np.float64).tolist()),
            )
        )
    return counted


def arrivals(audited: Sequence[EvidenceRows], known: pd.DataFrame) -> pd.DataFrame:
    """Outcomes of audited rows, one row per draw: ``known`` joined with the draw's weight, probability and unit.

    :param known: ``observation_id, known_at`` and whatever else is to be kept, each observation once.
    """
    draws = pd.DataFrame(
        [
            (name, probability, weight, f"{number}/{unit}")
            for number, each in enumerate(audited)
            for name, probability, weight, unit in zip(
                each.observation_ids, each.probabilities, each.weights, each.units, strict=True
            )
        ],
        columns=["observation_id", "probability", "weight", "unit"],
    )
    return draws.merge(known, on="observation_id", how="inner")


def count_outcomes(state: EvidenceStep, arrived: pd.DataFrame, steps: Sequence[Span]) -> list[EvidenceRows]:
    """Let the evidence take in outcomes in the steps in which they became known.

    The rows are not kept with the step: which outcomes became known in it, the table of outcomes says.

    :param arrived: ``observation_id, known_at, loss`` (0…1), ``weight`` and ``unit``: losses of one unit that arrive in
        one step are one bet, their weighted mean.
    """
    counted = []
    for start, end in steps:
        now = arrived[(arrived["known_at"] >= start) & (arrived["known_at"] < end)]
        units = (now["loss"] * now["weight"]).groupby(now["unit"], sort=False).mean().to_numpy()
        state = evidence.advance(state, units, start=start, end=end, rows=now["observation_id"].nunique())
        counted.append(EvidenceRows(step=state))
    return counted


def by_cluster(rows: pd.DataFrame, cluster: timedelta) -> pd.DataFrame:
    """Rows with weight 1, and as their unit the stretch of ``cluster`` that they were observed in; zero: their own."""
    return rows.assign(weight=1.0, unit=cluster_ids(rows["observed_at"], cluster))


def pass_over(state: EvidenceStep, steps: Sequence[Span]) -> list[EvidenceRows]:
    """Steps of a window that was refused: nothing in them counts, for or against."""
    if not steps:
        return []
    return [EvidenceRows(step=evidence.advance(state, np.empty(0), start=steps[0][0], end=steps[-1][1], rows=0))]


def audited_losses(
    planned: Sequence[Planned], student: Callable[[pd.DataFrame], Array], teacher: Callable[[pd.DataFrame], Array]
) -> list[Array]:
    """Total variation between teacher and student on every draw; the teacher is asked once for all steps."""
    drawn = [plan.drawn for plan in planned]
    together = pd.concat(drawn, ignore_index=True) if drawn else pd.DataFrame()
    if together.empty:
        return [np.empty(0) for _ in planned]
    distance = total_variation(teacher(together), student(together))
    return np.split(distance, np.cumsum([len(each) for each in drawn])[:-1])
