"""Profiles: a compact summary of every column of a window, from which any drift distance can be computed later.

A number column is a histogram. Its cells are ranges of the float64 bit pattern: :func:`order_keys` maps a float64 to an
int64 in the same order, and a cell is that key without its ``shift`` lowest bits. So an octave has 2^(52 − shift) cells
of equal width, as in HdrHistogram, and cells get wider with the magnitude, as in DDSketch (Masson et al. 2019).
``shift`` is the smallest number of bits at which the values fall into at most 2^13 cells. The grid does not depend on
the data, therefore

- a profile depends on the rows only, not on their order or on how they were split into batches;
- merging (``+``) is exact, associative and commutative, and ``−`` removes a part from a merged profile again;
- up to 2^13 distinct values are stored exactly.

A category column counts rows by value. Beyond 2^15 values it keeps the heavy hitters of Misra and Gries (1982), in the
mergeable form of Agarwal et al. ("Mergeable summaries", 2012, section 2), together with the largest possible error.

:mod:`stillhouse.drift.scan` makes profiles from rows, :mod:`stillhouse.drift.arrow` stores them.

>>> import numpy as np
>>> from stillhouse.drift.scan import profile_numbers
>>> monday, tuesday = profile_numbers(np.array([1.0, 2.0, 2.0])), profile_numbers(np.array([2.0, np.nan]))
>>> week = monday + tuesday
>>> week.values.tolist(), week.counts.tolist(), week.missing
([1.0, 2.0], [1, 3], 1)
>>> (week - tuesday).counts.tolist()
[1, 2]
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stillhouse.errors import SchemaError, WindowError

__all__ = [
    "CategoryProfile",
    "ColumnProfile",
    "NumberProfile",
    "Profile",
    "count_cells",
    "keep_heavy_hitters",
    "numbers_from_keys",
    "order_keys",
]

MAX_CELLS = 2**13  # of a number column
MAX_VALUES = 2**15  # of a category column
KEY_OF_INFINITY = np.float64(np.inf).view(np.int64)

Array = np.ndarray[Any, Any]


# --------------------------------------------------------------------------- cells


def order_keys(values: Array) -> Array:
    """int64 ``[n]`` in the same order as float64 ``[n]`` without NaN: the bit patterns, reversed for negatives."""
    bits: Array = (values + 0.0).view(np.int64)  # + 0.0 turns −0.0 into 0.0
    sign = bits >> 63
    bits &= np.int64(2**63 - 1)
    bits ^= sign
    return bits


def numbers_from_keys(keys: Array) -> Array:
    """The float64 ``[n]`` of each key; key −1, which no number has, gives the largest number below zero."""
    bits = np.minimum(np.where(keys < 0, np.maximum(~keys, 1), keys), KEY_OF_INFINITY)
    values: Array = bits.view(np.float64)
    return np.where(keys < 0, -values, values)


def count_cells(cells: Array, counts: Array | None = None) -> tuple[Array, Array]:
    """Distinct cells in ascending order, and the rows in each.

    :param cells: int64 ``[n]``.
    :param counts: rows of each entry ``[n]``; None: one.
    """
    if counts is None:
        cells = np.sort(cells)
        starts = _run_starts(cells)
        return cells[starts], np.diff(starts, append=len(cells))
    order = np.argsort(cells, kind="stable")
    cells, counts = cells[order], counts[order]
    starts = _run_starts(cells)
    return cells[starts], _run_sums(counts, starts)


def _run_sums(counts: Array, starts: Array) -> Array:
    """Sum of each run that begins at one of ``starts`` (``reduceat`` takes five times as long)."""
    cumulative = np.append(0, np.cumsum(counts))
    return np.diff(cumulative[starts], append=cumulative[-1:])


def _bits_to_drop(cells: Array, max_cells: int) -> int:
    """The smallest number of bits to drop so that at most ``max_cells`` of the ascending ``cells`` remain distinct.

    Two neighbours remain distinct while the highest bit in which they differ is not dropped.
    """
    if len(cells) <= max_cells:
        return 0
    differences = (cells[1:] ^ cells[:-1]).view(np.uint64)
    return bisect_left(
        range(64), True, key=lambda shift: bool(np.count_nonzero(differences >> np.uint64(shift)) < max_cells)
    )


def _run_starts(ordered: Array) -> Array:
    """Positions at which runs of equal numbers begin."""
    return np.flatnonzero(np.append(len(ordered) > 0, ordered[1:] != ordered[:-1])[: len(ordered)])


# --------------------------------------------------------------------------- columns


@dataclass(frozen=True, eq=False)
class NumberProfile:
    """Histogram of a number column. Nulls and NaN count as missing; −∞ and ∞ have cells of their own.

    ``cells`` and ``counts`` are int64 ``[C]``: cells ascend, counts are at least 1. ``low`` and ``high`` are the
    smallest and the largest value; None if there is no value.
    """

    shift: int
    cells: Array = field(repr=False)
    counts: Array = field(repr=False)
    missing: int
    low: float | None
    high: float | None

    kind = "number"

    @property
    def rows(self) -> int:
        """All rows, including missing ones."""
        return int(self.counts.sum()) + self.missing

    @property
    def values(self) -> Array:
        """float64 ``[C]``: midpoint of each cell, clipped to ``low`` … ``high``; may begin with −∞ and end with ∞."""
        if self.low is None or self.high is None:
            return np.empty(0)
        return np.clip(numbers_from_keys((self.cells << self.shift) + (1 << self.shift >> 1)), self.low, self.high)

    @property
    def std(self) -> float:
        """Standard deviation of the finite values, computed from the cells; NaN if there are none."""
        return _mean_and_std(self)[1]

    def coarsen(self, shift: int) -> NumberProfile:
        """The same histogram with coarser cells.

        :param shift: not below the profile's own.
        """
        if shift == self.shift:
            return self
        cells = self.cells >> (shift - self.shift)
        starts = _run_starts(cells)
        return replace(self, shift=shift, cells=cells[starts], counts=_run_sums(self.counts, starts))

    def limit_cells(self) -> NumberProfile:
        """The same histogram, made just coarse enough to have at most ``MAX_CELLS`` cells."""
        return self.coarsen(self.shift + _bits_to_drop(self.cells, MAX_CELLS))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberProfile) and (
            (self.shift, self.missing, self.low, self.high) == (other.shift, other.missing, other.low, other.high)
            and np.array_equal(self.cells, other.cells)
            and np.array_equal(self.counts, other.counts)
        )

    def __add__(self, other: NumberProfile) -> NumberProfile:
        if self is EMPTY_NUMBERS:
            return other
        left, right, shift = _same_shift(self, other)
        cells, counts = count_cells(np.append(left.cells, right.cells), np.append(left.counts, right.counts))
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        low, high = min(lows, default=None), max(highs, default=None)
        return NumberProfile(shift, cells, counts, self.missing + other.missing, low, high).limit_cells()

    def __sub__(self, other: NumberProfile) -> NumberProfile:
        left, right, shift = _same_shift(self, other)
        cells, counts = count_cells(np.append(left.cells, right.cells), np.append(left.counts, -right.counts))
        missing = self.missing - other.missing
        if missing < 0 or (counts < 0).any():
            raise WindowError(NOT_A_PART)
        return NumberProfile(shift, cells[counts > 0], counts[counts > 0], missing, self.low, self.high)


@dataclass(frozen=True)
class CategoryProfile:
    """Rows of a category column by value, most frequent first.

    With ``error`` 0 all values are listed and their counts are exact. Otherwise a value has between ``count`` and
    ``count + error`` rows (``count`` is 0 for a value that is not listed), and ``others`` is the number of rows that
    are counted for no listed value.
    """

    counts: dict[str, int]
    missing: int
    others: int = 0
    error: int = 0

    kind = "category"

    @property
    def rows(self) -> int:
        """All rows, including missing ones."""
        return sum(self.counts.values()) + self.others + self.missing

    def __add__(self, other: CategoryProfile) -> CategoryProfile:
        counts = dict(other.counts)
        for value, count in self.counts.items():
            counts[value] = counts.get(value, 0) + count
        return keep_heavy_hitters(
            counts, self.missing + other.missing, self.others + other.others, self.error + other.error
        )

    def __sub__(self, other: CategoryProfile) -> CategoryProfile:
        error, missing = self.error + other.error, self.missing - other.missing
        differences = dict(self.counts)
        for value, count in other.counts.items():
            differences[value] = differences.get(value, 0) - count
        present = self.rows - other.rows - missing
        if min(missing, present) < 0 or (not error and min(differences.values(), default=0) < 0):
            raise WindowError(NOT_A_PART)
        counts = {value: count - other.error for value, count in differences.items() if count > other.error}
        return keep_heavy_hitters(counts, missing, max(0, present - sum(counts.values())), error)


ColumnProfile = NumberProfile | CategoryProfile
NOT_A_PART = "cannot subtract this profile: it contains rows that the other profile does not contain"
EMPTY_NUMBERS = NumberProfile(0, np.empty(0, np.int64), np.empty(0, np.int64), 0, None, None)


def keep_heavy_hitters(counts: Mapping[str, int], missing: int, others: int, error: int) -> CategoryProfile:
    """A profile with at most ``MAX_VALUES`` values.

    Each count is reduced by the count of the most frequent value that does not fit (Agarwal et al.). Every time the
    error grows by one, more than ``MAX_VALUES`` rows are dropped, so it stays below rows / ``MAX_VALUES``.
    """
    ordered = sorted(sorted(counts), key=counts.__getitem__, reverse=True)
    reduction = counts[ordered[MAX_VALUES]] if len(ordered) > MAX_VALUES else 0
    hitters = {value: counts[value] - reduction for value in ordered[:MAX_VALUES] if counts[value] > reduction}
    dropped = sum(counts.values()) - sum(hitters.values()) if reduction else 0
    return CategoryProfile(hitters, missing, others + dropped, error + reduction)


def _same_shift(left: NumberProfile, right: NumberProfile) -> tuple[NumberProfile, NumberProfile, int]:
    shift = max(left.shift, right.shift)
    return left.coarsen(shift), right.coarsen(shift), shift


def _mean_and_std(profile: NumberProfile) -> tuple[float, float]:
    """Mean and standard deviation; scaled by the largest magnitude so that no square overflows."""
    values = profile.values
    finite = np.isfinite(values)
    values, counts = values[finite], profile.counts[finite]
    if not len(values):
        return float("nan"), float("nan")
    scale = max(abs(values[0]), abs(values[-1])) or 1.0
    scaled = values / scale
    mean = float(np.average(scaled, weights=counts))
    variance = float(np.average((scaled - mean) ** 2, weights=counts))
    return mean * scale, variance**0.5 * scale


# --------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class Profile:
    """The profiles of all columns of one window."""

    rows: int
    columns: dict[str, ColumnProfile]

    def to_bytes(self) -> bytes:
        """Arrow IPC bytes, compressed with zstd, one row per column; :meth:`from_bytes` restores an equal profile."""
        from stillhouse.drift.arrow import profile_to_bytes

        return profile_to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """The profile that :meth:`to_bytes` wrote.

        :raises SchemaError: if ``data`` is something else.
        """
        from stillhouse.drift.arrow import profile_from_bytes

        return profile_from_bytes(data)

    def __add__(self, other: Profile) -> Profile:
        """The profile of both windows together.

        :raises SchemaError: if the columns differ.
        """
        pairs = _column_pairs(self, other)
        return Profile(self.rows + other.rows, {name: left + right for name, left, right in pairs})  # type: ignore[operator]

    def __sub__(self, other: Profile) -> Profile:
        """The profile of this window without ``other``, which is a part of it; ``low`` and ``high`` do not change.

        :raises SchemaError: if the columns differ.
        :raises WindowError: if ``other`` is not a part of this window.
        """
        pairs = _column_pairs(self, other)
        return Profile(self.rows - other.rows, {name: left - right for name, left, right in pairs})  # type: ignore[operator]


def _column_pairs(left: Profile, right: Profile) -> Iterator[tuple[str, ColumnProfile, ColumnProfile]]:
    kinds = [{name: column.kind for name, column in profile.columns.items()} for profile in (left, right)]
    if kinds[0] != kinds[1]:
        raise SchemaError(f"profiles of different columns cannot be combined: {kinds[0]} and {kinds[1]}")
    return ((name, column, right.columns[name]) for name, column in left.columns.items())
