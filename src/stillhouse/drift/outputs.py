"""The student's output as columns, which are profiled, compared and calibrated like the observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import CategoryColumn, Column, NumberColumn
from stillhouse.errors import SchemaError

__all__ = ["output_columns", "output_frame"]

MAX_ACTIONS_WITH_COLUMNS = 8
"""With more actions, only the largest probability is a column."""

Array = np.ndarray[Any, Any]


def output_frame(probs: Array, actions: Sequence[str]) -> pd.DataFrame:
    """The student's output as a frame of ``n`` rows with the columns of :func:`output_columns`.

    =================  =====================================================================================
    column             value
    =================  =====================================================================================
    ``p(<action>)``    probability of the action, 0…1: the second of two actions, or each of up to eight
    ``p(top)``         for more actions: the largest probability
    ``margin``         the largest probability minus the second largest, 0…1: the student's certainty
    ``action``         name of the most probable action, of equal ones the first
    =================  =====================================================================================

    >>> output_frame(np.array([[0.75, 0.25]]), ["on_time", "late"]).to_dict("records")
    [{'p(late)': 0.25, 'margin': 0.5, 'action': 'on_time'}]

    :param probs: float ``[n, K]``, K ≥ 2, finite, one column per action in their order.
    :raises SchemaError: if the shape does not match the actions.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[1] != len(actions):
        raise SchemaError(f"outputs of {len(actions)} actions must be [n, {len(actions)}], not {probs.shape}")
    ordered = np.sort(probs, axis=1)
    columns: dict[str, Any] = {f"p({actions[k]})": probs[:, k] for k in _actions_with_columns(len(actions))}
    if not columns:
        columns["p(top)"] = ordered[:, -1]
    columns["margin"] = ordered[:, -1] - ordered[:, -2]
    columns["action"] = pd.Categorical.from_codes(
        probs.argmax(axis=1).astype(np.int64), dtype=pd.CategoricalDtype(list(actions))
    )
    return pd.DataFrame(columns)


def output_columns(actions: Sequence[str]) -> dict[str, Column]:
    """The columns of :func:`output_frame`, declared as :func:`stillhouse.drift.scan.profile_frame` expects them."""
    probability = NumberColumn(type="number", min=0.0, max=1.0)
    names = [f"p({actions[k]})" for k in _actions_with_columns(len(actions))] or ["p(top)"]
    columns: dict[str, Column] = dict.fromkeys([*names, "margin"], probability)
    columns["action"] = CategoryColumn(type="category", values=tuple(actions))
    return columns


def _actions_with_columns(actions: int) -> range:
    """Indices of the actions whose probability is a column; for two actions one column has all information."""
    if actions > MAX_ACTIONS_WITH_COLUMNS:
        return range(0)
    return range(1, 2) if actions == 2 else range(actions)
