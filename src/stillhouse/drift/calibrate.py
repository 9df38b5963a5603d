"""Calibration on the agent's own history: usual distances between time blocks, and the usual loss of a good model.

Weeks differ. A fixed threshold on a distance reports these differences as drift, or is so high that it misses drift.
Here each time block of the reference is compared with the rest of the reference, as the current window is later
compared with the whole; a window has moved if its distance is larger than that of every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.profile import Profile
from stillhouse.errors import WindowError
from stillhouse.records import ColumnDrift, DriftCalibration, LossBaseline, ScreenResult
from stillhouse.stats import LARGEST_AUTOCORRELATION, NORMAL_QUANTILE_95, cluster_ids, clustered_error, nanoseconds

__all__ = ["MIN_BLOCKS", "calibrate_drift", "column_limits", "estimate_loss_baseline", "screen"]

MIN_BLOCKS = 5
"""Fewer time blocks give no calibration: the chance of a false alarm is up to 1 / (blocks + 1) per window."""

MIN_USUAL_PSI = 0.01
"""A smaller usual PSI is replaced by this one, a tenth of what is commonly called stable: otherwise ten times almost
nothing would count as a shift for a column that hardly ever moves."""

MIN_BLOCK_ROWS = 10
MIN_LOSS_BLOCKS = 5
MIN_STEPS = 3
MIN_MEAN_RANGE = 1e-9  # step means that differ by less count as equal
USUAL_LOSS_QUANTILE = 0.9

Array = np.ndarray[Any, Any]


def calibrate_drift(time_blocks: Sequence[Profile], block_length: timedelta) -> DriftCalibration:
    """Compare each time block of the history with the other blocks together.

    The joint statistic of a block is the maximum over the columns of its PSI divided by the largest PSI of the *other*
    blocks. It is one number for all columns, so no correction for multiple columns is needed, however they are
    correlated.

    :param time_blocks: profiles of the blocks, on one grid (``like=`` the first one), each as long as a current window.
    :return: without columns and joint statistics if there are fewer than :data:`MIN_BLOCKS` blocks.
    """
    if len(time_blocks) < MIN_BLOCKS:
        return DriftCalibration(block_length=block_length, time_blocks=len(time_blocks), columns={}, joint=())
    psi = _leave_one_out_psi(time_blocks)
    joint = [_joint_statistic(row, np.delete(psi, number, axis=0).max(axis=0)) for number, row in enumerate(psi)]
    return DriftCalibration(
        block_length=block_length,
        time_blocks=len(time_blocks),
        columns={name: tuple(np.sort(psi[:, k]).tolist()) for k, name in enumerate(time_blocks[0].columns)},
        joint=tuple(sorted(joint)),
    )


def screen(
    drifts: Sequence[ColumnDrift], calibration: DriftCalibration
) -> tuple[tuple[ColumnDrift, ...], ScreenResult]:
    """The drifts with their ``limit`` filled in, and whether the window as a whole has moved.

    The limit of a column is the largest PSI of its blocks times the largest joint statistic. So the limits hold for all
    columns simultaneously: the window has moved if and only if a column exceeds its limit, and of windows that are like
    the history at most about one in ``blocks + 1`` does. The p-value is the conformal one, ``(1 + blocks with at least
    this statistic) / (1 + blocks)`` (Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world", §2.2;
    as an outlier test Bates, Candès, Lei, Romano and Sesia 2023, "Testing for outliers with conformal p-values", §1).
    It is exact if blocks and window are exchangeable and scored alike. Here the window is compared with one block more
    than the blocks were, which makes it slightly less unusual, if anything.

    The guarantee is for windows with about as many rows as a block: a much smaller window differs by chance.

    >>> calibration = DriftCalibration(
    ...     block_length=timedelta(days=7),
    ...     time_blocks=5,
    ...     columns={"delay": (0.02, 0.02, 0.03, 0.03, 0.04)},
    ...     joint=(0.5,) * 5,
    ... )
    >>> drift = ColumnDrift(column="delay", kind="number", psi=0.3, missing_reference=0, missing_current=0)
    >>> drifts, result = screen([drift], calibration)
    >>> drifts[0].limit, result.moved, result.beyond
    (0.04, True, ('delay',))

    :param drifts: columns, outputs, or both; one without calibration keeps its limit and is not screened.
    """
    if len(calibration.joint) < MIN_BLOCKS:
        not_calibrated = ScreenResult(
            time_blocks=calibration.time_blocks, beyond=(), statistic=0.0, limit=0.0, p_value=1.0, moved=False
        )
        return tuple(drifts), not_calibrated
    usual, limits = _usual_psi(calibration), column_limits(calibration)
    limited = tuple(
        drift.model_copy(update={"limit": limits[drift.column]}) if drift.column in limits else drift
        for drift in drifts
    )
    ratios = {drift.column: drift.psi / usual[drift.column] for drift in drifts if drift.column in usual}
    beyond = [drift.column for drift in limited if drift.column in usual and drift.unusual]
    statistic = max(ratios.values(), default=0.0)
    blocks_at_least_as_far = sum(value >= statistic for value in calibration.joint)
    return limited, ScreenResult(
        time_blocks=calibration.time_blocks,
        beyond=tuple(sorted(beyond, key=lambda name: -ratios[name])),
        statistic=statistic,
        limit=_joint_limit(calibration),
        p_value=(1 + blocks_at_least_as_far) / (1 + len(calibration.joint)),
        moved=bool(beyond),
    )


def column_limits(calibration: DriftCalibration) -> dict[str, float]:
    """The largest usual PSI of each column; empty if there were too few time blocks. See :func:`screen`."""
    return {name: _joint_limit(calibration) * value for name, value in _usual_psi(calibration).items()}


def estimate_loss_baseline(
    losses: Array,
    observed_at: pd.Series | Array,
    cluster: timedelta,
    block_length: timedelta,
    every: timedelta | None = None,
) -> LossBaseline:
    """The loss of a model while it is known to be good, and how much its mean varies by itself.

    As in the evidence, the rows of one ``cluster`` are one observation, their mean; ``mean`` is the mean of the cluster
    means, with its standard error. A single cluster gives no estimate of the error; then it is √(m(1 − m)), the largest
    standard deviation of a variable in 0…1 with mean m (Bhatia and Davis 2000). ``usual`` is the 0.9 quantile of the
    means of the time blocks of length ``block_length``, counted back from the newest row, without blocks of fewer than
    ten rows, and never below the mean; with fewer than five blocks it is the mean.

    The dependence between steps is given by upper 95 % bounds, so that few steps give conservative values.
    ``autocorrelation`` is the correlation of the means of neighbouring steps, ``r + 1.645/√pairs``, within 0 … 0.5.
    ``step_deviation`` is the random effect of a step in a one-way analysis of variance, ``σ² ≤ ((k−1) MSB / χ²₀.₀₅(k−1)
    − MSW) / n₀`` (Searle, Casella and McCulloch 1992, "Variance components", §3.6). Both are computed from the rows
    given: if a watch sees more rows of a step than these, its step means have less noise and a higher autocorrelation.

    >>> times = np.arange(200) * 3_600_000_000_000  # one row an hour
    >>> losses = np.tile([0.25, 0.75], 100)
    >>> baseline = estimate_loss_baseline(losses, times, cluster=timedelta(0), block_length=timedelta(days=1))
    >>> baseline.mean, round(baseline.standard_error, 3), baseline.usual
    (0.5, 0.018, 0.5)

    :param losses: float ``[n]`` in 0…1.
    :param observed_at: when each row was observed, ``[n]``: datetimes with a time zone, or nanoseconds since 1970.
    :param cluster: rows observed within the same interval of this length are one cluster; zero: each row is one.
    :param every: length of a step of evidence (``watch.every``); None: the dependence between steps is not estimated.
    :raises WindowError: if there are no losses.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if not len(losses):
        raise WindowError("a baseline of losses needs rows; there are none")
    times = nanoseconds(observed_at)
    means, first_times, rows = _cluster_losses(losses, times, cluster)
    mean = float(means.mean())
    error = np.sqrt(max(0.0, mean * (1 - mean)))
    if len(means) > 1:
        error = clustered_error((means - mean) / len(means), small_sample=True)
    block_means = _block_means(means, first_times, rows, block_length)
    usual = float(np.quantile(block_means, USUAL_LOSS_QUANTILE)) if len(block_means) >= MIN_LOSS_BLOCKS else mean
    autocorrelation, deviation = (None, None) if every is None else _step_dependence(means, first_times, every)
    return LossBaseline(
        mean=mean,
        standard_error=float(error),
        rows=len(losses),
        clusters=len(means),
        usual=max(mean, usual),
        autocorrelation=autocorrelation,
        step_deviation=deviation,
    )


