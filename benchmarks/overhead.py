"""The time that Prefect, MLflow and Great Expectations add to a refresh and to a watch.

``python -m benchmarks.overhead`` runs the same watch and the same refresh of the flights agent as plain engine calls
and as flows, each on a copy of the same store, interleaved and in alternating order, in one warm process. ``--quick``
does each once on a few weeks and writes nothing.

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
"""Of `stillhouse.registry.packaging`: a model's files as MLflow wants them."""

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
    """Play some weeks once, then repeat, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="of each side")
    parser.add_argument("--quick", action="store_true", help="one repeat, ten weeks of history, nothing written")
    asked = parser.parse_args()
    run = begin("overhead", recorded=not asked.quick)
    from tasks.prefect_server import ensure_server, without_heartbeats

    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    answers = ensure_server()
    with tempfile.TemporaryDirectory(prefix="stillhouse-overhead-") as folder:
        prepared, now = prepare(Path(folder) / "prepared", weeks=10 if asked.quick else 26)
        answers()
        with without_heartbeats():  # as flows by hand
            measured = compare(Path(folder), prepared, now, 1 if asked.quick else asked.repeats)
    goals = [
        goal("refresh_added_share", 0.10, "lower", [added(pair) / alone(pair) for pair in measured["refresh"]]),
        goal("watch_added_s", 0.5, "lower", [added(pair) for pair in measured["watch"]]),
        goal(
            "mlflow_ms_per_artifact",
            25,
            "lower",
            [1000 * pair["flow"]["mlflow_s"] / pair["flow"]["files"] for pair in measured["refresh"]],
        ),
    ]
    if asked.quick:
        print(json.dumps([{g.name: round(g.measured, 4)} for g in goals] + [measured], indent=1))
    else:
        run.write(
            CLAIM,
            goals,
            {"pairs": measured, "stations": stations(measured)},
            ("prefect", "mlflow", "great-expectations", "deltalake", "torch", "onnxruntime"),
        )


def goal(name: str, aim: float, better: Literal["higher", "lower"], values: Sequence[float]) -> Goal:
    """Median and range of the repeats."""
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


def alone(pair: dict[str, Any]) -> float:
    """Seconds of the engine without MLflow."""
    return float(pair["engine"]["seconds"] - pair["engine"]["mlflow_s"])


def added(pair: dict[str, Any]) -> float:
    """Seconds that the flow takes beyond that."""
    return float(pair["flow"]["seconds"] - alone(pair))


def stations(measured: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median seconds of each station by job and side."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for job, pairs in measured.items():
        names = sorted({name for pair in pairs for side in pair.values() for name in side["stations"]})
        found[job] = {
            name: {
                side: statistics.median(pair[side]["stations"].get(name, 0.0) for pair in pairs)
                for side in ("engine", "flow")
            }
            for name in names
        }
    return found


def prepare(home: Path, weeks: int) -> tuple[Path, datetime]:
    """A store in which the flights agent has lived so many weeks, and its first champion two of them."""
    import stillhouse
    from stillhouse.ingesting import ingest

    use(home)
    since, week = config.load("flights").observations.since, timedelta(weeks=1)
    bootstrap, now = since + (weeks - 2) * week, since + weeks * week
    ingest("flights", since, bootstrap)
    stillhouse.refresh("flights", bootstrap, trigger="bootstrap", cause="the benchmark's first champion")
    ingest("flights", bootstrap, now - week)
    stillhouse.watch("flights", now - week)
    ingest("flights", now - week, now)
    return home, now


def compare(folder: Path, prepared: Path, now: datetime, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Each job by both sides, each on its own copy, after one of each that warms the process up."""
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
    measured: dict[str, list[dict[str, Any]]] = {job: [] for job in jobs}
    with traced() as trace:
        for number in range(repeats + 1):
            for job, sides in jobs.items():
                order = sorted(sides, reverse=bool(number % 2))
                pair = {side: once(sides[side], folder, prepared, trace) for side in order}
                if number:
                    measured[job].append(pair)
    return measured


class Trace:
    """Seconds by station and within MLflow's client, of the job that runs now."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.stations: dict[str, float] = defaultdict(float)
        self.mlflow = 0.0
        self.depth = 0


def once(job: Callable[[], object], folder: Path, prepared: Path, trace: Trace) -> dict[str, Any]:
    """One job on a fresh copy of the store."""
    home = Path(tempfile.mkdtemp(dir=folder))  # another each time: what a process keeps of a store, it keeps by path
    shutil.copytree(prepared, home, dirs_exist_ok=True)
    use(home)
    from stillhouse.champion import load_champion

    champion = load_champion("flights")  # connects, and moves MLflow's addresses to where the copy lies
    assert champion is not None and champion.variant and champion.profile and champion.teacher  # warm on both sides
    before = sum(file.is_file() for file in (home / "mlflow" / "artifacts").rglob("*"))
    trace.clear()
    began = time.perf_counter()
    job()
    seconds = time.perf_counter() - began
    files = sum(file.is_file() for file in (home / "mlflow" / "artifacts").rglob("*")) - before
    shutil.rmtree(home)
    return {"seconds": seconds, "mlflow_s": trace.mlflow, "files": max(1, files), "stations": dict(trace.stations)}


@contextmanager
def traced() -> Iterator[Trace]:
    """Within, stations and calls of MLflow's client are timed."""
    from importlib import import_module

    from stillhouse.registry import packaging
    from stillhouse.registry.connection import Client

    trace, put_back = Trace(), []
    for module, names in STATIONS.items():
        for name in names:
            owner, last = _owner(import_module(module), name)
            original = getattr(owner, last)
            for place in _places(original, last) or [owner]:
                put_back.append((place, last, original))
                setattr(place, last, _timed(original, trace, f"{module.removeprefix('stillhouse.')}.{name}"))
    for name in PACKAGING:
        owner, last = _owner(packaging, name)
        put_back.append((owner, last, getattr(owner, last)))
        setattr(owner, last, _in_mlflow(getattr(owner, last), trace))
    reach = Client.__getattr__

    def reached(self: Client, name: str) -> Any:
        return _in_mlflow(reach(self, name), trace)

    Client.__getattr__ = reached  # type: ignore[method-assign]
    try:
        yield trace
    finally:
        Client.__getattr__ = reach  # type: ignore[method-assign]
        for place, last, original in put_back:
            setattr(place, last, original)


def _owner(module: Any, name: str) -> tuple[Any, str]:
    """What has the last part of a dotted name, and that part."""
    *inside, last = name.split(".")
    for part in inside:
        module = getattr(module, part)
    return module, last


def _places(function: Any, name: str) -> list[Any]:
    """The modules that have imported a function by its name."""
    import sys

    wanted = ("stillhouse", "tasks", "flows", "data_checks")
    return [
        module
        for key, module in list(sys.modules.items())
        if key.split(".")[0] in wanted and getattr(module, name, None) is function
    ]


def _timed(function: Any, trace: Trace, name: str) -> Any:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            trace.stations[name] += time.perf_counter() - began

    return timed


def _in_mlflow(call: Any, trace: Trace) -> Any:
    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        trace.depth += 1
        try:
            return call(*args, **kwargs)
        finally:
            trace.depth -= 1
            took = time.perf_counter() - began
            if not trace.depth:  # a call within a call counts once
                trace.mlflow += took

    return timed


def use(home: Path) -> None:
    """Let stillhouse keep everything in ``home``."""
    os.environ["STILLHOUSE_HOME"] = str(home)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the embedded default names the store of before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stillhouse-overhead-prefect-") as aside:
        use(Path(aside))
        config.use_embedded_defaults()
        main()
