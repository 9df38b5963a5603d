"""The rate of false alarms of an agent's watch, compared with the promise of its budget: a simulation.

``python -m benchmarks.false_alarms`` takes a quarter of an hour on two busy cores; ``--quick`` takes a minute and
writes no file.

Each *seed* is an agent with the three evidence processes of :mod:`stillhouse.drift.evidence`, combined and restarted
after each alarm as in a watch. It starts with a history of 300 steps, from which ``estimate_loss_baseline`` estimates
the dependence between steps. Then it is watched at the boundary of the null hypothesis: every loss has exactly the null
mean, without margin or tolerance, and one false alarm in 100 steps is promised. Worlds:

independent
    losses with a constant mean.
autoregressive
    the means of steps rise and fall together in all processes, ``μ_t = φ μ_{t−1} + (1 − φ) m₀ g_t`` with gamma
    distributed ``g_t`` of mean 1: a mean of exactly ``m₀``, a standard deviation of ``0.3 m₀`` (or 0.6), skewed to the
    right, as the effect of storms is.

In each world a step has one unit of evidence (the default: steps and clusters of an hour) or twelve (steps of half a
day). *Before* is an earlier version: each process had its own budget, and steps counted as independent.

A delay is the number of steps from a rise of all three losses to the alarm, under the default budget (2160 steps),
tolerance and history.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import Goal, begin
from stillhouse.config import Watch
from stillhouse.drift import evidence
from stillhouse.drift.calibrate import estimate_loss_baseline
from stillhouse.records import LossBaseline

CLAIM = "all evidence processes of an agent together raise fewer false alarms than their one budget allows"

MEANS = (0.08, 0.15, 0.12)
"""Mean losses: disagreement of teacher and student, error of the student, error of the teacher."""

PROMISED = 100
HOUR = timedelta(hours=1)
BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
WATCH = Watch()
RISES = (0.03, 0.05, 0.1, 0.2)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class World:
    """Distribution of the losses."""

    name: str
    coefficient: float = 0.0
    deviation: float = 0.0
    """Standard deviation of the step means, in units of their mean; 0: all steps have the same mean."""
    clusters: int = 1
    """Clusters per step."""


WORLDS = tuple(
    World(f"{name}, {clusters} unit{'s' * (clusters > 1)} a step", coefficient, deviation, clusters)
    for clusters in (1, 12)
    for name, coefficient, deviation in (
        ("independent", 0.0, 0.0),
        ("autoregressive .25", 0.25, 0.3),
        ("autoregressive .5", 0.5, 0.3),
        ("autoregressive .5, wide", 0.5, 0.6),
    )
)


@dataclass(frozen=True)
class Size:
    """Size of the simulation; the field names are keys of the result."""

    seeds: int = 1000
    looks: int = 400
    history: int = 300
    delay_seeds: int = 100
    warm_looks: int = 100
    horizon: int = 300


QUICK = Size(seeds=40, looks=300, delay_seeds=20, horizon=200)


def main() -> None:
    """Simulate every world and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few seeds, short, no file written")
    parser.add_argument("--seed", type=int, default=2026, help="that the seeds are derived from")
    options = parser.parse_args()
    run = begin("false_alarms", writes_result=not options.quick)
    size = QUICK if options.quick else Size()
    with ProcessPoolExecutor(max_workers=2) as pool:
        seeds = [[options.seed, number] for number in range(2 * len(WORLDS))]
        delay_jobs = [
            pool.submit(measure_delay, world, size, seed)
            for world, seed in zip(WORLDS, seeds[len(WORLDS) :], strict=True)
        ]
        rates = list(pool.map(measure_rate, WORLDS, [size] * len(WORLDS), seeds[: len(WORLDS)]))
        delays = [delay for job in delay_jobs for delay in job.result()]
    goals = [
        Goal(
            f"false_alarms_per_promised_{'autoregressive' if world.coefficient else 'independent'}_{world.clusters}",
            1.0,
            "lower",
            *interval(rates_by_version["now"]),
        )
        for world, rates_by_version in worst_worlds(rates)
    ]
    detail = {
        "sizes": vars(size),
        "promised": f"one false alarm in {PROMISED} steps, of all processes together",
        "means": MEANS,
        "notes": {
            "alarms_per_promised": "alarms per promised one in all steps of all seeds, restarted after each: "
            "mean, and its 95 % interval over the seeds",
            "first_alarm": "mean number of steps to the first alarm of a seed, cut off at the last step",
            "delays": "median steps from the rise to the alarm, horizon + 1: mostly not found; of seeds without an "
            "alarm in the warm-up; the share of those with one is `false`",
        },
        "rates": [
            {
                "world": world.name,
                **{
                    when: {
                        "alarms_per_promised": [round(x, 3) for x in interval(rates_by_version[when])],
                        "first_alarm": round(float(rates_by_version[f"{when}_first"].mean()), 1),
                    }
                    for when in ("now", "before")
                },
            }
            for world, rates_by_version in zip(WORLDS, rates, strict=True)
        ],
        "delays": delays,
    }
    if options.quick:
        print(json.dumps({"goals": [[g.name, round(g.measured, 3)] for g in goals], "detail": detail}, indent=1))
    else:
        run.write(CLAIM, goals, detail, ("numpy", "scipy"))


