"""Columns of a DataFrame as strings and as numbers, by the rules of :mod:`stillhouse.values`.

A column is read by the type of its values, whatever dtype pandas or Arrow gave it: integers beside a missing value,
nullable and dictionary-encoded columns, decimals and dates give the same result as the values one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from stillhouse.errors import SchemaError
from stillhouse.values import ValueRefused, is_missing, number_of, numbers_of, text_of, texts_of

__all__ = [
    "ReadColumn",
    "arrow_to_pandas",
    "has_time_zone",
    "read_numbers",
    "read_texts",
    "require_distinct",
    "to_numbers",
    "to_texts",
]

_NUMBER_CHARACTERS = frozenset("0123456789+-.eE ")
_MAX_TIME_CHARACTERS = 64  # a longer string is not a time, and is not searched
_ZONE = r"\d[T ]\d{2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"  # after a time of day: "-01" of 2013-06-01 is not a zone
_NUMBER_KINDS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")  # of pandas' infer_dtype


class ReadColumn(NamedTuple):
    """A converted column, and the values that could not be converted."""

    values: pd.Series[Any]
    """Strings or None (object), or float64; missing also where a value was refused."""
    refused: dict[int, str]
    """Why the value of a row was refused, by row index."""


def require_distinct(names: Iterable[Hashable], label: str) -> None:
    """Refuse columns with the same name.

    :param label: names the rows in the message: "the rows of agent 'flights'".
    :raises SchemaError: naming them.

    >>> require_distinct(["temp", "wind"], "the rows of agent 'flights'")
    """
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        names_text = ", ".join(map(repr, repeated))
        raise SchemaError(f"{label} have more than one column {names_text}: rename or drop one of them")


def has_time_zone(texts: pd.Series[Any]) -> pd.Series[bool]:
    """Mask of ISO strings with a time zone, bool ``[n]``; False for a date without a time.

    >>> has_time_zone(pd.Series(["2013-06-01T12:00Z", "2013-06-01"])).tolist()
    [True, False]
    """
    short = texts.where(texts.str.len() <= _MAX_TIME_CHARACTERS, None)
    mask: pd.Series[bool] = short.str.contains(_ZONE, na=False)
    return mask


def arrow_to_pandas(rows: pa.RecordBatch | pa.Table) -> pd.DataFrame:
    """Arrow data as a DataFrame: integers stay integers beside a missing value, and no column becomes the index."""
    frame: pd.DataFrame = rows.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    return frame


def read_texts(values: pd.Series[Any]) -> ReadColumn:
    """The values of a column as strings, ``[n]``; None where they are missing.

    >>> read_texts(pd.Series([1, None], dtype=object)).values.tolist()
    ['1', None]
    """
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _expand_codes(values.array.codes, read_texts(pd.Series(dtype.categories)), values.index)
    if dtype.kind == "f" and not isinstance(dtype, np.dtype):  # nullable or Arrow: one by one, float32 would be widened
        numpy_dtype = np.dtype(getattr(dtype, "numpy_dtype", np.float64))
        values = pd.Series(values.to_numpy(dtype=numpy_dtype, na_value=np.nan), index=values.index)
        dtype = values.dtype
    if (dtype.kind in "biufM" and isinstance(dtype, np.dtype)) or isinstance(dtype, pd.DatetimeTZDtype):
        codes, distinct = pd.factorize(values)
        return _expand_codes(
            codes, _array_to_texts(list(distinct) if dtype.kind == "M" else np.asarray(distinct)), values.index
        )
    return _to_column(_array_to_texts(values.astype(object).tolist()), values.index)


def read_numbers(values: pd.Series[Any], *, from_text: bool = True) -> ReadColumn:
    """The values of a column as float64 ``[n]``; NaN where they are missing.

    :param from_text: accept strings that write a number.

    >>> read = read_numbers(pd.Series(["1.5", "warm"]))
    >>> read.values.tolist(), list(read.refused)
    ([1.5, nan], [1])
    """
    dtype = values.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return ReadColumn(values.astype("float64"), {})
    if isinstance(dtype, pd.CategoricalDtype):
        return _expand_codes(
            values.array.codes, read_numbers(pd.Series(dtype.categories), from_text=from_text), values.index
        )
    plain: list[Any] = values.astype(object).tolist()
    if pd.api.types.infer_dtype(plain, skipna=True) in _NUMBER_KINDS:
        try:
            return ReadColumn(pd.Series(np.array(plain, dtype=np.float64), index=values.index), {})
        except (OverflowError, TypeError, ValueError):  # the reason for each row is found below
            pass
    elif from_text and (read := _parse_plain_numbers(plain)) is not None:
        return ReadColumn(pd.Series(read, index=values.index), {})
    return _to_column(_array_to_numbers(plain, from_text), values.index)


def to_texts(values: pd.Series[Any], label: str) -> pd.Series[Any]:
    """:func:`read_texts`, or an error.

    :param label: names the column in the message: "column 'zone' of agent 'flights'".
    :raises SchemaError: naming the first value that cannot be a string.
    """
    return _require_all_read(read_texts(values), label)


def to_numbers(values: pd.Series[Any], label: str, *, from_text: bool = True) -> pd.Series[Any]:
    """:func:`read_numbers`, or an error.

    :raises SchemaError: naming the first value that is not a number.
    """
    return _require_all_read(read_numbers(values, from_text=from_text), label)


def _require_all_read(read: ReadColumn, label: str) -> pd.Series[Any]:
    if read.refused:
        row, reason = min(read.refused.items())
        more = f", and {len(read.refused) - 1:,} more" if len(read.refused) > 1 else ""
        raise SchemaError(f"{label}, row {row}: {reason}{more}")
    return read.values


class _ReadArray(NamedTuple):
    """A converted array: :class:`ReadColumn` without an index."""

    values: np.ndarray[Any, Any]
    refused: dict[int, str]


def _array_to_texts(plain: list[Any] | np.ndarray[Any, Any]) -> _ReadArray:
    values = np.empty(len(plain), dtype=object)
    try:
        values[:] = texts_of(plain)
        if _is_unicode(values):
            return _ReadArray(values, {})
    except ValueRefused:
        pass
    return _convert_one_by_one(plain, values, _to_text)


def _to_text(value: Any) -> str | None:
    text = text_of(value)
    if text is not None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueRefused(
                f"{text[:60]!r} is no Unicode text (half a surrogate pair): replace such characters"
            ) from None
    return text


def _is_unicode(values: np.ndarray[Any, Any]) -> bool:
    try:
        for value in values:
            if value is not None and not value.isascii():
                value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_plain_numbers(plain: list[Any]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Float64 of strings that consist of the characters of plain numbers; None if there are other values."""
    texts = [value for value in plain if not is_missing(value)]
    if pd.api.types.infer_dtype(texts) != "string" or not set().union(*map(set, texts)) <= _NUMBER_CHARACTERS:
        return None
    try:
        return np.array([np.nan if is_missing(value) else float(value) for value in plain])
    except ValueError:
        return None


