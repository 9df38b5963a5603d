"""The time that Prefect, MLflow and Great Expectations add to a refresh and to a watch.

``python -m benchmarks.overhead`` runs the same watch and the same refresh of the flights agent as plain engine calls
and as flows, each on a copy of the same store, interleaved and in alternating order, in one warm process. ``--quick``
runs each once on a few weeks and writes no file.

The engine logs to MLflow too: MLflow's share is the time within calls of its client and in writing models in its
format. So the three together add the time of the flow minus the time of the engine without that share.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from benchmarks.report import Goal, begin
from stillhouse import config

CLAIM = "Prefect, MLflow and Great Expectations add about a third to a refresh and half a second to a watch"

PACKAGING = ("save_student", "save_teacher", "VariantWriter.save")
"""Functions of :mod:`stillhouse.registry.packaging` that write models in MLflow's format; counted as MLflow."""

STATIONS = {
    "stillhouse.refreshing.opening": ("require_learnable", "open_refresh"),
    "stillhouse.refreshing.teaching": (
        "prepare_teacher",
        "weigh_teachers",
        "examine_teacher",
        "gather_knowledge",
        "compare_teachers",
    ),
    "stillhouse.refreshing.modes.redistil": ("Redistil.make_student", "Redistil.compress"),
    "stillhouse.refreshing.proving": ("prove_challenger",),
    "stillhouse.refreshing.publishing": ("log_models", "judge_challenger", "settle_refresh"),
    "stillhouse.watching.deciding": ("measure_drift", "decide_response"),
    "stillhouse.watching.evidence": ("gather_evidence", "follow_weights"),
    "stillhouse.watching.publishing": ("log_watch", "draw_watch_figures"),
    "stillhouse.data_contract": ("check",),
    "data_checks.check": ("check",),
}


def main() -> None:
    """Prepare a store, measure engine and flow on copies of it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="number of measurements of each side")
    parser.add_argument("--quick", action="store_true", help="one repeat, ten weeks of history, no file written")
    options = parser.parse_args()
    run = begin("overhead", writes_result=not options.quick)
    from tasks.prefect_server import ensure_server, without_heartbeats

    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    answers = ensure_server()
    with tempfile.TemporaryDirectory(prefix="stillhouse-overhead-") as folder:
        prepared, now = prepare(Path(folder) / "prepared", weeks=10 if options.quick else 26)
        answers()
        with without_heartbeats():  # as in flows that are started by hand
            pairs_by_job = compare(Path(folder), prepared, now, 1 if options.quick else options.repeats)
    goals = [
        median_goal(
            "refresh_added_share",
            0.10,
            "lower",
            [added_seconds(pair) / engine_seconds(pair) for pair in pairs_by_job["refresh"]],
        ),
        median_goal("watch_added_s", 0.5, "lower", [added_seconds(pair) for pair in pairs_by_job["watch"]]),
        median_goal(
            "mlflow_ms_per_artifact",
            25,
            "lower",
            [1000 * pair["flow"]["mlflow_s"] / pair["flow"]["files"] for pair in pairs_by_job["refresh"]],
        ),
    ]
    if options.quick:
        print(json.dumps([{g.name: round(g.measured, 4)} for g in goals] + [pairs_by_job], indent=1))
    else:
        run.write(
            CLAIM,
            goals,
            {"pairs": pairs_by_job, "stations": station_medians(pairs_by_job)},
            ("prefect", "mlflow", "great-expectations", "deltalake", "torch", "onnxruntime"),
        )


def median_goal(name: str, aim: float, better: Literal["higher", "lower"], values: Sequence[float]) -> Goal:
    """Median and range of the repeats."""
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


def engine_seconds(pair: dict[str, Any]) -> float:
    """Seconds of the engine minus those within MLflow."""
    return float(pair["engine"]["seconds"] - pair["engine"]["mlflow_s"])


def added_seconds(pair: dict[str, Any]) -> float:
    """Seconds of the flow minus those of the engine without MLflow."""
    return float(pair["flow"]["seconds"] - engine_seconds(pair))


def station_medians(pairs_by_job: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median seconds by job, station and side."""
    medians: dict[str, dict[str, dict[str, float]]] = {}
    for job, pairs in pairs_by_job.items():
        names = sorted({name for pair in pairs for side in pair.values() for name in side["stations"]})
        medians[job] = {
            name: {
                side: statistics.median(pair[side]["stations"].get(name, 0.0) for pair in pairs)
                for side in ("engine", "flow")
            }
            for name in names
        }
    return medians


def prepare(home: Path, weeks: int) -> tuple[Path, datetime]:
    """Run the flights agent for ``weeks`` weeks, the last two with its first champion; return the store and the end."""
    import stillhouse
    from stillhouse.ingesting import ingest

    use_home(home)
    since, week = config.load("flights").observations.since, timedelta(weeks=1)
    bootstrap, now = since + (weeks - 2) * week, since + weeks * week
    ingest("flights", since, bootstrap)
    stillhouse.refresh("flights", bootstrap, trigger="bootstrap", cause="the benchmark's first champion")
    ingest("flights", bootstrap, now - week)
    stillhouse.watch("flights", now - week)
    ingest("flights", now - week, now)
    return home, now


