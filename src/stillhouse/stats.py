"""Arithmetic that several packages share: distances and scores of probabilities, time clusters, standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

__all__ = [
    "LARGEST_AUTOCORRELATION",
    "NORMAL_QUANTILE_95",
    "PSEUDO_ROWS",
    "TEMPERATURES",
    "Correction",
    "brier",
    "cluster_ids",
    "clustered_error",
    "delong",
    "fit_correction",
    "fit_temperature",
    "half_brier",
    "measure_auc",
    "nanoseconds",
    "replace_non_finite",
    "tempered_log_loss",
    "total_variation",
]

Array = np.ndarray[Any, Any]

LARGEST_AUTOCORRELATION = 0.5  # of the mean losses of neighbouring steps
NORMAL_QUANTILE_95 = 1.645  # one-sided
PSEUDO_ROWS = 0.5  # added to each bin of a histogram on either side
TEMPERATURES = (0.05, 20.0)
"""The range in which :func:`fit_temperature` searches."""


# --------------------------------------------------------------------------- probabilities


def total_variation(p: Array, q: Array) -> Array:
    """½ Σ_k |p_k − q_k| for each row of two ``[n, K]``: float ``[n]`` in 0…1, NaN where one of the rows is NaN.

    Float32 rows sum to 1 only approximately: values above 1 by rounding are clipped to 1.

    >>> total_variation(np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]])).tolist()
    [0.25]
    """
    distance: Array = np.minimum(1.0, 0.5 * np.abs(np.asarray(p) - np.asarray(q)).sum(axis=1))
    return distance


def brier(probs: Array, labels: Array) -> Array:
    """The Brier score Σ_k (p_k − y_k)² of each row, float ``[n]`` in 0…2 (Brier 1950, "Verification of forecasts
    expressed in terms of probability", eq. 2).

    A label of K or more is an action that the model does not know: its probability is 0.

    :param probs: ``[n, K]``.
    :param labels: action indices ``[n]`` ≥ 0.

    >>> brier(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]), np.array([0, 1, 1])).tolist()
    [0.0, 2.0, 0.5]
    """
    unknown = max(0, int(labels.max(initial=0)) + 1 - probs.shape[1])
    probs = np.pad(probs, ((0, 0), (0, unknown)))
    truth = np.zeros_like(probs, dtype=np.float64)
    truth[np.arange(len(labels)), labels] = 1.0
    score: Array = np.square(probs - truth).sum(axis=1)
    return score


def half_brier(probs: Array, labels: Array) -> Array:
    """Half of :func:`brier`: a loss in 0…1, ``[n]``, as sequential tests need it."""
    score: Array = np.minimum(1.0, 0.5 * brier(probs, labels))
    return score


def replace_non_finite(probs: Array, labels: Array) -> Array:
    """Probabilities ``[n, K]`` in which a row that is not finite gives 1 to an action other than its label ``[n]``.

    So a NaN counts as the worst possible answer. Otherwise ``argmax`` would take it for the first action, or the row
    would not be counted at all.
    """
    invalid = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if not len(invalid):
        return probs
    replaced = np.array(probs, dtype=np.float64)
    replaced[invalid] = 0.0
    replaced[invalid, np.where(np.asarray(labels)[invalid] == 0, 1, 0)] = 1.0
    return replaced


def tempered_log_loss(logits: Array, labels: Array, temperature: float) -> Array:
    """``−ln softmax(logits / T)`` of each row's label, float ``[n]`` ≥ 0 (nats).

    :param logits: ``[n, K]``, or logarithms of probabilities.
    :param labels: action indices ``[n]``.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    losses: Array = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
    return losses


def fit_temperature(logits: Array, labels: Array, among: Sequence[float] | None = None) -> float:
    """The temperature of least mean log loss on these rows; above 1: the model is overconfident.

    Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", §4.2. A temperature changes
    neither the order of the actions, nor accuracy, nor the AUC of two actions.

    :param logits: ``[n, K]``, n ≥ 1.
    :param labels: action indices ``[n]``.
    :param among: candidates, of which the first best is taken; None: any in :data:`TEMPERATURES`, and 1 if none is
        better.

    >>> logits = np.log(np.tile([0.99, 0.01], (10, 1)))  # confidence 99 %, accuracy 90 %
    >>> fit_temperature(logits, np.array([0] * 9 + [1]), among=[1.0, 2.0, 4.0])
    2.0
    """
    if among is not None:
        return float(min(among, key=lambda value: float(tempered_log_loss(logits, labels, float(value)).mean())))

    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(tempered_log_loss(logits, labels, math.exp(log_temperature)).mean())

    best = minimize_scalar(loss, bounds=(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])), method="bounded")
    return math.exp(best.x) if best.fun < loss(0.0) else 1.0


