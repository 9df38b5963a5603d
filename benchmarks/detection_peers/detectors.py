"""Runs in a peer's environment: its detectors, with default and calibrated settings, on loss streams.

``python detectors.py river|frouros POOLS.npz JOB.json OUT.json``. The pools hold one value per row and stream for each
situation of each world, ``<world>|<situation>|<stream>``; a run draws its rows from them at random.

Detectors get ``per_look`` rows per look, row by row. Calibrated detectors that sum their inputs (Page-Hinkley, CUSUM,
moving averages) and KSWIN get the look's mean, which for sums is nearly equivalent and saves hours; their setting has
the unit of the loss and is calibrated in each world. ADWIN and DDM get single rows; their settings have no unit and are
calibrated on null runs of all worlds together. KSWIN, at 0.15 ms per update, gets the Bonferroni level for 1 % in
10,000 looks, and fewer runs.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Look = Callable[[list[float]], bool]
"""Takes the values of one look, returns whether there is an alarm."""

GRID = [0.03 * 1.12**k for k in range(50)]


@dataclass(frozen=True)
class Method:
    """A detector: its constructor from the one calibrated setting, and the form of its input."""

    name: str
    make: Callable[[float], Look]
    default: float | None
    settings: Sequence[float]
    """Settings to calibrate among, most sensitive first; empty: the default is measured."""
    means: bool = False
    binary: bool = False
    runs: float = 1.0
    """Share of the runs that are made; below 1 for slow detectors."""


def river_methods(per_look: int) -> list[Method]:
    """ADWIN, DDM, Page-Hinkley, KSWIN; checked after every row, or (``after_look``) after each look only."""
    from river import drift

    def row_by_row(detector: Any) -> Look:
        def look(values: list[float]) -> bool:
            for value in values:
                detector.update(value)
                if detector.drift_detected:
                    return True
            return False

        return look

    def after_look(detector: Any) -> Look:
        def look(values: list[float]) -> bool:
            for value in values:
                detector.update(value)
            return detector.drift_detected

        return look

    def ddm(threshold: float) -> Look:
        """DDM with a warm-up of forty looks: after 30 rows without an error it would alarm at any threshold."""
        return row_by_row(drift.binary.DDM(drift_threshold=threshold, warm_start=40 * per_look))

    return [
        Method(
            "river ADWIN",
            lambda d: after_look(drift.ADWIN(delta=d, clock=per_look)),
            None,
            [10 ** (-k / 2) for k in range(2, 14)],
        ),
        Method("river ADWIN, default", lambda d: row_by_row(drift.ADWIN(delta=d)), 0.002, (), runs=0.5),
        Method("river DDM", ddm, None, [2 * 1.15**k for k in range(16)], binary=True),
        Method("river DDM, default", lambda k: row_by_row(drift.binary.DDM(drift_threshold=k)), 3.0, ()),
        Method("river PageHinkley, default", lambda k: row_by_row(drift.PageHinkley(threshold=k)), 50.0, (), runs=0.5),
        *(
            Method(
                f"river PageHinkley, delta {delta}",
                lambda k, delta=delta: row_by_row(drift.PageHinkley(delta=delta, threshold=k, mode="up")),
                None,
                GRID,
                means=True,
            )
            for delta in (0.005, 0.02)
        ),
        Method("river KSWIN", lambda a: row_by_row(drift.KSWIN(alpha=a, seed=0)), None, [1e-6], means=True, runs=0.05),
        Method(
            "river KSWIN, default", lambda a: row_by_row(drift.KSWIN(alpha=a, seed=0)), 0.005, (), means=True, runs=0.05
        ),
    ]


def frouros_methods(per_look: int) -> list[Method]:
    """CUSUM and the geometric moving average."""
    from frouros.detectors import concept_drift as cd

    def row_by_row(detector: Any) -> Look:
        def look(values: list[float]) -> bool:
            for value in values:
                detector.update(value=value)
                if detector.drift:
                    return True
            return False

        return look

    def cusum(limit: float, delta: float = 0.005) -> Look:
        return row_by_row(cd.CUSUM(cd.CUSUMConfig(delta=delta, lambda_=limit)))

    def moving_average(limit: float) -> Look:
        return row_by_row(cd.GeometricMovingAverage(cd.GeometricMovingAverageConfig(alpha=0.9, lambda_=limit)))

    return [
        Method("frouros CUSUM, default", cusum, 50.0, (), runs=0.1),
        Method("frouros CUSUM, delta 0.02", lambda k: cusum(k, delta=0.02), None, GRID, means=True),
        Method("frouros GMA, alpha 0.9", moving_average, None, [0.003 * 1.1**k for k in range(50)], means=True),
    ]


class Pools:
    """Values per row, by world, situation and stream."""

    def __init__(self, path: str) -> None:
        self.arrays = dict(np.load(path))

    def draw_looks(
        self, world: str, situation: str, stream: str, share: float, shape: tuple[int, int], seed: Sequence[int]
    ) -> np.ndarray:
        """Values ``[looks, rows]``: ``share`` of the rows from ``situation``, the rest from before."""
        generator = np.random.default_rng(seed)
        values = self._draw(world, "before", stream, shape, generator)
        if situation != "before":
            moved = generator.random(shape) < share
            values[moved] = self._draw(world, situation, stream, shape, generator)[moved]
        return values

    def _draw(
        self, world: str, situation: str, stream: str, shape: tuple[int, int], generator: np.random.Generator
    ) -> np.ndarray:
        pool = self.arrays[f"{world}|{situation}|{stream}"]
        return pool[generator.integers(0, len(pool), shape)].astype(np.float64)


def first_alarm(looks: np.ndarray, look: Look, means: bool) -> int | None:
    """Index of the first look with an alarm; None: no alarm."""
    values = looks.mean(axis=1, keepdims=True) if means else looks
    for number, row in enumerate(values.tolist()):
        if look(row):
            return number
    return None


@dataclass(frozen=True)
class MethodOnStream:
    """One method on one stream."""

    pools: Pools
    job: dict[str, Any]
    method: Method
    stream: str

    def calibrate(self, worlds: Sequence[str]) -> float | None:
        """The most sensitive setting with alarms in at most 1 % of the calibration runs; None: no setting."""
        settings, runs = self.method.settings, self.job["calibration_runs"]
        if len(settings) == 1:
            return settings[0]
        low, high = 0, len(settings)
        while low < high:
            middle = (low + high) // 2
            if self.null_alarms(settings[middle], worlds, "calibrate", runs, stop_at=runs // 100 + 1) > runs // 100:
                low = middle + 1
            else:
                high = middle
        return settings[low] if low < len(settings) else None

    def null_alarms(
        self, setting: float, worlds: Sequence[str], purpose: str, runs: int, stop_at: int | None = None
    ) -> int:
        """Number of null runs with an alarm, over the worlds in turn; stops at ``stop_at``."""
        shape = (self.job["null_looks"], self.job["per_look"])
        alarms = 0
        for run in range(runs):
            seed = [self.job["seeds"][purpose], run]
            looks = self.pools.draw_looks(worlds[run % len(worlds)], "before", self.stream, 0.0, shape, seed)
            alarms += first_alarm(looks, self.method.make(setting), self.method.means) is not None
            if alarms == stop_at:
                break
        return alarms

    def measure_delays(self, setting: float, world: str, situation: str, share: float) -> list[int]:
        """Looks from the change to the alarm, from 1; 0: alarm before the change; horizon + 1: no alarm."""
        job, delays = self.job, []
        shape, after = (job["warm_looks"], job["per_look"]), (job["horizon"], job["per_look"])
        for run in range(math.ceil(job["runs"] * self.method.runs)):
            seed = [job["seeds"]["measure"], run]
            looks = np.concatenate(
                [
                    self.pools.draw_looks(world, "before", self.stream, 0.0, shape, [*seed, 0]),
                    self.pools.draw_looks(world, situation, self.stream, share, after, [*seed, 1]),
                ]
            )
            first_index = first_alarm(looks, self.method.make(setting), self.method.means)
            not_detected = job["horizon"] + 1
            delays.append(not_detected if first_index is None else max(0, first_index + 1 - job["warm_looks"]))
        return delays


def measure_all(pools: Pools, job: dict[str, Any], methods: Sequence[Method]) -> Iterator[dict[str, Any]]:
    """Measure all methods on all streams of all worlds; default settings on the documented stream only."""
    for method in methods:
        for stream in ("error", "disagreement", "brier") if method.settings else ("error",):
            if method.binary and stream == "brier":
                continue
            measuring = MethodOnStream(
                pools, job, method, "switched" if method.binary and stream == "disagreement" else stream
            )
            start, setting = time.perf_counter(), method.default
            if method.settings and not method.means:
                setting = measuring.calibrate(job["worlds"])
            for world in job["worlds"]:
                if method.settings and method.means:
                    setting = measuring.calibrate([world])
                if setting is None:
                    continue
                runs = math.ceil(job["null_runs"] * method.runs)
                yield {
                    "world": world,
                    "method": method.name,
                    "stream": stream,
                    "kind": "calibrated" if method.settings else "default",
                    "setting": setting,
                    "null_runs": runs,
                    "null_alarms": measuring.null_alarms(setting, [world], "null", runs),
                    "delays": {
                        f"{situation} {share:g}": measuring.measure_delays(setting, world, situation, share)
                        for situation, share in job["scenarios"]
                        if stream != "brier" or situation in ("concept, teacher frozen", "benign")
                    },
                }
            print(f"{method.name} on {stream}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Measure all methods and write the results."""
    library, pools, job_path, out = sys.argv[1:]
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    methods = {"river": river_methods, "frouros": frouros_methods}[library](job["per_look"])
    results = list(measure_all(Pools(pools), job, methods))
    Path(out).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