def compare(folder: Path, prepared: Path, now: datetime, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run each job on both sides, each on its own copy; one unmeasured round warms the process up."""
    import stillhouse
    from flows.refresh import refresh
    from flows.watch import watch

    jobs: dict[str, dict[str, Callable[[], object]]] = {
        "watch": {
            "engine": lambda: stillhouse.watch("flights", now),
            "flow": lambda: watch(agent="flights", as_of=now),
        },
        "refresh": {
            "engine": lambda: stillhouse.refresh("flights", now, cause="a benchmark"),
            "flow": lambda: refresh(agent="flights", as_of=now, cause="a benchmark"),
        },
    }
    pairs_by_job: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
    with trace_calls() as trace:
        for repeat in range(repeats + 1):
            for job, sides in jobs.items():
                order = sorted(sides, reverse=bool(repeat % 2))
                pair = {side: measure_once(sides[side], folder, prepared, trace) for side in order}
                if repeat:
                    pairs_by_job[job].append(pair)
    return pairs_by_job


class Trace:
    """Seconds by station and within MLflow's client, for the running job."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset all times."""
        self.stations: dict[str, float] = defaultdict(float)
        self.mlflow = 0.0
        self.depth = 0


def measure_once(job: Callable[[], object], folder: Path, prepared: Path, trace: Trace) -> dict[str, Any]:
    """Measure one job on a fresh copy of the store."""
    home = Path(tempfile.mkdtemp(dir=folder))  # a new path per run: the process caches stores by path
    shutil.copytree(prepared, home, dirs_exist_ok=True)
    use_home(home)
    from stillhouse.champion import load_champion

    champion = load_champion("flights")  # connects and rewrites MLflow's artifact paths for the copy
    assert champion is not None and champion.variant and champion.profile and champion.teacher  # loaded on both sides
    before = sum(file.is_file() for file in (home / "mlflow" / "artifacts").rglob("*"))
    trace.clear()
    start = time.perf_counter()
    job()
    seconds = time.perf_counter() - start
    files = sum(file.is_file() for file in (home / "mlflow" / "artifacts").rglob("*")) - before
    shutil.rmtree(home)
    return {"seconds": seconds, "mlflow_s": trace.mlflow, "files": max(1, files), "stations": dict(trace.stations)}


@contextmanager
def trace_calls() -> Iterator[Trace]:
    """Time the stations and all calls of MLflow's client within the context."""
    from importlib import import_module

    from stillhouse.registry import packaging
    from stillhouse.registry.connection import Client

    trace, originals = Trace(), []
    for module, names in STATIONS.items():
        for name in names:
            owner, last = _owner(import_module(module), name)
            original = getattr(owner, last)
            for holder in _importing_modules(original, last) or [owner]:
                originals.append((holder, last, original))
                setattr(holder, last, _time_station(original, trace, f"{module.removeprefix('stillhouse.')}.{name}"))
    for name in PACKAGING:
        owner, last = _owner(packaging, name)
        originals.append((owner, last, getattr(owner, last)))
        setattr(owner, last, _time_mlflow(getattr(owner, last), trace))
    original_getattr = Client.__getattr__

    def timed_getattr(self: Client, name: str) -> Any:
        return _time_mlflow(original_getattr(self, name), trace)

    Client.__getattr__ = timed_getattr  # type: ignore[method-assign]
    try:
        yield trace
    finally:
        Client.__getattr__ = original_getattr  # type: ignore[method-assign]
        for holder, last, original in originals:
            setattr(holder, last, original)


def _owner(module: Any, name: str) -> tuple[Any, str]:
    """The object that has the last part of a dotted name as attribute, and that part."""
    *inside, last = name.split(".")
    for part in inside:
        module = getattr(module, part)
    return module, last


def _importing_modules(function: Any, name: str) -> list[Any]:
    """Modules that imported ``function`` by its name."""
    import sys

    packages = ("stillhouse", "tasks", "flows", "data_checks")
    return [
        module
        for key, module in list(sys.modules.items())
        if key.split(".")[0] in packages and getattr(module, name, None) is function
    ]


def _time_station(function: Any, trace: Trace, name: str) -> Any:
    @functools.wraps(function)
    def timed_call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            trace.stations[name] += time.perf_counter() - start

    return timed_call


def _time_mlflow(call: Any, trace: Trace) -> Any:
    @functools.wraps(call)
    def timed_call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        trace.depth += 1
        try:
            return call(*args, **kwargs)
        finally:
            trace.depth -= 1
            seconds = time.perf_counter() - start
            if not trace.depth:  # nested calls count once
                trace.mlflow += seconds

    return timed_call


def use_home(home: Path) -> None:
    """Let stillhouse store everything in ``home``."""
    os.environ["STILLHOUSE_HOME"] = str(home)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # it still points to the previous store


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stillhouse-overhead-prefect-") as scratch:
        use_home(Path(scratch))
        config.use_embedded_defaults()
        main()
