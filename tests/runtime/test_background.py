"""Periodic background tasks."""

from __future__ import annotations

from stillhouse.runtime.background import PeriodicTask
from tests.runtime.test_agent import wait_until


def test_a_function_that_fails_is_called_again() -> None:
    calls = list[int]()

    def fail() -> None:
        calls.append(1)
        raise ValueError("a defect")

    task = PeriodicTask("test works", fail, 0.001)
    wait_until(lambda: len(calls) > 3, 240)
    assert task.first_run_done.is_set() and task.stop(10)
