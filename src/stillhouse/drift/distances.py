"""Drift distances between two profiles: effect sizes, not p-values, because with a million rows every p-value is 0.

A new distance needs its formula here, where :func:`measure_column` fills in its value, and in ``records/drift.py`` a
field of :class:`stillhouse.records.ColumnDrift` and a line in ``COLUMN_DISTANCES``. For a threshold it needs a field of
the same name in :class:`stillhouse.config.Thresholds`. The verdict's reason and all tables follow from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress, islice
from typing import Any

import numpy as np

from stillhouse.drift.profile import CategoryProfile, ColumnProfile, NumberProfile, Profile, numbers_from_keys
from stillhouse.errors import SchemaError, WindowError
from stillhouse.records import ColumnDrift
from stillhouse.stats import PSEUDO_ROWS, total_variation

__all__ = [
    "compare_profiles",
    "count_psi_bins",
    "ks",
    "measure_column",
    "psi",
    "psi_bin_edges",
]

PSI_BINS = 10
MAX_CATEGORY_BINS = 100  # values of a category that have a bin of their own
MAX_NAMED_VALUES = 20  # unseen or vanished values that are listed
LARGEST_FLOAT = float(np.finfo(np.float64).max)

Array = np.ndarray[Any, Any]


def psi(p_counts: Array, q_counts: Array) -> float:
    """Population stability index of two histograms on the same bins, ``[B]`` rows each: Σ (q − p) ln(q / p).

    This is the symmetrised Kullback–Leibler divergence (Jeffreys 1946) in nats, ≥ 0; exchanging both sides does not
    change it. Usual interpretation: below 0.1 stable, above 0.25 shifted.

    Shares are smoothed like Laplace's, with half a pseudo-row per bin on either side. The pseudo-rows are distributed
    like the pooled counts, not evenly: ``p = (p_counts + ½B·m) / (n + ½B)`` with the pooled shares ``m`` and the number
    of bins ``B`` that at least one side uses. So the term of a bin that is empty on one side is finite, a bin that is
    empty on both sides contributes nothing, and a side with few rows is pulled towards the other one (with no rows: PSI
    0), which keeps the PSI of small samples small.

    >>> psi(np.array([50, 50]), np.array([50, 50]))
    0.0
    >>> round(psi(np.array([50, 50]), np.array([80, 20])), 3)
    0.407
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

    The largest difference of the cumulative shares at the edges of the bins. It is a lower bound of the distance of the
    samples, and differs from it by at most the largest share that one side has in a single bin.

    :raises WindowError: if a side has no rows.
    """
    p_counts, q_counts = np.asarray(p_counts, dtype=np.float64), np.asarray(q_counts, dtype=np.float64)
    if not p_counts.sum() or not q_counts.sum():
        raise WindowError("the Kolmogorov–Smirnov distance needs rows on both sides")
    return min(1.0, float(np.abs(np.cumsum(p_counts) / p_counts.sum() - np.cumsum(q_counts) / q_counts.sum()).max()))


def compare_profiles(reference: Profile, current: Profile) -> tuple[ColumnDrift, ...]:
    """Drift of every column of ``reference``, in its order; other columns of ``current`` are ignored.

    >>> import pyarrow as pa
    >>> from stillhouse.drift.scan import scan
    >>> reference = scan(pa.table({"origin": ["JFK"] * 60 + ["EWR"] * 40}))
    >>> (drift,) = compare_profiles(reference, scan(pa.table({"origin": ["JFK"] * 30 + ["LGA"] * 70}), like=reference))
    >>> drift.psi > 0.25, drift.unseen, drift.vanished
    (True, ('LGA',), ('EWR',))

    :raises WindowError: if a side has no rows.
    :raises SchemaError: if ``current`` lacks a column, or has it as another kind.
    """
    if not reference.rows or not current.rows:
        raise WindowError("drift needs rows in the reference and in the current window; one of them has none")
    absent = [name for name in reference.columns if name not in current.columns]
    if absent:
        raise SchemaError(f"the current window lacks the columns {absent}; it has {list(current.columns)}")
    return tuple(measure_column(name, column, current.columns[name]) for name, column in reference.columns.items())


def measure_column(name: str, reference: ColumnProfile, current: ColumnProfile) -> ColumnDrift:
    """Drift of one column; both sides have at least one row.

    ========================= =====================================================================================
    ``psi``                   on the bins of :func:`count_psi_bins`
    ``ks``, ``wasserstein``   numbers: on the cells of the profiles, without missing rows; None if a side has no value.
                              Wasserstein-1 is ∫ |F − G| between the midpoints of the cells, without infinite values
    ``effect``                numbers: Wasserstein-1 in standard deviations of the reference (of both windows together,
                              if the reference is constant); categories: total variation, missing counts as one value
    ``unseen``, ``vanished``  the 20 most frequent values that only the current window or only the reference has; empty
                              if the other side stores heavy hitters only, because it may have had them
    ========================= =====================================================================================

    :raises SchemaError: if one side is a number and the other a category.
    """
    current_counts = _counts_of_reference_values(reference, current)
    _, before, now = _count_psi_bins(reference, current, current_counts)
    drift = ColumnDrift(
        column=name,
        kind="number" if isinstance(reference, NumberProfile) else "category",
        psi=psi(before, now),
        missing_reference=reference.missing / reference.rows,
        missing_current=current.missing / current.rows,
    )
    if isinstance(reference, NumberProfile) and isinstance(current, NumberProfile):
        return drift.model_copy(update=_number_distances(reference, current))
    assert isinstance(reference, CategoryProfile) and isinstance(current, CategoryProfile)
    return drift.model_copy(
        update={
            "effect": _category_total_variation(reference, current, current_counts),
            "unseen": _most_frequent(
                () if reference.error else (v for v in current.counts if v not in reference.counts)
            ),
            "vanished": _most_frequent(() if current.error else compress(reference.counts, current_counts == 0)),
        }
    )


def count_psi_bins(reference: ColumnProfile, current: ColumnProfile) -> tuple[list[str], Array, Array]:
    """The bins of the PSI: labels, and the rows of the reference and of the current window in each, int64 ``[B]``.

    Numbers: the bins between :func:`psi_bin_edges`, such as ``(3.2, 5.1]``, or ``0`` for that single value; then
    ``missing``. (If the current window's cells are coarser, between
    ``psi_bin_edges(reference.coarsen(current.shift))``.) Categories: the reference's 100 most frequent values, then
    ``others``, ``missing`` and ``unseen``. Without a shift the PSI is about (B − 1)(1/n + 1/m) for n and m rows in B
    bins, so with a bin for each of thousands of values it would measure the sizes of the windows.

    :raises SchemaError: if one side is a number and the other a category.
    """
    labels, before, now = _count_psi_bins(reference, current, _counts_of_reference_values(reference, current))
    return list(labels), before, now


def _count_psi_bins(
    reference: ColumnProfile, current: ColumnProfile, current_counts: Array
) -> tuple[Iterator[str], Array, Array]:
    """As :func:`count_psi_bins`; the labels are an iterator, so that they cost nothing where they are not used."""
    if isinstance(reference, NumberProfile) and isinstance(current, NumberProfile):
        return _count_number_bins(reference, current)
    if isinstance(reference, CategoryProfile) and isinstance(current, CategoryProfile):
        return _count_category_bins(reference, current, current_counts)
    raise SchemaError(f"a {reference.kind} cannot be compared with a {current.kind}")


def psi_bin_edges(reference: NumberProfile) -> Array:
    """The inner edges of the PSI bins, float64, strictly increasing: the reference's deciles, each the end of a cell.

    Bins are closed on the right, and the outer ones are unbounded: ``(−∞, e₀], (e₀, e₁], …, (eₙ, ∞)``. A value that is
    several deciles at once is an atom of the distribution, such as 0 for rainfall. Its cell gets a bin of its own: with
    only one edge at the atom, a shift to just below it would be invisible.
    """
    return numbers_from_keys(((_last_cells_of_bins(reference) + 1) << reference.shift) - 1)


def _last_cells_of_bins(reference: NumberProfile) -> Array:
    """The last cell of each bin but the topmost, int64, strictly increasing."""
    finite = np.isfinite(reference.values)
    cells, cumulative = reference.cells[finite], np.cumsum(reference.counts[finite])
    if not len(cells):
        return cells
    ranks = -(-cumulative[-1] * np.arange(1, PSI_BINS) // PSI_BINS)
    deciles = cells[np.searchsorted(cumulative, ranks)].tolist()
    atoms = {cell for cell in deciles if deciles.count(cell) > 1}
    return np.array(sorted({*deciles, *(cell - 1 for cell in atoms)}))


def _count_number_bins(reference: NumberProfile, current: NumberProfile) -> tuple[Iterator[str], Array, Array]:
    shift = max(reference.shift, current.shift)
    reference, current = reference.coarsen(shift), current.coarsen(shift)
    last_cells = _last_cells_of_bins(reference)
    before, now = (np.append(_rows_per_bin(last_cells, side), side.missing) for side in (reference, current))
    return _bin_labels(last_cells, shift), before, now


def _rows_per_bin(last_cells: Array, side: NumberProfile) -> Array:
    """int64 ``[len(last_cells) + 1]``."""
    cumulative = np.append(0, np.cumsum(side.counts))
    ends = np.searchsorted(side.cells, last_cells, side="right")
    return np.diff(cumulative[ends], prepend=0, append=cumulative[-1])


def _bin_labels(last_cells: Array, shift: int) -> Iterator[str]:
    """Labels of the bins, the last one ``missing``; a bin of a single cell is labelled with its value."""
    if not len(last_cells):
        yield from ("(-∞, ∞)", "missing")
        return
    edges = _format_edges(last_cells.tolist(), shift)
    before_atom = [*(np.diff(last_cells) == 1).tolist(), False]
    ends = [f"{edges[i + 1]})" if is_open else f"{edges[i]}]" for i, is_open in enumerate(before_atom)]
    inner = [
        edges[i + 1] if before_atom[i] else f"({low}, {end}"
        for i, (low, end) in enumerate(zip(edges, ends[1:], strict=False))
    ]
    yield from (f"(-∞, {ends[0]}", *inner, f"({edges[-1]}, ∞)", "missing")


def _format_edges(cells: list[int], shift: int) -> list[str]:
    """A number for each cell, with four digits or as many as make them distinct."""
    for digits in range(4, 17):
        edges = [_shortest_number(cell, shift, digits) for cell in cells]
        if len(set(edges)) == len(cells):
            return edges
    return [_shortest_number(cell, shift, 17) for cell in cells]


def _shortest_number(cell: int, shift: int, digits: int) -> str:
    """The number within a cell that has the fewest digits, or the cell's midpoint with ``digits`` digits."""
    low, middle, high = numbers_from_keys(
        np.array([cell << shift, (2 * cell + 1) << shift >> 1, ((cell + 1) << shift) - 1])
    )
    if low == 0:
        return "0"
    rounded = [f"{float(f'{middle:.{n}g}'):.{max(n, 6)}g}" for n in range(1, digits + 1)]  # 10, not 1e+01
    return next((text for text in rounded if low <= float(text) <= high), rounded[-1])


