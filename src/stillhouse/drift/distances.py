"""Effect sizes between two profiles, not p-values: at a million rows every p-value is 0 (design, decision 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress, islice
from typing import Any

import numpy as np

from stillhouse.drift.profile import CategoryProfile, ColumnProfile, NumberProfile, Profile, numbers_at
from stillhouse.errors import SchemaError, WindowError
from stillhouse.records import ColumnDrift
from stillhouse.stats import total_variation

__all__ = ["coarse_counts", "column_drift", "compare", "ks", "number_bins", "psi"]

PSEUDO_ROWS = 0.5
PSI_BINS = 10
OWN_BIN = 100
NAMED = 20
LARGEST = float(np.finfo(np.float64).max)

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
    of the samples, short of it by at most the largest share that one side has strictly inside a bin.

    :raises WindowError: if a side has no rows.
    """
    p_counts, q_counts = np.asarray(p_counts, dtype=np.float64), np.asarray(q_counts, dtype=np.float64)
    if not p_counts.sum() or not q_counts.sum():
        raise WindowError("the Kolmogorov–Smirnov distance needs rows on both sides")
    return min(1.0, float(np.abs(np.cumsum(p_counts) / p_counts.sum() - np.cumsum(q_counts) / q_counts.sum()).max()))


def compare(reference: Profile, current: Profile) -> tuple[ColumnDrift, ...]:
    """Drift of every column of ``reference``, in its order; other columns of ``current`` are ignored.

    :raises WindowError: if a side has no rows.
    :raises SchemaError: if ``current`` lacks a column, or has it as another kind.
    """
    if not reference.rows or not current.rows:
        raise WindowError("drift needs rows in the reference and in the current window; one of them has none")
    absent = [name for name in reference.columns if name not in current.columns]
    if absent:
        raise SchemaError(f"the current window lacks the columns {absent}; it has {list(current.columns)}")
    return tuple(column_drift(name, column, current.columns[name]) for name, column in reference.columns.items())


def column_drift(name: str, reference: ColumnProfile, current: ColumnProfile) -> ColumnDrift:
    """Drift of one column; both sides have at least one row.

    ========================= =====================================================================================
    ``psi``                   on the bins of :func:`coarse_counts`
    ``ks``, ``wasserstein``   numbers: on the fine cells, without missing rows; None if a side has no value.
                              Wasserstein-1 is ∫ |F − G| between the cells' middles, infinite values left out
    ``effect``                numbers: Wasserstein-1 in standard deviations of the reference (of both windows together,
                              if the reference is constant); categories: total variation, the missing as one value
    ``unseen``, ``vanished``  the 20 most frequent values that only the current window, or only the reference has;
                              none where the other side keeps heavy hitters only, and may have had them
    ========================= =====================================================================================

    :raises SchemaError: if one side is a number and the other a category.
    """
    shared = _shared(reference, current)
    _, before, now = _coarse_counts(reference, current, shared)
    found = ColumnDrift(
        column=name,
        kind="number" if isinstance(reference, NumberProfile) else "category",
        psi=psi(before, now),
        missing_reference=reference.missing / reference.rows,
        missing_current=current.missing / current.rows,
    )
    if isinstance(reference, NumberProfile) and isinstance(current, NumberProfile):
        return found.model_copy(update=_number_distances(reference, current))
    assert isinstance(reference, CategoryProfile) and isinstance(current, CategoryProfile)
    return found.model_copy(
        update={
            "effect": _total_variation(reference, current, shared),
            "unseen": _first(() if reference.error else (v for v in current.counts if v not in reference.counts)),
            "vanished": _first(() if current.error else compress(reference.counts, shared == 0)),
        }
    )


