"""Actions are matched by name."""

from __future__ import annotations

import numpy as np

from stillhouse.actions import align_actions


def test_an_unknown_action_gets_zero_and_the_order_is_the_targets() -> None:
    probs = np.array([[0.2, 0.8], [np.nan, np.nan]])
    result = align_actions(probs, ["a", "b"], ["b", "new", "a"])
    assert result[0].tolist() == [0.8, 0.0, 0.2] and np.isnan(result[1, 0])
    assert align_actions(probs, ["a", "b"], ("a", "b")) is probs


def test_probability_of_removed_actions_goes_to_the_others() -> None:
    probs = np.array([[0.2, 0.2, 0.6], [0.0, 0.0, 1.0], [np.nan] * 3], dtype=np.float32)
    result = align_actions(probs, ["a", "b", "c"], ["b", "a"])
    assert result.dtype == np.float32 and result[:2].tolist() == [[0.5, 0.5], [0.5, 0.5]] and np.isnan(result[2]).all()
