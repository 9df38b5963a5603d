"""Evidence that a loss has risen: it accumulates look by look, and may be looked at as often as one likes.

An e-detector (Shin, Ramdas & Rinaldo 2024, "E-detectors: a nonparametric framework for sequential change
detection", §3) of the Shiryaev–Roberts kind, built from bets on bounded means (Waudby-Smith & Ramdas 2024,
"Estimating means of bounded random variables by betting"; for watching a model's risk: Podkopaev & Ramdas 2022,
"Tracking the risk of a deployed model and detecting harmful distribution shifts").

**One process.** Under the null the units of evidence ``Y ≥ 0`` of look ``t`` have, given all looks before it, a mean of
at most ``m_t``. A bet of ``λ`` in ``(0, 1/m_t)`` multiplies its stake by ``1 + λ(Y − m_t)``; all units of the look
together multiply it by ``E_t``, whose mean given the past is at most 1. A new stake of 1 is put in at every look:

    R_t = (1 + R_{t−1}) · E_t ,   R_0 = 0 .

So ``R_t − t`` falls on average while nothing is wrong. The mean of several bets keeps that.

**One budget for all processes of an agent.** With shares ``w_k`` that add up to 1, ``R = Σ w_k R^k`` is such a
statistic again, however the processes depend on each other: ``R_t − t`` is a supermartingale. The alarm is raised
when ``R ≥ A``, and every process begins anew. Then ``A·N_t + R_t − t``, with ``N_t`` the alarms so far, is a
supermartingale too (an alarm takes away at least ``A`` from ``R``), so that

    E[N_t] ≤ t / A   for every t:

on average no more than one false alarm in ``A`` looks, over any stretch of time and not only until the first alarm. The
mean reaches ``A`` no later than a part of it reaches ``A / w_k``, which is why the budget is not split.

**Steps that hang together.** With step means that go up and down by themselves, the mean of a step given the past is
not ``m₀``. Let it be ``μ + x_t``, ``μ ≤ m₀``, with ``x`` autoregressive, of a coefficient ``φ`` in 0…½, and seen
through the noise of the units. What is to be expected of ``x_t``, ``P_t``, follows the filter ``P_{t+1} = φ((1−K_t) P_t
+ K_t (Ȳ_t − μ))`` with a gain ``K_t`` in 0…1 (exact where the posterior mean is linear: Gaussian and conjugate
families), and ``φK`` is at most the autocorrelation ``ρ`` of the means of neighbouring steps. By induction
``μ + P_t ≤ m₀ + B_t`` for

    B_{t+1} = B_t/2 + ρ · max(0, Ȳ_t − m₀ − B_t) ,

because a weight of at most ½ in all, of which at most ρ on the newest excess, can do no more. So ``m_t = m₀ + B_t``,
``ρ`` from the history, and ½ where that cannot tell. The units of one step share what is new in its mean, of standard
deviation ``σ``: given the past, ``E[(1 + λ(μ_t − m_t))^U] ≤ exp(U²λ²σ²/2)`` for a sub-Gaussian one, by which ``E_t`` is
divided. Where ``σ`` is not known the step is one bet, on its mean, which needs no such bound.

Outside the promise lie a coefficient above ½, and swings such as the history that ``ρ`` and ``σ`` come from has not
shown (both are 95 % bounds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from stillhouse.records import EvidenceStep, LossBaseline, Process

__all__ = [
    "accumulate",
    "advance",
    "bets",
    "continued",
    "grouped",
    "groups",
    "joint",
    "next_excess",
    "null_mean",
    "start",
]

BETS = 12
SMALLEST_BET, LARGEST_SHARE = 0.05, 0.95
SMALLEST_NULL, LARGEST_NULL = 1e-3, 0.99
LARGEST_AUTOCORRELATION = 0.5
NOTHING = math.log(np.finfo(np.float64).tiny)
"""Logarithm of a statistic of 0: so small that 1 + it is 1, and finite, because JSON has no −∞."""

Array = np.ndarray[Any, Any]


def start(
    process: Process,
    champion: str,
    *,
    since: datetime,
    null_mean: float,
    average_run_length: float,
    share: float = 1.0,
    autocorrelation: float | None = 0.0,
    step_deviation: float | None = 0.0,
    excess: float = 0.0,
) -> EvidenceStep:
    """The state before the first look: no evidence.

    :param champion: name@version of the model that is watched.
    :param null_mean: mean loss that is still no harm, ``m₀`` within 0…1; see :func:`null_mean`.
    :param average_run_length: looks to a false alarm of the agent that are promised on average, ≥ 1.
    :param share: this process's part in the agent's budget, within (0, 1]; those of its processes add up to 1.
    :param autocorrelation: of the means of neighbouring steps, 0…½; 0: steps are independent; None: not known, ½.
    :param step_deviation: what the units of a step may have in common, a standard deviation; 0: nothing; None: not
        known, each step is one bet.
    :param excess: what is to be expected of the first step beyond ``null_mean``: that of the state before, if there is
        one, for an alarm comes when losses are high, and so may be what follows it.
    :raises ValueError: if one of them is out of its range.
    """
    if not 0 < null_mean < 1:
        raise ValueError(f"null_mean: must be more than 0 and less than 1, not {null_mean}")
    if not 1 <= average_run_length < math.inf:
        raise ValueError(f"average_run_length: must be at least 1 and finite, not {average_run_length}")
    if not 0 < share <= 1:
        raise ValueError(f"share: must be more than 0 and at most 1, not {share}")
    return EvidenceStep(
        process=process,
        champion=champion,
        since=since,
        start=since,
        end=since,
        looks=0,
        rows=0,
        step_rows=0,
        units=0,
        null_mean=null_mean,
        log_bets=(NOTHING,) * BETS,
        log_evidence=NOTHING,
        log_threshold=math.log(average_run_length) - math.log(share),
        share=share,
        autocorrelation=LARGEST_AUTOCORRELATION if autocorrelation is None else autocorrelation,
        step_deviation=step_deviation,
        excess=excess,
    )


def advance(state: EvidenceStep, units: Array, *, start: datetime, end: datetime, rows: int) -> EvidenceStep:
    """The next step of evidence, from ``state`` alone: the same units make the same step, after any restart.

    :param units: float64 ``[U]``, each ≥ 0. Without units the evidence stays as it is, and the step is no look.
    :param start: of the step, no sooner than the end of the one before.
    :param end: of the step, later than its start.
    :param rows: distinct rows that the units were made of.
    :raises ValueError: if units are negative or not finite, or the step does not follow on the last one.
    """
    units = np.asarray(units, dtype=np.float64).ravel()
    if not np.all(np.isfinite(units) & (units >= 0)):
        raise ValueError(f"{state.process}: units of evidence must be finite and not negative")
    if start < state.end or end <= start:
        raise ValueError(
            f"{state.process}: the step [{start}, {end}) must come after {state.end} and have a length: "
            f"what was counted once is not counted again"
        )
    log_bets, mean = np.array(state.log_bets), float(units.mean()) if len(units) else None
    if len(units):
        means = grouped(units, groups(len(units), state.null_mean, state.step_deviation))
        log_bets = accumulate(log_bets, means, state.null_mean + state.excess, state.step_deviation or 0.0)
    return state.model_copy(
        update={
            "start": start,
            "end": end,
            "looks": state.looks + bool(len(units)),
            "rows": state.rows + rows,
            "step_rows": rows,
            "units": len(units),
            "mean": mean,
            "log_bets": tuple(log_bets.tolist()),
            "log_evidence": float(np.logaddexp.reduce(log_bets) - math.log(len(log_bets))),
            "excess": float(next_excess(state.excess, mean, state.null_mean, state.autocorrelation)),
        }
    )


def joint(steps: Sequence[EvidenceStep]) -> tuple[float, float] | None:
    """Logarithms of the agent's evidence, ``Σ w_k R^k``, and of its threshold; None where no step has a share."""
    shared = [(step, step.share) for step in steps if step.share is not None]
    if not shared:
        return None
    evidence = np.logaddexp.reduce([step.log_evidence + math.log(share) for step, share in shared])
    return float(evidence), max(step.log_threshold + math.log(share) for step, share in shared)


