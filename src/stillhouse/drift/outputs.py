"""The student's output as columns, so that it is profiled, compared and calibrated as the observations are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import CategoryColumn, Column, NumberColumn
from stillhouse.errors import SchemaError

__all__ = ["columns_of", "outputs"]

EACH_ACTION = 8
"""With more actions than this only the top probability is a column."""

Array = np.ndarray[Any, Any]


def outputs(probabilities: Array, actions: Sequence[str]) -> pd.DataFrame:
    """What a student said, ``n`` rows with the columns of :func:`columns_of`.

    =================  =====================================================================================
    column             value
    =================  =====================================================================================
    ``p(<action>)``    its probability, 0…1: for two actions of the second, for up to eight of each
    ``p(top)``         for more actions: the largest probability
    ``margin``         the largest probability minus the second largest, 0…1: how sure the student is
    ``action``         name of the most probable action, the first of equals
    =================  =====================================================================================

    :param probabilities: float ``[n, K]``, K ≥ 2, finite, one column per action in their order.
    :raises SchemaError: if the shape does not fit the actions.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(actions):
        raise SchemaError(f"outputs of {len(actions)} actions must be [n, {len(actions)}], not {probabilities.shape}")
    ordered = np.sort(probabilities, axis=1)
    columns: dict[str, Any] = {f"p({actions[k]})": probabilities[:, k] for k in _shown(len(actions))}
    if not columns:
        columns["p(top)"] = ordered[:, -1]
    columns["margin"] = ordered[:, -1] - ordered[:, -2]
    columns["action"] = pd.Categorical.from_codes(
        probabilities.argmax(axis=1).astype(np.int64), dtype=pd.CategoricalDtype(list(actions))
    )
    return pd.DataFrame(columns)


def columns_of(actions: Sequence[str]) -> dict[str, Column]:
    """The columns of :func:`outputs` as :func:`stillhouse.drift.profile.build` wants them."""
    probability = NumberColumn(type="number", min=0.0, max=1.0)
    names = [f"p({actions[k]})" for k in _shown(len(actions))] or ["p(top)"]
    columns: dict[str, Column] = dict.fromkeys([*names, "margin"], probability)
    columns["action"] = CategoryColumn(type="category", values=tuple(actions))
    return columns


def _shown(actions: int) -> range:
    """Numbers of the actions whose probability is a column: for two, one says all."""
    if actions > EACH_ACTION:
        return range(0)
    return range(1, 2) if actions == 2 else range(actions)
