"""Evidence that answers disagree more often than allowed; it may be inspected after every row.

An e-detector of the Shiryaev–Roberts kind (Shin, Ramdas and Rinaldo 2024, "E-detectors: a nonparametric framework for
sequential change detection", §3), as in :mod:`stillhouse.drift.evidence`, of single rows with losses of 0 or 1. Under
the null a row disagrees with a probability of at most ``m`` given all earlier rows. A bet on the probability ``p > m``
multiplies its stake by ``p/m`` after a disagreement and by ``(1 − p)/(1 − m)`` otherwise; a stake of 1 is added at
every row. On average there is at most one false alarm in ``A`` rows, where the mean of the bets must reach ``A``.

Two nulls are watched. That of the **promise**: audited rows that the student would answer, ``m = 1 − agreement``. And
that of the **unsure rows**, whose teacher answers are there anyway: at their confidence they disagree no more often
than when the thresholds were fitted. The second says nothing about the promise itself, but that the relation of
confidence and agreement, which the thresholds rely on, has changed; it is faster because it sees many more rows, and it
only ever makes the student answer less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["BETS", "NO_EVIDENCE", "UNSURE_BETS", "advance", "alternatives", "mean_evidence", "unsure_alternatives"]

Array = np.ndarray[Any, Any]

BETS = 6
UNSURE_BETS = 3
NO_EVIDENCE = -100.0
"""Stands for the logarithm of a statistic of 0: 1 + exp(it) is 1, and it is finite, because JSON has no −∞."""

_UNSURE_RISES = np.array([0.1, 0.25, 0.5])


def alternatives(null: float) -> Array:
    """The probabilities of a disagreement that are bet on, float64 ``[BETS]``: from 1.5 times the null to 0.9.

    >>> alternatives(0.02).round(2).tolist()
    [0.03, 0.06, 0.12, 0.23, 0.46, 0.9]
    """
    values: Array = np.geomspace(min(1.5 * null, 0.8), 0.9, BETS)
    return values


def unsure_alternatives(null: float) -> Array:
    """Those for a row of a usual probability of ``null``, float64 ``[UNSURE_BETS]``: nearer to 1 by 10, 25, 50 %."""
    values: Array = null + _UNSURE_RISES * (1 - null)
    return values


def advance(log_evidence: Array, disagrees: bool, null: float, bets: Array) -> Array:
    """The evidence after one more row, float64 ``[…, B]``.

    >>> log_evidence = np.full(BETS, NO_EVIDENCE)
    >>> for _ in range(3):
    ...     log_evidence = advance(log_evidence, True, 0.02, alternatives(0.02))
    >>> bool(mean_evidence(log_evidence) > np.log(1000))
    True

    :param log_evidence: before it, ``[…, B]``.
    :param null: largest probability of a disagreement under the null, within (0, 1).
    :param bets: probabilities that are bet on, above the null, ``[B]``.
    """
    factor = np.log(bets / null) if disagrees else np.log((1 - bets) / (1 - null))
    result: Array = np.logaddexp(0.0, log_evidence) + factor
    return result


def mean_evidence(log_evidence: Array) -> Array:
    """Logarithm of the mean over the bets, ``[…]``."""
    result: Array = np.logaddexp.reduce(log_evidence, axis=-1) - math.log(log_evidence.shape[-1])
    return result
