"""Tallies: count the values of Arrow arrays, batch by batch, in bounded memory and a few vector operations each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.drift.arrow import array_to_floats, is_number_type, non_null_numbers
from stillhouse.drift.profile import (
    EMPTY_NUMBERS,
    MAX_CELLS,
    MAX_VALUES,
    CategoryProfile,
    ColumnProfile,
    NumberProfile,
    count_cells,
    numbers_from_keys,
    order_keys,
)
from stillhouse.errors import SchemaError

__all__ = ["BATCH_ROWS", "ColumnTally", "NumberTally", "ScratchMemory"]

BATCH_ROWS = 2**16  # rows whose values and intermediate results fit into the processor's cache
TABLE_CELLS = 2**15  # cells that a count table covers
MAX_PENDING_ROWS = 2 * MAX_CELLS  # rows outside the table that are collected before they are sorted
NO_NUMBERS = np.empty(0)

Array = np.ndarray[Any, Any]


class ColumnTally:
    """Counts one column of a stream of batches; the first batch that has a type decides the kind of column."""

    def __init__(self, name: str, kind: str | None, scratch: ScratchMemory) -> None:
        self.name, self.scratch, self.untyped_rows = name, scratch, 0
        self.tally: NumberTally | CategoryTally | None = None
        if kind is not None:
            self.tally = NumberTally(scratch) if kind == "number" else CategoryTally()

    def add(self, array: pa.Array) -> None:
        """Count one batch.

        :raises SchemaError: if the column was numeric so far and is not in this batch, or cannot be profiled.
        """
        if pa.types.is_null(array.type):
            self.untyped_rows += len(array)
            return
        is_number = is_number_type(array.type)
        if self.tally is None:
            self.tally = NumberTally(self.scratch) if is_number else CategoryTally()
        if isinstance(self.tally, NumberTally) and not is_number:
            raise SchemaError(f"column {self.name!r} must be numeric; it is {array.type}")
        try:
            self.tally.add(array)
        except pa.ArrowException as error:
            raise SchemaError(f"column {self.name!r} of type {array.type} cannot be profiled: {error}") from error

    def profile(self) -> ColumnProfile:
        """The profile of all batches; a column that never had a type is a category without values."""
        profile = (CategoryTally() if self.tally is None else self.tally).profile()
        return replace(profile, missing=profile.missing + self.untyped_rows)


class NumberTally:
    """Counts numbers: most of them in a :class:`CountTable`; those that do not fit into it are sorted."""

    def __init__(self, scratch: ScratchMemory) -> None:
        self.scratch = scratch
        self.missing = 0
        self.low, self.high = np.inf, -np.inf
        self.merged = EMPTY_NUMBERS
        self.table: CountTable | None = None
        self.pending: list[Array] = []
        self.pending_rows = 0

    def add(self, array: pa.Array) -> None:
        """Count one batch."""
        self.missing += array.null_count
        for start in range(0, len(array), BATCH_ROWS):
            self.count(array_to_floats(array.slice(start, BATCH_ROWS), self.scratch.values))

    def count(self, values: Array) -> None:
        """Count float64 ``[n]``; NaN is missing."""
        start = 0
        while start < len(values):
            part = values[start : start + (BATCH_ROWS if self.table else MAX_PENDING_ROWS)]
            start += len(part)
            low = part.min()
            if np.isnan(low):
                present = part[~np.isnan(part)]
                self.missing += len(part) - len(present)
                if not len(present):
                    continue
                part, low = present, present.min()
            self.low, self.high = min(self.low, float(low)), max(self.high, float(part.max()))
            outside = self.table.add(part) if self.table else part.copy()
            if len(outside):
                self._append_pending(outside)

    def profile(self) -> NumberProfile:
        """The profile of everything counted so far."""
        low, high = (self.low, self.high) if self.low <= self.high else (None, None)
        return replace(self._merge(), missing=self.missing, low=low, high=high)

    def _append_pending(self, values: Array) -> None:
        self.pending.append(values)
        self.pending_rows += len(values)
        if self.pending_rows >= MAX_PENDING_ROWS:
            self.merged = self._merge()
            self.table = CountTable.covering(self.merged, self.scratch)
            self.pending, self.pending_rows = [], 0

    def _merge(self) -> NumberProfile:
        parts = [self.table.profile()] if self.table else []
        if self.pending:
            cells, counts = count_cells(order_keys(np.concatenate(self.pending)))
            parts.append(replace(EMPTY_NUMBERS, cells=cells, counts=counts).limit_cells())
        return sum(parts, start=self.merged)


class CountTable:
    """Counts numbers by their slot in a table: a few vector operations, no search.

    A slot is a cell within a range of ``TABLE_CELLS`` magnitudes; if there are negative numbers, the table has a second
    half for them. If the values counted so far are few and far apart, the range would be too wide. Then a slot is
    coarser than a cell, by as many bits as still keep the counted values apart, and ``slot_values`` holds the one value
    that is counted there. The last slot (with negatives, also the first) counts zero and everything outside the range.
    A number that is not the value of its slot is not counted but returned to the caller.
    """

    def __init__(self, counted: NumberProfile, extra_bits: int, first: int, scratch: ScratchMemory) -> None:
        self.shift, self.drop_bits, self.first, self.scratch = counted.shift, counted.shift + extra_bits, first, scratch
        self.signed = bool(counted.cells[0] < 0)
        self.counts = np.zeros((TABLE_CELLS + 1) * (1 + self.signed), np.int64)
        self.slot_values: Array | None = None
        if extra_bits:
            values = numbers_from_keys(counted.cells)
            self.slot_values = np.full(len(self.counts), np.nan)
            self.slot_values[self._slots(values)] = values
            self.slot_values[[-1, 0] if self.signed else -1] = 0.0

    @classmethod
    def covering(cls, counted: NumberProfile, scratch: ScratchMemory) -> CountTable | None:
        """The table that covers most of the ``counted`` rows; None if no table covers half of them."""
        magnitudes, counts = count_cells(counted.cells ^ (counted.cells >> 63), counted.counts)
        zeros = int(counts[magnitudes == 0].sum())
        magnitudes, counts = magnitudes[magnitudes > 0], counts[magnitudes > 0]
        smallest_gap = int((magnitudes[1:] ^ magnitudes[:-1]).min()) if len(magnitudes) > 1 else 1
        for extra_bits in (0, 0 if counted.shift else smallest_gap.bit_length() - 1):
            first, covered = _best_range(magnitudes >> extra_bits, counts)
            if 2 * (zeros + covered) >= zeros + counts.sum():
                return cls(counted, extra_bits, first, scratch)
        return None

    def add(self, values: Array) -> Array:
        """Count float64 ``[n]`` without NaN, n at most ``BATCH_ROWS``; returns the values that were not counted."""
        slots, outside_before = self._slots(values), self._rows_outside()
        np.add.at(self.counts, slots, 1)
        if self.slot_values is not None:
            buffer = self.scratch.other[: len(values)].view(np.float64)
            expected = np.take(self.slot_values, slots, out=buffer, mode="clip")
            uncounted = np.flatnonzero(expected != values)
        elif self._rows_outside() == outside_before or self._rows_outside() - outside_before == np.count_nonzero(
            values == 0
        ):
            return NO_NUMBERS
        else:
            at_end = slots == len(self.counts) - 1
            if self.signed:
                at_end |= slots == 0
            uncounted = np.flatnonzero(at_end & (values != 0))
        np.subtract.at(self.counts, slots[uncounted], 1)
        return values[uncounted]

    def profile(self) -> NumberProfile:
        """The profile of everything counted in the table."""
        used = np.flatnonzero(self.counts)
        cells, counts = count_cells(self._cells(used), self.counts[used])
        return replace(EMPTY_NUMBERS, shift=self.shift, cells=cells, counts=counts)

    def _cells(self, slots: Array) -> Array:
        if self.slot_values is not None:
            return order_keys(self.slot_values[slots])
        half = np.arange(self.first, self.first + TABLE_CELLS)
        return np.concatenate(([0], ~half[::-1], half, [0]) if self.signed else (half, [0]))[slots]

    def _rows_outside(self) -> int:
        return int(self.counts[-1] + (self.counts[0] if self.signed else 0))

    def _slots(self, values: Array) -> Array:
        """int64 ``[n]``, overwritten by the next call."""
        slots, other = self.scratch.slots[: len(values)], self.scratch.other[: len(values)]
        magnitudes = np.abs(values, out=other.view(np.float64)) if self.signed else values
        np.right_shift(magnitudes.view(np.int64), self.drop_bits, out=slots)
        np.subtract(slots, self.first, out=slots)
        unsigned = slots.view(np.uint64)  # here a value below the range is far above it
        if unsigned.max() > TABLE_CELLS:
            np.minimum(unsigned, np.uint64(TABLE_CELLS), out=unsigned)
        if self.signed:
            np.right_shift(values.view(np.int64), 63, out=other)
            np.bitwise_xor(slots, other, out=slots)
            np.add(slots, TABLE_CELLS + 1, out=slots)
        return slots


class ScratchMemory:
    """Buffers that a scan reuses for every batch: allocating new pages would cost more than the arithmetic."""

    def __init__(self) -> None:
        np.empty(2**18)  # freed at once: afterwards glibc reuses smaller blocks instead of returning them to the system
        self.values = np.empty(BATCH_ROWS)
        self.slots, self.other = np.empty((2, BATCH_ROWS), np.int64)


def _best_range(magnitudes: Array, counts: Array) -> tuple[int, int]:
    """First cell of the ``TABLE_CELLS`` cells that cover most rows, these centred, and the number of rows covered."""
    if not len(magnitudes):
        return 1, 0
    cumulative = np.append(0, np.cumsum(counts))
    ends = np.searchsorted(magnitudes, magnitudes + TABLE_CELLS)
    covered = cumulative[ends] - cumulative[:-1]
    best = int(covered.argmax())
    first, last = int(magnitudes[best]), int(magnitudes[ends[best] - 1])
    return max(1, (first + last + 1 - TABLE_CELLS) // 2), int(covered[best])


class CategoryTally:
    """Counts texts by their index in the array's dictionary, as long as the dictionary does not change."""

    def __init__(self) -> None:
        self.missing = 0
        self.merged = CategoryProfile({}, 0)
        self.counts: dict[str, int] = {}
        self.dictionary, self.index_counts = pa.nulls(0, pa.string()), np.zeros(0, np.int64)

    def add(self, array: pa.Array) -> None:
        """Count one batch."""
        self.missing += array.null_count
        if pa.types.is_boolean(array.type):
            true_count = array.true_count
            return self._add_counts([("true", true_count), ("false", len(array) - array.null_count - true_count)])
        if not pa.types.is_dictionary(array.type):
            array = array.cast(pa.string()).dictionary_encode()
        dictionary = array.dictionary.cast(pa.string())
        if not dictionary.equals(self.dictionary):
            self._change_dictionary(dictionary)
        np.add.at(self.index_counts, non_null_numbers(array.indices), 1)
        return None

    def profile(self) -> CategoryProfile:
        """The profile of everything counted so far."""
        self._change_dictionary(self.dictionary)
        return replace(self.merged + CategoryProfile(self.counts, 0), missing=self.missing)

    def _change_dictionary(self, dictionary: pa.Array) -> None:
        """Add the counts of the current dictionary and begin those of the next one."""
        self._add_counts(zip(self.dictionary.to_pylist(), self.index_counts.tolist(), strict=True))
        self.dictionary, self.index_counts = dictionary, np.zeros(len(dictionary), np.int64)

    def _add_counts(self, text_counts: Iterable[tuple[str | None, int]]) -> None:
        for text, count in text_counts:
            if text is None:
                self.missing += count
            elif count:
                self.counts[text] = self.counts.get(text, 0) + count
        if len(self.counts) > 2 * MAX_VALUES:
            self.merged, self.counts = self.merged + CategoryProfile(self.counts, 0), {}
