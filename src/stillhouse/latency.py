"""How long one decision takes on the machine that serves: wall time of single calls, and CPU time, energy's proxy."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stillhouse.records import Latency

__all__ = ["cpu_time", "measure_latency"]

_FEWEST = 10  # calls of each, however long they take


def measure_latency(
    candidates: Mapping[str, Callable[[], object]], *, calls: int = 300, warm_up: int = 20, seconds: float = 30.0
) -> dict[str, Latency]:
    """Time of one call of each candidate (ms), the candidates taking turns so that a busy moment hits all alike.

    :param calls: of each; fewer, but at least ten, where they would take longer than ``seconds`` in all.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(min(warm_up, calls)):
            call()
    collecting = gc.isenabled()
    gc.disable()
    begin = time.perf_counter()
    try:
        for turn in range(calls):
            if turn >= _FEWEST and time.perf_counter() - begin > seconds:
                break
            for name, call in candidates.items():
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: _latency(np.asarray(times) * 1e3) for name, times in taken.items()}


def cpu_time(call: Callable[[], object], *, calls: int = 50) -> float:
    """CPU time of one call on this thread (ms), the mean of several."""
    start = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - start) / calls * 1e3


def _latency(milliseconds: np.ndarray[Any, Any]) -> Latency:
    p50, p95 = np.quantile(milliseconds, [0.5, 0.95])
    return Latency(p50_ms=float(p50), p95_ms=float(p95), calls=len(milliseconds))
