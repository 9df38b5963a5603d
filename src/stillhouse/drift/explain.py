"""Causes of drift: the columns that moved farthest, and the slices in which teacher and student disagree more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.drift.distances import count_psi_bins, psi_bin_edges
from stillhouse.drift.profile import CategoryProfile, NumberProfile, Profile
from stillhouse.errors import SchemaError
from stillhouse.records import ColumnDrift, SliceDrift
from stillhouse.stats import NORMAL_QUANTILE_95, PSEUDO_ROWS

__all__ = ["rank_columns", "rank_slices", "score_shift"]

MIN_SLICE_ROWS = 10
"""The mean of fewer audited rows is not reported for a slice."""


Array = np.ndarray[Any, Any]


def rank_columns(drifts: Sequence[ColumnDrift]) -> tuple[ColumnDrift, ...]:
    """The columns by PSI / limit, largest first; a column without a calibrated limit by its PSI."""
    return tuple(sorted(drifts, key=lambda drift: -drift.psi / (drift.limit or 1.0)))


def rank_slices(
    rows: pd.DataFrame,
    losses: Array,
    sampling_weights: Array,
    reference: Profile,
    current: Profile,
    expected: float,
    columns: Sequence[str],
    max_slices: int = 10,
) -> tuple[SliceDrift, ...]:
    """The slices in which teacher and student disagree more than expected, those that explain most of the rise first.

    A slice is one value of a category, one decile (of the reference) of a number, or the missing values of a column.
    Its ``excess`` is ``Σ_slice w (loss − expected) / Σ w``: the excesses of one column sum to the rise of the mean. A
    uniform rise gives each slice its proportional part of the excess, which explains nothing. So slices are ranked by
    what exceeds that part, ``Σ_slice w (loss − mean) / Σ w``, more exactly by its lower 95 % bound with the linearised
    variance of a ratio of weighted sums (Särndal, Swensson and Wretman 1992, "Model assisted survey sampling", §5.5),
    so that slices with few rows do not come first. Slices of fewer than ten audited rows come last, ordered by the
    growth of their share, with ``disagreement`` None and ``excess`` 0.

    Rows are treated as independent, and there is no correction for the number of slices: this is a ranking, not a test.

    :param rows: the ``n`` audited rows.
    :param losses: float ``[n]`` ≥ 0, disagreement of each row.
    :param sampling_weights: float ``[n]`` > 0, proportional to the number of rows that each row represents.
    :param expected: mean disagreement on the reference.
    :param columns: names of the profiled columns to slice by.
    :param max_slices: number of slices to return, at most.
    :raises SchemaError: if a column is absent from the rows or from a profile, or a number column is not numeric.
    """
    losses, sampling_weights = np.asarray(losses, dtype=np.float64), np.asarray(sampling_weights, dtype=np.float64)
    share = sampling_weights / sampling_weights.sum() if len(sampling_weights) else sampling_weights
    ranked = [
        pair
        for name in columns
        for pair in _column_slices(name, _bin_rows(rows, name, reference, current), losses, share, expected)
    ]
    return tuple(slice_ for _, slice_ in sorted(ranked, key=lambda pair: pair[0])[:max_slices])


def score_shift(rows: pd.DataFrame, reference: Profile, current: Profile, columns: Sequence[str]) -> Array:
    """How much the density of the data has grown around each row, float64 ``[n]`` ≥ 0 in nats.

    The score is the largest log density ratio current / reference of the row's bins over the columns, or 0 if none is
    positive. Shares are smoothed as in :func:`stillhouse.drift.distances.psi`.

    :param columns: names of the profiled columns to use, normally those that shifted; none: all scores are 0.
    :raises SchemaError: if a column is absent from the rows or from a profile, or a number column is not numeric.
    """
    scores = np.zeros(len(rows))
    for name in columns:
        binned = _bin_rows(rows, name, reference, current)
        scores = np.maximum(scores, _log_density_ratio(binned.before, binned.now)[binned.index])
    return scores


@dataclass(frozen=True)
class _BinnedRows:
    """The PSI bins ``[B]`` of a column, the rows in each before and now, and the bin of each row ``[n]``."""

    labels: list[str]
    before: Array
    now: Array
    index: Array


def _column_slices(
    name: str, binned: _BinnedRows, losses: Array, share: Array, expected: float
) -> Iterator[tuple[tuple[bool, float], SliceDrift]]:
    """The slices of one column that have rows, each with its sort key."""
    bins = len(binned.labels)
    rows = np.bincount(binned.index, minlength=bins)
    mass = np.bincount(binned.index, share, minlength=bins)
    loss = np.bincount(binned.index, share * losses, minlength=bins)
    beyond, error = _beyond_uniform_rise(binned.index, losses, share, mass, loss)
    before, now = binned.before / max(binned.before.sum(), 1), binned.now / max(binned.now.sum(), 1)
    for k, label in enumerate(binned.labels):
        if not (before[k] or now[k] or rows[k]):
            continue
        enough_rows = rows[k] >= MIN_SLICE_ROWS
        lower_bound, growth = beyond[k] - NORMAL_QUANTILE_95 * error[k], now[k] - before[k]
        yield (
            (False, -lower_bound) if enough_rows else (True, -growth),
            SliceDrift(
                slice=f"{name} in {label}" if label.startswith("(") else f"{name}={label}",
                share_reference=before[k],
                share_current=now[k],
                rows=rows[k],
                disagreement=loss[k] / mass[k] if enough_rows else None,
                excess=loss[k] - mass[k] * expected if enough_rows else 0.0,
            ),
        )


def _beyond_uniform_rise(index: Array, losses: Array, share: Array, mass: Array, loss: Array) -> tuple[Array, Array]:
    """What each bin adds to the mean loss beyond its part of a uniform rise, and the standard error of it, ``[B]``.

    The influence of row i on bin b is ``share_i ((1[i in b] − mass_b)(loss_i − mean) − beyond_b)``. The sum of its
    squares over all rows is computed from sums per bin, so that the cost is n + B and not n · B.
    """
    bins, mean = len(mass), float(loss.sum())
    beyond: Array = loss - mass * mean
    centred, weight = losses - mean, share**2
    bin_sums = [np.bincount(index, weight * centred**power, minlength=bins) for power in (0, 1, 2)]
    totals = [sums.sum() for sums in bin_sums]
    squares = (1 - 2 * mass) * bin_sums[2] + mass**2 * totals[2]
    products = bin_sums[1] - mass * totals[1]
    variance = squares - 2 * beyond * products + beyond**2 * totals[0]
    return beyond, np.sqrt(np.maximum(variance, 0.0))


def _bin_rows(rows: pd.DataFrame, name: str, reference: Profile, current: Profile) -> _BinnedRows:
    for where, names in (
        ("audited rows", rows.columns),
        ("profile of the reference", reference.columns),
        ("profile of the current window", current.columns),
    ):
        if name not in names:
            raise SchemaError(f"column {name!r} is absent from the {where}; it has {list(names)}")
    before, now = reference.columns[name], current.columns[name]
    labels, *counts = count_psi_bins(before, now)
    if isinstance(before, NumberProfile) and isinstance(now, NumberProfile):
        edges = psi_bin_edges(before.coarsen(max(before.shift, now.shift)))
        return _BinnedRows(labels, counts[0], counts[1], _bin_numbers(rows[name], edges))
    assert isinstance(before, CategoryProfile)
    return _BinnedRows(labels, counts[0], counts[1], _bin_categories(rows[name], before, labels))


def _bin_numbers(values: pd.Series, edges: Array) -> Array:
    """The bin of each number ``[n]``, bins closed on the right; the last bin is for missing values."""
    try:
        numbers = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"column {values.name!r} must be numeric: {error}") from error
    return np.where(np.isnan(numbers), len(edges) + 1, np.searchsorted(edges, numbers))


def _bin_categories(values: pd.Series, reference: CategoryProfile, labels: list[str]) -> Array:
    """The bin of each value ``[n]``: its own, or one of the last three, which are others, missing and unseen."""
    bin_of_value = {value: k for k, value in enumerate(labels[:-3])}
    others, missing, unseen = range(len(labels) - 3, len(labels))
    codes, distinct = pd.factorize(values)
    texts = [str(value).lower() if isinstance(value, bool | np.bool_) else str(value) for value in distinct]
    seen = reference.counts.keys()
    bins = [bin_of_value.get(text, others if text in seen or reference.error else unseen) for text in texts]
    return np.array([*bins, missing], dtype=np.int64)[codes]  # the code of a missing value is −1


def _log_density_ratio(before: Array, now: Array) -> Array:
    """Log density ratio of each bin, ``[B]``, clipped at 0."""
    pooled = np.asarray(before + now, dtype=np.float64)
    bins = np.count_nonzero(pooled)
    pseudo = PSEUDO_ROWS * bins * pooled / max(pooled.sum(), 1.0)
    shares = [(counts + pseudo) / max(counts.sum() + pseudo.sum(), 1.0) for counts in (before, now)]
    ratio = np.divide(shares[1], shares[0], out=np.ones(len(pooled)), where=pooled > 0)
    clipped: Array = np.maximum(np.log(ratio), 0.0)
    return clipped
