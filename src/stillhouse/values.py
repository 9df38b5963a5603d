"""Convert a value to text and to a number, by its type: the same rule for every input path.

=====================================  ===========================================================
type                                   text
=====================================  ===========================================================
text                                   unchanged: the version "1.0" stays "1.0"
boolean                                ``true``, ``false``
integer of any width, whole float      its digits: pandas turns 1 into 1.0 in a column with gaps; both are ``1``
other float                            the shortest text that reads back as the same number
decimal                                without trailing zeros: ``1.50`` is ``1.5``, ``1.00`` is ``1``
date, time, date and time              ISO 8601; with a time zone, in UTC
UUID                                   its 36 characters
None, NaN, NaT, ``pandas.NA``          missing: None
=====================================  ===========================================================

Everything else (bytes, lists, dictionaries, durations, infinite numbers) is refused, and so is a whole float of 2^53 or
more (float32: 2^24), because it may have been another integer before it became a float.

A number becomes a float: numbers, decimals, booleans (1 and 0), and numeric text where the caller allows it.

This file is copied unchanged into every variant's folder, so it imports only the standard library and numpy. The same
conversion for pandas columns is in :mod:`stillhouse.frames`.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["ValueRefused", "is_missing", "number_of", "numbers_of", "text_of", "texts_of"]

_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating, Decimal)
_MAX_EXACT = 2.0**53  # from here on a float may stand for several integers
_NUMBER = re.compile(r" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *|[+-]?inf(?:inity)?", re.IGNORECASE)
_MAX_SHOWN_CHARS = 60  # of a value in a message


class ValueRefused(ValueError):  # noqa: N818 — states what happened to the value, like `Refused` over HTTP
    """A value that has no text, or is no number; the message names the value and what to write instead.

    :param index: its position in the sequence that was read.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


def is_missing(value: Any) -> bool:
    """Whether ``value`` is None, NaN, NaT or ``pandas.NA``; never raises.

    >>> [is_missing(value) for value in (None, float("nan"), np.datetime64("NaT"), 0, "", [None])]
    [True, True, True, False, False, False]
    """
    if value is None:
        return True
    if isinstance(value, str | bytes | bool | int | list | tuple | dict):
        return False
    if isinstance(value, float | np.floating):
        return bool(value != value)
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    if isinstance(value, Decimal):
        return value.is_nan()
    return type(value).__name__ in ("NaTType", "NAType")


def text_of(value: Any) -> str | None:
    """``value`` as text by the table above; None if it is missing.

    >>> [text_of(value) for value in ("1.0", 1.0, True, 2**70, np.float32(0.1), Decimal("1.50"), None)]
    ['1.0', '1', 'true', '1180591620717411303424', '0.1', '1.5', None]
    >>> text_of(datetime(2024, 5, 1, 12, tzinfo=UTC)), text_of(date(2024, 5, 1))
    ('2024-05-01T12:00:00+00:00', '2024-05-01')

    :raises ValueRefused: if a value of its type has no text.
    """
    if isinstance(value, str):
        return str.__str__(value)  # for a string enumeration its value, not its name
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, np.timedelta64):  # NumPy counts it as an integer
        raise ValueRefused(_no_text(value))
    if isinstance(value, int | np.integer):
        return _digits(int(value))
    if isinstance(value, float | np.floating):
        return _float_text(value)
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, np.datetime64):
        return _datetime64_text(value)
    if isinstance(value, datetime):  # also pandas.Timestamp
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    raise ValueRefused(_no_text(value))


def _no_text(value: Any) -> str:
    return f"{_shown(value)} is no text: write it as one, or as a number, a date or a truth value"


