"""A model's inputs, and rows converted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stillhouse.compress.target import Array, Feed
from stillhouse.errors import SchemaError

__all__ = ["ModelInput", "build_feed"]


@dataclass(frozen=True)
class ModelInput:
    """One input of a model: an array ``[n, *shape]`` of this type."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [n{''.join(f', {size}' for size in self.shape)}]"


def build_feed(rows: Array | Mapping[str, Array] | pd.DataFrame, inputs: Sequence[ModelInput]) -> Feed:
    """The rows as the model reads them: one array per input, in the inputs' order and types.

    Example:
        >>> import numpy as np
        >>> x = ModelInput("x", np.dtype("float32"), (2,))
        >>> feed = build_feed(pd.DataFrame({"age": [31, 40], "hour": [8.5, 9.0]}), [x])
        >>> feed["x"].dtype, feed["x"].tolist()
        (dtype('float32'), [[31.0, 8.5], [40.0, 9.0]])

    :param rows: arrays by input name; a single array for a model with one input; or a table, whose columns have the
        inputs' names (a cell may be a list), or together, in their order, are the values of the only input.
    :raises SchemaError: naming the input, if one is missing or has another shape, or if a value would change with the
        type.
    """
    if isinstance(rows, pd.DataFrame):
        rows = _arrays_from_table(rows, inputs)
    if isinstance(rows, np.ndarray):
        if len(inputs) != 1:
            raise SchemaError(f"the model has the inputs {_list_inputs(inputs)}, and the rows are one array: name each")
        rows = {inputs[0].name: rows}
    if missing := [model_input for model_input in inputs if model_input.name not in rows]:
        raise SchemaError(f"the rows lack {_list_inputs(missing)}; they have: {', '.join(map(str, rows)) or 'nothing'}")
    feed = {model_input.name: _convert(np.asarray(rows[model_input.name]), model_input) for model_input in inputs}
    counts = {name: len(array) for name, array in feed.items()}
    if len(set(counts.values())) != 1:
        raise SchemaError(f"the inputs differ in their number of rows: {counts}")
    return feed


def _arrays_from_table(table: pd.DataFrame, inputs: Sequence[ModelInput]) -> dict[str, Array]:
    if all(model_input.name in table for model_input in inputs):
        return {model_input.name: _array_from_column(table[model_input.name], model_input) for model_input in inputs}
    if len(inputs) == 1 and len(inputs[0].shape) == 1:
        if not_numeric := [str(name) for name in table if table[name].dtype.kind not in "fiub"]:
            raise SchemaError(f"the columns {', '.join(not_numeric)} are not numeric, and the model reads {inputs[0]}")
        return {inputs[0].name: table.to_numpy()}
    missing = [model_input for model_input in inputs if model_input.name not in table]
    raise SchemaError(
        f"the table lacks the columns {_list_inputs(missing)}; it has: {', '.join(map(str, table.columns))}"
    )


def _array_from_column(column: pd.Series, model_input: ModelInput) -> Array:
    if column.dtype.kind != "O":
        return np.asarray(column).reshape(len(column), *([1] * len(model_input.shape)))
    try:
        return np.stack([np.asarray(cell) for cell in column])
    except ValueError as error:
        raise SchemaError(
            f"the lists in column {model_input.name} differ in length, and the model reads {model_input}"
        ) from error


def _convert(array: Array, model_input: ModelInput) -> Array:
    if array.ndim == 0 or array.shape[1:] != model_input.shape:
        raise SchemaError(
            f"the rows of input {model_input.name} are {list(array.shape)}, and the model reads {model_input}"
        )
    if array.dtype == model_input.dtype:
        return np.ascontiguousarray(array)
    if model_input.dtype.kind == "f" and array.dtype.kind in "fiub":
        return np.ascontiguousarray(array, dtype=model_input.dtype)
    with np.errstate(invalid="ignore"):
        converted = array.astype(model_input.dtype) if array.dtype.kind in "fiub" else array
    if converted.dtype != model_input.dtype or not (converted == array).all():
        raise SchemaError(f"input {model_input.name} is {array.dtype} in the rows, and the model reads {model_input}")
    return np.ascontiguousarray(converted)


def _list_inputs(inputs: Sequence[ModelInput]) -> str:
    return "; ".join(map(str, inputs))
