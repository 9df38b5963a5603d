"""The benchmark of the agent `memory`: its lag by hand, and a small run."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.memory_scale import TURN, find_lag, make_goals, measure
from benchmarks.pages import _memory_scale


def test_lag_is_the_first_day_from_which_on_the_accuracy_is_as_before() -> None:
    days = np.repeat(np.arange(-7, 14), 100)
    right = np.ones(len(days), dtype=bool)
    assert find_lag(right, days) == 0
    right[(days >= 0) & (days < 4)] = False
    assert find_lag(right, days) == 4
    right[days >= 0] = False
    assert find_lag(right, days) == 14


@pytest.mark.slow
def test_small_run_measures_both_models() -> None:
    detail = {str(size): [measure(size, 1000, 3)] for size in (600, 1_200)}
    run = detail["1200"][0]
    assert run["memories"] > 1_200 and len(run["by_day"]) == 14
    assert run["accuracy"]["first"][str(TURN)] < run["accuracy"]["first"][str(TURN - 1)]
    assert run["ms"]["student"] > 0 and run["bytes"]["student"] > 10_000
    assert [goal.name for goal in make_goals(detail)][-1] == "memory_lag_days"
    assert "| 1,200 |" in "\n".join(_memory_scale({"sizes": detail}))
