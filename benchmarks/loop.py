"""The loop keeps the student fresh: the demo's year of flights, under several seeds.

``python -m benchmarks.loop`` plays the demo once per seed (about five minutes each on two cores);
``--quick`` plays a few weeks once and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from benchmarks.report import Goal, begin
from stillhouse import config

CLAIM = "a champion that is refreshed on drift beats the same student never refreshed, and stays with its teacher"


def main() -> None:
    """Play, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="how often the year is played, each under its own seed")
    parser.add_argument("--quick", action="store_true", help="six weeks, one seed, nothing written")
    asked = parser.parse_args()
    run = begin("loop", recorded=not asked.quick)
    with tempfile.TemporaryDirectory(prefix="stillhouse-loop-") as folder:
        seeds = range(1 if asked.quick else asked.seeds)
        played = [play(seed, Path(folder) / str(seed), weeks=6 if asked.quick else 44) for seed in seeds]
        watches = watch_seconds(Path(folder) / "0")
    static, champion, teacher = ([p[f"quality_{who}"] for p in played] for who in ("static", "champion", "teacher"))
    goals = [
        goal("gain_over_never_refreshed", 0.03, "higher", [c - s for c, s in zip(champion, static, strict=True)]),
        goal("loss_to_teacher", 0.01, "lower", [t - c for t, c in zip(teacher, champion, strict=True)]),
        goal("auc_champion_over_refitted_spike", 0.713, "higher", champion),
        goal("auc_static_over_spike", 0.684, "higher", static),
        goal("teacher_bytes_per_champion_byte", 10, "higher", [p["smallest_ratio"] for p in played]),
        goal("refused_by_the_gate", 1, "higher", [p["refused"] for p in played]),
        goal("minutes", 5, "lower", [p["wall_seconds"] / 60 for p in played]),
        goal("week_checked_and_measured_s", 3, "lower", watches),
    ]
    if asked.quick:
        print(json.dumps([{g.name: round(g.measured, 4)} for g in goals], indent=1))
    else:
        libraries = ("torch", "lightgbm", "onnxruntime", "mlflow", "prefect", "great-expectations", "deltalake")
        run.write(CLAIM, goals, {"seeds": played, "watch_seconds": watches}, libraries)


def goal(name: str, aim: float, better: Literal["higher", "lower"], values: Sequence[float]) -> Goal:
    """Median and range of the repeats."""
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


def play(seed: int, home: Path, weeks: int) -> dict[str, Any]:
    """The demo in a process and a store of its own; its summary, with the smallest teacher-to-champion ratio."""
    agents = home / "agents"
    agents.mkdir(parents=True)
    text = (Path("agents") / "flights.yaml").read_text(encoding="utf-8")
    seeded = text.replace("distillation: {", f"distillation: {{seed: {seed}, ").replace(
        "target: examples.flights:Boosting", f"target: examples.flights:Boosting, settings: {{seed: {seed}}}"
    )
    (agents / "flights.yaml").write_text(seeded, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = kept | {"STILLHOUSE_HOME": str(home), "STILLHOUSE_AGENTS": str(agents)}
    command = [sys.executable, "-m", "flows", "demo", "--weeks", str(weeks)]
    start = time.perf_counter()
    played = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if played.returncode:
        raise SystemExit(f"the demo failed under seed {seed}:\n{played.stderr[-3000:]}")
    summary: dict[str, Any] = json.loads((home / "demo" / "flights" / "summary.json").read_text(encoding="utf-8"))
    wall = time.perf_counter() - start
    return {"seed": seed, **summary, "wall_seconds": wall, "smallest_ratio": smallest_ratio(home)}


def smallest_ratio(home: Path) -> float:
    """Bytes of teacher over bytes of variant put forward, the smallest over all refreshes."""
    from stillhouse.registry import Registry

    _use(home)
    models = Registry("flights", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    ratios = []
    for entry in models.versions():
        ref = models.version("flights", entry.version)
        if ref is not None and models.tags(ref).get("chosen") == "True":
            ratios.append(models.scorecard(models.baseline(ref).teacher).bytes / entry.bytes)
    return min(ratios)


def watch_seconds(home: Path, repeats: int = 5) -> list[float]:
    """Data checks and one drift measurement of the last week, in this (then warm) process."""
    _use(home)
    from stillhouse.knowledge import KnowledgeBase
    from tasks import watching

    base = KnowledgeBase(config.load("flights"))
    newest = base.newest_observation() + timedelta(microseconds=1)
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        data = watching.check_data.fn("flights", watching.take_window("flights", newest))
        watching.measure_drift.fn("flights", data)
        taken.append(time.perf_counter() - start)
    return taken[1:]  # the first warms the process up


def _use(home: Path) -> None:
    os.environ["STILLHOUSE_HOME"] = str(home)
    os.environ["STILLHOUSE_AGENTS"] = str(home / "agents")


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
