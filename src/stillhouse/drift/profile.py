"""What a reference window looked like: per column enough to measure drift later, without the rows.

A profile is a record: it becomes JSON (an MLflow artifact beside the champion that was trained on the window)
and comes back equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from stillhouse.config import Column
from stillhouse.errors import SchemaError, WindowError
from stillhouse.records import Record

__all__ = [
    "CategoryProfile",
    "ColumnProfile",
    "NumberProfile",
    "Profile",
    "bin_counts",
    "build",
    "number_profile",
    "numbers",
    "value_counts",
]

PSI_BINS = 10
KS_BINS = 256

Array = np.ndarray[Any, Any]


class NumberProfile(Record):
    """Histogram of a numeric column on edges that are quantiles of the reference itself.

    Bins are closed on the right and open at both ends: ``(−∞, e₀], (e₀, e₁], …, (eₙ₋₁, ∞)``.
    """

    kind: Literal["number"] = "number"
    missing: int = Field(ge=0, description="rows without a value")
    edges: tuple[float, ...] = Field(description="finite, strictly increasing; about 256-quantiles, for KS")
    counts: tuple[int, ...] = Field(description="rows per bin, one more than `edges`")
    psi_edges: tuple[float, ...] = Field(description="those of `edges` that are 10-quantiles, for PSI")

    @property
    def rows(self) -> int:
        """Rows of the reference, missing ones included."""
        return sum(self.counts) + self.missing


class CategoryProfile(Record):
    """Rows by value of a categorical column."""

    kind: Literal["category"] = "category"
    missing: int = Field(ge=0, description="rows without a value")
    counts: dict[str, int] = Field(description="rows by value, most frequent first")

    @property
    def rows(self) -> int:
        """Rows of the reference, missing ones included."""
        return sum(self.counts.values()) + self.missing


ColumnProfile = Annotated[NumberProfile | CategoryProfile, Field(discriminator="kind")]


class Profile(Record):
    """A reference window, column by column."""

    rows: int = Field(ge=1)
    columns: dict[str, ColumnProfile]


def build(frame: pd.DataFrame, columns: Mapping[str, Column]) -> Profile:
    """The profile of the watched columns (``drift=True``) of ``frame``, in the order of ``columns``.

    :raises WindowError: if ``frame`` has no rows.
    :raises SchemaError: if it lacks a watched column, or a number is not numeric.
    """
    if frame.empty:
        raise WindowError("a profile needs a reference window with rows; this one has none")
    watched = {name: column for name, column in columns.items() if column.drift}
    absent = [name for name in watched if name not in frame.columns]
    if absent:
        raise SchemaError(f"the reference lacks the columns {absent}; it has {list(frame.columns)}")
    return Profile(
        rows=len(frame),
        columns={
            name: number_profile(numbers(frame[name])) if column.type == "number" else _category(frame[name])
            for name, column in watched.items()
        },
    )


def number_profile(values: Array) -> NumberProfile:
    """Profile of float64 ``[n]`` in any unit; NaN is missing, ±∞ falls into the open ends."""
    ordered = np.sort(values[~np.isnan(values)])
    finite = ordered[np.isfinite(ordered)]
    psi_edges = _quantile_edges(finite, PSI_BINS)
    edges = np.union1d(_quantile_edges(finite, KS_BINS), psi_edges)
    return NumberProfile(
        missing=len(values) - len(ordered),
        edges=tuple(edges.tolist()),
        counts=tuple(bin_counts(ordered, edges).tolist()),
        psi_edges=tuple(psi_edges.tolist()),
    )


def bin_counts(values: Array, edges: Array) -> Array:
    """Rows per right-closed bin, int64 ``[len(edges) + 1]``, of float64 ``[n]`` without NaN."""
    up_to_edge = np.searchsorted(np.sort(values), edges, side="right")
    return np.diff(up_to_edge, prepend=0, append=len(values))


def value_counts(values: pd.Series) -> tuple[dict[str, int], int]:
    """Rows by value as text, most frequent first (ties by text), and the rows without a value."""
    counts: dict[str, int] = {}
    for value, count in values.value_counts(dropna=True).items():
        if count:
            counts[str(value)] = counts.get(str(value), 0) + int(count)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return ordered, int(values.isna().sum())


def numbers(values: pd.Series) -> Array:
    """A column as float64 ``[n]``, missing as NaN.

    :raises SchemaError: if it is not numeric.
    """
    try:
        return pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"column {values.name!r} must be numeric: {error}") from error


def _category(values: pd.Series) -> CategoryProfile:
    counts, missing = value_counts(values)
    return CategoryProfile(missing=missing, counts=counts)


def _quantile_edges(finite: Array, bins: int) -> Array:
    """Distinct inner quantiles of finite float64 ``[n]``, each of them a value of the data.

    A quantile that repeats is an atom, such as the zeros of rainfall: it gets a bin of its own, because with
    only one edge at it a shift to just below it could not be seen.
    """
    if not len(finite):
        return np.empty(0)
    quantiles = np.quantile(finite, np.arange(1, bins) / bins, method="inverted_cdf")
    edges, repeats = np.unique(quantiles, return_counts=True)
    return np.union1d(edges, np.nextafter(edges[repeats > 1], -np.inf))
