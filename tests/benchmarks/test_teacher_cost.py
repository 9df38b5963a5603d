"""Shifts of the streams, rows that the policies query, and the cheapest mixture of margin sampling."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import teacher_cost as bench
from benchmarks.teacher_cost import StreamResult, margin_calls


def stream_result(accuracy: float, calls: int) -> StreamResult:
    return StreamResult(accuracy, calls, 1000, (), (), 0, 0.0)


def test_margin_sampling_is_read_on_the_upper_hull() -> None:
    run = {
        "never": stream_result(0.5, 0),
        "margin 0.1": stream_result(0.7, 100),
        "margin above 0.5": stream_result(0.71, 200),
        "margin 0.3": stream_result(0.8, 300),
        "always": stream_result(0.9, 1000),
        "uniform 0.1": stream_result(0.99, 1),
    }
    assert margin_calls(run | {"ours": stream_result(0.6, 1)}) == pytest.approx(50)
    assert margin_calls(run | {"ours": stream_result(0.75, 1)}) == pytest.approx(200)
    assert margin_calls(run | {"ours": stream_result(0.85, 1)}) == pytest.approx(650)
    assert margin_calls(run | {"ours": stream_result(0.95, 1)}) == 1000
    assert margin_calls(run | {"ours": stream_result(0.4, 1)}) == 1


@pytest.mark.parametrize("make", [bench.sea, bench.loans])
def test_the_rule_of_a_made_stream_changes_twice(make) -> None:
    stream = make(1, 6000)
    assert stream.shifts == (bench.HISTORY + 2000, bench.HISTORY + 4000)
    assert (stream.teacher.argmax(axis=1) == stream.truth).mean() == pytest.approx(0.9, abs=0.02)
    rule = bench._sea if make is bench.sea else bench._loan
    first, second, third = (rule(stream.x.astype(float), number) for number in range(3))
    assert 0.05 < (first != second).mean() < 0.7 and 0.05 < (second != third).mean() < 0.7


def test_ours_asks_little_while_nothing_moves_and_much_after_evidence() -> None:
    policy = bench.OnEvidence(null=0.1, calm=5, alert=20, burst=100, burst_step=50)
    x, student_probs = np.random.default_rng(0).normal(size=(200, 2)), np.tile([0.8, 0.2], (200, 1))
    for seed in range(20):
        queried = policy.choose(x, [student_probs, student_probs], seed)
        assert len(queried) == 5
        policy.observe_losses(np.full(5, 0.02))
    counts = []
    for seed in range(20, 40):
        queried = policy.choose(x, [student_probs, student_probs], seed)
        assert len(queried) == len(set(queried.tolist()))
        counts.append(len(queried))
        policy.observe_losses(np.full(len(queried), 0.9 if policy.alarms == 0 else 0.02))
    assert policy.alarms == 1 and counts[0] == 5
    assert counts.count(70) == 2  # the burst: two steps of 50 beside an audit of 20
    assert counts[-1] == 5


@pytest.mark.slow
def test_a_policy_plays_a_stream_to_its_end() -> None:
    stream, settings = bench.sea(2, 1500), bench.settings_of(2).model_copy(update={"epochs": 2})
    first, null = bench.first_student(stream, settings, 2)
    assert 0 < null < 1
    no_row = bench.play(stream, first, bench.AtRandom(0.0), settings, 2)
    some = bench.play(stream, first, bench.ByMargin(share=0.1), settings, 2)
    assert no_row.calls == 0 and some.calls == pytest.approx(150, abs=3)
    assert 0.5 < no_row.accuracy < 1 and no_row.rows == 1500 and len(some.phases) == 3
