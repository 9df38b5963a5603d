"""How a value is written as text: one rule for every way in, by the value's type, not by its column or its look.

=====================================  ===========================================================
type                                   text
=====================================  ===========================================================
text                                   as it is: the version "1.0" stays "1.0"
boolean                                ``true``, ``false``
integer of any width, whole float      its digits: pandas makes 1 beside a gap 1.0, and it is ``1``
other float                            the shortest text that reads back as the same number
decimal                                without trailing zeros: ``1.50`` is ``1.5``, ``1.00`` is ``1``
date, time, date and time              ISO 8601; with a time zone, in UTC
UUID                                   its 36 characters
None, NaN, NaT, ``pandas.NA``          missing: None
=====================================  ===========================================================

Everything else (bytes, lists, dictionaries, durations, infinite numbers) is refused, and so is a whole float from 2^53
on: it may have been another integer before it became a float.

This file is copied as it is into every variant's folder, so it imports the standard library and numpy alone.
"""

from __future__ import annotations

import math
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

__all__ = ["ValueRefused", "is_missing", "text_of"]

_EXACT = 2.0**53  # from here on a float may stand for several integers


class ValueRefused(ValueError):
    """A value that has no text; the message says what it is and what to write instead."""


def is_missing(value: Any) -> bool:
    """Whether ``value`` is None, NaN, NaT or ``pandas.NA``; never raises, whatever ``value`` is.

    >>> [is_missing(value) for value in (None, float("nan"), np.datetime64("NaT"), 0, "", [None])]
    [True, True, True, False, False, False]
    """
    if value is None:
        return True
    if isinstance(value, str | bytes | bool | int | list | tuple | dict):
        return False
    if isinstance(value, float | np.floating):
        return value != value
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    if isinstance(value, Decimal):
        return value.is_nan()
    return type(value).__name__ in ("NaTType", "NAType")


def text_of(value: Any) -> str | None:
    """``value`` as text by the table above; None where it is missing.

    >>> [text_of(value) for value in ("1.0", 1.0, True, 2**70, np.float32(0.1), Decimal("1.50"), None)]
    ['1.0', '1', 'true', '1180591620717411303424', '0.1', '1.5', None]
    >>> text_of(datetime(2024, 5, 1, 12, tzinfo=UTC)), text_of(date(2024, 5, 1))
    ('2024-05-01T12:00:00+00:00', '2024-05-01')

    :raises ValueRefused: if a value of its type has no text.
    """
    if isinstance(value, str):
        return str(value)
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
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
    raise ValueRefused(f"a {type(value).__name__} is no text: write it as one, or as a number, a date or a truth value")


def _float_text(value: Any) -> str:
    if not math.isfinite(value):
        raise ValueRefused("an infinite number is no text: leave it out where it is missing")
    if value != int(value):
        return str(value)
    if abs(value) >= _EXACT:
        raise ValueRefused(
            f"{value!s} is a float from 2^53 on, and may have been another whole number: write it as an integer or a text"
        )
    return str(int(value))


def _decimal_text(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueRefused("an infinite number is no text: leave it out where it is missing")
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
