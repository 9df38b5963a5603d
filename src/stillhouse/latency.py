"""Latency of one decision on the serving machine: wall-clock time per call, and CPU time as a proxy for energy."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stillhouse.records import Latency

__all__ = ["measure_cpu_time", "measure_latency"]

_MIN_CALLS = 10  # of each candidate, however long they take


def measure_latency(
    candidates: Mapping[str, Callable[[], object]], *, calls: int = 300, warm_up: int = 20, seconds: float = 30.0
) -> dict[str, Latency]:
    """Wall-clock time of one call of each candidate (ms).

    The candidates are called in turns, so that other load on the machine affects all of them alike.

    >>> measure_latency({"sum": lambda: sum(range(100))}, calls=20)["sum"].calls
    20

    :param calls: number of calls of each candidate; fewer, but at least ten, if they would take more than ``seconds``.
    :param warm_up: number of calls of each candidate that are not measured.
    """
    durations: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(min(warm_up, calls)):
            call()
    gc_was_enabled = gc.isenabled()
    gc.disable()
    begin = time.perf_counter()
    try:
        for turn in range(calls):
            if turn >= _MIN_CALLS and time.perf_counter() - begin > seconds:
                break
            for name, call in candidates.items():
                start = time.perf_counter()
                call()
                durations[name].append(time.perf_counter() - start)
    finally:
        if gc_was_enabled:
            gc.enable()
    return {name: _summarize(np.asarray(times) * 1e3) for name, times in durations.items()}


def measure_cpu_time(call: Callable[[], object], *, calls: int = 50) -> float:
    """Mean CPU time of one call on this thread (ms).

    >>> measure_cpu_time(lambda: sum(range(100)), calls=5) < 100
    True
    """
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls * 1e3


def _summarize(milliseconds: np.ndarray[Any, Any]) -> Latency:
    p50, p95 = np.quantile(milliseconds, [0.5, 0.95])
    return Latency(p50_ms=float(p50), p95_ms=float(p95), calls=len(milliseconds))
