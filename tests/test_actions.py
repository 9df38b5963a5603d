"""Actions are matched by name."""

from __future__ import annotations

import numpy as np

from stillhouse.actions import aligned


def test_an_unknown_action_gets_nothing_and_the_order_is_the_wanted_one() -> None:
    said = np.array([[0.2, 0.8], [np.nan, np.nan]])
    found = aligned(said, ["a", "b"], ["b", "new", "a"])
    assert found[0].tolist() == [0.8, 0.0, 0.2] and np.isnan(found[1, 0])
    assert aligned(said, ["a", "b"], ("a", "b")) is said


def test_what_is_no_longer_wanted_goes_to_the_others() -> None:
    said = np.array([[0.2, 0.2, 0.6], [0.0, 0.0, 1.0], [np.nan] * 3], dtype=np.float32)
    found = aligned(said, ["a", "b", "c"], ["b", "a"])
    assert found.dtype == np.float32 and found[:2].tolist() == [[0.5, 0.5], [0.5, 0.5]] and np.isnan(found[2]).all()