def coarse_counts(reference: ColumnProfile, current: ColumnProfile) -> tuple[list[str], Array, Array]:
    """The bins that PSI is measured on: labels, and the rows of either side in each, int64 ``[B]``.

    Numbers: the bins between :func:`number_bins`, such as ``(3.2, 5.1]``, or ``0`` for that value alone; then
    ``missing``. (At the coarser of the two sides' cells: between ``number_bins(reference.at(current.shift))`` if the
    current side's are coarser.) Categories: the reference's 100 most frequent values, then ``others``, ``missing`` and
    ``unseen``. Without a shift PSI is about (B − 1)(1/n + 1/m) for n and m rows in B bins: with a bin for each of
    thousands of values it would measure the windows' sizes.

    :raises SchemaError: if one side is a number and the other a category.
    """
    labels, before, now = _coarse_counts(reference, current, _shared(reference, current))
    return list(labels), before, now


def _coarse_counts(
    reference: ColumnProfile, current: ColumnProfile, shared: Array
) -> tuple[Iterator[str], Array, Array]:
    """As :func:`coarse_counts`; the labels are made when they are asked for."""
    if isinstance(reference, NumberProfile) and isinstance(current, NumberProfile):
        return _number_counts(reference, current)
    if isinstance(reference, CategoryProfile) and isinstance(current, CategoryProfile):
        return _category_counts(reference, current, shared)
    raise SchemaError(f"a {reference.kind} cannot be compared with a {current.kind}")


def number_bins(reference: NumberProfile) -> Array:
    """The inner edges of the PSI bins, float64, strictly increasing: the reference's deciles, each the end of a cell.

    Bins are closed on the right and open at both ends: ``(−∞, e₀], (e₀, e₁], …, (eₙ, ∞)``. A decile that repeats is an
    atom, such as the zeros of rainfall: its cell gets a bin of its own, because with only one edge at it a shift to
    just below it could not be seen.
    """
    return numbers_at(((_last_cells(reference) + 1) << reference.shift) - 1)


