"""Arrow: a profile as bytes, and the values of Arrow arrays as numpy numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.drift.profile import CategoryProfile, ColumnProfile, NumberProfile, Profile
from stillhouse.errors import SchemaError

__all__ = ["array_to_floats", "is_number_type", "non_null_numbers", "profile_from_bytes", "profile_to_bytes"]

Array = np.ndarray[Any, Any]

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("missing", pa.int64()),
        ("shift", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("cells", pa.list_(pa.int64())),  # the first cell, then the difference of each from the one before
        ("values", pa.list_(pa.string())),
        ("counts", pa.list_(pa.int64())),
        ("others", pa.int64()),
        ("error", pa.int64()),
    ]
)


# --------------------------------------------------------------------------- profiles


def profile_to_bytes(profile: Profile) -> bytes:
    """Arrow IPC bytes, compressed with zstd, one row of :data:`SCHEMA` per column."""
    rows = [_column_to_row(name, column) for name, column in profile.columns.items()]
    schema = SCHEMA.with_metadata({"stillhouse.profile": "1", "rows": str(profile.rows)})
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return bytes(sink.getvalue())


def profile_from_bytes(data: bytes) -> Profile:
    """The profile that :func:`profile_to_bytes` wrote.

    :raises SchemaError: if ``data`` is something else.
    """
    try:
        with pa.ipc.open_stream(data) as stream:
            metadata = stream.schema.metadata or {}
            if metadata.get(b"stillhouse.profile") != b"1" or stream.schema != SCHEMA:
                raise SchemaError("these bytes hold an Arrow table, but no profile of stillhouse")
            batches = list(stream)
        for batch in batches:
            batch.validate(full=True)
        columns = dict(_column_from_row(batch, i) for batch in batches for i in range(batch.num_rows))
        return Profile(int(metadata[b"rows"]), columns)
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SchemaError(f"these bytes are not a profile: {error}") from error


def _column_to_row(name: str, column: ColumnProfile) -> dict[str, Any]:
    """One row of :data:`SCHEMA`; fields that the column's kind does not use are null."""
    row: dict[str, Any] = {"name": name, "kind": column.kind, "missing": column.missing}
    if isinstance(column, CategoryProfile):
        counts = list(column.counts.values())
        return row | {"values": list(column.counts), "counts": counts, "others": column.others, "error": column.error}
    cells = np.diff(column.cells, prepend=np.int64(0))
    return row | {
        "shift": column.shift,
        "low": column.low,
        "high": column.high,
        "cells": cells,
        "counts": column.counts,
    }


def _column_from_row(batch: pa.RecordBatch, i: int) -> tuple[str, ColumnProfile]:
    """Name and profile of the column that row ``i`` describes."""
    fields = {field.name: batch.column(field.name)[i] for field in SCHEMA}
    name, kind, missing, shift, low, high, others, error = (
        fields[key].as_py() for key in ("name", "kind", "missing", "shift", "low", "high", "others", "error")
    )
    counts = non_null_numbers(fields["counts"].values)
    if kind == "category":
        values = fields["values"].values.to_pylist()
        return name, CategoryProfile(dict(zip(values, counts.tolist(), strict=True)), missing, others, error)
    cells = np.cumsum(non_null_numbers(fields["cells"].values))  # may overflow and wrap, as the differences did
    if len(cells) != len(counts) or (cells[1:] <= cells[:-1]).any() or (counts <= 0).any() or not 0 <= shift < 64:
        raise ValueError(f"column {name!r} has no ascending cells with a count each")
    return name, NumberProfile(shift, cells, counts, missing, low, high)


# --------------------------------------------------------------------------- arrays


def is_number_type(type_: pa.DataType) -> bool:
    """Whether a column of this Arrow type is profiled as numbers; intervals of months are not."""
    if pa.types.is_interval(type_):
        return False
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal)
    return any(test(type_) for test in tests)


def array_to_floats(array: pa.Array, out: Array) -> Array:
    """The values that are not null as float64; temporal values in seconds.

    :param out: float64 buffer for the result, unused where the array's own memory can be returned.
    """
    type_ = array.type
    numbers = non_null_numbers(pc.cast(array, pa.float64(), safe=False) if pa.types.is_decimal(type_) else array)
    if numbers.dtype == np.float64:
        return numbers
    values = out[: len(numbers)]
    np.copyto(values, numbers)
    if pa.types.is_date32(type_):
        values *= 86400.0
    elif pa.types.is_temporal(type_):
        values /= {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[getattr(type_, "unit", "ms")]
    return values


def non_null_numbers(array: pa.Array) -> Array:
    """The stored numbers that are not null, like ``to_numpy`` but without importing pandas."""
    type_, (validity, data), first, last = array.type, array.buffers(), array.offset, array.offset + len(array)
    letter = "f" if pa.types.is_floating(type_) else "u" if pa.types.is_unsigned_integer(type_) else "i"
    numbers: Array = np.frombuffer(data or b"", dtype=f"{letter}{type_.bit_width // 8}")[first:last]
    if array.null_count:
        octets = np.frombuffer(validity, np.uint8)[first // 8 : last // 8 + 1]
        bits = np.unpackbits(octets, bitorder="little")[first % 8 : first % 8 + len(array)]
        numbers = numbers[bits.view(bool)]
    return numbers
