"""The detection benchmark gives the same results as the product's functions, and its figures match their names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks import drift_detection as benchmark
from stillhouse.drift import audit, evidence

HOUR = timedelta(hours=1)


def world(rows: int = 400) -> benchmark.World:
    generator = np.random.default_rng(0)

    def pool(mean: float) -> benchmark.Pool:
        losses = generator.beta(8 * mean, 8 * (1 - mean), rows)
        streams = dict.fromkeys(("disagreement", "error", "brier"), losses)
        return benchmark.Pool(streams, scores=generator.random(rows), inputs=losses[:, None])

    return benchmark.World("toy", {"before": pool(0.05), "concept": pool(0.3)})


@pytest.mark.parametrize("method", benchmark.METHODS, ids=lambda method: method.name)
def test_runs_side_by_side_are_what_advance_does(method):
    """Compare with the product's ``advance`` on the same units, drawn again from the same seed."""
    toy, nulls, seed = world(), np.array([0.08, 0.1, 0.2]), [5]
    _, first = benchmark.run_evidence(toy, method, ("concept", 0.5), nulls, looks=20, seed=seed, block=20)
    generator = np.random.default_rng([73, *seed])
    units = benchmark.draw_units(toy, method, ("concept", 0.5), (3, 20), generator)
    for number, null in enumerate(nulls):
        state = evidence.start(
            "disagreement",
            "toy@1",
            since=datetime(2013, 1, 1, tzinfo=UTC),
            null_mean=float(null),
            average_run_length=benchmark.RUN_LENGTH,
        )
        while not state.alarm and state.looks < 20:
            state = evidence.advance(state, units[number, state.looks], start=state.end, end=state.end + HOUR, rows=1)
        assert first[number] == (state.looks if state.alarm else 21)
    assert (first <= 20).any()


@pytest.mark.parametrize("method", benchmark.METHODS, ids=lambda method: method.name)
def test_units_drawn_at_once_are_like_those_of_a_plan_for_each_look(method):
    """Compare mean and spread of the units with ``audit.draw_rows`` look by look; means within four standard errors."""
    toy = world()
    generator = np.random.default_rng(1)
    units = benchmark.draw_units(toy, method, ("before", 0.0), (1, 1500), generator)[0]
    before = toy.pools["before"]
    expected = []
    for seed in range(1500):
        rows = generator.integers(0, len(before.scores), benchmark.PER_LOOK)
        plan = audit.draw_rows(before.scores[rows], None, benchmark.WATCH.audit.rows, method.uniform_share, seed)
        expected.append(audit.cluster_means(plan, before.streams["disagreement"][rows[plan.rows]]))
    one_by_one = np.array(expected)
    if method.one_unit:
        one_by_one = one_by_one.mean(axis=1, keepdims=True)
    error = np.hypot(units.mean(axis=1).std(), one_by_one.mean(axis=1).std()) / len(units) ** 0.5
    assert units.shape == one_by_one.shape
    assert abs(units.mean() - one_by_one.mean()) <= 4 * error
    assert units.std() == pytest.approx(one_by_one.std(), rel=0.1)


def test_quartiles_leave_out_runs_that_alarmed_before_the_change():
    size = benchmark.Size(horizon=10)
    summary = benchmark.quartiles([0, 1, 2, 3, 11], size)
    assert summary == {"q25": 1.75, "median": 2.5, "q75": 5.0, "found": 0.75, "false": 0.2}
    assert benchmark.median_delay([0, 0], size) == 11


def test_rows_of_a_scenario_are_mixed_as_its_share_says():
    toy = world()
    generator = np.random.default_rng(2)
    before, after = (toy.pools[name].streams["brier"].mean() for name in ("before", "concept"))
    for share in (0.0, 0.3, 1.0):
        losses, _ = benchmark.draw_scenario_rows(toy, "brier", ("concept", share), (40, 500), generator)
        assert losses.mean() == pytest.approx((1 - share) * before + share * after, abs=0.01)
