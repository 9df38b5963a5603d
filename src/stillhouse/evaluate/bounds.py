"""The confidence bounds that the gate decides by: a Bayesian bootstrap of clusters, with one worst-case cluster added.

The Bayesian bootstrap (Rubin 1981, "The Bayesian bootstrap") gives every cluster an independent standard exponential
weight. Alone it is too optimistic: if the challenger lost no row, its bound equals the estimate. With one more cluster
at the worst possible value (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of
a nonnegative variable", §3) the bound is the "rule of three", ``ln(1 / α) / n``, if nothing was lost, and for a single
proportion nearly the exact bound of Clopper and Pearson 1934 (slightly wider on few rows). There is no random sampling:
the quantile is Lugannani and Rice's saddlepoint approximation (1980, "Saddle point approximation for the distribution
of the sum of independent random variables"), so equal scores always give equal bounds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import t as student_t

from stillhouse.records import ClusterScores

__all__ = [
    "MIN_ROWS_FOR_AUC",
    "bound_shift",
    "cluster_scores",
    "few_clusters_factor",
    "lower_shift",
    "shift_without_losses",
    "upper_shift",
]

Array = np.ndarray[Any, Any]

MIN_ROWS_FOR_AUC = 10
"""Of rows with each outcome, and of clusters; with fewer the variance of an AUC is not meaningful."""

MAX_SCORES = 500
"""Distinct scores in a record; more are binned with equal width, which preserves their sum."""


def cluster_scores(influence: Array, sizes: Array, worst: float) -> ClusterScores:
    """The influences of clusters in the form that a certificate stores.

    :param influence: influence of each cluster on the estimate ``[C]``; they sum to 0.
    :param sizes: weight of each cluster in the estimate ``[C]``, in any unit.
    :param worst: the most by which one more cluster could lower the estimate.
    """
    values, index = np.unique(influence.round(15), return_inverse=True)
    if len(values) > MAX_SCORES:
        width = float(np.ptp(influence)) / MAX_SCORES
        index = np.unique(((influence - influence.min()) / width).astype(np.int64), return_inverse=True)[1]
    counts = np.bincount(index)
    means = np.bincount(index, weights=influence) / counts
    return ClusterScores(
        scores=tuple(zip(means.tolist(), counts.tolist(), strict=True)),
        worst=max(worst, 1e-9),
        clusters=len(influence),
        effective=max(1.0, float(sizes.sum() ** 2 / (sizes**2).sum())),
    )


def lower_shift(evidence: ClusterScores, confidence: float, growth: float = 1.0) -> float:
    """The lower bound minus the estimate, ≤ 0.

    :param growth: the bound for that many times as many clusters, if they are like those there are.
    """
    scores, counts = np.array(evidence.scores).T
    return bound_shift(scores / growth, counts * growth, evidence.worst / growth, confidence)


def upper_shift(evidence: ClusterScores, confidence: float, growth: float = 1.0) -> float:
    """The upper bound minus the estimate, ≥ 0; ``growth`` as in :func:`lower_shift`."""
    scores, counts = np.array(evidence.scores).T
    return -bound_shift(-scores / growth, counts * growth, evidence.worst / growth, confidence)


def bound_shift(scores: Array, counts: Array, worst: float, confidence: float) -> float:
    """The lower bound minus the estimate, ≤ 0: the ``1 − confidence`` quantile of ``Σ score · weight``.

    The weights are independent standard exponentials, one for each cluster and one for the added worst cluster.

    >>> round(bound_shift(np.zeros(1), np.array([100]), worst=0.01, confidence=0.95), 3)  # about −3 / 100
    -0.03

    :param scores: distinct influences of clusters on the estimate ``[k]``, in its unit; over all clusters they sum to
        0.
    :param counts: number of clusters with each score ``[k]``.
    :param worst: > 0, the most by which one more cluster could lower the estimate.
    :param confidence: one-sided, above ½.
    """
    values = np.append(np.asarray(scores, dtype=np.float64), -worst)
    repeats = np.append(np.asarray(counts, dtype=np.float64), 1.0)
    scale = -float(values.min())
    values = values / scale

    def distribution_at(u: float) -> tuple[float, float]:
        """P(sum ≤ x), and x, at the saddlepoint ``−u``."""
        tilt = 1 + u * values
        cumulant = -float(repeats @ np.log1p(u * values))
        x, variance = float(repeats @ (values / tilt)), float(repeats @ (values / tilt) ** 2)
        signed, standardised = -math.copysign(math.sqrt(2 * (-u * x - cumulant)), u), -u * math.sqrt(variance)
        density = math.exp(-(signed**2) / 2) / math.sqrt(2 * math.pi)
        return float(ndtr(signed)) + density * (1 / signed - 1 / standardised), x

    nearest = min(1e-3, 1e-2 / math.sqrt(float(repeats @ values**2)))  # at 0 itself the formula divides 0 by 0
    farthest = -(1 - 1e-9) / max(float(values.max()), 1e-9)
    low, high = (nearest, 1 - 1e-13) if distribution_at(nearest)[0] > 1 - confidence else (farthest, -nearest)
    if distribution_at(low)[0] <= 1 - confidence:
        return 0.0
    if distribution_at(high)[0] >= 1 - confidence:  # the quantile lies between the intervals on both sides of 0
        return min(0.0, scale * distribution_at(high)[1])
    u = brentq(lambda u: distribution_at(u)[0] - (1 - confidence), low, high, xtol=1e-14)
    return min(0.0, scale * distribution_at(u)[1])


def shift_without_losses(confidence: float) -> float:
    """``−bound_shift`` if no cluster differs, in units of the worst: about ``ln(1 / (1 − confidence))``."""
    return -bound_shift(np.zeros(1), np.ones(1), 1.0, confidence)


def few_clusters_factor(clusters: float, effective: float, confidence: float) -> float:
    """Factor ≥ 1 by which the bound of an AUC is wider on few clusters: Student's t instead of the normal quantile.

    :param effective: effective number of clusters, at most ``clusters``; smaller if their sizes differ.
    """
    quantiles = float(student_t.ppf(confidence, max(1.0, effective - 1))) / float(ndtri(confidence))
    return quantiles * math.sqrt(clusters / (clusters - 1))