def number_of(value: Any, *, from_text: bool = False) -> float:
    """``value`` as a float; NaN if it is missing.

    >>> [number_of(value) for value in (True, 7, Decimal("1.50"), np.int64(3), None)]
    [1.0, 7.0, 1.5, 3.0, nan]
    >>> number_of(" 1e3 ", from_text=True)
    1000.0

    :param from_text: whether numeric text is accepted.
    :raises ValueRefused: if it is no number.
    """
    if isinstance(value, str):
        if from_text and _NUMBER.fullmatch(value):
            return float(value)
        raise ValueRefused(f"{_shown(value)} is no number{'' if from_text else ', but a text'}")
    if is_missing(value):
        return math.nan
    if isinstance(value, np.timedelta64):  # NumPy counts it as an integer
        raise ValueRefused(f"{_shown(value)} is no number")
    if isinstance(value, _NUMBERS):
        try:
            return float(value)
        except OverflowError:
            raise ValueRefused(f"{_shown(value)} is too large for a number") from None
    raise ValueRefused(f"{_shown(value)} is no number")


def texts_of(values: Sequence[Any] | np.ndarray[Any, Any]) -> list[str | None]:
    """:func:`text_of` of each value.

    >>> texts_of(["1.0", 1.0, None])
    ['1.0', '1', None]

    :raises ValueRefused: for the first value that has no text, with its ``index``.
    """
    plain = values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind in "biuUO" else values
    return [
        value if type(value) is str or value is None else _at(index, text_of, value)
        for index, value in enumerate(plain)
    ]


def numbers_of(
    values: Sequence[Any] | np.ndarray[Any, Any], *, from_text: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """:func:`number_of` of each value, float64 ``[n]``.

    :raises ValueRefused: for the first value that is no number, with its ``index``.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    return np.array(
        [
            value if type(value) is float else _at(index, number_of, value, from_text=from_text)
            for index, value in enumerate(plain)
        ],
        dtype=np.float64,
    )


def _at(index: int, read: Any, value: Any, **options: Any) -> Any:
    try:
        return read(value, **options)
    except ValueRefused as error:
        raise ValueRefused(str(error), index) from None


_KINDS = {list: "the list", tuple: "the tuple", dict: "the dictionary", bytes: "the bytes", np.ndarray: "the array"}


def _shown(value: Any) -> str:
    """A value in a message: its type and its beginning."""
    kind = _KINDS.get(type(value), f"the {type(value).__name__}")
    try:
        value = value[:_MAX_SHOWN_CHARS].tolist() if isinstance(value, np.ndarray) and value.ndim else value
        text = repr(value[:_MAX_SHOWN_CHARS]) if isinstance(value, str | bytes | list | tuple) else str(value)
    except ValueError:  # an integer with more digits than Python converts
        text = "of very many digits"
    text = text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
    if isinstance(value, str):
        return text
    return f"{kind} {text}"


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # of more than 4,300 digits
        raise ValueRefused(f"{_shown(value)} is too long: write it as a text") from None


def _float_text(value: Any) -> str:
    if not math.isfinite(value):
        raise ValueRefused("an infinite number is no text: leave it out where it is missing")
    if value != int(value):
        return str(value)
    max_exact = 2.0 ** (np.finfo(value.dtype).nmant + 1) if isinstance(value, np.floating) else _MAX_EXACT
    if abs(value) >= max_exact:
        raise ValueRefused(
            f"{value!s} is a float from 2^{int(math.log2(max_exact))} on, and may have been another whole number: "
            "write it as an integer or a text"
        )
    return str(int(value))


def _decimal_text(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueRefused("an infinite number is no text: leave it out where it is missing")
    if abs(value.adjusted()) > 400:
        raise ValueRefused(f"{_shown(value)} has too many digits: write it as a text")
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _datetime64_text(value: np.datetime64) -> str:
    unit = np.datetime_data(value.dtype)[0]
    if unit in ("Y", "M", "W", "D"):
        return str(value.astype("datetime64[D]"))
    moment = value.astype("datetime64[us]").astype(datetime)
    if not isinstance(moment, datetime):
        raise ValueRefused(f"{value!s} lies outside the years 1 to 9999")
    return moment.isoformat()