# --------------------------------------------------------------------------- losses


class Losses:
    """Draws the losses of all seeds, look by look."""

    def __init__(self, world: World, seeds: int, seed: Sequence[int]) -> None:
        self.world, self.generator = world, np.random.default_rng([91, *seed])
        self.level = np.ones(seeds)
        for _ in range(20 if world.deviation else 0):
            self.step()

    def step(self) -> None:
        """Advance the level of the step means ``[seeds]``, which has mean 1."""
        phi, deviation = self.world.coefficient, self.world.deviation
        if deviation:
            variance = deviation**2 * (1 + phi) / (1 - phi)
            innovation = self.generator.gamma(1 / variance, variance, len(self.level))
            self.level = phi * self.level + (1 - phi) * innovation

    def draw_clusters(self, rise: float = 0.0) -> Array:
        """Draw the cluster losses of the next look, ``[processes, seeds, U]``."""
        self.step()
        means = np.clip(np.array(MEANS)[:, None, None] * self.level[:, None] + rise, 1e-6, 1 - 1e-6)
        spread = 30.0 if self.world.clusters == 1 else 5.0  # a single cluster is the mean of more rows
        shape = (len(MEANS), len(self.level), self.world.clusters)
        clusters: Array = self.generator.beta(spread * means, spread * (1 - means), shape)
        return clusters


def estimate_baselines(losses: Losses, looks: int) -> list[list[LossBaseline]]:
    """Baseline of each process of each seed, from a history of ``looks`` looks."""
    history = np.stack([losses.draw_clusters() for _ in range(looks)], axis=2)  # [processes, seeds, looks, U]
    cluster_duration = HOUR / losses.world.clusters
    times = pd.date_range(BEGIN, periods=looks * losses.world.clusters, freq=cluster_duration)
    return [
        [estimate_loss_baseline(seed.ravel(), times, cluster_duration, timedelta(days=7), HOUR) for seed in process]
        for process in history
    ]


# --------------------------------------------------------------------------- a watch


@dataclass(frozen=True)
class ProcessSettings:
    """Constants of the processes of all seeds, ``[processes, seeds]`` each, and the agent's budget."""

    null: Array
    autocorrelation: Array
    deviation: Array
    """Standard deviation of the step means; NaN if unknown."""
    bets: Array
    """Bets of a step."""
    run_length: float


@dataclass
class Detectors:
    """``evidence.advance`` and ``evidence.joint_evidence`` for the processes of all seeds at once."""

    settings: ProcessSettings
    log_bets: Array
    excess: Array

    @classmethod
    def start(cls, settings: ProcessSettings) -> Detectors:
        """The state before the first look."""
        shape = settings.null.shape
        return cls(settings, np.full((*shape, evidence.BET_COUNT), evidence.LOG_OF_ZERO), np.zeros(shape))

    def look(self, clusters: Array) -> Array:
        """Add the cluster losses ``[processes, seeds, U]`` to the evidence; return the alarms, bool ``[seeds]``."""
        settings, null = self.settings, self.settings.null + self.excess
        bets = np.empty_like(self.log_bets)
        for count in np.unique(settings.bets):
            mask = settings.bets == count
            means, deviation = evidence.bet_means(clusters[mask], int(count)), np.nan_to_num(settings.deviation[mask])
            bets[mask] = evidence.accumulate(self.log_bets[mask], means, null[mask], deviation)
        self.log_bets = bets
        rho = settings.autocorrelation
        self.excess = evidence.next_excess(self.excess, clusters.mean(axis=2), settings.null, rho)
        joint_evidence = np.logaddexp.reduce(bets, axis=(0, 2)) - math.log(len(MEANS) * evidence.BET_COUNT)
        alarms: Array = joint_evidence >= math.log(settings.run_length)
        return alarms

    def restart(self, seeds: Array) -> None:
        """Reset the evidence of some seeds; the expected excess of the next step stays."""
        self.log_bets[:, seeds] = evidence.LOG_OF_ZERO


@dataclass
class SeparateBudgets:
    """The earlier version: each process has the whole budget, and steps count as independent."""

    settings: ProcessSettings
    log_bets: Array

    @classmethod
    def start(cls, settings: ProcessSettings) -> SeparateBudgets:
        """The state before the first look."""
        return cls(settings, np.full((*settings.null.shape, evidence.BET_COUNT), evidence.LOG_OF_ZERO))

    def look(self, clusters: Array) -> Array:
        """As :meth:`Detectors.look`."""
        self.log_bets = evidence.accumulate(self.log_bets, clusters, self.settings.null)
        evidence_by_process = np.logaddexp.reduce(self.log_bets, axis=2) - math.log(evidence.BET_COUNT)
        alarms: Array = (evidence_by_process >= math.log(self.settings.run_length)).any(axis=0)
        return alarms

    def restart(self, seeds: Array) -> None:
        """Reset the evidence of some seeds."""
        self.log_bets[:, seeds] = evidence.LOG_OF_ZERO


