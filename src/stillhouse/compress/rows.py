"""What a stranger's model reads, and rows brought into that form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stillhouse.compress.subject import Array, Feed
from stillhouse.errors import SchemaError

__all__ = ["Input", "feed_of"]


@dataclass(frozen=True)
class Input:
    """One input of a model: ``[n, *shape]`` of this type."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [n{''.join(f', {size}' for size in self.shape)}]"


def feed_of(rows: Array | Mapping[str, Array] | pd.DataFrame, inputs: Sequence[Input]) -> Feed:
    """The rows as the model reads them: one array per input, in the inputs' order and types.

    :param rows: arrays by input name; one array, where there is one input; or a table, whose columns bear the inputs'
        names (a cell may be a list), or are, all of them and in their order, the values of the one input.
    :raises SchemaError: naming the input, if one is not there or of another shape, or if a value would change with the
        type.
    """
    if isinstance(rows, pd.DataFrame):
        rows = _by_column(rows, inputs)
    if isinstance(rows, np.ndarray):
        if len(inputs) != 1:
            raise SchemaError(f"the model has the inputs {_listed(inputs)}, and the rows are one array: name each")
        rows = {inputs[0].name: rows}
    if missing := [each for each in inputs if each.name not in rows]:
        raise SchemaError(f"the rows lack {_listed(missing)}; they have: {', '.join(map(str, rows)) or 'nothing'}")
    found = {each.name: _fitting(np.asarray(rows[each.name]), each) for each in inputs}
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) != 1:
        raise SchemaError(f"the inputs differ in their number of rows: {counts}")
    return found


def _by_column(table: pd.DataFrame, inputs: Sequence[Input]) -> dict[str, Array]:
    if all(each.name in table for each in inputs):
        return {each.name: _column(table[each.name], each) for each in inputs}
    if len(inputs) == 1 and len(inputs[0].shape) == 1:
        if odd := [str(name) for name in table if table[name].dtype.kind not in "fiub"]:
            raise SchemaError(f"the columns {', '.join(odd)} hold no numbers, and the model reads {inputs[0]}")
        return {inputs[0].name: table.to_numpy()}
    missing = [each for each in inputs if each.name not in table]
    raise SchemaError(f"the table lacks the columns {_listed(missing)}; it has: {', '.join(map(str, table.columns))}")


def _column(column: pd.Series, wanted: Input) -> Array:
    if column.dtype.kind != "O":
        return np.asarray(column).reshape(len(column), *([1] * len(wanted.shape)))
    try:
        return np.stack([np.asarray(cell) for cell in column])
    except ValueError as error:
        raise SchemaError(
            f"the lists in column {wanted.name} differ in length, and the model reads {wanted}"
        ) from error


def _fitting(array: Array, wanted: Input) -> Array:
    if array.ndim == 0 or array.shape[1:] != wanted.shape:
        raise SchemaError(f"the rows of input {wanted.name} are {list(array.shape)}, and the model reads {wanted}")
    if array.dtype == wanted.dtype:
        return np.ascontiguousarray(array)
    if wanted.dtype.kind == "f" and array.dtype.kind in "fiub":
        return np.ascontiguousarray(array, dtype=wanted.dtype)
    with np.errstate(invalid="ignore"):
        changed = array.astype(wanted.dtype) if array.dtype.kind in "fiub" else array
    if changed.dtype != wanted.dtype or not (changed == array).all():
        raise SchemaError(f"input {wanted.name} is {array.dtype} in the rows, and the model reads {wanted}")
    return np.ascontiguousarray(changed)


def _listed(inputs: Sequence[Input]) -> str:
    return "; ".join(map(str, inputs))
