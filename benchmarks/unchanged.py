"""Check that a refactoring changes no figure: play the demo's year without real time, at both commits.

``python -m benchmarks.unchanged record FILE`` plays the demo in its own store and writes every figure, choice and
verdict to ``FILE`` (about five minutes; ``--weeks`` plays fewer weeks). Run it at both commits, then ``python -m
benchmarks.unchanged compare BEFORE AFTER`` prints the differences and exits with 1 if there are any.

Two parts of an ordinary run depend on real time: measured latencies, and the progress of a compression search within
its time limit. Here the latency of the n-th candidate is recorded as 0.02 + 0.001 n milliseconds, the search may take
five candidates and an hour, and its own clock advances one millisecond each time it is read. This benchmark has no goal
and writes no result file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import runpy
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TIME_KEYS = ("seconds", "duration", "recorded_at", "asked_at", "decided_at", "minutes")
"""Keys, or ends of keys, whose values are times of the machine."""
ID_KEYS = ("verdict_id", "refresh_id", "cause", "docs", "cpu", "run_id", "job", "model_id", "digest")
"""Keys whose values are paths, or identifiers that every run creates anew."""
RENAMED_KEYS = {"outcome": "result"}
"""Old name to new name of the keys of verdicts."""


def main() -> None:
    """Record one year, or compare two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="play the demo and write its figures")
    recording.add_argument("file", type=Path)
    recording.add_argument("--weeks", type=int, default=44)
    comparing = commands.add_parser("compare", help="print what differs between two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    commands.add_parser("play", help=argparse.SUPPRESS).add_argument("weeks")
    arguments = parser.parse_args()
    if arguments.command == "play":
        play_demo(arguments.weeks)
    elif arguments.command == "record":
        arguments.file.write_text(json.dumps(record(arguments.weeks), indent=0, sort_keys=True), encoding="utf-8")
    else:
        sys.exit(
            compare(*(json.loads(path.read_text(encoding="utf-8")) for path in (arguments.before, arguments.after)))
        )


def record(weeks: int) -> dict[str, Any]:
    """Play the demo; return every figure, choice and verdict by its path."""
    with TemporaryDirectory(prefix="stillhouse-unchanged-") as folder:
        home = Path(folder)
        agents = home / "agents"
        agents.mkdir()
        text = (Path("agents") / "flights.yaml").read_text(encoding="utf-8")
        (agents / "flights.yaml").write_text(text.replace("time: 12s", "time: 1h"), encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        environment = inherited | {"STILLHOUSE_HOME": folder, "STILLHOUSE_AGENTS": str(agents), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.unchanged", "play", str(weeks)]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return dict(flatten("", read_figures(home)))


def play_demo(weeks: str) -> None:
    """Play the demo with fixed latencies and a search whose clock counts its readings."""
    from stillhouse import latency
    from stillhouse.records import Latency

    def fixed_latencies(candidates: Mapping[str, Any], **_: Any) -> dict[str, Latency]:
        for call in candidates.values():
            call()
        return {
            name: Latency(p50_ms=0.02 + 0.001 * index, p95_ms=0.03 + 0.001 * index, calls=1)
            for index, name in enumerate(candidates)
        }

    latency.measure_latency = fixed_latencies
    latency.measure_cpu_time = lambda call, **_: 0.02
    real_clock, ticks = time.perf_counter, itertools.count()

    def perf_counter() -> float:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return next(ticks) / 1000 if caller.startswith("stillhouse.compress") else real_clock()

    time.perf_counter = perf_counter
    sys.argv = ["flows", "demo", "--weeks", weeks]
    runpy.run_module("flows", run_name="__main__", alter_sys=True)


def read_figures(home: Path) -> dict[str, Any]:
    """Read all figures from the store of a played demo."""
    from deltalake import DeltaTable

    demo, tables = home / "demo" / "flights", home / "knowledge" / "flights"
    verdicts = DeltaTable(str(tables / "verdicts")).to_pandas().sort_values("recorded_at")["json"]
    evidence = DeltaTable(str(tables / "evidence")).to_pandas().sort_values(["champion", "process", "observed_at"])
    decisions = DeltaTable(str(tables / "decisions")).to_pandas().sort_values("observation_id")
    return {
        "summary": json.loads((demo / "summary.json").read_text(encoding="utf-8")),
        "weeks": json.loads((demo / "weeks.json").read_text(encoding="utf-8")),
        "verdicts": [json.loads(verdict) for verdict in verdicts],
        "evidence": [
            {"process": row.process, "champion": row.champion, "losses": [float(loss) for loss in row.losses]}
            for row in evidence.itertuples()
        ],
        "decisions": {"rows": len(decisions), "probability": float(sum(p[0] for p in decisions["probabilities"]))},
        "mlflow": list(read_metrics(home / "mlflow" / "mlflow.db")),
    }


def read_metrics(database: Path) -> Iterator[dict[str, Any]]:
    """Name and metrics of each MLflow run, in the order of their starts."""
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("select run_uuid, name from runs order by start_time, rowid").fetchall()
        for run, name in runs:
            values = connection.execute("select key, step, value from metrics where run_uuid = ? order by 1, 2", [run])
            yield {"run": name, "metrics": {f"{key}@{step}": value for key, step, value in values}}


def flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of path and value of nested lists and mappings, without times and identifiers."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = key.partition("@")[0]
            if not name.endswith(TIME_KEYS) and name not in ID_KEYS:
                yield from flatten(f"{path}/{RENAMED_KEYS.get(key, key)}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from flatten(f"{path}/{index}", inner)
    else:
        yield path, value


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print the paths whose values differ.

    :returns: 1 if any does.
    """
    differing = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
    for path in differing[:200]:
        print(f"{path}: {before.get(path)!r} → {after.get(path)!r}")
    print(f"{len(differing)} of {len(before.keys() | after.keys())} values differ")
    return int(bool(differing))


if __name__ == "__main__":
    main()