def _number_distances(reference: NumberProfile, current: NumberProfile) -> dict[str, float | None]:
    both = reference + current
    p, q = _counts_on(both, reference), _counts_on(both, current)
    if not p.any() or not q.any():
        return {}
    distance = _wasserstein(both.values, p, q)
    spread = reference.std or both.std
    effect = min(distance / spread, LARGEST_FLOAT) if distance and spread else 0.0
    return {"ks": ks(p, q), "wasserstein": distance, "effect": effect}


def _counts_on(grid: NumberProfile, side: NumberProfile) -> Array:
    """The rows of ``side`` in the cells of ``grid``, which contains all cells of ``side``."""
    side = side.coarsen(grid.shift)
    counts = np.zeros(len(grid.cells), np.int64)
    counts[np.searchsorted(grid.cells, side.cells)] = side.counts
    return counts


def _wasserstein(values: Array, p: Array, q: Array) -> float | None:
    """∫ |F − G| over ascending ``values`` without infinite ones; None if a side has no finite value."""
    finite = np.isfinite(values)
    values, p, q = values[finite], p[finite], q[finite]
    if not p.any() or not q.any():
        return None
    gap = np.abs(np.cumsum(p) / p.sum() - np.cumsum(q) / q.sum())[:-1]
    scale = float(max(abs(values[0]), abs(values[-1]))) or 1.0
    return min(float(np.dot(gap, np.diff(values / scale))) * scale, LARGEST_FLOAT)


