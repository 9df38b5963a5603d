"""What is usual: distances between stretches of the agent's own history, and losses while its model was good.

Weeks differ. A fixed threshold on a distance mistakes this for drift, or is so wide that drift passes. Here each
earlier stretch of the reference is held against the rest of it, as the current window is held against the reference
later; a window has moved if it lies farther out than every one of those stretches did.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.drift.distances import compare
from stillhouse.drift.profile import Profile
from stillhouse.errors import WindowError
from stillhouse.records import ColumnDrift, DriftCalibration, LossBaseline, ScreenResult
from stillhouse.stats import cluster_ids, clustered_error, nanoseconds

__all__ = ["MIN_BLOCKS", "limits", "loss_baseline", "screened", "screens"]

MIN_BLOCKS = 5
"""Fewer stretches are no calibration: the chance of a false alarm is up to 1 / (stretches + 1) a window."""

NEGLIGIBLE = 0.01
"""A PSI below this is taken for this, a tenth of what is commonly read as stable: where a column hardly ever moves,
ten times nothing is nothing."""

MIN_STRETCH_ROWS = 10
MIN_STRETCHES = 5
MIN_STEPS = 3
INDISTINGUISHABLE = 1e-9
WORSE = 0.9
LARGEST_AUTOCORRELATION = 0.5
UPPER_95 = 1.645

Array = np.ndarray[Any, Any]


def screens(blocks: Sequence[Profile], block: timedelta) -> DriftCalibration:
    """Each stretch of history against the rest of it.

    The joint statistic of a stretch is its largest PSI in units of what is usual for the column, the largest PSI
    of the *other* stretches: one number for all columns, so that no correction for their number is needed however
    they are correlated.

    :param blocks: profiles of the stretches, on one grid (``like=`` of the first), as long as a current window.
    :param block: the length of a stretch.
    :return: without columns and joint statistic if there are fewer than :data:`MIN_BLOCKS` stretches.
    """
    if len(blocks) < MIN_BLOCKS:
        return DriftCalibration(block=block, blocks=len(blocks), columns={}, joint=())
    psi = _left_out(blocks)
    joint = [_statistic(row, np.delete(psi, number, axis=0).max(axis=0)) for number, row in enumerate(psi)]
    return DriftCalibration(
        block=block,
        blocks=len(blocks),
        columns={name: tuple(np.sort(psi[:, k]).tolist()) for k, name in enumerate(blocks[0].columns)},
        joint=tuple(sorted(joint)),
    )


def screened(drifts: Sequence[ColumnDrift], screens: DriftCalibration) -> tuple[tuple[ColumnDrift, ...], ScreenResult]:
    """The drifts with their ``limit`` filled, and whether the window as a whole lies beyond what is usual.

    A column's limit is the largest PSI of its stretches times the largest joint statistic. So the limits hold for
    all columns at once: the window has moved if, and only if, a column lies beyond its limit, and of windows that
    are like the history at most about one in ``blocks + 1`` does. The p-value is the conformal one,
    ``(1 + stretches at least as far out) / (1 + stretches)`` (Vovk, Gammerman and Shafer 2005, "Algorithmic learning
    in a random world", §2.2; as a test for outliers Bates, Candès, Lei, Romano and Sesia 2023, "Testing for outliers
    with conformal p-values", §1). It is exact where stretches and window are exchangeable and scored alike; here the
    window is held against one stretch more than the stretches were, which makes it, if anything, less unusual.

    The promise is for windows of about as many rows as a stretch: a much smaller one differs by chance alone.

    :param drifts: columns, outputs, or both; one without calibration keeps its limit and does not count.
    """
    if len(screens.joint) < MIN_BLOCKS:
        nothing = ScreenResult(blocks=screens.blocks, beyond=(), statistic=0.0, limit=0.0, p_value=1.0, moved=False)
        return tuple(drifts), nothing
    room, usual, limit = _room(screens), _usual(screens), limits(screens)
    limited = tuple(
        drift.model_copy(update={"limit": limit[drift.column]}) if drift.column in limit else drift for drift in drifts
    )
    ratios = {drift.column: drift.psi / usual[drift.column] for drift in drifts if drift.column in usual}
    beyond = [drift.column for drift in limited if drift.column in usual and drift.unusual]
    statistic = max(ratios.values(), default=0.0)
    at_least = sum(value >= statistic for value in screens.joint)
    return limited, ScreenResult(
        blocks=screens.blocks,
        beyond=tuple(sorted(beyond, key=lambda name: -ratios[name])),
        statistic=statistic,
        limit=room,
        p_value=(1 + at_least) / (1 + len(screens.joint)),
        moved=bool(beyond),
    )


def limits(screens: DriftCalibration) -> dict[str, float]:
    """The largest PSI that is usual, by column; empty without enough stretches. See :func:`screened`."""
    return {name: _room(screens) * value for name, value in _usual(screens).items()}


def loss_baseline(
    losses: Array,
    observed_at: pd.Series | Array,
    cluster: timedelta,
    block: timedelta,
    every: timedelta | None = None,
) -> LossBaseline:
    """What a loss was while the model was known to be good, and how far its mean swings by itself.

    As in the evidence, the rows of one ``cluster`` are one observation, their mean; ``mean`` is the mean of those, and
    its standard error theirs. From a single cluster no error can be estimated: then it is √(m(1 − m)), the largest that
    a variable in 0…1 with mean m has (Bhatia and Davis 2000). ``usual`` is the 0.9 quantile of the means of the
    stretches of length ``block``, counted back from the newest row, those of fewer than ten rows left out, and never
    below the mean; with fewer than five stretches it is the mean.

    How steps hang together is told by upper 95 % bounds, so that few steps promise little. ``autocorrelation`` is the
    correlation of the means of neighbouring steps, ``r + 1.645/√pairs``, within 0 … 0.5. ``step_deviation`` is the
    random effect of a step in a one-way analysis of variance, ``σ² ≤ ((k−1) MSB / χ²₀.₀₅(k−1) − MSW) / n₀`` (Searle,
    Casella and McCulloch 1992, "Variance components", §3.6). Both are of the rows given: where a watch sees more of a
    step than these, its means have less noise, and hang together more closely.

    :param losses: float ``[n]`` in 0…1.
    :param observed_at: when each row was observed, ``[n]``: moments with a time zone, or nanoseconds since 1970.
    :param cluster: rows observed in the same such stretch are one piece of evidence; zero: each row is.
    :param every: length of a step of evidence (``watch.every``); None: nothing is said about steps.
    :raises WindowError: if there are no losses.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if not len(losses):
        raise WindowError("a baseline of losses needs rows; there are none")
    moments = nanoseconds(observed_at)
    units, first, rows = _clustered(losses, moments, cluster)
    mean = float(units.mean())
    error = np.sqrt(max(0.0, mean * (1 - mean)))
    if len(units) > 1:
        error = clustered_error((units - mean) / len(units), small_sample=True)
    stretches = _stretch_means(units, first, rows, block)
    usual = float(np.quantile(stretches, WORSE)) if len(stretches) >= MIN_STRETCHES else mean
    autocorrelation, deviation = (None, None) if every is None else _dependence(units, first, every)
    return LossBaseline(
        mean=mean,
        standard_error=float(error),
        rows=len(losses),
        clusters=len(units),
        usual=max(mean, usual),
        autocorrelation=autocorrelation,
        step_deviation=deviation,
    )


def _room(screens: DriftCalibration) -> float:
    """How far beyond what is usual the most unusual stretch lay, at least 1."""
    return max(1.0, *screens.joint) if screens.joint else 1.0


def _usual(screens: DriftCalibration) -> dict[str, float]:
    """The largest PSI of the stretches, by column."""
    return {name: max(values[-1], NEGLIGIBLE) for name, values in screens.columns.items()}


def _left_out(blocks: Sequence[Profile]) -> Array:
    """PSI of each stretch against all others together, float64 ``[n, C]``."""
    whole = blocks[0]
    for part in blocks[1:]:
        whole = whole + part
    return np.array([[drift.psi for drift in compare(whole - part, part)] for part in blocks])


def _statistic(psi: Array, usual: Array) -> float:
    """The largest PSI ``[C]`` in units of what is usual ``[C]``."""
    return float(np.max(psi / np.maximum(usual, NEGLIGIBLE), initial=0.0))


def _clustered(losses: Array, moments: Array, cluster: timedelta) -> tuple[Array, Array, Array]:
    """Mean loss, first moment and rows of each cluster, ``[G]``."""
    _, index = np.unique(cluster_ids(moments, cluster), return_inverse=True)
    rows = np.bincount(index)
    first = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(first, index, moments)
    return np.bincount(index, weights=losses) / rows, first, rows


def _stretch_means(units: Array, first: Array, rows: Array, block: timedelta) -> Array:
    """Mean of the clusters of each stretch that has enough rows."""
    _, index = np.unique(cluster_ids(first, block, int(first.max()), backwards=True), return_inverse=True)
    means: Array = np.bincount(index, weights=units) / np.bincount(index)
    return means[np.bincount(index, weights=rows) >= MIN_STRETCH_ROWS]


def _dependence(units: Array, first: Array, every: timedelta) -> tuple[float | None, float | None]:
    """Upper bounds of the autocorrelation of steps' means, and of what the units of a step have in common."""
    numbers, index, size = np.unique(cluster_ids(first, every), return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=units) / size
    steps = len(means)
    if steps < MIN_STEPS or np.ptp(means) < INDISTINGUISHABLE:
        return None, None
    return _autocorrelation(means, numbers), _deviation(units, means, index, size)


def _autocorrelation(means: Array, numbers: Array) -> float | None:
    """Of the means of steps ``[k]`` whose numbers follow on each other."""
    centred = means - means.mean()
    neighbours = np.flatnonzero(np.diff(numbers) == 1)
    if len(neighbours) < MIN_STEPS:
        return None
    found = float(np.mean(centred[neighbours] * centred[neighbours + 1]) / np.mean(centred**2))
    return float(np.clip(found + UPPER_95 / len(neighbours) ** 0.5, 0.0, LARGEST_AUTOCORRELATION))


def _deviation(units: Array, means: Array, index: Array, size: Array) -> float:
    """Standard deviation of the effect of a step."""
    from scipy.special import chdtri

    steps, count = len(means), len(units)
    between = float(np.sum(size * (means - units.mean()) ** 2) / (steps - 1))
    within = float(np.sum((units - means[index]) ** 2) / (count - steps)) if count > steps else 0.0
    alike = (count - float(np.sum(size.astype(float) ** 2)) / count) / (steps - 1)
    upper = between * (steps - 1) / float(chdtri(steps - 1, 0.95))  # the 5 % quantile
    return float(np.sqrt(max(upper - within, 0.0) / alike))
