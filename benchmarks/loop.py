"""The quality, time and memory of the whole loop: the demo's year of flights, under several seeds.

``python -m benchmarks.loop`` plays the demo once per seed (about five minutes each on two cores); ``--quick`` plays a
few weeks once and writes no file.

The time of a week comes from the demo's output, which has a line at the end of each week. The time of a refresh is the
time of a week with a refresh minus the median time of a week without. Memory is the sum over all processes of the demo,
sampled four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from benchmarks.report import Goal, begin
from stillhouse import config

CLAIM = (
    "a champion that is refreshed on drift has a higher AUC than the same student never refreshed, but by less than "
    "the goal; the year of the demo takes less than five minutes"
)

MIB = 2**20


@dataclass
class DemoYear:
    """One year of the demo."""

    seed: int
    summary: dict[str, Any]
    wall_seconds: float
    start_seconds: float
    """Seconds until the row of the first week was printed."""
    calm_seconds: list[float] = field(default_factory=list)
    """Seconds of each week without a refresh."""
    refresh_seconds: list[float] = field(default_factory=list)
    """Per refresh: seconds of its week minus the median week without a refresh."""
    peak_bytes: int = 0
    smallest_ratio: float = 0.0
    """Bytes of the teacher / bytes of the submitted variant, smallest over all refreshes."""


def main() -> None:
    """Play, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of years, each with its own seed")
    parser.add_argument("--quick", action="store_true", help="six weeks, one seed, no file written")
    options = parser.parse_args()
    run = begin("loop", writes_result=not options.quick)
    with tempfile.TemporaryDirectory(prefix="stillhouse-loop-") as folder:
        seeds = range(1 if options.quick else options.seeds)
        years = [play_demo(seed, Path(folder) / str(seed), weeks=6 if options.quick else 44) for seed in seeds]
    static, champion, teacher = (
        [year.summary[f"quality_{model}"] for year in years] for model in ("static", "champion", "teacher")
    )
    goals = [
        median_goal(
            "gain_over_never_refreshed", 0.03, "higher", [c - s for c, s in zip(champion, static, strict=True)]
        ),
        median_goal("loss_to_teacher", 0.01, "lower", [t - c for t, c in zip(teacher, champion, strict=True)]),
        Goal("auc_champion", 0.7251, "higher", statistics.mean(champion), min(champion), max(champion)),
        median_goal("trained_responses", 7, "lower", [year.summary["refreshes"] for year in years]),
        median_goal("auc_static_over_spike", 0.684, "higher", static),
        median_goal("teacher_bytes_per_champion_byte", 10, "higher", [year.smallest_ratio for year in years]),
        median_goal("refused_by_the_gate", 1, "higher", [year.summary["refused"] for year in years]),
        median_goal("minutes", 5, "lower", [year.wall_seconds / 60 for year in years]),
        median_goal("start_to_first_row_s", 60, "lower", [year.start_seconds for year in years]),
        median_goal("week_without_refresh_s", 1.4, "lower", [t for year in years for t in year.calm_seconds]),
        median_goal("refresh_s", 11, "lower", [t for year in years for t in year.refresh_seconds]),
        median_goal("peak_memory_mib", 1.2 * 1024, "lower", [year.peak_bytes / MIB for year in years]),
    ]
    if options.quick:
        print(json.dumps([{g.name: round(g.measured, 4)} for g in goals], indent=1))
    else:
        libraries = ("torch", "lightgbm", "onnxruntime", "mlflow", "prefect", "great-expectations", "deltalake")
        run.write(CLAIM, goals, {"seeds": [vars(year) for year in years]}, libraries)


def median_goal(name: str, aim: float, better: Literal["higher", "lower"], values: Sequence[float]) -> Goal:
    """Median and range of the repeats."""
    values = values or [float("nan")]
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


def play_demo(seed: int, home: Path, weeks: int) -> DemoYear:
    """Play the demo in its own process and store."""
    agents = home / "agents"
    agents.mkdir(parents=True)
    text = (Path("agents") / "flights.yaml").read_text(encoding="utf-8")
    seeded = text.replace("distillation: {", f"distillation: {{seed: {seed}, ").replace(
        "target: examples.flights:Boosting", f"target: examples.flights:Boosting, settings: {{seed: {seed}}}"
    )
    (agents / "flights.yaml").write_text(seeded, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = inherited | {"STILLHOUSE_HOME": str(home), "STILLHOUSE_AGENTS": str(agents)}
    command = [sys.executable, "-m", "flows", "demo", "--weeks", str(weeks)]
    start = time.perf_counter()
    with (home / "errors").open("wb") as errors:
        demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        peak = _Peak(demo.pid)
        assert demo.stdout is not None
        ends = [time.perf_counter() - start for line in demo.stdout if line.startswith("week to ")]
        if demo.wait():
            raise SystemExit(f"the demo failed under seed {seed}:\n{(home / 'errors').read_text()[-3000:]}")
    folder = home / "demo" / "flights"
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    year = DemoYear(seed, summary, time.perf_counter() - start, ends[0], peak_bytes=peak.stop())
    durations = [end - before for before, end in pairwise(ends)]
    gates = [week["gate"] for week in json.loads((folder / "weeks.json").read_text(encoding="utf-8"))][1:]
    year.calm_seconds = [duration for duration, gate in zip(durations, gates, strict=True) if not gate]
    median_calm = statistics.median(year.calm_seconds)
    year.refresh_seconds = [duration - median_calm for duration, gate in zip(durations, gates, strict=True) if gate]
    year.smallest_ratio = smallest_ratio(home)
    return year


class _Peak:
    """Samples the peak resident memory of a process and all its descendants together."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak_bytes, self.stopped = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        """Stop sampling; return the peak in bytes."""
        self.stopped.set()
        self.thread.join()
        return self.peak_bytes

    def _sample(self) -> None:
        while not self.stopped.wait(0.25):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident_bytes, _process_tree(self.pid))))


def _process_tree(pid: int) -> list[int]:
    pids = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                pids += _process_tree(int(child))
    except OSError:  # the process has just ended
        pass
    return pids


def _resident_bytes(pid: int) -> int:
    try:
        kilobytes = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(kilobytes[1]) * 1024 if kilobytes else 0


def smallest_ratio(home: Path) -> float:
    """Bytes of the teacher / bytes of the submitted variant, smallest over all refreshes."""
    from stillhouse.registry import Registry

    os.environ["STILLHOUSE_HOME"] = str(home)
    os.environ["STILLHOUSE_AGENTS"] = str(home / "agents")
    registry = Registry("flights", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    ratios = []
    for entry in registry.versions():
        ref = registry.version("flights", entry.version)
        if ref is not None and registry.models.tags(ref).get("chosen") == "True":
            ratios.append(registry.models.scorecard(registry.baseline(ref).teacher).bytes / entry.bytes)
    return min(ratios)


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
