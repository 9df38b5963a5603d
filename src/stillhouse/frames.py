"""Columns of a frame as texts and as numbers, by the rule of :mod:`stillhouse.values`, and column names without twins.

What a column holds is read by the type of its values, whichever dtype pandas or Arrow gave it: whole numbers beside a
gap, nullable and dictionary-encoded columns, decimals and dates read the same as one by one.
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
    "from_arrow",
    "numbers_in",
    "require_distinct",
    "texts_in",
    "to_numbers",
    "to_texts",
    "with_zone",
]

_PLAIN_NUMBERS = frozenset("0123456789+-.eE ")
_LONGEST_MOMENT = 64  # characters; what is longer is no moment, and is not searched through
_ZONE = r"\d[T ]\d{2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"  # behind a time: the day of 2013-06-01 is no zone
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")


class ReadColumn(NamedTuple):
    """A column that was read, with what could not be."""

    values: pd.Series[Any]
    """Texts or None (object), or float64; missing also where a value was refused."""
    refused: dict[int, str]
    """By a row's number from 0 on: why its value is none."""


def require_distinct(names: Iterable[Hashable], what: str) -> None:
    """Refuse two columns of one name: which of them is meant nobody can know.

    :param what: what has the columns, as the message says it: "the rows of agent 'flights'".
    :raises SchemaError: naming them.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise SchemaError(f"{what} have more than one column {', '.join(map(repr, twice))}: rename or drop one of them")


def with_zone(texts: pd.Series[Any]) -> pd.Series[bool]:
    """Which ISO texts say their time zone, bool ``[n]``: a date without a time never does."""
    short = texts.where(texts.str.len() <= _LONGEST_MOMENT, None)
    said: pd.Series[bool] = short.str.contains(_ZONE, na=False)
    return said


def from_arrow(rows: pa.RecordBatch | pa.Table) -> pd.DataFrame:
    """Arrow's columns as pandas': whole numbers stay whole beside a gap, and no column becomes an index."""
    frame: pd.DataFrame = rows.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    return frame


def texts_in(values: pd.Series[Any]) -> ReadColumn:
    """A column's values as texts, None where they are missing, ``[n]``."""
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _by_code(values.array.codes, texts_in(pd.Series(dtype.categories)), values.index)
    if dtype.kind == "f" and not isinstance(dtype, np.dtype):  # nullable or Arrow's: one by one a float32 is widened
        own = np.dtype(getattr(dtype, "numpy_dtype", np.float64))
        values = pd.Series(values.to_numpy(dtype=own, na_value=np.nan), index=values.index)
        dtype = values.dtype
    if (dtype.kind in "biufM" and isinstance(dtype, np.dtype)) or isinstance(dtype, pd.DatetimeTZDtype):
        codes, distinct = pd.factorize(values)
        return _by_code(codes, _texts(list(distinct) if dtype.kind == "M" else np.asarray(distinct)), values.index)
    return _series(_texts(values.astype(object).tolist()), values.index)


def numbers_in(values: pd.Series[Any], *, from_text: bool = True) -> ReadColumn:
    """A column's values as float64, NaN where they are missing, ``[n]``.

    :param from_text: whether texts may write numbers.
    """
    dtype = values.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return ReadColumn(values.astype("float64"), {})
    if isinstance(dtype, pd.CategoricalDtype):
        return _by_code(values.array.codes, numbers_in(pd.Series(dtype.categories), from_text=from_text), values.index)
    plain: list[Any] = values.astype(object).tolist()
    if pd.api.types.infer_dtype(plain, skipna=True) in _NUMBERS:
        try:
            return ReadColumn(pd.Series(np.array(plain, dtype=np.float64), index=values.index), {})
        except (OverflowError, TypeError, ValueError):  # one of them says below what is wrong with it
            pass
    elif from_text and (read := _plain_numbers(plain)) is not None:
        return ReadColumn(pd.Series(read, index=values.index), {})
    return _series(_numbers(plain, from_text), values.index)


def to_texts(values: pd.Series[Any], what: str) -> pd.Series[Any]:
    """:func:`texts_in`, or a refusal.

    :param what: names the column in the message: "column 'zone' of agent 'flights'".
    :raises SchemaError: naming the first value that has no text.
    """
    return _or_refuse(texts_in(values), what)


def to_numbers(values: pd.Series[Any], what: str, *, from_text: bool = True) -> pd.Series[Any]:
    """:func:`numbers_in`, or a refusal.

    :raises SchemaError: naming the first value that is no number.
    """
    return _or_refuse(numbers_in(values, from_text=from_text), what)


def _or_refuse(read: ReadColumn, what: str) -> pd.Series[Any]:
    if read.refused:
        place, why = min(read.refused.items())
        more = f", and {len(read.refused) - 1:,} more" if len(read.refused) > 1 else ""
        raise SchemaError(f"{what}, row {place}: {why}{more}")
    return read.values


class _Read(NamedTuple):
    """The same without an index."""

    values: np.ndarray[Any, Any]
    refused: dict[int, str]


def _texts(plain: list[Any] | np.ndarray[Any, Any]) -> _Read:
    values = np.empty(len(plain), dtype=object)
    try:
        values[:] = texts_of(plain)
        if _is_unicode(values):
            return _Read(values, {})
    except ValueRefused:
        pass
    return _one_by_one(plain, values, _text)


def _text(value: Any) -> str | None:
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


def _plain_numbers(plain: list[Any]) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Texts of which Python's float reads what a number's text is, and nothing else; None if there are others."""
    texts = [value for value in plain if not is_missing(value)]
    if pd.api.types.infer_dtype(texts) != "string" or not set().union(*map(set, texts)) <= _PLAIN_NUMBERS:
        return None
    try:
        return np.array([np.nan if is_missing(value) else float(value) for value in plain])
    except ValueError:
        return None


def _numbers(plain: list[Any], from_text: bool) -> _Read:
    try:
        return _Read(numbers_of(plain, from_text=from_text), {})
    except ValueRefused:
        values = np.full(len(plain), np.nan)
        return _one_by_one(plain, values, lambda value: number_of(value, from_text=from_text))


def _one_by_one(
    plain: list[Any] | np.ndarray[Any, Any], values: np.ndarray[Any, Any], read: Callable[[Any], Any]
) -> _Read:
    refused = dict[int, str]()
    for place, value in enumerate(plain):
        try:
            values[place] = read(value)
        except ValueRefused as error:
            refused[place] = str(error)
            values[place] = None if values.dtype == object else np.nan
    return _Read(values, refused)


def _by_code(codes: Any, distinct: _Read | ReadColumn, index: pd.Index[Any]) -> ReadColumn:
    """Distinct values that were read, as the rows that have them; code −1 is missing."""
    codes = np.asarray(codes)
    read = np.asarray(distinct.values)
    missing = np.array([None if read.dtype == object else np.nan], dtype=read.dtype)
    places = np.flatnonzero(np.isin(codes, list(distinct.refused))).tolist()
    refused = {place: distinct.refused[int(codes[place])] for place in places}
    return ReadColumn(pd.Series(np.append(read, missing)[codes], index=index, dtype=read.dtype), refused)


def _series(read: _Read, index: pd.Index[Any]) -> ReadColumn:
    dtype = object if read.values.dtype == object else "float64"
    return ReadColumn(pd.Series(read.values, index=index, dtype=dtype), read.refused)
