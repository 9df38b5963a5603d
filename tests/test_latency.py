"""Latency is of single calls that take turns, and ends in time."""

from __future__ import annotations

import gc
import time

import pytest

from stillhouse.latency import cpu_time, measure_latency


def test_latency_is_measured_in_turns() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.003)

    found = measure_latency({"slow": slow, "fast": lambda: order.append("fast")}, calls=20, warm_up=2)
    assert order[:4] == ["slow", "slow", "fast", "fast"]
    assert order[4:] == ["slow", "fast"] * 20
    assert 3.0 <= found["slow"].p50_ms <= found["slow"].p95_ms
    assert found["fast"].p50_ms < found["slow"].p50_ms
    assert found["slow"].calls == 20
    assert measure_latency({}) == {}


def test_the_collector_of_garbage_is_as_it_was_even_after_an_error() -> None:
    def failing() -> None:
        raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        measure_latency({"x": failing}, warm_up=0)
    assert gc.isenabled()


def test_what_takes_long_is_called_ten_times_at_least_and_no_longer_than_it_may() -> None:
    calls = []

    def slow() -> None:
        calls.append(time.sleep(0.01))

    found = measure_latency({"slow": slow}, calls=300, warm_up=0, seconds=0.05)
    assert found["slow"].calls == len(calls) == 10
    assert measure_latency({"slow": slow}, calls=4, warm_up=1, seconds=0.0)["slow"].calls == 4
    assert 10 <= measure_latency({"slow": slow}, calls=300, warm_up=0, seconds=0.2)["slow"].calls <= 25


def test_a_call_that_warms_up_is_not_counted() -> None:
    times = iter([0.05] * 3 + [0.0] * 50)
    found = measure_latency({"first": lambda: time.sleep(next(times))}, calls=50, warm_up=3)
    assert found["first"].p95_ms < 40


def test_cpu_time_is_of_work_and_not_of_waiting() -> None:
    def work() -> None:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass

    assert cpu_time(lambda: time.sleep(0.005), calls=5) < 2.5
    assert 4.0 <= cpu_time(work, calls=5) < 8.0
