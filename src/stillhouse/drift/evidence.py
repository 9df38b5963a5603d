"""Evidence that a loss has risen: it accumulates look by look, and may be looked at as often as one likes.

An e-detector (Shin, Ramdas & Rinaldo 2024, "E-detectors: a nonparametric framework for sequential change
detection", §3) of the Shiryaev–Roberts kind, built from bets on bounded means (Waudby-Smith & Ramdas 2024,
"Estimating means of bounded random variables by betting"; for watching a model's risk: Podkopaev & Ramdas 2022,
"Tracking the risk of a deployed model and detecting harmful distribution shifts").

Under the null every unit of evidence ``Y ≥ 0`` has, given all before it, a mean of at most ``m₀``. A bet of
``λ`` in ``(0, 1/m₀)`` multiplies its stake by ``1 + λ(Y − m₀)``, on average by at most 1. All units of look ``t``
together multiply it by ``E_t``. A new stake of 1 is put in at every look:

    R_t = (1 + R_{t−1}) · E_t ,   R_0 = 0 .

So ``R_t − t`` falls on average while nothing is wrong, and ``R`` reaches ``A`` no sooner than after ``A`` looks on
average (optional stopping): the average run length to a false alarm is at least ``A`` looks, whatever the losses'
distribution, and whatever made somebody look. The mean of several bets keeps the promise.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import numpy as np

from stillhouse.records import EvidenceStep, LossBaseline, Process

__all__ = ["accumulate", "advance", "bets", "null_mean", "start"]

BETS = 12
SMALLEST_BET, LARGEST_SHARE = 0.05, 0.95
SMALLEST_NULL, LARGEST_NULL = 1e-3, 0.99
NOTHING = math.log(np.finfo(np.float64).tiny)
"""Logarithm of a statistic of 0: so small that 1 + it is 1, and finite, because JSON has no −∞."""

Array = np.ndarray[Any, Any]


def start(
    process: Process, champion: str, *, since: datetime, null_mean: float, average_run_length: float
) -> EvidenceStep:
    """The state before the first look: no evidence.

    :param champion: name@version of the model that is watched.
    :param null_mean: mean loss that is still no harm, ``m₀`` within 0…1; see :func:`null_mean`.
    :param average_run_length: looks to a false alarm that are promised on average, ≥ 1.
    :raises ValueError: if one of them is out of its range.
    """
    if not 0 < null_mean < 1:
        raise ValueError(f"null_mean: must be more than 0 and less than 1, not {null_mean}")
    if not 1 <= average_run_length < math.inf:
        raise ValueError(f"average_run_length: must be at least 1 and finite, not {average_run_length}")
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
        log_threshold=math.log(average_run_length),
    )


def advance(state: EvidenceStep, units: Array, *, start: datetime, end: datetime, rows: int) -> EvidenceStep:
    """The next step of evidence, from ``state`` alone: the same units make the same step, after any restart.

    :param units: float64 ``[U]``, each ≥ 0 and, under the null and given all before it, of mean ≤
        ``state.null_mean``. Without units the evidence stays as it is, and the step is no look.
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
    log_bets = np.array(state.log_bets)
    if len(units):
        log_bets = accumulate(log_bets, units, state.null_mean)
    return state.model_copy(
        update={
            "start": start,
            "end": end,
            "looks": state.looks + bool(len(units)),
            "rows": state.rows + rows,
            "step_rows": rows,
            "units": len(units),
            "mean": float(units.mean()) if len(units) else None,
            "log_bets": tuple(log_bets.tolist()),
            "log_evidence": float(np.logaddexp.reduce(log_bets) - math.log(len(log_bets))),
        }
    )


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


def accumulate(log_bets: Array, units: Array, null_mean: Array | float) -> Array:
    """``log R_t`` of each bet from ``log R_{t−1}``, float64 ``[…, B]``, and one look's units, ``[…, U]``.

    Leading axes are processes side by side, each with its own ``null_mean`` ``[…]``.
    """
    null = np.asarray(null_mean, dtype=np.float64)[..., None]
    log_factors = np.log1p(bets(null_mean)[..., None] * (units - null)[..., None, :]).sum(axis=-1)
    found: Array = np.logaddexp(0.0, log_bets) + log_factors
    return found
