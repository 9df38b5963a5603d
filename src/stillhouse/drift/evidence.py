"""Evidence that a loss has risen: it accumulates step by step and may be inspected after every step.

An e-detector (Shin, Ramdas & Rinaldo 2024, "E-detectors: a nonparametric framework for sequential change
detection", §3) of the Shiryaev–Roberts kind, built from bets on bounded means (Waudby-Smith & Ramdas 2024,
"Estimating means of bounded random variables by betting"; for monitoring a model's risk: Podkopaev & Ramdas 2022,
"Tracking the risk of a deployed model and detecting harmful distribution shifts").

**One process.** The observations of step ``t`` are the mean losses ``Y ≥ 0`` of its clusters of rows. Under the null
they have, given all earlier steps, a mean of at most ``m_t``. A bet of size ``λ`` in ``(0, 1/m_t)`` multiplies its
stake by ``1 + λ(Y − m_t)``; all clusters of the step together multiply it by ``E_t``, whose mean given the past is at
most 1. A new stake of 1 is added at every step:

    R_t = (1 + R_{t−1}) · E_t ,   R_0 = 0 .

So ``R_t − t`` is a supermartingale under the null. The mean of several bets has the same property.

**One budget for all processes of an agent.** With shares ``w_k`` that sum to 1, ``R = Σ w_k R^k`` is such a statistic
again, however the processes depend on each other. The alarm is raised when ``R ≥ A``, and all processes restart. With
``N_t``, the number of alarms so far, ``A·N_t + R_t − t`` is a supermartingale too (an alarm removes at least ``A`` from
``R``), so

    E[N_t] ≤ t / A   for every t:

on average at most one false alarm in ``A`` steps, over any period and not only until the first alarm. ``R`` reaches
``A`` no later than one of the processes alone reaches ``A / w_k``; therefore the budget is not split.

**Dependent steps.** If step means fluctuate by themselves, the mean of a step given the past is not ``m₀``. Let it be
``μ + x_t`` with ``μ ≤ m₀`` and ``x`` autoregressive with a coefficient ``φ`` in 0…½, observed with the noise of the
clusters. The expectation of ``x_t`` given the past, ``P_t``, follows the filter ``P_{t+1} = φ((1−K_t) P_t + K_t (Ȳ_t −
μ))`` with a gain ``K_t`` in 0…1 (exact where the posterior mean is linear: Gaussian and conjugate families), and ``φK``
is at most the autocorrelation ``ρ`` of the means of neighbouring steps. By induction ``μ + P_t ≤ m₀ + B_t`` for

    B_{t+1} = B_t/2 + ρ · max(0, Ȳ_t − m₀ − B_t) ,

because the weights sum to at most ½, of which at most ρ is on the newest excess. So ``m_t = m₀ + B_t``, with ``ρ``
estimated on the history, and ½ where the history is too short. The clusters of one step share the innovation of its
mean, of standard deviation ``σ``: given the past, ``E[(1 + λ(μ_t − m_t))^U] ≤ exp(U²λ²σ²/2)`` if it is sub-Gaussian,
and ``E_t`` is divided by this bound. Where ``σ`` is not known, the step is one bet, on its mean, which needs no such
bound.

The guarantee does not cover a coefficient above ½, nor fluctuations that the history behind ``ρ`` and ``σ`` has not
shown (both are 95 % bounds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from stillhouse.records import EvidenceStep, LossBaseline, Process
from stillhouse.stats import LARGEST_AUTOCORRELATION

__all__ = [
    "accumulate",
    "advance",
    "bet_means",
    "bet_sizes",
    "continue_or_restart",
    "count_bets",
    "estimate_null_mean",
    "joint_evidence",
    "next_excess",
    "start",
]

BET_COUNT = 12
SMALLEST_BET, LARGEST_BET_SHARE = 0.05, 0.95  # λ; and the largest λ as a share of 1/m₀
SMALLEST_NULL_MEAN, LARGEST_NULL_MEAN = 1e-3, 0.99
LOG_OF_ZERO = math.log(np.finfo(np.float64).tiny)
"""Stands for the logarithm of a statistic of 0: 1 + exp(it) is 1, and it is finite, because JSON has no −∞."""

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
    """The state of a process before its first step: no evidence.

    >>> from datetime import UTC, timedelta
    >>> begin, hour = datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)
    >>> state = start("disagreement", "toy@1", since=begin, null_mean=0.1, average_run_length=100)
    >>> for i in range(3):
    ...     losses = np.full(10, 0.6)
    ...     state = advance(state, losses, start=begin + i * hour, end=begin + (i + 1) * hour, rows=10)
    >>> state.looks, state.rows, state.alarm
    (3, 30, True)

    :param champion: name@version of the watched model.
    :param null_mean: largest mean loss under the null, ``m₀`` within 0…1; see :func:`estimate_null_mean`.
    :param average_run_length: guaranteed average number of steps between false alarms of the agent, ≥ 1.
    :param share: this process's share of the agent's budget, within (0, 1]; the shares of its processes sum to 1.
    :param autocorrelation: of the means of neighbouring steps, 0…½; 0: steps are independent; None: not known, ½.
    :param step_deviation: standard deviation of what the clusters of a step have in common; 0: nothing; None: not
        known, each step is one bet.
    :param excess: expected excess of the first step's mean over ``null_mean``: that of the previous state, if there is
        one, because an alarm is raised when losses are high, and the next step may be high too.
    :raises ValueError: if an argument is out of its range.
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
        clusters=0,
        null_mean=null_mean,
        log_bets=(LOG_OF_ZERO,) * BET_COUNT,
        log_evidence=LOG_OF_ZERO,
        log_threshold=math.log(average_run_length) - math.log(share),
        share=share,
        autocorrelation=LARGEST_AUTOCORRELATION if autocorrelation is None else autocorrelation,
        step_deviation=step_deviation,
        excess=excess,
    )