def continued(last: EvidenceStep | None, begun: EvidenceStep, closed: datetime | None) -> EvidenceStep:
    """``last`` if it is about the same champion under the same promise, with no alarm closed since; else ``begun``.

    What was gathered under one promise says nothing about another. One that begins anew takes over what is to be
    expected of the next step.

    :param closed: when the last refresh was judged, promoted or refused: it has closed the alarm, if there was one.
    """
    if last is None:
        return begun
    promise = ("champion", "null_mean", "log_threshold", "share", "autocorrelation", "step_deviation")
    same = all(getattr(last, name) == getattr(begun, name) for name in promise)
    if same and (closed is None or last.since >= closed):
        return last
    return begun.model_copy(update={"excess": last.excess})


def bets(null_mean: Array | float) -> Array:
    """The bets λ, float64 ``[…, B]``: twelve from 0.05 to 0.95/m₀ in equal ratios, each with the same weight.

    The best bet on a rise by ``δ`` of a loss with variance ``v`` is about ``δ / (v + δ²)``: 0.05 for a rise by
    .01 of the most variable loss within 0…1, and up to ``1/m₀`` for a loss that becomes large. Between two
    neighbours little is lost (at a ratio of 1.7 at most 7 % of the growth).
    """
    found: Array = np.geomspace(SMALLEST_BET, LARGEST_SHARE / np.asarray(null_mean, dtype=np.float64), BETS, axis=-1)
    return found


