"""Effect sizes, not p-values: at a million rows every p-value is 0 (see the design, decision 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stillhouse.drift.profile import (
    CategoryProfile,
    ColumnProfile,
    NumberProfile,
    Profile,
    bin_counts,
    numbers,
    value_counts,
)
from stillhouse.errors import SchemaError, WindowError
from stillhouse.records import ColumnDrift

__all__ = ["column_drift", "compare", "ks", "number_drift", "psi"]

PSEUDO_ROWS = 0.5
OWN_BIN = 100

Array = np.ndarray[Any, Any]


def psi(p_counts: Array, q_counts: Array) -> float:
    """Population stability index of two histograms on the same bins, ``[B]`` rows each: Σ (q − p) ln(q / p).

    It is the symmetrised Kullback–Leibler divergence (Jeffreys 1946), in nats, ≥ 0, and the same when both
    sides are exchanged. Usual reading: below 0.1 stable, above 0.25 shifted.

    Shares are smoothed as Laplace did, with a half pseudo-row per bin on either side, but spread like the
    pooled counts and not evenly: ``p = (p_counts + ½B·m) / (n + ½B)``, ``m`` the pooled shares, ``B`` the bins
    that at least one side uses. So a bin that one side lacks is finite, one that both lack says nothing, and a
    side with few rows is drawn towards the other (with none: PSI 0) and does not explode.
    """
    p_counts, q_counts = np.asarray(p_counts, dtype=np.float64), np.asarray(q_counts, dtype=np.float64)
    pooled = p_counts + q_counts
    used = pooled > 0
    if not used.any():
        return 0.0
    pseudo = PSEUDO_ROWS * used.sum() * pooled[used] / pooled.sum()
    p = (p_counts[used] + pseudo) / (p_counts.sum() + pseudo.sum())
    q = (q_counts[used] + pseudo) / (q_counts.sum() + pseudo.sum())
    return max(0.0, float(np.sum((q - p) * np.log(q / p))))


def ks(p_counts: Array, q_counts: Array) -> float:
    """Kolmogorov–Smirnov distance, 0…1, of two histograms on the same ordered bins, ``[B]`` rows each.

    The largest difference of the cumulative shares at the bins' edges. That is a lower bound of the distance
    of the samples, short of it by at most the largest share that one side has strictly inside a bin (for
    :mod:`stillhouse.drift.profile` about 1/256).

    :raises WindowError: if a side has no rows.
    """
    p_counts, q_counts = np.asarray(p_counts, dtype=np.float64), np.asarray(q_counts, dtype=np.float64)
    if not p_counts.sum() or not q_counts.sum():
        raise WindowError("the Kolmogorov–Smirnov distance needs rows on both sides")
    return float(np.abs(np.cumsum(p_counts) / p_counts.sum() - np.cumsum(q_counts) / q_counts.sum()).max())


def compare(profile: Profile, frame: pd.DataFrame) -> tuple[ColumnDrift, ...]:
    """Drift of every profiled column in ``frame``, in the profile's order; other columns are ignored.

    :raises WindowError: if ``frame`` has no rows.
    :raises SchemaError: if it lacks a profiled column, or a number is not numeric.
    """
    if frame.empty:
        raise WindowError("drift needs a current window with rows; this one has none")
    absent = [name for name in profile.columns if name not in frame.columns]
    if absent:
        raise SchemaError(f"the current window lacks the columns {absent}; it has {list(frame.columns)}")
    return tuple(column_drift(name, column, frame[name]) for name, column in profile.columns.items())


def column_drift(name: str, reference: ColumnProfile, values: pd.Series) -> ColumnDrift:
    """Drift of one column; ``values`` has at least one row.

    :raises SchemaError: if a number is not numeric.
    """
    if isinstance(reference, NumberProfile):
        return number_drift(name, reference, numbers(values))
    return _category_drift(name, reference, values)


def number_drift(name: str, reference: NumberProfile, values: Array) -> ColumnDrift:
    """Drift of float64 ``[n]``, n ≥ 1, NaN for missing. PSI counts the missing as one more bin, KS leaves them out."""
    edges = np.asarray(reference.edges)
    present = values[~np.isnan(values)]
    missing = len(values) - len(present)
    before, now = np.asarray(reference.counts), bin_counts(present, edges)
    coarse = np.concatenate([[0], np.searchsorted(edges, reference.psi_edges) + 1])
    return ColumnDrift(
        column=name,
        kind="number",
        psi=psi(
            np.append(np.add.reduceat(before, coarse), reference.missing),
            np.append(np.add.reduceat(now, coarse), missing),
        ),
        ks=ks(before, now) if before.any() and now.any() else None,
        missing_reference=reference.missing / reference.rows,
        missing_current=missing / len(values),
    )


def _category_drift(name: str, reference: CategoryProfile, values: pd.Series) -> ColumnDrift:
    """PSI over the reference's 100 most frequent values, one bin for its others, for missing and for unseen ones.

    Without a shift PSI is about (B − 1)(1/n + 1/m) for n and m rows in B bins: with a bin for each of thousands
    of values it would measure the windows' sizes.
    """
    counts, missing = value_counts(values)
    unseen = tuple(value for value in counts if value not in reference.counts)
    before = list(reference.counts.values())
    now = [counts.get(value, 0) for value in reference.counts]
    return ColumnDrift(
        column=name,
        kind="category",
        psi=psi(
            np.array([*before[:OWN_BIN], sum(before[OWN_BIN:]), reference.missing, 0]),
            np.array([*now[:OWN_BIN], sum(now[OWN_BIN:]), missing, sum(counts[value] for value in unseen)]),
        ),
        missing_reference=reference.missing / reference.rows,
        missing_current=missing / len(values),
        unseen=unseen,
    )