def _last_cells(reference: NumberProfile) -> Array:
    """The cell that each of the inner bins ends with, int64, strictly increasing."""
    finite = np.isfinite(reference.values)
    cells, upto = reference.cells[finite], np.cumsum(reference.counts[finite])
    if not len(cells):
        return cells
    ranks = -(-upto[-1] * np.arange(1, PSI_BINS) // PSI_BINS)
    deciles = cells[np.searchsorted(upto, ranks)].tolist()
    atoms = {cell for cell in deciles if deciles.count(cell) > 1}
    return np.array(sorted({*deciles, *(cell - 1 for cell in atoms)}))


def _number_counts(reference: NumberProfile, current: NumberProfile) -> tuple[Iterator[str], Array, Array]:
    shift = max(reference.shift, current.shift)
    reference, current = reference.at(shift), current.at(shift)
    last = _last_cells(reference)
    before, now = (np.append(_between(last, side), side.missing) for side in (reference, current))
    return _labels(last, shift), before, now


def _between(last: Array, side: NumberProfile) -> Array:
    """Rows per bin, int64 ``[len(last) + 1]``."""
    upto = np.append(0, np.cumsum(side.counts))
    return np.diff(upto[np.searchsorted(side.cells, last, side="right")], prepend=0, append=upto[-1])


def _labels(last: Array, shift: int) -> Iterator[str]:
    """What the bins are called, ``missing`` the last; one that consists of a single cell is called by its value."""
    if not len(last):
        yield from ("(-∞, ∞)", "missing")
        return
    shown = _edges_shown(last.tolist(), shift)
    before_atom = [*(np.diff(last) == 1).tolist(), False]
    ends = [f"{shown[i + 1]})" if open_ else f"{shown[i]}]" for i, open_ in enumerate(before_atom)]
    inner = [
        shown[i + 1] if before_atom[i] else f"({low}, {end}"
        for i, (low, end) in enumerate(zip(shown, ends[1:], strict=False))
    ]
    yield from (f"(-∞, {ends[0]}", *inner, f"({shown[-1]}, ∞)", "missing")


def _edges_shown(cells: list[int], shift: int) -> list[str]:
    """A number for each cell, with four digits or as many as it takes to tell them apart."""
    for digits in range(4, 17):
        shown = [_roundest(cell, shift, digits) for cell in cells]
        if len(set(shown)) == len(cells):
            return shown
    return [_roundest(cell, shift, 17) for cell in cells]


def _roundest(cell: int, shift: int, digits: int) -> str:
    """The number of a cell that has the fewest digits, or its middle with ``digits``."""
    low, middle, high = numbers_at(np.array([cell << shift, (2 * cell + 1) << shift >> 1, ((cell + 1) << shift) - 1]))
    if low == 0:
        return "0"
    rounded = [f"{float(f'{middle:.{n}g}'):.{max(n, 6)}g}" for n in range(1, digits + 1)]  # 10, not 1e+01
    return next((text for text in rounded if low <= float(text) <= high), rounded[-1])


def _number_distances(reference: NumberProfile, current: NumberProfile) -> dict[str, float | None]:
    both = reference + current
    p, q = _on(both, reference), _on(both, current)
    if not p.any() or not q.any():
        return {}
    distance = _wasserstein(both.values, p, q)
    spread = reference.std or both.std
    effect = min(distance / spread, LARGEST) if distance and spread else 0.0
    return {"ks": ks(p, q), "wasserstein": distance, "effect": effect}


def _on(grid: NumberProfile, side: NumberProfile) -> Array:
    """The rows of ``side`` in the cells of ``grid``, which has all of them."""
    side = side.at(grid.shift)
    counts = np.zeros(len(grid.cells), np.int64)
    counts[np.searchsorted(grid.cells, side.cells)] = side.counts
    return counts


def _wasserstein(values: Array, p: Array, q: Array) -> float | None:
    """∫ |F − G| over ascending ``values``, infinite ones left out; None if nothing is left of a side."""
    finite = np.isfinite(values)
    values, p, q = values[finite], p[finite], q[finite]
    if not p.any() or not q.any():
        return None
    gap = np.abs(np.cumsum(p) / p.sum() - np.cumsum(q) / q.sum())[:-1]
    scale = float(max(abs(values[0]), abs(values[-1]))) or 1.0
    return min(float(np.dot(gap, np.diff(values / scale))) * scale, LARGEST)


def _shared(reference: ColumnProfile, current: ColumnProfile) -> Array:
    """The current window's rows of each of the reference's values, int64 ``[V]``; empty unless both are categories."""
    if not isinstance(reference, CategoryProfile) or not isinstance(current, CategoryProfile):
        return np.empty(0, np.int64)
    return np.array([current.counts.get(value, 0) for value in reference.counts], dtype=np.int64)


def _category_counts(
    reference: CategoryProfile, current: CategoryProfile, shared: Array
) -> tuple[Iterator[str], Array, Array]:
    own = list(islice(reference.counts, OWN_BIN))
    before = [reference.counts[value] for value in own]
    now = shared[:OWN_BIN].tolist()
    unseen = 0 if reference.error else sum(current.counts.values()) - int(shared.sum())
    present = [side.rows - side.missing for side in (reference, current)]
    before += [present[0] - sum(before), reference.missing, 0]
    now += [present[1] - sum(now) - unseen, current.missing, unseen]
    return iter((*own, "others", "missing", "unseen")), np.array(before), np.array(now)


def _first(values: Iterable[str]) -> tuple[str, ...]:
    """The most frequent of ``values``, which are in that order."""
    return tuple(islice(values, NAMED))


def _total_variation(reference: CategoryProfile, current: CategoryProfile, shared: Array) -> float:
    """Half the sum of the differences of all shares, that of the missing among them."""
    before = np.array([*reference.counts.values(), reference.others, reference.missing]) / reference.rows
    now = np.append(shared, [current.others, current.missing]) / current.rows
    unseen = max(0.0, 1 - now.sum())  # values that the reference does not have
    return float(total_variation(np.append(before, 0.0)[None], np.append(now, unseen)[None])[0])