def null_mean(baseline: LossBaseline, tolerance: float) -> float:
    """The mean loss that is still no harm: what was usual while the champion was known to be good, and a tolerance.

    What was usual is the upper end of what the baseline's mean may be (two standard errors above it), or the mean of
    its worse stretches if that is more: losses swing by themselves (hours, weekdays), and the null must hold at
    each look, not on average over the year. Kept within .001 … .99: no loss at all in some rows is no proof that
    there is never one, and a mean of 1 could not be exceeded.

    :param tolerance: rise of the mean loss that is no harm, 0…1.
    """
    usual = max(baseline.mean + 2 * baseline.standard_error, baseline.usual)
    return min(max(usual + tolerance, SMALLEST_NULL), LARGEST_NULL)


def next_excess(
    excess: Array | float, mean: Array | float | None, null_mean: Array | float, rho: Array | float
) -> Array:
    """``B_{t+1}`` from ``B_t`` and the mean of a look's units, all ``[…]``; without units it fades."""
    excess = np.asarray(excess, dtype=np.float64)
    beyond = 0.0 if mean is None else np.maximum(0.0, np.asarray(mean) - null_mean - excess)
    found: Array = LARGEST_AUTOCORRELATION * excess + rho * beyond
    return found


def groups(units: int, null_mean: float, step_deviation: float | None) -> int:
    """On how many groups of its ``units`` a look bets.

    More than ``m₀/σ²`` bets gain nothing: what they have in common weighs with the square of their number.

    :param step_deviation: σ, what the units may have in common; 0: nothing, None: not known, the look is one bet.
    """
    if step_deviation is None:
        return 1
    return min(units, math.ceil(null_mean / step_deviation**2)) if step_deviation else units


def grouped(units: Array, groups: int) -> Array:
    """Means of so many groups of neighbouring ones of the units ``[…, U]``, alike in size ± 1: float64 ``[…, G]``."""
    count = units.shape[-1]
    if groups >= count:
        return units
    bounds = np.arange(groups + 1) * count // groups
    means: Array = np.add.reduceat(units, bounds[:-1], axis=-1) / np.diff(bounds)
    return means


def accumulate(log_bets: Array, units: Array, null_mean: Array | float, step_deviation: Array | float = 0.0) -> Array:
    """``log R_t`` of each bet from ``log R_{t−1}``, float64 ``[…, B]``, and what is bet on in a look, ``[…, G]``.

    Leading axes are processes side by side, each with its own ``null_mean``, ``m_t`` ``[…]``.

    :param step_deviation: σ, what the units may have in common, ``[…]``; of no account for a single one.
    """
    null = np.asarray(null_mean, dtype=np.float64)
    stakes = bets(null)
    log_factors = np.log1p(stakes[..., None] * (units - null[..., None])[..., None, :]).sum(axis=-1)
    if units.shape[-1] > 1:
        common = np.asarray(step_deviation, dtype=np.float64)[..., None]
        log_factors = log_factors - 0.5 * (units.shape[-1] * common * stakes) ** 2
    found: Array = np.logaddexp(0.0, log_bets) + log_factors
    return found
