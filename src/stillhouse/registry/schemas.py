"""Cast an agent's rows to the MLflow signature of another model: types, column order, optional columns.

An agent's columns are float64 with NaN, or text, and MLflow narrows no type by itself. Integral floats are cast to the
integer type of the signature; other values are parsed. A value that the cast would change is an error that names its
column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from stillhouse.errors import PartError, SchemaError
from stillhouse.frames import to_numbers
from stillhouse.values import ValueRefused, number_of, text_of

if TYPE_CHECKING:
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

__all__ = ["cast_column", "cast_rows"]

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def cast_rows(rows: pd.DataFrame, schema: Schema | None) -> Any:
    """The rows as a table or arrays that the signature accepts; unchanged if the model was logged without a signature.

    :raises PartError: naming a column that is absent, has missing values, or holds values of another type.
    """
    if schema is None or not schema.inputs:
        return rows
    if schema.is_tensor_spec():
        return _cast_to_tensors(rows, cast("Sequence[TensorSpec]", schema.inputs))
    return _cast_to_table(rows, cast("Sequence[ColSpec]", schema.inputs))


def cast_column(column: pd.Series, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A column as an array ``[n]`` of ``dtype``.

    >>> cast_column(pd.Series([1.0, 2.0], name="hour"), np.dtype(np.int32)).tolist()
    [1, 2]
    >>> cast_column(pd.Series([0.5], name="hour"), np.dtype(np.int32))
    Traceback (most recent call last):
    stillhouse.errors.PartError: the model reads column hour as a whole number (int32): 0.5 is none

    :raises PartError: naming the column, if a value would change, or is missing and the type has no missing value.
    """
    if dtype.kind == "f":
        return _to_floats(column, dtype)
    if dtype.kind in "iu":
        return _to_integers(column, dtype)
    if dtype.kind == "b":
        _require_complete(column, "a truth value")
        return _to_booleans(column).astype(bool)
    if dtype.kind in "OUST":
        return _to_texts(column)
    if dtype.kind == "M":
        return _to_times(column).to_numpy()
    raise PartError(f"the model reads column {column.name} as {dtype}, and an agent's columns are numbers and texts")


# --------------------------------------------------------------------------- columns and tensors


def _cast_to_table(rows: pd.DataFrame, specs: Sequence[ColSpec]) -> pd.DataFrame:
    if any(spec.name is None for spec in specs):
        if len(specs) != rows.shape[1]:
            raise PartError(f"the model takes {len(specs)} columns without names, and is given {rows.shape[1]}")
        columns = {str(name): _cast_to_spec(rows[name], spec) for name, spec in zip(rows, specs, strict=True)}
        return pd.DataFrame(columns, index=rows.index)
    _require_columns(rows, [str(spec.name) for spec in specs if spec.required])
    present = [spec for spec in specs if str(spec.name) in rows]
    used = [spec for spec in present if spec.required or not rows[str(spec.name)].isna().all()]
    return pd.DataFrame({str(spec.name): _cast_to_spec(rows[str(spec.name)], spec) for spec in used}, index=rows.index)


def _cast_to_spec(column: pd.Series, spec: ColSpec) -> pd.Series:
    values = _cast_values(column, spec)
    return values if isinstance(values, pd.Series) else pd.Series(values, column.index, dtype=values.dtype)


def _cast_values(column: pd.Series, spec: ColSpec) -> Any:
    from mlflow.types.schema import AnyType, DataType

    if isinstance(spec.type, AnyType):
        return column
    if spec.type == DataType.boolean:
        return _to_booleans(column) if not spec.required else cast_column(column, np.dtype(bool))
    if not isinstance(spec.type, DataType) or spec.type == DataType.binary:
        raise PartError(
            f"the model reads column {column.name} as {spec.type}, and an agent's columns are numbers and texts"
        )
    if spec.type == DataType.datetime:
        return _to_times(column)
    return cast_column(column, np.dtype(spec.type.to_numpy()))


