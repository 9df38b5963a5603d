"""Probabilities of one list of actions, read as those of another: actions are matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["aligned"]

Array = np.ndarray[Any, Any]


def aligned(probabilities: Array, given: Sequence[str], wanted: Sequence[str]) -> Array:
    """Probabilities ``[n, len(given)]`` as ``[n, len(wanted)]``, of the same type.

    An action that the giver does not know gets 0. What it gave to actions that are no longer wanted goes to the others
    in proportion; where nothing is left, all of them are alike.
    """
    if list(given) == list(wanted):
        return probabilities
    found = np.zeros((len(probabilities), len(wanted)), dtype=probabilities.dtype)
    places = {action: place for place, action in enumerate(given)}
    for column, action in enumerate(wanted):
        if action in places:
            found[:, column] = probabilities[:, places[action]]
    if set(given) <= set(wanted):
        return found
    left = found.sum(axis=1, keepdims=True)
    known = ~np.isnan(left[:, 0])  # a row without an answer stays one
    found[known & (left[:, 0] <= 0)] = 1.0
    return np.where(known[:, None], found / found.sum(axis=1, keepdims=True), found).astype(probabilities.dtype)
