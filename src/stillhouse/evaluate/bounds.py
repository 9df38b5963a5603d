"""The lower confidence bound that the gate decides by: whole clusters resampled, and one more that is as bad as can be.

The Bayesian bootstrap (Rubin 1981, "The Bayesian bootstrap") gives every cluster an independent standard exponential
weight. Alone it believes what it has seen: where no row spoke against the challenger, its bound is the estimate. With
one more cluster at the worst possible value (Gaffke 2005, "Three test statistics for a nonparametric one-sided
hypothesis on the mean of a nonnegative variable", §3) it is the "rule of three" where nothing was seen,
``ln(1 / α) / n``, and for a single proportion nearly the exact bound of Clopper and Pearson 1934 (a little wider on few
rows). Nothing is drawn at random: the quantile is Lugannani and Rice's saddlepoint approximation (1980, "Saddle point
approximation for the distribution of the sum of independent random variables"), so that equal scores give equal bounds
at any time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from stillhouse.records import ClusterScores

__all__ = [
    "FEWEST_FOR_AUC",
    "bound_shift",
    "cluster_scores",
    "few_clusters",
    "lower_shift",
    "shift_of_none",
    "upper_shift",
]

Array = np.ndarray[Any, Any]

FEWEST_FOR_AUC = 10
"""Rows of either outcome, and clusters: with fewer the variance of an AUC means nothing."""

MOST_SCORES = 500
"""Distinct scores that a record keeps; more are put into bins of equal width, which keeps their sum."""


def cluster_scores(influence: Array, sizes: Array, worst: float) -> ClusterScores:
    """Scores of clusters, as a certificate stores them.

    :param influence: of each cluster on the estimate ``[C]``, summing to 0.
    :param sizes: what each cluster counts for in the estimate ``[C]``, in any unit.
    :param worst: by how much one more cluster could lower the estimate.
    """
    values, index = np.unique(influence.round(15), return_inverse=True)
    if len(values) > MOST_SCORES:
        width = float(np.ptp(influence)) / MOST_SCORES
        index = np.unique(((influence - influence.min()) / width).astype(np.int64), return_inverse=True)[1]
    counts = np.bincount(index)
    means = np.bincount(index, weights=influence) / counts
    return ClusterScores(
        scores=tuple(zip(means.tolist(), counts.tolist(), strict=True)),
        worst=max(worst, 1e-9),
        clusters=len(influence),
        effective=max(1.0, float(sizes.sum() ** 2 / (sizes**2).sum())),
    )


def lower_shift(evidence: ClusterScores, confidence: float) -> float:
    """How far the lower bound lies below the estimate, ≤ 0."""
    scores, counts = np.array(evidence.scores).T
    return bound_shift(scores, counts, evidence.worst, confidence)


def upper_shift(evidence: ClusterScores, confidence: float) -> float:
    """How far the upper bound lies above the estimate, ≥ 0."""
    scores, counts = np.array(evidence.scores).T
    return -bound_shift(-scores, counts, evidence.worst, confidence)


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


def few_clusters(clusters: float, effective: float, confidence: float) -> float:
    """By what the bound of an AUC is wider on few clusters, ≥ 1: Student's t instead of the normal quantile.

    :param effective: clusters of equal size that they are worth, at most ``clusters``: fewer where some are large.
    """
    quantiles = float(student.ppf(confidence, max(1.0, effective - 1))) / float(ndtri(confidence))
    return quantiles * math.sqrt(clusters / (clusters - 1))
