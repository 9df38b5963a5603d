"""Rows of an agent as the signature of somebody else's model wants them: types, order, and what may be missing.

An agent's columns are float64 with NaN, or text; MLflow narrows nothing by itself. Whole numbers become the integers of
the signature, other values become what they say; what would change is refused with its column.
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

__all__ = ["as_dtype", "as_signed"]

_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def as_signed(rows: pd.DataFrame, schema: Schema | None) -> Any:
    """The rows as a table or arrays that the signature takes; as they are where the model was logged without one.

    :raises PartError: naming the column that is not there, is missing in some rows, or holds another kind of value.
    """
    if schema is None or not schema.inputs:
        return rows
    if schema.is_tensor_spec():
        return _tensors(rows, cast("Sequence[TensorSpec]", schema.inputs))
    return _table(rows, cast("Sequence[ColSpec]", schema.inputs))


def as_dtype(column: pd.Series, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A column as an array of this type.

    :raises PartError: naming the column, if a value would change or is missing where the type has no such value.
    """
    if dtype.kind == "f":
        return _floats(column, dtype)
    if dtype.kind in "iu":
        return _integers(column, dtype)
    if dtype.kind == "b":
        _require_all(column, "a truth value")
        return _truths(column).astype(bool)
    if dtype.kind in "OUST":
        return _texts(column)
    if dtype.kind == "M":
        return _times(column).to_numpy()
    raise PartError(f"the model reads column {column.name} as {dtype}, and an agent's columns are numbers and texts")


# --------------------------------------------------------------------------- columns and tensors


def _table(rows: pd.DataFrame, specs: Sequence[ColSpec]) -> pd.DataFrame:
    if any(spec.name is None for spec in specs):
        if len(specs) != rows.shape[1]:
            raise PartError(f"the model takes {len(specs)} columns without names, and is given {rows.shape[1]}")
        found = {str(name): _column(rows[name], spec) for name, spec in zip(rows, specs, strict=True)}
        return pd.DataFrame(found, index=rows.index)
    wanted = [str(spec.name) for spec in specs if spec.required]
    _require_columns(rows, wanted)
    there = [spec for spec in specs if str(spec.name) in rows]
    kept = [spec for spec in there if spec.required or not rows[str(spec.name)].isna().all()]
    return pd.DataFrame({str(spec.name): _column(rows[str(spec.name)], spec) for spec in kept}, index=rows.index)


def _column(column: pd.Series, spec: ColSpec) -> pd.Series:
    values = _values(column, spec)
    return values if isinstance(values, pd.Series) else pd.Series(values, column.index, dtype=values.dtype)


def _values(column: pd.Series, spec: ColSpec) -> Any:
    from mlflow.types.schema import AnyType, DataType

    if isinstance(spec.type, AnyType):
        return column
    if spec.type == DataType.boolean:
        return _truths(column) if not spec.required else as_dtype(column, np.dtype(bool))
    if not isinstance(spec.type, DataType) or spec.type == DataType.binary:
        raise PartError(
            f"the model reads column {column.name} as {spec.type}, and an agent's columns are numbers and texts"
        )
    if spec.type == DataType.datetime:
        return _times(column)
    return as_dtype(column, np.dtype(spec.type.to_numpy()))


def _tensors(rows: pd.DataFrame, specs: Sequence[TensorSpec]) -> Any:
    """One array ``[n, F]`` of all columns, or one for each input by its name."""
    if len(specs) == 1 and (specs[0].name is None or str(specs[0].name) not in rows):
        (spec,) = specs
        array = np.column_stack([as_dtype(rows[name], spec.type) for name in rows])
        if len(spec.shape) == 2 and spec.shape[1] not in (-1, array.shape[1]):
            raise PartError(f"the model takes {spec.shape[1]} values a row, and is given {array.shape[1]} columns")
        array = array[:, 0] if len(spec.shape) == 1 and array.shape[1] == 1 else array
        return array if spec.name is None else {str(spec.name): array}
    _require_columns(rows, [str(spec.name) for spec in specs])
    found = {}
    for spec in specs:
        array = as_dtype(rows[str(spec.name)], spec.type)
        found[str(spec.name)] = array.reshape(len(rows), *([1] * (len(spec.shape) - 1)))
    return found


def _require_columns(rows: pd.DataFrame, wanted: Sequence[str]) -> None:
    if lacking := [name for name in wanted if name not in rows]:
        raise PartError(
            f"the model's signature wants the columns {', '.join(lacking)}, which it is not given; it is given "
            f"{', '.join(map(str, rows))}: name the right ones with the teacher's `columns`"
        )


# --------------------------------------------------------------------------- values


def _floats(column: pd.Series, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """As floats with NaN where a value is missing."""
    try:
        numbers = to_numbers(column, f"column {column.name}").to_numpy()
    except SchemaError as error:
        raise PartError(f"the model reads column {column.name} as a number: {error}") from error
    with np.errstate(over="ignore"):
        found = numbers.astype(dtype)
    if (far := np.isinf(found) & np.isfinite(numbers)).any():
        raise PartError(f"column {column.name} has {numbers[far][0]:g}, which {dtype} does not hold")
    return found


def _integers(column: pd.Series, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    _require_all(column, f"a whole number ({dtype})")
    values = column.astype(object).to_list()
    try:
        whole = [value if isinstance(value, int | np.integer) else _whole(value) for value in values]
    except ValueError as error:
        raise PartError(f"the model reads column {column.name} as a whole number ({dtype}): {error}") from error
    limits = np.iinfo(dtype)
    if whole and not (limits.min <= min(whole) and max(whole) <= limits.max):
        raise PartError(f"column {column.name} has {min(whole)} to {max(whole)}, which {dtype} does not hold")
    return np.array(whole, dtype=dtype)


def _whole(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r" *[+-]?[0-9]{1,4000} *", value):
        return int(value)
    number = number_of(value, from_text=True)
    if not number.is_integer():
        raise ValueError(f"{value!r} is none")
    return int(number)


def _truths(column: pd.Series) -> np.ndarray[Any, Any]:
    """True, False, and None where a value is missing."""
    found = [None if text is None else _TRUTH.get(text.lower(), text) for text in _texts(column)]
    if strange := next((value for value in found if isinstance(value, str)), None):
        raise PartError(f"the model reads column {column.name} as a truth value, and {strange!r} is none")
    return np.array(found, dtype=object)


def _texts(column: pd.Series) -> np.ndarray[Any, Any]:
    """Text, and None where a value is missing."""
    try:
        return np.array([text_of(value) for value in column.astype(object)], dtype=object)
    except ValueRefused as error:
        raise PartError(f"the model reads column {column.name} as text: {error}") from error


def _times(column: pd.Series) -> pd.Series:
    """Moments in UTC, without a zone, as MLflow wants them."""
    if column.dtype.kind in "fiub":
        raise PartError(f"the model reads column {column.name} as a time, and it holds numbers")
    if strange := next((value for value in column if isinstance(value, str) and not re.search("[0-9]", value)), None):
        raise PartError(
            f"the model reads column {column.name} as a time, and {strange!r} is none"
        )  # to pandas "now" is
    try:
        times = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
    except (TypeError, ValueError) as error:
        raise PartError(f"the model reads column {column.name} as a time: {error}") from error
    return times.dt.tz_localize(None).astype("datetime64[ns]")


def _require_all(column: pd.Series, kind: str) -> None:
    if missing := int(column.isna().sum()):
        raise PartError(
            f"the model reads column {column.name} as {kind}, and it is missing in {missing} of {len(column)} rows: "
            f"log the model with a double there, or fill the gaps in the agent's source"
        )