def advance(state: EvidenceStep, cluster_losses: Array, *, start: datetime, end: datetime, rows: int) -> EvidenceStep:
    """The next step of evidence. It depends on ``state`` and the losses only, so a restart gives the same step.

    :param cluster_losses: mean loss of each cluster of rows, float64 ``[U]`` ≥ 0. Without any, the evidence does not
        change and the step is not counted in ``looks``.
    :param start: start of the step, not before the end of the previous one.
    :param end: end of the step, after its start.
    :param rows: distinct rows in the clusters.
    :raises ValueError: if a loss is negative or not finite, or the step does not follow the previous one.
    """
    cluster_losses = np.asarray(cluster_losses, dtype=np.float64).ravel()
    if not np.all(np.isfinite(cluster_losses) & (cluster_losses >= 0)):
        raise ValueError(f"{state.process}: the losses of the clusters must be finite and not negative")
    if start < state.end or end <= start:
        raise ValueError(
            f"{state.process}: the step [{start}, {end}) must begin at {state.end} or later and have a length: "
            f"no rows may be counted twice"
        )
    log_bets, mean = np.array(state.log_bets), float(cluster_losses.mean()) if len(cluster_losses) else None
    if len(cluster_losses):
        bets = count_bets(len(cluster_losses), state.null_mean, state.step_deviation)
        means = bet_means(cluster_losses, bets)
        log_bets = accumulate(log_bets, means, state.null_mean + state.excess, state.step_deviation or 0.0)
    return state.model_copy(
        update={
            "start": start,
            "end": end,
            "looks": state.looks + bool(len(cluster_losses)),
            "rows": state.rows + rows,
            "step_rows": rows,
            "clusters": len(cluster_losses),
            "mean": mean,
            "log_bets": tuple(log_bets.tolist()),
            "log_evidence": float(np.logaddexp.reduce(log_bets) - math.log(len(log_bets))),
            "excess": float(next_excess(state.excess, mean, state.null_mean, state.autocorrelation)),
        }
    )


def joint_evidence(steps: Sequence[EvidenceStep]) -> tuple[float, float] | None:
    """Logarithms of the agent's evidence, ``Σ w_k R^k``, and of its threshold; None if no step has a share."""
    shares = [(step, step.share) for step in steps if step.share is not None]
    if not shares:
        return None
    evidence = np.logaddexp.reduce([step.log_evidence + math.log(share) for step, share in shares])
    return float(evidence), max(step.log_threshold + math.log(share) for step, share in shares)


def continue_or_restart(last: EvidenceStep | None, fresh: EvidenceStep, closed: datetime | None) -> EvidenceStep:
    """``last`` if it has the champion and the parameters of ``fresh`` and no alarm was closed since; else ``fresh``.

    Evidence under other parameters does not count. A restarted process keeps the expected excess of the next step.

    :param fresh: the state before the first step.
    :param closed: when the last refresh was judged (promoted or refused): that closed the alarm, if there was one.
    """
    if last is None:
        return fresh
    parameters = ("champion", "null_mean", "log_threshold", "share", "autocorrelation", "step_deviation")
    same = all(getattr(last, name) == getattr(fresh, name) for name in parameters)
    if same and (closed is None or last.since >= closed):
        return last
    return fresh.model_copy(update={"excess": last.excess})