@dataclass(frozen=True)
class Correction:
    """A temperature and a bias per action: ``softmax(log p / T + b)``.

    :ivar temperature: above 1: the model was overconfident.
    :ivar bias: float ``[K]``, mean 0; it moves the thresholds between the actions.
    """

    temperature: float
    bias: Array

    def apply(self, log_probs: Array) -> Array:
        """Corrected log probabilities, float32 ``[n, K]``."""
        scaled = log_probs / np.float32(self.temperature) + self.bias.astype(np.float32)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        corrected: Array = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return corrected


def fit_correction(log_probs: Array, labels: Array, prior_rows: float = 50.0) -> Correction:
    """The temperature and the biases of least penalised log loss on these rows.

    Bias-corrected temperature scaling (Alexandari, Kundaje and Shrikumar 2020, "Maximum Likelihood with Bias-Corrected
    Calibration is Hard-To-Beat at Label Shift Adaptation", §3). The penalty ``prior_rows/2 · (ln² T / 10 + |b|²)``
    counts about as much as that many rows, so few rows correct little.

    :param log_probs: ``[n, K]``; without rows nothing is corrected.
    :param labels: action indices ``[n]``.

    >>> log_probs = np.log(np.tile([0.5, 0.5], (1000, 1)))
    >>> correction = fit_correction(log_probs, np.array([0] * 800 + [1] * 200))
    >>> np.exp(correction.apply(log_probs[:1])).round(2).tolist()
    [[0.77, 0.23]]
    """
    from scipy.optimize import minimize

    x, count, actions = np.asarray(log_probs, dtype=np.float64), len(labels), log_probs.shape[1]
    if not count:
        return Correction(1.0, np.zeros(actions))
    onehot = np.zeros((count, actions))
    onehot[np.arange(count), labels] = 1.0
    weights = prior_rows * np.array([0.1] + [1.0] * actions)

    def loss(parameters: Array) -> tuple[float, Array]:
        inverse, bias = math.exp(-parameters[0]), parameters[1:]
        scaled = inverse * x + bias
        scaled -= scaled.max(axis=1, keepdims=True)
        log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        residual = np.exp(log_p) - onehot
        gradient = np.append(-inverse * float((residual * x).sum()), residual.sum(axis=0))
        penalty = 0.5 * float(weights @ parameters**2)
        return float(-(log_p * onehot).sum()) + penalty, gradient + weights * parameters

    bounds = [(-1.5, 1.5)] + [(-3.0, 3.0)] * actions
    best = minimize(loss, np.zeros(1 + actions), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
    return Correction(math.exp(best.x[0]), best.x[1:] - best.x[1:].mean())


# --------------------------------------------------------------------------- areas under the curve


def measure_auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve: the probability that a row of label 1 has a higher score than one of label 0.

    Ties count half (Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve"). Computed from ranks,
    because the pool asks for it block by block and scikit-learn's takes ten times as long on a few hundred rows.

    >>> measure_auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.6, 0.4]))
    0.75

    :param labels: 0 or 1 ``[n]``.
    :param scores: ``[n]``, larger for label 1.
    :raises ValueError: if there are no rows of either label.
    """
    from scipy.stats import rankdata

    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        raise ValueError(f"an AUC needs rows of both labels: there are {n} of label 0 and {m} of label 1")
    return float((rankdata(scores)[positive].sum() - m * (m + 1) / 2) / (m * n))


def delong(labels: Array, scores: Array) -> tuple[list[float], Array]:
    """AUCs of two score vectors ``[2, n]`` against 0/1 labels, and each row's influence on their difference ``[n]``.

    The influences are DeLong's structural components, centred and divided by the number of rows with their outcome;
    they sum to 0 (DeLong, DeLong and Clarke-Pearson 1988). Computed from ranks (Sun and Xu 2014, eq. 9–13).

    >>> aucs, influence = delong(np.array([0, 1, 0, 1]), np.array([[0.1, 0.9, 0.4, 0.6], [0.1, 0.9, 0.6, 0.4]]))
    >>> aucs, influence.tolist()
    ([1.0, 0.75], [-0.125, -0.125, 0.125, 0.125])
    """
    from scipy.stats import rankdata

    is_positive = labels == 1
    positive, negative = scores[:, is_positive], scores[:, ~is_positive]
    m, n = positive.shape[1], negative.shape[1]
    rank_in_positive = np.stack([rankdata(row) for row in positive])
    rank_in_negative = np.stack([rankdata(row) for row in negative])
    rank_in_all = np.stack([rankdata(row) for row in np.hstack([positive, negative])])
    placement_of_positive = (rank_in_all[:, :m] - rank_in_positive) / n
    placement_of_negative = 1 - (rank_in_all[:, m:] - rank_in_negative) / m
    aucs = placement_of_positive.mean(axis=1)
    influence = np.empty(len(labels))
    influence[is_positive] = (placement_of_positive[0] - placement_of_positive[1] - (aucs[0] - aucs[1])) / m
    influence[~is_positive] = (placement_of_negative[0] - placement_of_negative[1] - (aucs[0] - aucs[1])) / n
    return [float(auc) for auc in aucs], influence


# --------------------------------------------------------------------------- clusters


def nanoseconds(times: Any) -> Array:
    """Times as nanoseconds since 1970, int64 ``[n]``.

    :param times: with a time zone, or integers that are nanoseconds already.
    """
    values = np.asarray(times) if isinstance(times, np.ndarray) else times
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    import pandas as pd  # slow to import, and a scan of Parquet files does not need it

    moments: Array = pd.DatetimeIndex(pd.to_datetime(values, utc=True)).as_unit("ns").asi8
    return moments


def cluster_ids(
    times: Any, length: timedelta, origin: datetime | int | None = None, *, backwards: bool = False
) -> Array:
    """The number of the time block of ``length`` that each time lies in, int64 ``[n]``; length 0: one cluster per row.

    Rows of one time block have correlated errors (the weather of one hour's flights), so a test counts them as one
    cluster.

    :param times: with a time zone, or int64 nanoseconds since 1970, ``[n]``.
    :param origin: start of block 0, a time or nanoseconds since 1970; None: 1970-01-01 UTC.
    :param backwards: count blocks back from ``origin``, which is the end of block 0 and belongs to it.

    >>> cluster_ids(np.array([0, 3_599, 3_600]) * 10**9, timedelta(hours=1)).tolist()
    [0, 0, 1]
    """
    times_ns = nanoseconds(times)
    size = length // timedelta(microseconds=1) * 1000
    if not size:
        return np.arange(len(times_ns))
    start = 0 if origin is None else origin if isinstance(origin, int) else int(nanoseconds([origin])[0])
    ids: Array = (start - times_ns if backwards else times_ns - start) // size
    return ids


def clustered_error(influence: Array, cluster_ids: Array | None = None, *, small_sample: bool) -> float:
    """Standard error of a statistic from the influences of its rows ``[n]``, summed by cluster.

    The square root of ``c Σ_g (Σ_{i∈g} influence_i)²`` (Liang and Zeger 1986; Cameron and Miller 2015, "A
    Practitioner's Guide to Cluster-Robust Inference", §II). For a mean the influence of a row is ``(x_i − x̄) / n``.

    :param influence: with sum 0.
    :param cluster_ids: the cluster of each row, ``[n]``; None: one cluster per row.
    :param small_sample: c = G / (G − 1) for G clusters, and 0 where G is 1; else c = 1.
    """
    sums: Array = np.asarray(influence, dtype=np.float64)
    if cluster_ids is not None:
        sums = np.bincount(np.unique(cluster_ids, return_inverse=True)[1], weights=sums)
    squares, count = float((sums**2).sum()), len(sums)
    if not small_sample:
        return math.sqrt(squares)
    return math.sqrt(squares * count / (count - 1)) if count > 1 else 0.0
