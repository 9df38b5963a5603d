"""Conversion of values to text and to numbers, by type."""

from __future__ import annotations

import enum
import math
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.values import ValueRefused, is_missing, number_of, numbers_of, text_of, texts_of


class Colour(str, enum.Enum):  # noqa: UP042 — the older form, whose str() is its name
    RED = "red"


TEXTS: list[tuple[Any, str]] = [
    ("1.0", "1.0"),
    ("007", "007"),
    ("", ""),
    (" a ", " a "),
    ("NaN", "NaN"),
    ("null", "null"),
    (Colour.RED, "red"),
    (1, "1"),
    (1.0, "1"),
    (-0.0, "0"),
    (0.1, "0.1"),
    (1e-7, "1e-07"),
    (2**53 - 1.0, "9007199254740991"),
    (2**64 + 1, "18446744073709551617"),
    (-(2**63), "-9223372036854775808"),
    (True, "true"),
    (False, "false"),
    (np.bool_(True), "true"),
    (np.int8(-5), "-5"),
    (np.uint64(2**64 - 1), "18446744073709551615"),
    (np.float32(0.1), "0.1"),
    (np.float32(7), "7"),
    (np.float16(2048 - 1), "2047"),
    (np.str_("x"), "x"),
    (Decimal("1.50"), "1.5"),
    (Decimal("1.00"), "1"),
    (Decimal("-0.0"), "0"),
    (Decimal("1E+3"), "1000"),
    (Decimal("12345678901234567890.10"), "12345678901234567890.1"),
    (date(2024, 5, 1), "2024-05-01"),
    (time(3, 4), "03:04:00"),
    (datetime(2024, 5, 1, 12), "2024-05-01T12:00:00"),
    (datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))), "2024-05-01T10:00:00+00:00"),
    (pd.Timestamp("2024-05-01T12:00Z"), "2024-05-01T12:00:00+00:00"),
    (np.datetime64("2024-05-01"), "2024-05-01"),
    (np.datetime64("2024-05-01T12:00"), "2024-05-01T12:00:00"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS)
def test_texts(value: Any, text: str) -> None:
    result = text_of(value)
    assert result == text and type(result) is str


@pytest.mark.parametrize("value", [None, math.nan, np.nan, pd.NA, pd.NaT, np.datetime64("NaT"), Decimal("NaN")])
def test_missing_values(value: Any) -> None:
    assert is_missing(value) and text_of(value) is None and math.isnan(number_of(value))


@pytest.mark.parametrize("value", [0, "", False, [], {}, [None], np.array([np.nan, 1]), pd.Series([1, 2]), object()])
def test_values_that_are_not_missing(value: Any) -> None:
    assert not is_missing(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "the list [1] is no text"),
        ({"a": 1}, "the dictionary {'a': 1} is no text"),
        (b"a", "the bytes b'a'"),
        ((1, 2), "the tuple (1, 2)"),
        (np.array([1, 2]), "the array"),
        (timedelta(1), "the timedelta 1 day"),
        (math.inf, "infinite"),
        (2.0**53, "from 2^53 on"),
        (np.float32(2**24), "from 2^24 on"),
        (1j, "the complex 1j"),
        pytest.param(10**5000, "the int of very many digits", id="digits"),
        (Decimal("1E+5000"), "too many digits"),
    ],
)
def test_values_without_text_are_refused_with_a_message(value: Any, message: str) -> None:
    with pytest.raises(ValueRefused) as caught:
        text_of(value)
    assert message in str(caught.value)


NUMBERS: list[tuple[Any, float]] = [
    (1, 1.0),
    (True, 1.0),
    (Decimal("1.50"), 1.5),
    (np.int64(3), 3.0),
    (np.float32(0.5), 0.5),
    (2**64, 2.0**64),
    (math.inf, math.inf),
]


@pytest.mark.parametrize(("value", "number"), NUMBERS)
def test_numbers(value: Any, number: float) -> None:
    assert number_of(value) == number_of(value, from_text=True) == number


@pytest.mark.parametrize("text", ["1", "-1.5", " 3 ", "1e3", "1.", ".5", "+2E-3", "1234567890.123456789"])
def test_texts_that_write_numbers(text: str) -> None:
    assert number_of(text, from_text=True) == float(text)
    with pytest.raises(ValueRefused, match="but a text"):
        number_of(text)


@pytest.mark.parametrize(
    "value", ["", "nan", "NA", "1_000", "1,5", "0x10", "True", "٣", "1 2", "--1", [1], {}, b"1", 10**400]
)
def test_values_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(ValueRefused, match=r"is no number|is too large"):
        number_of(value, from_text=True)


def test_an_error_in_a_sequence_has_the_index() -> None:
    assert texts_of(["a", 1.0, None, True]) == ["a", "1", None, "true"]
    assert texts_of(np.array([1, 2], dtype="uint8")) == ["1", "2"]
    assert texts_of(np.array([0.1, np.nan], dtype="float32")) == ["0.1", None]
    np.testing.assert_array_equal(numbers_of([1, 2.5, None, True]), [1, 2.5, np.nan, 1])
    np.testing.assert_array_equal(numbers_of(np.array([1, 2])), [1.0, 2.0])
    for read, wrong in ((texts_of, [1]), (numbers_of, "x")):
        with pytest.raises(ValueRefused) as caught:
            read(["a" if read is texts_of else 1, None, wrong])
        assert caught.value.index == 2


def test_the_examples_of_the_docstrings_are_right() -> None:
    import doctest

    from stillhouse import values

    assert doctest.testmod(values).failed == 0


def test_time_zones_of_the_same_moment_are_one_text() -> None:
    berlin = datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert text_of(berlin) == text_of(datetime(2024, 5, 1, 12, tzinfo=UTC))


@pytest.mark.parametrize("read", [text_of, number_of])
def test_a_duration_of_numpy_is_neither_text_nor_number(read: Callable[[Any], object]) -> None:
    with pytest.raises(ValueRefused, match="timedelta64"):
        read(np.timedelta64(1, "s"))