def process_settings(
    baselines_by_process: list[list[LossBaseline]], null: Array, clusters: int, run_length: float
) -> ProcessSettings:
    """Constants that the engine derives from baselines, for ``clusters`` clusters per look."""
    rho = [
        [0.5 if b.autocorrelation is None else b.autocorrelation for b in process] for process in baselines_by_process
    ]
    deviation = [
        [np.nan if b.step_deviation is None else b.step_deviation for b in process] for process in baselines_by_process
    ]
    bets = [
        [evidence.count_bets(clusters, float(m), b.step_deviation) for m, b in zip(means, process, strict=True)]
        for means, process in zip(null, baselines_by_process, strict=True)
    ]
    return ProcessSettings(null, np.array(rho), np.array(deviation, dtype=float), np.array(bets), run_length)


# --------------------------------------------------------------------------- measurements


def measure_rate(world: World, size: Size, seed: Sequence[int]) -> dict[str, Array]:
    """Alarms per promised alarm, and the step of the first alarm, ``[seeds]`` each, now and before."""
    losses = Losses(world, size.seeds, seed)
    null = np.repeat(np.array(MEANS)[:, None], size.seeds, axis=1)
    settings = process_settings(estimate_baselines(losses, size.history), null, world.clusters, PROMISED)
    detectors: dict[str, Detectors | SeparateBudgets] = {
        "now": Detectors.start(settings),
        "before": SeparateBudgets.start(settings),
    }
    alarms = {name: np.zeros(size.seeds) for name in detectors}
    first = {name: np.full(size.seeds, size.looks) for name in detectors}
    for look in range(1, size.looks + 1):
        clusters = losses.draw_clusters()
        for name, detector in detectors.items():
            alarmed = detector.look(clusters)
            first[name] = np.where(alarmed & (alarms[name] == 0), look, first[name])
            alarms[name] += alarmed
            detector.restart(alarmed)
    per_promised = {name: count * PROMISED / size.looks for name, count in alarms.items()}
    return per_promised | {f"{name}_first": values for name, values in first.items()}


def measure_delay(world: World, size: Size, seed: Sequence[int]) -> list[dict[str, Any]]:
    """Median delay after each rise, under the default budget and tolerance."""
    run_length, results = WATCH.average_run_length or math.inf, list[dict[str, Any]]()
    baselines_by_process = estimate_baselines(Losses(world, size.delay_seeds, seed), size.history)
    null = np.array(
        [[evidence.estimate_null_mean(b, WATCH.tolerance) for b in process] for process in baselines_by_process]
    )
    settings = process_settings(baselines_by_process, null, world.clusters, run_length)
    for number, rise in enumerate(RISES):
        losses = Losses(world, size.delay_seeds, [*seed, number])
        detectors: dict[str, Detectors | SeparateBudgets] = {
            "now": Detectors.start(settings),
            "before": SeparateBudgets.start(settings),
        }
        first = {name: np.full(size.delay_seeds, size.horizon + 1) for name in detectors}
        false = {name: np.zeros(size.delay_seeds, dtype=bool) for name in detectors}
        for look in range(1 - size.warm_looks, size.horizon + 1):
            clusters = losses.draw_clusters(rise if look > 0 else 0.0)
            for name, detector in detectors.items():
                alarmed = detector.look(clusters)
                if look <= 0:
                    false[name] |= alarmed
                else:
                    first[name] = np.where(alarmed & (first[name] > size.horizon), look, first[name])
            if all((first_alarms <= size.horizon).all() for first_alarms in first.values()):
                break
        median = {
            name: None if false[name].all() else float(np.median(first[name][~false[name]])) for name in detectors
        }
        shares = {name: round(float(false[name].mean()), 3) for name in detectors}
        results.append({"world": world.name, "rise": rise, **median, "false": shares})
    return results


def worst_worlds(rates: Sequence[dict[str, Array]]) -> list[tuple[World, dict[str, Array]]]:
    """Of the independent and of the autoregressive worlds, by clusters per step, the one with the most alarms."""
    kinds: dict[tuple[bool, int], tuple[World, dict[str, Array]]] = {}
    for world, rates_by_version in zip(WORLDS, rates, strict=True):
        key = (bool(world.coefficient), world.clusters)
        if key not in kinds or rates_by_version["now"].mean() > kinds[key][1]["now"].mean():
            kinds[key] = (world, rates_by_version)
    return list(kinds.values())


def interval(values: Array) -> tuple[float, float, float]:
    """Mean, and its 95 % interval."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - 1.96 * error, mean + 1.96 * error


if __name__ == "__main__":
    main()