def bet_sizes(null_mean: Array | float) -> Array:
    """The bet sizes λ, float64 ``[…, B]``: twelve from 0.05 to 0.95/m₀ in equal ratios, all with the same weight.

    The best bet on a rise by ``δ`` of a loss with variance ``v`` is about ``δ / (v + δ²)``: 0.05 for a rise by .01 of
    the most variable loss within 0…1, and up to ``1/m₀`` for a loss that becomes large. Between two neighbouring sizes
    the loss is small (at a ratio of 1.7 at most 7 % of the growth).
    """
    sizes: Array = np.geomspace(
        SMALLEST_BET, LARGEST_BET_SHARE / np.asarray(null_mean, dtype=np.float64), BET_COUNT, axis=-1
    )
    return sizes


def estimate_null_mean(baseline: LossBaseline, tolerance: float) -> float:
    """The largest mean loss under the null: the usual loss while the champion was known to be good, plus a tolerance.

    The usual loss is the upper end of the baseline's mean (two standard errors above it), or the mean of the worse time
    blocks if that is larger: losses fluctuate by themselves (hours, weekdays), and the null must hold at each step, not
    on average over the year. The result is kept within .001 … .99: a baseline without any loss does not prove that
    there is never one, and a mean of 1 could not be exceeded.

    >>> baseline = LossBaseline(mean=0.1, standard_error=0.01, rows=900, clusters=90, usual=0.125)
    >>> estimate_null_mean(baseline, tolerance=0.125)
    0.25

    :param tolerance: tolerated rise of the mean loss, 0…1.
    """
    usual = max(baseline.mean + 2 * baseline.standard_error, baseline.usual)
    return min(max(usual + tolerance, SMALLEST_NULL_MEAN), LARGEST_NULL_MEAN)


def next_excess(
    excess: Array | float, mean: Array | float | None, null_mean: Array | float, rho: Array | float
) -> Array:
    """``B_{t+1}`` from ``B_t`` and the mean of a step's clusters, all ``[…]``; without clusters it decays."""
    excess = np.asarray(excess, dtype=np.float64)
    newest = 0.0 if mean is None else np.maximum(0.0, np.asarray(mean) - null_mean - excess)
    result: Array = LARGEST_AUTOCORRELATION * excess + rho * newest
    return result


def count_bets(clusters: int, null_mean: float, step_deviation: float | None) -> int:
    """The number of bets of a step; each bet is on the mean loss of some neighbouring clusters.

    More than ``m₀/σ²`` bets gain nothing: the variance that they share grows with the square of their number.

    :param step_deviation: σ, standard deviation of what the clusters have in common; 0: nothing; None: not known, the
        step is one bet.
    """
    if step_deviation is None:
        return 1
    return min(clusters, math.ceil(null_mean / step_deviation**2)) if step_deviation else clusters


def bet_means(cluster_losses: Array, bets: int) -> Array:
    """Mean loss of the clusters of each bet, as many in each ± 1: float64 ``[…, U]`` to ``[…, G]``."""
    count = cluster_losses.shape[-1]
    if bets >= count:
        return cluster_losses
    bounds = np.arange(bets + 1) * count // bets
    means: Array = np.add.reduceat(cluster_losses, bounds[:-1], axis=-1) / np.diff(bounds)
    return means


def accumulate(log_bets: Array, losses: Array, null_mean: Array | float, step_deviation: Array | float = 0.0) -> Array:
    """``log R_t`` of each bet size from ``log R_{t−1}``, both float64 ``[…, B]``.

    Leading axes are parallel processes, each with its own ``null_mean`` ``m_t`` ``[…]``.

    :param losses: what the step bets on, the mean loss of the clusters of each bet, ``[…, G]``.
    :param step_deviation: σ, standard deviation of what the bets have in common, ``[…]``; not used for a single
        bet.
    """
    null = np.asarray(null_mean, dtype=np.float64)
    sizes = bet_sizes(null)
    log_factors = np.log1p(sizes[..., None] * (losses - null[..., None])[..., None, :]).sum(axis=-1)
    if losses.shape[-1] > 1:
        common = np.asarray(step_deviation, dtype=np.float64)[..., None]
        log_factors = log_factors - 0.5 * (losses.shape[-1] * common * sizes) ** 2
    result: Array = np.logaddexp(0.0, log_bets) + log_factors
    return result