def _array_to_numbers(plain: list[Any], from_text: bool) -> _ReadArray:
    try:
        return _ReadArray(numbers_of(plain, from_text=from_text), {})
    except ValueRefused:
        values = np.full(len(plain), np.nan)
        return _convert_one_by_one(plain, values, lambda value: number_of(value, from_text=from_text))


def _convert_one_by_one(
    plain: list[Any] | np.ndarray[Any, Any], values: np.ndarray[Any, Any], read: Callable[[Any], Any]
) -> _ReadArray:
    refused = dict[int, str]()
    for row, value in enumerate(plain):
        try:
            values[row] = read(value)
        except ValueRefused as error:
            refused[row] = str(error)
            values[row] = None if values.dtype == object else np.nan
    return _ReadArray(values, refused)


def _expand_codes(codes: Any, distinct: _ReadArray | ReadColumn, index: pd.Index[Any]) -> ReadColumn:
    """Expand converted distinct values to the rows that have them; code −1 is a missing value."""
    codes = np.asarray(codes)
    read = np.asarray(distinct.values)
    missing = np.array([None if read.dtype == object else np.nan], dtype=read.dtype)
    refused_rows = np.flatnonzero(np.isin(codes, list(distinct.refused))).tolist()
    refused = {row: distinct.refused[int(codes[row])] for row in refused_rows}
    return ReadColumn(pd.Series(np.append(read, missing)[codes], index=index, dtype=read.dtype), refused)


def _to_column(read: _ReadArray, index: pd.Index[Any]) -> ReadColumn:
    dtype = object if read.values.dtype == object else "float64"
    return ReadColumn(pd.Series(read.values, index=index, dtype=dtype), read.refused)
