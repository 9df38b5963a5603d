"""A column is read by the type of its values, whatever its pandas or Arrow dtype."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stillhouse.errors import SchemaError
from stillhouse.frames import (
    arrow_to_pandas,
    has_time_zone,
    read_numbers,
    read_texts,
    require_distinct,
    to_numbers,
    to_texts,
)
from stillhouse.values import number_of, text_of

COLUMNS: dict[str, pd.Series] = {
    "whole": pd.Series([1, 2]),
    "whole beside a gap": pd.Series([1, None]),
    "nullable": pd.Series([2**60 + 1, None], dtype="Int64"),
    "unsigned": pd.Series([2**64 - 1, 0], dtype="uint64"),
    "large": pd.Series([10**30, None], dtype=object),
    "booleans": pd.Series([True, False]),
    "booleans beside a gap": pd.Series([True, None]),
    "nullable booleans": pd.Series([True, None], dtype="boolean"),
    "of several types": pd.Series([1, True, 1.0, "1.0", Decimal("1.50"), None], dtype=object),
    "float32": pd.Series([0.1, 7, None], dtype="float32"),
    "nullable float32": pd.Series([0.1, 7, None], dtype="Float32"),
    "categories": pd.Series([1, 2, None]).astype("category"),
    "text categories": pd.Series(["a", None, "1"]).astype("category"),
    "texts": pd.Series(["1.0", "007", None]),
    "strings": pd.Series(["NA", pd.NA], dtype="string"),
    "moments": pd.Series(pd.to_datetime(["2024-05-01T02:00+02:00", None], utc=True)),
    "dates": pd.Series([date(2024, 5, 1), None], dtype=object),
    "arrow": pd.Series([1, None], dtype=pd.ArrowDtype(pa.int64())),
    "decimals": pd.Series([Decimal("1.50"), None], dtype=pd.ArrowDtype(pa.decimal128(5, 2))),
    "nothing": pd.Series([], dtype="float64"),
}


def one_by_one(values: Any, read: Any, otherwise: Any) -> tuple[list[Any], dict[int, str]]:
    actual, refused = [], {}
    for index, value in enumerate(values):
        try:
            actual.append(read(value))
        except ValueError as error:
            refused[index] = str(error)
            actual.append(otherwise)
    return actual, refused


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_read_as_its_values_one_by_one(name: str) -> None:
    values = COLUMNS[name].set_axis(range(5, 5 + len(COLUMNS[name])))
    scalars = values.to_numpy() if name == "float32" else values
    texts, numbers = read_texts(values), read_numbers(values)
    assert (texts.values.tolist(), texts.refused) == one_by_one(scalars, text_of, None)
    expected, refused = one_by_one(scalars, lambda value: number_of(value, from_text=True), np.nan)
    np.testing.assert_array_equal(numbers.values, np.array(expected, dtype="float64"))
    assert set(numbers.refused) == set(refused)
    assert texts.values.index.equals(values.index) and numbers.values.index.equals(values.index)
    assert texts.values.dtype == object and numbers.values.dtype == "float64"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1.0),
        (" 2.5 ", 2.5),
        ("1e999", np.inf),
        ("nan", None),
        ("1_0", None),
        ("", None),
        ("0.1234567890123456789", 0.12345678901234568),
    ],
)
def test_strings_are_numbers_as_python_reads_them(text: str, number: float | None) -> None:
    read = read_numbers(pd.Series([text, None], dtype=object))
    assert (0 in read.refused) == (number is None)
    np.testing.assert_array_equal(read.values, [np.nan if number is None else number, np.nan])
    assert 0 in read_numbers(pd.Series([text]), from_text=False).refused


@pytest.mark.parametrize("dtype", ["Float32", "float[pyarrow]"])
def test_a_float32_keeps_its_shortest_text_in_every_dtype(dtype: str) -> None:
    assert read_texts(pd.Series([0.1, None, 3], dtype=dtype)).values.tolist() == ["0.1", None, "3"]


def test_an_error_names_the_column_the_row_and_the_value() -> None:
    lists = pd.Series(["a", [1, 2], b"c"], dtype=object)
    with pytest.raises(SchemaError, match=r"^column 'x', row 1: the list \[1, 2\] is no text: .*, and 1 more$"):
        to_texts(lists, "column 'x'")
    with pytest.raises(SchemaError, match=r"^column 'x', row 0: 'a' is no number, and 2 more$"):
        to_numbers(lists, "column 'x'")
    with pytest.raises(SchemaError, match="no Unicode text"):
        to_texts(pd.Series(["\ud800"], dtype=object), "column 'x'")
    with pytest.raises(SchemaError, match=r"from 2\^53 on"):
        to_texts(pd.Series([2.0**60, np.nan]), "column 'x'")


def test_arrow_columns_keep_their_types() -> None:
    table = pa.table(
        {
            "id": pa.array([2**60 + 1, None]),
            "code": pa.array([3, None], pa.int8()).dictionary_encode(),
            "flag": pa.array([True, None]),
            "price": pa.array([Decimal("1.50"), None]),
            "day": pa.array([date(2024, 5, 1), None]),
            "nested": pa.array([{"a": 1}, None]),
            "listed": pa.array([[1], None]),
            "words": pa.array(["a", None]).dictionary_encode(),
        }
    )
    frame = arrow_to_pandas(table)
    read = {name: read_texts(frame[name]) for name in frame}
    actual = {name: column.values.tolist() for name, column in read.items() if not column.refused}
    assert actual == {
        "id": [str(2**60 + 1), None],
        "code": ["3", None],
        "flag": ["true", None],
        "price": ["1.5", None],
        "day": ["2024-05-01", None],
        "words": ["a", None],
    }
    assert {name: column.refused[0][:14] for name, column in read.items() if column.refused} == {
        "nested": "the dictionary",
        "listed": "the array [1] ",
    }


def test_an_index_that_pandas_wrote_stays_a_column() -> None:
    frame = pd.DataFrame({"id": ["a"], "x": [1]}).set_index("id")
    assert list(arrow_to_pandas(pa.Table.from_pandas(frame)).columns) == ["x", "id"]


def test_columns_with_the_same_name_are_refused() -> None:
    require_distinct(["a", "b", 0, None], "the rows")
    with pytest.raises(SchemaError, match=r"^the rows have more than one column 'a', 0: rename"):
        require_distinct(["a", 0, "a", "b", 0], "the rows")


def test_which_times_have_a_zone() -> None:
    messages = {
        "2013-06-01": False,
        "20130601": False,
        "2013-06": False,
        "2013-06-01T12": False,
        "2013-06-01 12:00": False,
        "2013-06-01T12:00Z": True,
        "2013-06-01 12:00:00.5+02:00": True,
        "2013-06-01T12-05": True,
        "20130601T120000z": True,
        "1T00" * 40 + "Z": False,
    }
    assert has_time_zone(pd.Series([*messages, None], dtype="str")).tolist() == [*messages.values(), False]
