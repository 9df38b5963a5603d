"""Rows of an agent are cast to the signatures of foreign models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models.utils import _enforce_schema
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

from stillhouse.errors import PartError
from stillhouse.registry.schemas import cast_rows

ROWS = pd.DataFrame(
    {
        "hour": [1.0, 2.0, 3.0],
        "share": [0.1, np.nan, 0.3],
        "open": ["true", "false", "true"],
        "gap": [1.0, np.nan, 3.0],
        "code": ["7", "8", "9"],
        "place": ["EWR", None, "JFK"],
        "since": ["2024-05-01T12:00:00+02:00", "2024-05-02", None],
        "none": [None, None, None],
    }
)


def cast(*specs: tuple[str, DataType], required: bool = True) -> pd.DataFrame:
    """Cast the rows, and check the result with MLflow."""
    schema = Schema([ColSpec(kind, name, required) for name, kind in specs])
    rows = cast_rows(ROWS, schema)
    checked = _enforce_schema(rows, schema)
    assert list(checked) == list(rows)
    return rows


def test_whole_numbers_become_the_integers_of_the_signature() -> None:
    rows = cast(("hour", DataType.integer), ("code", DataType.long), ("share", DataType.double))
    assert [str(rows[name].dtype) for name in rows] == ["int32", "int64", "float64"]
    assert rows["code"].tolist() == [7, 8, 9] and np.isnan(rows["share"][1])


def test_floats_truths_texts_and_times() -> None:
    rows = cast(
        ("share", DataType.float),
        ("open", DataType.boolean),
        ("hour", DataType.string),
        ("place", DataType.string),
        ("since", DataType.datetime),
    )
    assert str(rows["share"].dtype) == "float32" and rows["open"].tolist() == [True, False, True]
    assert rows["hour"].tolist() == ["1", "2", "3"] and rows["place"].tolist() == ["EWR", None, "JFK"]
    assert rows["since"][0] == pd.Timestamp("2024-05-01T10:00:00") and rows["since"].isna().tolist() == [
        False,
        False,
        True,
    ]


def test_optional_columns_may_be_absent_or_empty() -> None:
    schema = Schema(
        [ColSpec(DataType.long, "hour"), ColSpec(DataType.long, "none", False), ColSpec(DataType.long, "x", False)]
    )
    rows = cast_rows(ROWS, schema)
    assert list(rows) == ["hour"]
    _enforce_schema(rows, schema)
    assert cast(("open", DataType.boolean), required=False)["open"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gap", DataType.long, "column gap as a whole number (int64), and it is missing in 1 of 3 rows"),
        ("share", DataType.integer, "it is missing in 1 of 3 rows"),
        ("place", DataType.double, "column place as a number"),
        ("since", DataType.boolean, "column since as a truth value, and"),
        ("hour", DataType.datetime, "column hour as a time, and it holds numbers"),
        ("hour", DataType.binary, "columns are numbers and texts"),
        ("weight", DataType.double, "requires the columns weight"),
    ],
)
def test_an_impossible_cast_is_refused_with_its_column(name: str, kind: DataType, message: str) -> None:
    with pytest.raises(PartError) as caught:
        cast_rows(ROWS.assign(since=["x", "y", "z"]), Schema([ColSpec(kind, name)]))
    assert message in str(caught.value)


def test_a_fraction_is_no_integer_and_too_large_is_refused() -> None:
    with pytest.raises(PartError, match=r"0\.5 is none"):
        cast_rows(pd.DataFrame({"a": [0.5]}), Schema([ColSpec(DataType.long, "a")]))
    with pytest.raises(PartError, match="which int32 does not hold"):
        cast_rows(pd.DataFrame({"a": [3e9]}), Schema([ColSpec(DataType.integer, "a")]))


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("1_0", DataType.long, "'1_0' is no number"),
        ("\u0663", DataType.double, "is no number"),
        ("nan", DataType.double, "'nan' is no number"),
        (1e39, DataType.float, r"1e\+39, which float32 does not hold"),
        ("now", DataType.datetime, "as a time, and 'now' is none"),
    ],
)
def test_values_that_other_libraries_read_silently_are_refused(value: Any, kind: DataType, message: str) -> None:
    with pytest.raises(PartError, match=message):
        cast_rows(pd.DataFrame({"a": [value]}), Schema([ColSpec(kind, "a")]))


def test_tensors() -> None:
    rows = ROWS[["hour", "gap"]]
    tensor = cast_rows(rows, Schema([TensorSpec(np.dtype(np.float32), (-1, 2))]))
    assert tensor.dtype == np.float32 and tensor.shape == (3, 2)
    named: Any = cast_rows(rows, Schema([TensorSpec(np.dtype(np.int64), (-1, 1), "hour")]))
    assert named["hour"].tolist() == [[1], [2], [3]]
    with pytest.raises(PartError, match="takes 5 values a row, and is given 2 columns"):
        cast_rows(rows, Schema([TensorSpec(np.dtype(np.float32), (-1, 5))]))
    assert cast_rows(rows, None) is rows
