"""The lower confidence bound that the gate decides by: whole clusters resampled, and one more that is as bad as can be.

The Bayesian bootstrap (Rubin 1981, "The Bayesian bootstrap") gives every cluster an independent standard exponential
weight. Alone it believes what it has seen: where no row spoke against the challenger, its bound is the estimate. With
one more cluster at the worst possible value (Gaffke 2005, "Three test statistics for a nonparametric one-sided
hypothesis on the mean of a nonnegative variable", §3) it becomes the exact bound of Clopper and Pearson 1934 for a
single proportion, and the "rule of three" where nothing was seen: ``ln(1 / α) / n``. Nothing is drawn at random: the
quantile is Lugannani and Rice's saddlepoint approximation (1980, "Saddle point approximation for the distribution of
the sum of independent random variables"), so that equal scores give equal bounds at any time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

__all__ = ["bound_shift", "shift_of_none"]

Array = np.ndarray[Any, Any]


def bound_shift(scores: Array, counts: Array, worst: float, confidence: float) -> float:
    """How far the lower bound lies from the estimate, ≤ 0: the ``1 − confidence`` quantile of ``Σ score · weight``.

    The weights are independent standard exponentials, one for each cluster and one for the worst cluster.

    :param scores: distinct influences of clusters on the estimate ``[k]``, in its unit; over all clusters their sum is
        0.
    :param counts: how many clusters have each ``[k]``.
    :param worst: > 0, by how much one more cluster could lower the estimate.
    :param confidence: one-sided, above ½.
    """
    weights = np.append(np.asarray(scores, dtype=np.float64), -worst)
    repeats = np.append(np.asarray(counts, dtype=np.float64), 1.0)
    scale = -float(weights.min())
    weights = weights / scale

    def at(u: float) -> tuple[float, float]:
        """P(sum ≤ x), and x, for the saddlepoint ``−u``."""
        shrunk = 1 + u * weights
        cumulant = -float(repeats @ np.log1p(u * weights))
        x, variance = float(repeats @ (weights / shrunk)), float(repeats @ (weights / shrunk) ** 2)
        signed, standardised = -math.copysign(math.sqrt(2 * (-u * x - cumulant)), u), -u * math.sqrt(variance)
        density = math.exp(-(signed**2) / 2) / math.sqrt(2 * math.pi)
        return float(ndtr(signed)) + density * (1 / signed - 1 / standardised), x

    nearest = min(1e-3, 1e-2 / math.sqrt(float(repeats @ weights**2)))  # at 0 itself the formula divides 0 by 0
    farthest = -(1 - 1e-9) / max(float(weights.max()), 1e-9)
    low, high = (nearest, 1 - 1e-13) if at(nearest)[0] > 1 - confidence else (farthest, -nearest)
    if at(low)[0] <= 1 - confidence:
        return 0.0
    if at(high)[0] >= 1 - confidence:  # between both sides of 0
        return min(0.0, scale * at(high)[1])
    u = brentq(lambda u: at(u)[0] - (1 - confidence), low, high, xtol=1e-14)
    return min(0.0, scale * at(u)[1])


def shift_of_none(confidence: float) -> float:
    """``−bound_shift`` where nothing disagrees, in units of the worst: about ``ln(1 / (1 − confidence))``."""
    return -bound_shift(np.zeros(1), np.ones(1), 1.0, confidence)