# --------------------------------------------------------------------------- distances


def _joint_limit(calibration: DriftCalibration) -> float:
    """The largest joint statistic of the time blocks, at least 1."""
    return max(1.0, *calibration.joint) if calibration.joint else 1.0


def _usual_psi(calibration: DriftCalibration) -> dict[str, float]:
    """The largest PSI of the time blocks, by column."""
    return {name: max(values[-1], MIN_USUAL_PSI) for name, values in calibration.columns.items()}


def _leave_one_out_psi(time_blocks: Sequence[Profile]) -> Array:
    """PSI of each block against all others together, float64 ``[blocks, columns]``."""
    history = time_blocks[0]
    for block in time_blocks[1:]:
        history = history + block
    return np.array([[drift.psi for drift in compare_profiles(history - block, block)] for block in time_blocks])


def _joint_statistic(psi: Array, usual: Array) -> float:
    """The largest ratio of the PSI ``[C]`` to the usual PSI ``[C]``."""
    return float(np.max(psi / np.maximum(usual, MIN_USUAL_PSI), initial=0.0))


# --------------------------------------------------------------------------- losses


def _cluster_losses(losses: Array, times: Array, cluster: timedelta) -> tuple[Array, Array, Array]:
    """Mean loss, first time (nanoseconds) and number of rows of each cluster, ``[G]``."""
    _, index = np.unique(cluster_ids(times, cluster), return_inverse=True)
    rows = np.bincount(index)
    first_times = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(first_times, index, times)
    return np.bincount(index, weights=losses) / rows, first_times, rows


