"""A change of structure changes no figure: the demo's year played with nothing left to the clock, before and after.

``python -m benchmarks.unchanged record FILE`` plays the demo in a store of its own and writes every figure, choice and
verdict to ``FILE`` (about five minutes; ``--weeks`` plays less). Run it at both commits, then
``python -m benchmarks.unchanged compare BEFORE AFTER`` prints what differs and ends with 1 if anything does.

Two things of an ordinary run depend on the clock: measured latencies, and how far a compression search gets in its
time. Here the latency of the n-th candidate is recorded as 0.02 + 0.001 n milliseconds, the search may take five
candidates and an hour, and its own clock advances one millisecond each time it is read. This benchmark has no goal and
writes no result file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
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

TIMES = ("seconds", "duration", "recorded_at", "asked_at", "decided_at", "minutes")
"""Keys, or ends of keys, that hold times of the machine."""
IDENTIFIERS = ("verdict_id", "refresh_id", "cause", "docs", "cpu", "run_id", "job", "model_id", "digest")
"""Keys that hold names made anew in each run, or places."""
RENAMED = {"outcome": "result", "crossed": "failed"}
"""Keys of verdicts that have been renamed."""
TEXTS = ("text", "summary")
"""Keys of sentences for people, which are compared on request only."""


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
    comparing.add_argument("--texts", action="store_true", help="compare the sentences of verdicts, too")
    commands.add_parser("play", help=argparse.SUPPRESS).add_argument("weeks")
    arguments = parser.parse_args()
    if arguments.command == "play":
        play(arguments.weeks)
    elif arguments.command == "record":
        arguments.file.write_text(json.dumps(record(arguments.weeks), indent=0, sort_keys=True), encoding="utf-8")
    else:
        sides = [json.loads(path.read_text(encoding="utf-8")) for path in (arguments.before, arguments.after)]
        sys.exit(compare(*(select(side, texts=arguments.texts) for side in sides)))


def record(weeks: int) -> dict[str, Any]:
    """Every figure, choice and verdict of a year of the demo, by its path."""
    with TemporaryDirectory(prefix="stillhouse-unchanged-") as folder:
        home = Path(folder)
        agents = home / "agents"
        agents.mkdir()
        text = (Path("agents") / "flights.yaml").read_text(encoding="utf-8")
        (agents / "flights.yaml").write_text(text.replace("time: 12s", "time: 1h"), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        environment = kept | {"STILLHOUSE_HOME": folder, "STILLHOUSE_AGENTS": str(agents), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.unchanged", "play", str(weeks)]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return dict(flat("", figures(home)))


def play(weeks: str) -> None:
    """The demo, with recorded latencies and a search whose clock counts how often it is read."""
    from stillhouse import latency
    from stillhouse.records import Latency

    def recorded(candidates: Mapping[str, Any], **_: Any) -> dict[str, Latency]:
        for call in candidates.values():
            call()
        return {
            name: Latency(p50_ms=0.02 + 0.001 * place, p95_ms=0.03 + 0.001 * place, calls=1)
            for place, name in enumerate(candidates)
        }

    latency.measure_latency = recorded
    latency.measure_cpu_time = lambda call, **_: 0.02
    real, ticks = time.perf_counter, itertools.count()

    def perf_counter() -> float:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return next(ticks) / 1000 if caller.startswith("stillhouse.compress") else real()

    time.perf_counter = perf_counter
    sys.argv = ["flows", "demo", "--weeks", weeks]
    runpy.run_module("flows", run_name="__main__", alter_sys=True)


def figures(home: Path) -> dict[str, Any]:
    """What the store of a played demo holds, without times and identifiers."""
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
        "mlflow": list(metrics(home / "mlflow" / "mlflow.db")),
    }


def metrics(database: Path) -> Iterator[dict[str, Any]]:
    """Name and metrics of each run, in the order in which they were begun."""
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("select run_uuid, name from runs order by start_time, rowid").fetchall()
        for run, name in runs:
            values = connection.execute("select key, step, value from metrics where run_uuid = ? order by 1, 2", [run])
            yield {"run": name, "metrics": {f"{key}@{step}": value for key, step, value in values}}


def flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Pairs of path and value of nested lists and mappings, without times and identifiers."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = key.partition("@")[0]
            if not name.endswith(TIMES) and name not in IDENTIFIERS:
                yield from flat(f"{path}/{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from flat(f"{path}/{index}", inner)
    else:
        yield path, value


def select(values: Mapping[str, Any], *, texts: bool) -> dict[str, Any]:
    """The values to compare, with renamed keys under their present names."""
    named = {"/".join(RENAMED.get(part, part) for part in path.split("/")): value for path, value in values.items()}
    return named if texts else {path: value for path, value in named.items() if not path.endswith(TEXTS)}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print how many values differ, by the kind of figure, with an example of each.

    :returns: 1 if any does.
    """
    paths = before.keys() | after.keys()
    differing = sorted(path for path in paths if before.get(path) != after.get(path))
    kinds: dict[str, list[str]] = {}
    for path in differing:
        kinds.setdefault(re.sub(r"/\d+", "/*", path), []).append(path)
    for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1])):
        example = members[0]
        print(f"{len(members):6} {kind}, such as {before.get(example)!r} → {after.get(example)!r}")
    print(f"{len(differing)} of {len(paths)} values differ")
    return int(bool(differing))


if __name__ == "__main__":
    main()