def _cast_to_tensors(rows: pd.DataFrame, specs: Sequence[TensorSpec]) -> Any:
    """One array ``[n, F]`` of all columns, or an array by input name."""
    if len(specs) == 1 and (specs[0].name is None or str(specs[0].name) not in rows):
        (spec,) = specs
        array = np.column_stack([cast_column(rows[name], spec.type) for name in rows])
        if len(spec.shape) == 2 and spec.shape[1] not in (-1, array.shape[1]):
            raise PartError(f"the model takes {spec.shape[1]} values a row, and is given {array.shape[1]} columns")
        array = array[:, 0] if len(spec.shape) == 1 and array.shape[1] == 1 else array
        return array if spec.name is None else {str(spec.name): array}
    _require_columns(rows, [str(spec.name) for spec in specs])
    arrays = {}
    for spec in specs:
        array = cast_column(rows[str(spec.name)], spec.type)
        arrays[str(spec.name)] = array.reshape(len(rows), *([1] * (len(spec.shape) - 1)))
    return arrays


def _require_columns(rows: pd.DataFrame, names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in rows]:
        raise PartError(
            f"the model's signature requires the columns {', '.join(missing)}, which are missing; the rows have "
            f"{', '.join(map(str, rows))}: map the names with the teacher's `columns`"
        )


# --------------------------------------------------------------------------- values


def _to_floats(column: pd.Series, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Floats, NaN where a value is missing."""
    try:
        numbers = to_numbers(column, f"column {column.name}").to_numpy()
    except SchemaError as error:
        raise PartError(f"the model reads column {column.name} as a number: {error}") from error
    with np.errstate(over="ignore"):
        floats = numbers.astype(dtype)
    if (overflow := np.isinf(floats) & np.isfinite(numbers)).any():
        raise PartError(f"column {column.name} has {numbers[overflow][0]:g}, which {dtype} does not hold")
    return floats


def _to_integers(column: pd.Series, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    _require_complete(column, f"a whole number ({dtype})")
    values = column.astype(object).to_list()
    try:
        integers = [value if isinstance(value, int | np.integer) else _parse_integer(value) for value in values]
    except ValueError as error:
        raise PartError(f"the model reads column {column.name} as a whole number ({dtype}): {error}") from error
    limits = np.iinfo(dtype)
    if integers and not (limits.min <= min(integers) and max(integers) <= limits.max):
        raise PartError(f"column {column.name} has {min(integers)} to {max(integers)}, which {dtype} does not hold")
    return np.array(integers, dtype=dtype)


def _parse_integer(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r" *[+-]?[0-9]{1,4000} *", value):
        return int(value)
    number = number_of(value, from_text=True)
    if not number.is_integer():
        raise ValueError(f"{value!r} is none")
    return int(number)


def _to_booleans(column: pd.Series) -> np.ndarray[Any, Any]:
    """True, False, and None where a value is missing."""
    values = [None if text is None else _BOOLEANS.get(text.lower(), text) for text in _to_texts(column)]
    if unknown := next((value for value in values if isinstance(value, str)), None):
        raise PartError(f"the model reads column {column.name} as a truth value, and {unknown!r} is none")
    return np.array(values, dtype=object)


def _to_texts(column: pd.Series) -> np.ndarray[Any, Any]:
    """Text, and None where a value is missing."""
    try:
        return np.array([text_of(value) for value in column.astype(object)], dtype=object)
    except ValueRefused as error:
        raise PartError(f"the model reads column {column.name} as text: {error}") from error


def _to_times(column: pd.Series) -> pd.Series:
    """Times in UTC without a time zone, as MLflow expects them."""
    if column.dtype.kind in "fiub":
        raise PartError(f"the model reads column {column.name} as a time, and it holds numbers")
    # pandas would read "now" as the current time
    if unknown := next((value for value in column if isinstance(value, str) and not re.search("[0-9]", value)), None):
        raise PartError(f"the model reads column {column.name} as a time, and {unknown!r} is none")
    try:
        times = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
    except (TypeError, ValueError) as error:
        raise PartError(f"the model reads column {column.name} as a time: {error}") from error
    return times.dt.tz_localize(None).astype("datetime64[ns]")


def _require_complete(column: pd.Series, kind: str) -> None:
    if missing := int(column.isna().sum()):
        raise PartError(
            f"the model reads column {column.name} as {kind}, and it is missing in {missing} of {len(column)} rows: "
            f"log the model with a double there, or fill the gaps in the agent's source"
        )