def _block_means(cluster_means: Array, first_times: Array, rows: Array, block_length: timedelta) -> Array:
    """Mean of the cluster means of each time block that has enough rows."""
    ids = cluster_ids(first_times, block_length, int(first_times.max()), backwards=True)
    _, index = np.unique(ids, return_inverse=True)
    means: Array = np.bincount(index, weights=cluster_means) / np.bincount(index)
    return means[np.bincount(index, weights=rows) >= MIN_BLOCK_ROWS]


def _step_dependence(cluster_means: Array, first_times: Array, every: timedelta) -> tuple[float | None, float | None]:
    """Upper bounds of the autocorrelation of step means, and of the standard deviation of a step's effect."""
    numbers, index, size = np.unique(cluster_ids(first_times, every), return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=cluster_means) / size
    steps = len(means)
    if steps < MIN_STEPS or np.ptp(means) < MIN_MEAN_RANGE:
        return None, None
    return _autocorrelation(means, numbers), _step_deviation(cluster_means, means, index, size)


def _autocorrelation(means: Array, numbers: Array) -> float | None:
    """Upper bound of the correlation of the means ``[k]`` of steps with consecutive numbers; None: too few of them."""
    centred = means - means.mean()
    neighbours = np.flatnonzero(np.diff(numbers) == 1)
    if len(neighbours) < MIN_STEPS:
        return None
    correlation = float(np.mean(centred[neighbours] * centred[neighbours + 1]) / np.mean(centred**2))
    upper = correlation + NORMAL_QUANTILE_95 / len(neighbours) ** 0.5
    return float(np.clip(upper, 0.0, LARGEST_AUTOCORRELATION))


def _step_deviation(cluster_means: Array, means: Array, index: Array, size: Array) -> float:
    """Upper bound of the standard deviation of the random effect of a step."""
    from scipy.special import chdtri

    steps, count = len(means), len(cluster_means)
    between = float(np.sum(size * (means - cluster_means.mean()) ** 2) / (steps - 1))
    within = float(np.sum((cluster_means - means[index]) ** 2) / (count - steps)) if count > steps else 0.0
    clusters_per_step = (count - float(np.sum(size.astype(float) ** 2)) / count) / (steps - 1)
    upper = between * (steps - 1) / float(chdtri(steps - 1, 0.95))  # the 5 % quantile of χ²
    return float(np.sqrt(max(upper - within, 0.0) / clusters_per_step))
