"""Arithmetic that several rooms share: distances and scores of probabilities, clusters of time, standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

__all__ = [
    "TEMPERATURES",
    "brier",
    "cluster_ids",
    "clustered_error",
    "fit_temperature",
    "half_brier",
    "nanoseconds",
    "tempered_log_loss",
    "total_variation",
]

Array = np.ndarray[Any, Any]

TEMPERATURES = (0.05, 20.0)
"""Within which :func:`fit_temperature` searches."""


# --------------------------------------------------------------------------- probabilities


def total_variation(p: Array, q: Array) -> Array:
    """½ Σ_k |p_k − q_k| of each row of two ``[n, K]``: float ``[n]`` in 0…1, NaN where one of them is NaN.

    Rows of float32 sum to 1 only nearly: what lies above 1 by rounding is 1.
    """
    distance: Array = np.minimum(1.0, 0.5 * np.abs(np.asarray(p) - np.asarray(q)).sum(axis=1))
    return distance


def brier(probabilities: Array, outcomes: Array) -> Array:
    """Σ_k (p_k − y_k)² of each row, on Brier's own scale: float ``[n]`` in 0…2 (Brier 1950, "Verification of forecasts
    expressed in terms of probability", eq. 2).

    An index of K or more is an action that the model does not know: it has given that one nothing.

    :param probabilities: ``[n, K]``.
    :param outcomes: action indices ``[n]`` ≥ 0.
    """
    unknown = max(0, int(outcomes.max(initial=0)) + 1 - probabilities.shape[1])
    probabilities = np.pad(probabilities, ((0, 0), (0, unknown)))
    truth = np.zeros_like(probabilities, dtype=np.float64)
    truth[np.arange(len(outcomes)), outcomes] = 1.0
    score: Array = np.square(probabilities - truth).sum(axis=1)
    return score


def half_brier(probabilities: Array, outcomes: Array) -> Array:
    """Half of :func:`brier`: a loss in 0…1, ``[n]``, as processes of evidence need it."""
    score: Array = np.minimum(1.0, 0.5 * brier(probabilities, outcomes))
    return score


def tempered_log_loss(logits: Array, outcomes: Array, temperature: float) -> Array:
    """``−ln softmax(logits / T)`` of each row's outcome, float ``[n]`` ≥ 0 (nats).

    :param logits: ``[n, K]``; logarithms of probabilities will do.
    :param outcomes: action indices ``[n]``.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    losses: Array = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(outcomes)), outcomes]
    return losses


def fit_temperature(logits: Array, outcomes: Array, among: Sequence[float] | None = None) -> float:
    """The temperature of least mean log loss on these rows; above 1: the model was too sure of itself.

    Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", §4.2. The order of the actions,
    and with it accuracy and the AUC of two actions, stays as it is.

    :param logits: ``[n, K]``, n ≥ 1.
    :param outcomes: action indices ``[n]``.
    :param among: temperatures to choose from, the first of the best; None: any within :data:`TEMPERATURES`, and 1 where
        none is better.
    """
    if among is not None:
        return float(min(among, key=lambda value: float(tempered_log_loss(logits, outcomes, float(value)).mean())))

    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(tempered_log_loss(logits, outcomes, math.exp(log_temperature)).mean())

    best = minimize_scalar(loss, bounds=(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])), method="bounded")
    return math.exp(best.x) if best.fun < loss(0.0) else 1.0


# --------------------------------------------------------------------------- clusters


def nanoseconds(times: Any) -> Array:
    """Moments with a time zone, or integers that are nanoseconds since 1970 already, as int64 ``[n]``."""
    values = np.asarray(times) if isinstance(times, np.ndarray) else times
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    import pandas as pd  # a scan of Parquet files needs the distances alone

    moments: Array = pd.DatetimeIndex(pd.to_datetime(values, utc=True)).as_unit("ns").asi8
    return moments


def cluster_ids(
    times: Any, length: timedelta, origin: datetime | int | None = None, *, backwards: bool = False
) -> Array:
    """Which stretch of ``length`` each moment lies in, int64 ``[n]``; zero: each row is a cluster of its own.

    Rows of one stretch share their surroundings (flights of one hour, their weather) and are one piece of evidence.

    :param times: moments with a time zone, or int64 nanoseconds since 1970, ``[n]``.
    :param origin: where stretch 0 begins, a moment or nanoseconds since 1970; None: 1970-01-01 UTC.
    :param backwards: count back from ``origin``, the end of stretch 0 and part of it.
    """
    moments = nanoseconds(times)
    size = length // timedelta(microseconds=1) * 1000
    if not size:
        return np.arange(len(moments))
    start = 0 if origin is None else origin if isinstance(origin, int) else int(nanoseconds([origin])[0])
    numbers: Array = (start - moments if backwards else moments - start) // size
    return numbers


def clustered_error(influence: Array, clusters: Array | None = None, *, small_sample: bool) -> float:
    """Standard error of a statistic from its rows' influences ``[n]``, those of one cluster taken together.

    The square root of ``c Σ_g (Σ_{i∈g} influence_i)²`` (Liang and Zeger 1986; Cameron and Miller 2015, "A
    Practitioner's Guide to Cluster-Robust Inference", §II). For a mean the influence of a row is ``(x_i − x̄) / n``.

    :param influence: they sum to 0.
    :param clusters: which cluster each row belongs to, ``[n]``; None: each row is its own.
    :param small_sample: c = G / (G − 1) for G clusters, and 0 where G is 1; else c = 1.
    """
    sums: Array = np.asarray(influence, dtype=np.float64)
    if clusters is not None:
        sums = np.bincount(np.unique(clusters, return_inverse=True)[1], weights=sums)
    squares, count = float((sums**2).sum()), len(sums)
    if not small_sample:
        return math.sqrt(squares)
    return math.sqrt(squares * count / (count - 1)) if count > 1 else 0.0