def _counts_of_reference_values(reference: ColumnProfile, current: ColumnProfile) -> Array:
    """The current window's rows of each value of the reference, int64 ``[V]``; empty unless both are categories."""
    if not isinstance(reference, CategoryProfile) or not isinstance(current, CategoryProfile):
        return np.empty(0, np.int64)
    return np.array([current.counts.get(value, 0) for value in reference.counts], dtype=np.int64)


def _count_category_bins(
    reference: CategoryProfile, current: CategoryProfile, current_counts: Array
) -> tuple[Iterator[str], Array, Array]:
    values = list(islice(reference.counts, MAX_CATEGORY_BINS))
    before = [reference.counts[value] for value in values]
    now = current_counts[:MAX_CATEGORY_BINS].tolist()
    unseen = 0 if reference.error else sum(current.counts.values()) - int(current_counts.sum())
    present = [side.rows - side.missing for side in (reference, current)]
    before += [present[0] - sum(before), reference.missing, 0]
    now += [present[1] - sum(now) - unseen, current.missing, unseen]
    return iter((*values, "others", "missing", "unseen")), np.array(before), np.array(now)


def _most_frequent(values: Iterable[str]) -> tuple[str, ...]:
    """The first ``MAX_NAMED_VALUES`` of ``values``, which are ordered by frequency."""
    return tuple(islice(values, MAX_NAMED_VALUES))


def _category_total_variation(reference: CategoryProfile, current: CategoryProfile, current_counts: Array) -> float:
    """Half the sum of the absolute differences of all shares; missing counts as one value."""
    before = np.array([*reference.counts.values(), reference.others, reference.missing]) / reference.rows
    now = np.append(current_counts, [current.others, current.missing]) / current.rows
    unseen = max(0.0, 1 - now.sum())  # values that the reference does not have
    return float(total_variation(np.append(before, 0.0)[None], np.append(now, unseen)[None])[0])
