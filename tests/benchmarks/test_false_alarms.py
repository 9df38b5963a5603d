"""The false-alarm benchmark gives the same results as the product's functions, and the promised rate holds."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from benchmarks import false_alarms as benchmark
from stillhouse.drift import evidence

HOUR = timedelta(hours=1)


@pytest.mark.parametrize("world", benchmark.WORLDS[3::4], ids=lambda world: world.name)
def test_seeds_side_by_side_are_what_a_watch_does(world) -> None:
    """Compare with ``start``, ``advance``, ``joint_evidence`` and ``continue_or_restart`` on the same losses."""
    losses = benchmark.Losses(world, 3, [5])
    baselines_by_process = benchmark.estimate_baselines(losses, 60)
    null = np.repeat(np.array(benchmark.MEANS)[:, None], 3, axis=1)
    watch = benchmark.Detectors.start(benchmark.process_settings(baselines_by_process, null, world.clusters, 4))
    states = {
        (process, seed): evidence.start(
            name,
            "toy@1",
            since=benchmark.BEGIN,
            null_mean=null[process, seed],
            average_run_length=4,
            share=1 / 3,
            autocorrelation=baselines_by_process[process][seed].autocorrelation,
            step_deviation=baselines_by_process[process][seed].step_deviation,
        )
        for process, name in enumerate(("disagreement", "student_outcomes", "teacher_outcomes"))
        for seed in range(3)
    }
    initial_states, alarms = dict(states), 0
    for _ in range(40):
        clusters = losses.draw_clusters(0.05)
        alarmed = watch.look(clusters)
        for key, state in states.items():
            states[key] = evidence.advance(state, clusters[key], start=state.end, end=state.end + HOUR, rows=1)
        for seed in range(3):
            joint, threshold = evidence.joint_evidence([states[process, seed] for process in range(3)])
            assert (joint >= threshold) == alarmed[seed]
            if alarmed[seed]:
                alarms += 1
                for process in range(3):
                    last = states[process, seed]
                    restarted = initial_states[process, seed].model_copy(
                        update={"since": last.end, "start": last.end, "end": last.end}
                    )
                    states[process, seed] = evidence.continue_or_restart(last, restarted, last.end)
        watch.restart(alarmed)
    assert alarms > 3


@pytest.mark.parametrize("world", benchmark.WORLDS[:3:2], ids=lambda world: world.name)
def test_the_budget_holds_for_all_processes_together(world) -> None:
    """At most one alarm in a hundred steps, within the simulation's error, with a restart after each alarm."""
    rates = benchmark.measure_rate(world, benchmark.Size(seeds=60, looks=150, history=100), [17])
    _, low, _ = benchmark.interval(rates["now"])
    assert low <= 1.0


def test_processes_with_budgets_of_their_own_do_not_hold_it() -> None:
    rates = benchmark.measure_rate(benchmark.WORLDS[0], benchmark.Size(seeds=60, looks=100, history=20), [18])
    assert benchmark.interval(rates["before"])[0] > benchmark.interval(rates["now"])[0]


def test_the_means_of_an_autoregressive_world() -> None:
    world = benchmark.World("toy", 0.5, 0.3)
    losses = benchmark.Losses(world, 4000, [6])
    levels = []
    for _ in range(3):
        losses.step()
        levels.append(losses.level)
    assert np.mean(levels) == pytest.approx(1.0, abs=0.02) and np.std(levels) == pytest.approx(0.3, abs=0.02)
    assert np.corrcoef(levels[0], levels[1])[0, 1] == pytest.approx(0.5, abs=0.05)
