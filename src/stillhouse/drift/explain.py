"""Where a drift comes from: which columns moved farthest, and on which slices teacher and student part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.drift.distances import coarse_counts, number_bins
from stillhouse.drift.profile import CategoryProfile, NumberProfile, Profile
from stillhouse.errors import SchemaError
from stillhouse.records import ColumnDrift, SliceDrift

__all__ = ["rank_columns", "rank_slices", "shift_scores"]

MIN_SLICE_ROWS = 10
"""A mean of fewer audited rows says nothing about a slice."""

ONE_SIDED_95 = 1.645

PSEUDO_ROWS = 0.5

Array = np.ndarray[Any, Any]


def rank_columns(drifts: Sequence[ColumnDrift]) -> tuple[ColumnDrift, ...]:
    """The columns, farthest beyond what is usual first: by PSI / limit where there is a limit, else by PSI."""
    return tuple(sorted(drifts, key=lambda drift: -drift.psi / (drift.limit or 1.0)))


def rank_slices(
    rows: pd.DataFrame,
    losses: Array,
    weights: Array,
    reference: Profile,
    current: Profile,
    expected: float,
    columns: Sequence[str],
    most: int = 10,
) -> tuple[SliceDrift, ...]:
    """The slices in which teacher and student part more than they did, those that explain most first.

    A slice is one value of a category, or one decile (of the reference) of a number, or its missing values. Its
    ``excess`` is ``Σ_slice w (loss − expected) / Σ w``: the excesses of one column add up to the rise of the mean. Of
    a rise that is everywhere alike each slice has its share, which explains nothing. So slices are ranked by what they
    have beyond that, ``Σ_slice w (loss − mean) / Σ w``, or rather by its lower 95 % bound, with the linearised
    variance of a ratio of weighted sums (Särndal, Swensson and Wretman 1992, "Model assisted survey sampling", §5.5):
    few rows do not lead. Slices of fewer than ten audited rows come last, those that grew most first, with
    ``disagreement`` None and ``excess`` 0.

    Rows are taken as independent, and nothing is corrected for the number of slices: it is a ranking, no test.

    :param rows: the audited rows, ``n`` of them.
    :param losses: float ``[n]`` ≥ 0, disagreement of each.
    :param weights: float ``[n]`` > 0, in how many rows' name each speaks, up to a factor.
    :param expected: mean disagreement that was usual.
    :param columns: names of profiled columns to slice by.
    :param most: how many slices to return, at most.
    :raises SchemaError: if a column is absent from the rows or a profile, or a number is not numeric.
    """
    losses, weights = np.asarray(losses, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    share = weights / weights.sum() if len(weights) else weights
    found = [
        ranked
        for name in columns
        for ranked in _slices(name, _binned(rows, name, reference, current), losses, share, expected)
    ]
    return tuple(slice_ for _, slice_ in sorted(found, key=lambda ranked: ranked[0])[:most])


def shift_scores(rows: pd.DataFrame, reference: Profile, current: Profile, columns: Sequence[str]) -> Array:
    """How far each row lies where data became denser than it was, float64 ``[n]`` ≥ 0, in nats.

    The largest of the columns' log density ratios current / reference in the row's bin, 0 where none is positive.
    Shares are smoothed as in :func:`stillhouse.drift.distances.psi`.

    :param columns: names of the profiled columns that count, the shifted ones; none: all scores are 0.
    :raises SchemaError: if a column is absent from the rows or a profile, or a number is not numeric.
    """
    scores = np.zeros(len(rows))
    for name in columns:
        binned = _binned(rows, name, reference, current)
        scores = np.maximum(scores, _log_ratio(binned.before, binned.now)[binned.index])
    return scores


@dataclass(frozen=True)
class _Binned:
    """The bins that a column's PSI is taken on, ``[B]``, rows in each before and now, and each row's bin ``[n]``."""

    labels: list[str]
    before: Array
    now: Array
    index: Array


def _slices(
    name: str, binned: _Binned, losses: Array, share: Array, expected: float
) -> Iterator[tuple[tuple[bool, float], SliceDrift]]:
    """The slices of one column that have rows, each with the key that it is ranked by."""
    bins = len(binned.labels)
    rows = np.bincount(binned.index, minlength=bins)
    mass = np.bincount(binned.index, share, minlength=bins)
    loss = np.bincount(binned.index, share * losses, minlength=bins)
    own, error = _beyond_even(binned.index, losses, share, mass, loss)
    before, now = binned.before / max(binned.before.sum(), 1), binned.now / max(binned.now.sum(), 1)
    for k, label in enumerate(binned.labels):
        if not (before[k] or now[k] or rows[k]):
            continue
        judged = rows[k] >= MIN_SLICE_ROWS
        rank = (False, -(own[k] - ONE_SIDED_95 * error[k])) if judged else (True, -(now[k] - before[k]))
        yield (
            rank,
            SliceDrift(
                slice=f"{name} in {label}" if label.startswith("(") else f"{name}={label}",
                share_reference=before[k],
                share_current=now[k],
                rows=rows[k],
                disagreement=loss[k] / mass[k] if judged else None,
                excess=loss[k] - mass[k] * expected if judged else 0.0,
            ),
        )


def _beyond_even(index: Array, losses: Array, share: Array, mass: Array, loss: Array) -> tuple[Array, Array]:
    """What each bin adds to the mean loss beyond its even share, and the standard error of that, ``[B]`` each.

    The influence of row i on bin b is ``share_i ((1[i in b] − mass_b)(loss_i − mean) − own_b)``; its square, summed
    over all rows, is written with sums per bin, so that the work is n + B and not n · B.
    """
    bins, mean = len(mass), float(loss.sum())
    own: Array = loss - mass * mean
    centred, weight = losses - mean, share**2
    inside = [np.bincount(index, weight * centred**power, minlength=bins) for power in (0, 1, 2)]
    whole = [part.sum() for part in inside]
    squares = (1 - 2 * mass) * inside[2] + mass**2 * whole[2]
    crossed = inside[1] - mass * whole[1]
    variance = squares - 2 * own * crossed + own**2 * whole[0]
    return own, np.sqrt(np.maximum(variance, 0.0))


def _binned(rows: pd.DataFrame, name: str, reference: Profile, current: Profile) -> _Binned:
    for where, known in (("rows", rows.columns), ("reference", reference.columns), ("current", current.columns)):
        if name not in known:
            raise SchemaError(f"column {name!r}: the {where} to be explained lack it; there are {list(known)}")
    before, now = reference.columns[name], current.columns[name]
    labels, *counts = coarse_counts(before, now)
    if isinstance(before, NumberProfile) and isinstance(now, NumberProfile):
        edges = number_bins(before.at(max(before.shift, now.shift)))
        return _Binned(labels, counts[0], counts[1], _number_bin(rows[name], edges))
    assert isinstance(before, CategoryProfile)
    return _Binned(labels, counts[0], counts[1], _category_bin(rows[name], before, labels))


def _number_bin(values: pd.Series, edges: Array) -> Array:
    """The bin of each number ``[n]``, closed on the right; that of the missing is the last."""
    try:
        found = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"column {values.name!r} must be numeric: {error}") from error
    return np.where(np.isnan(found), len(edges) + 1, np.searchsorted(edges, found))


def _category_bin(values: pd.Series, reference: CategoryProfile, labels: list[str]) -> Array:
    """The bin of each value ``[n]``: its own, or one of the last three, others, missing and unseen."""
    own = {value: k for k, value in enumerate(labels[:-3])}
    others, missing, unseen = range(len(labels) - 3, len(labels))
    codes, distinct = pd.factorize(values)
    texts = [str(value).lower() if isinstance(value, bool | np.bool_) else str(value) for value in distinct]
    known = reference.counts.keys()
    bins = [own.get(text, others if text in known or reference.error else unseen) for text in texts]
    return np.array([*bins, missing], dtype=np.int64)[codes]  # the code of what is missing is −1


def _log_ratio(before: Array, now: Array) -> Array:
    """Log density ratio of each bin, ``[B]``, clipped at 0."""
    pooled = np.asarray(before + now, dtype=np.float64)
    bins = np.count_nonzero(pooled)
    pseudo = PSEUDO_ROWS * bins * pooled / max(pooled.sum(), 1.0)
    shares = [(counts + pseudo) / max(counts.sum() + pseudo.sum(), 1.0) for counts in (before, now)]
    ratio = np.divide(shares[1], shares[0], out=np.ones(len(pooled)), where=pooled > 0)
    found: Array = np.maximum(np.log(ratio), 0.0)
    return found
