"""Convert probabilities between lists of actions, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["align_actions"]

Array = np.ndarray[Any, Any]


def align_actions(probs: Array, source: Sequence[str], target: Sequence[str]) -> Array:
    """Probabilities ``[n, len(source)]`` as ``[n, len(target)]``, of the same dtype.

    An action that ``source`` lacks gets 0. The probability of actions that ``target`` lacks is distributed over the
    others in proportion; a row in which nothing remains becomes uniform. A row of NaN stays NaN.

    >>> align_actions(np.array([[0.2, 0.2, 0.6]]), ["a", "b", "c"], ["b", "a", "new"]).tolist()
    [[0.5, 0.5, 0.0]]
    """
    if list(source) == list(target):
        return probs
    aligned = np.zeros((len(probs), len(target)), dtype=probs.dtype)
    source_index = {action: index for index, action in enumerate(source)}
    for column, action in enumerate(target):
        if action in source_index:
            aligned[:, column] = probs[:, source_index[action]]
    if set(source) <= set(target):
        return aligned
    total = aligned.sum(axis=1, keepdims=True)
    has_probs = ~np.isnan(total[:, 0])
    aligned[has_probs & (total[:, 0] <= 0)] = 1.0
    return np.where(has_probs[:, None], aligned / aligned.sum(axis=1, keepdims=True), aligned).astype(probs.dtype)
