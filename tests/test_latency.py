"""Latency is measured on single calls in turns, within a time limit."""

from __future__ import annotations

import gc
import time

import pytest

from stillhouse.latency import measure_cpu_time, measure_latency


def test_candidates_are_called_in_turns() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.003)

    latencies = measure_latency({"slow": slow, "fast": lambda: order.append("fast")}, calls=20, warm_up=2)
    assert order[:4] == ["slow", "slow", "fast", "fast"]
    assert order[4:] == ["slow", "fast"] * 20
    assert 3.0 <= latencies["slow"].p50_ms <= latencies["slow"].p95_ms
    assert latencies["fast"].p50_ms < latencies["slow"].p50_ms
    assert latencies["slow"].calls == 20
    assert measure_latency({}) == {}


def test_garbage_collection_is_enabled_again_after_an_error() -> None:
    def failing() -> None:
        raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        measure_latency({"x": failing}, warm_up=0)
    assert gc.isenabled()


def test_slow_candidates_are_called_at_least_ten_times_within_the_time_limit() -> None:
    calls = []

    def slow() -> None:
        calls.append(time.sleep(0.01))

    latencies = measure_latency({"slow": slow}, calls=300, warm_up=0, seconds=0.05)
    assert latencies["slow"].calls == len(calls) == 10
    assert measure_latency({"slow": slow}, calls=4, warm_up=1, seconds=0.0)["slow"].calls == 4
    assert 10 <= measure_latency({"slow": slow}, calls=300, warm_up=0, seconds=0.2)["slow"].calls <= 25


def test_warm_up_calls_are_not_measured() -> None:
    durations = iter([0.05] * 3 + [0.0] * 50)
    latencies = measure_latency({"first": lambda: time.sleep(next(durations))}, calls=50, warm_up=3)
    assert latencies["first"].p95_ms < 40


def test_cpu_time_excludes_waiting() -> None:
    def work() -> None:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass

    assert measure_cpu_time(lambda: time.sleep(0.005), calls=5) < 2.5
    assert 4.0 <= measure_cpu_time(work, calls=5) < 8.0
