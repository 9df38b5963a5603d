"""The same champion behind ``mlflow models serve``, LitServe and ``stillhouse serve``, with keep-alive clients.

``python -m benchmarks.serving`` trains a flights champion with a real refresh (some minutes), serves it in three ways,
and sends the same rows to all servers, one after the other in each round, at 1, 8 and 64 connections, with one row and
64 rows per request; while one server is measured, the others are stopped. The goals compare our native protocol with
MLflow's ``/invocations``; our ``/invocations`` is measured too, without a goal. Our server records every decision and
flushes them into the knowledge base meanwhile. The peers are measured at their defaults and at the best documented
setting (two workers; batches); each goal compares with the better of the two. Then the champion is swapped ten times
under load, and every acknowledged decision is looked up in the knowledge base. ``--home FOLDER`` uses an existing home
with a champion; ``--quick`` is one short round and writes no file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from benchmarks.load import Load
from benchmarks.peers import peer
from benchmarks.report import Goal, begin
from stillhouse import config
from stillhouse.knowledge.spool import SpoolFile, spool_folder

CLAIM = (
    "in its native protocol `stillhouse serve` records every decision and answers many times as many requests per "
    "second as `mlflow models serve`"
)
AGENT = "flights"
CONNECTIONS = (1, 8, 64)
ROWS = 64
NATIVE = f"/v1/agents/{AGENT}/decisions"
LITSERVE = ("litserve==0.2.19", "numpy==2.4.6", "onnxruntime==1.32.0", "pandas==3.1.1")

RUNTIME = "\nruntime: {poll: 2s, flush: 2s}\n"
"""Frequent flushes, so that each measurement includes the cost of its own rows."""

Case = tuple[int, int]
"""Number of connections, rows per request."""


@dataclass(frozen=True)
class Side:
    """A running server, with its address and request bodies."""

    name: str
    port: int
    path: str
    bodies: dict[int, list[str]]
    """Request bodies by rows per request."""
    group: int
    """Process group of the server."""

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Resume the server within the context; it is stopped before and after."""
        os.killpg(self.group, signal.SIGCONT)
        try:
            yield
            wait_for_empty_spools()
        finally:
            os.killpg(self.group, signal.SIGSTOP)


def main() -> None:
    """Train, serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="a STILLHOUSE_HOME with agents/ and a champion of flights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement")
    parser.add_argument("--quick", action="store_true", help="one short round, no file written")
    options = parser.parse_args()
    run = begin("serving", writes_result=not options.quick)
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    with tempfile.TemporaryDirectory(prefix="stillhouse-serving-") as folder, ExitStack() as stack:
        home = options.home.resolve() if options.home else train_champion(Path(folder))
        os.environ |= environment_of(home)
        os.environ.pop("STILLHOUSE_TOKENS", None)  # no side uses tokens
        rows = observations()
        load = Load()
        stack.callback(load.close)
        with servers(home, rows) as sides:
            same_answers = compare_answers(sides, rows)
            figures = measure(load, sides, rounds, seconds)
        ceiling = measure_ceiling(load, rows)
        bare = bare_rows_per_second(home, rows)
        swap_result = swap_under_load(load, home, rows, swaps=2 if options.quick else 10)
    goals = goals_of(figures, swap_result)
    detail = {
        "rounds": rounds,
        "seconds": seconds,
        "same_answers": same_answers,
        "figures": summarize(figures),
        "ceiling": ceiling,
        "bare": bare,
        "share_of_bare": shares_of_bare(figures, bare),
        "swaps": swap_result,
    }
    if options.quick:
        print(json.dumps({"goals": {goal.name: round(goal.measured, 3) for goal in goals}, **detail}, indent=1))
    else:
        libraries = ("mlflow", "onnxruntime", "uvicorn", "uvloop", "httptools", "starlette", "msgspec", "deltalake")
        run.write(CLAIM, goals, detail, libraries)


# --------------------------------------------------------------------------- servers


def train_champion(home: Path) -> Path:
    """Refresh the flights agent in ``home`` to get a champion, without the compression search."""
    agents = home / "agents"
    agents.mkdir()
    text = (Path("agents") / f"{AGENT}.yaml").read_text(encoding="utf-8")
    begin = text.index("  search:")
    end = text.index("\n\n", begin)
    (agents / f"{AGENT}.yaml").write_text(text[:begin] + "  search: null" + text[end:] + RUNTIME, encoding="utf-8")
    for command in (["live", "2013-04-01"], ["refresh", "--trigger", "bootstrap"]):
        print("python -m flows", *command, file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "flows", *command],
            env=os.environ | environment_of(home),
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return home


def environment_of(home: Path) -> dict[str, str]:
    """Environment variables that put all data of the benchmark into ``home``."""
    return {
        "STILLHOUSE_HOME": str(home),
        "STILLHOUSE_AGENTS": str(home / "agents"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow' / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def observations() -> list[dict[str, Any]]:
    """64 flights as JSON objects."""
    from stillhouse.parts import resolve

    settings = config.load(AGENT)
    start = datetime(2013, 7, 20, tzinfo=UTC)
    frame = resolve(settings.observations.source)(start, start + timedelta(days=1))
    rows: list[dict[str, Any]] = json.loads(
        frame[list(settings.observations.columns)].head(ROWS).to_json(orient="records", double_precision=15)
    )
    return rows


@contextmanager
def servers(home: Path, rows: Sequence[dict[str, Any]]) -> Iterator[list[Side]]:
    """Start all servers."""
    variant = champion_folder()
    split = {1: [split_body([row]) for row in rows], ROWS: [split_body(rows)]}
    native = native_bodies(rows)
    python = str(peer("litserve", LITSERVE))
    litserve = str(Path(__file__).parent / "serving_peers" / "litserve_server.py")
    mlflow = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{AGENT}@champion",
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
    ]
    with ExitStack() as stack:

        def start(name: str, command: Callable[[int], list[str]], ready: str) -> tuple[int, int]:
            port = free_port()
            group = stack.enter_context(server_process(command(port), home / f"{name}.log"))
            wait_for(port, ready, home / f"{name}.log")
            return port, group

        ours = start("stillhouse", lambda port: serve_command(port), "/healthz")
        one_worker = start("mlflow", lambda port: [*mlflow, "--port", str(port)], "/ping")
        two_workers = start("mlflow_2_workers", lambda port: [*mlflow, "--port", str(port), "--workers", "2"], "/ping")
        litserve_one = start("litserve", lambda port: [python, litserve, str(variant), str(port), "1", "1"], "/health")
        batched = start(
            "litserve_batching", lambda port: [python, litserve, str(variant), str(port), "16", "2"], "/health"
        )
        yield [
            Side("stillhouse", ours[0], NATIVE, native, ours[1]),
            Side("stillhouse_invocations", ours[0], "/invocations", split, ours[1]),
            Side("mlflow", one_worker[0], "/invocations", split, one_worker[1]),
            Side("mlflow_2_workers", two_workers[0], "/invocations", split, two_workers[1]),
            Side("litserve", litserve_one[0], "/invocations", split, litserve_one[1]),
            Side("litserve_batching", batched[0], "/invocations", split, batched[1]),
        ]


def serve_command(port: int) -> list[str]:
    """Command of ``stillhouse serve`` with its defaults."""
    return [sys.executable, "-c", "from stillhouse.cli import main; main()", "serve", AGENT, "--port", str(port)]


def champion_folder() -> Path:
    """Folder of the champion's files."""
    from stillhouse.registry import Registry

    registry = Registry(AGENT)
    champion = registry.champion()
    if champion is None:
        raise SystemExit(f"{config.home()} has no champion of {AGENT}")
    return registry.models.fetch(champion)


def native_bodies(rows: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """Bodies of the native protocol, by rows per request."""
    return {1: [json.dumps({"observation": row}) for row in rows], ROWS: [json.dumps({"observations": list(rows)})]}


def split_body(rows: Sequence[dict[str, Any]]) -> str:
    """MLflow's most compact body."""
    return json.dumps({"dataframe_split": {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}})


@contextmanager
def server_process(command: Sequence[str], log: Path) -> Iterator[int]:
    """Run a server within the context; yield its process group, which is killed at the end."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
            try:
                process.wait(400)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"a server did not start:\n{log.read_text()[-3000:]}")


# --------------------------------------------------------------------------- measuring


def compare_answers(sides: Sequence[Side], rows: Sequence[dict[str, Any]]) -> bool:
    """Check that all servers return the same decisions for the same rows."""
    answers = {}
    for side in sides:
        path = f"{side.path}?probabilities=true" if side.path == NATIVE else side.path
        response = post(side.port, path, side.bodies[ROWS][0])
        if side.path == NATIVE:
            answers[side.name] = [
                (decision["action"], round(decision["confidence"], 6)) for decision in response["decisions"]
            ]
        else:
            answers[side.name] = [
                (decision["action"], round(decision[f"p_{decision['action']}"], 6))
                for decision in response["predictions"]
            ]
    if any(decision != answers["stillhouse"] for decision in answers.values()):
        raise SystemExit(
            f"the servers return different decisions: { {name: decision[:2] for name, decision in answers.items()} }"
        )
    return True


def post(port: int, path: str, body: str) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body.encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


Figures = dict[Case, dict[str, list[dict[str, Any]]]]


def measure(load: Load, sides: Sequence[Side], rounds: int, seconds: float) -> Figures:
    """Measure each case and side round by round, so that disturbances of the machine affect all sides."""
    cases = [(connections, rows) for connections in CONNECTIONS for rows in (1, ROWS)]
    figures: Figures = {case: {side.name: [] for side in sides} for case in cases}
    wait_for_empty_spools()
    for side in sides:
        os.killpg(side.group, signal.SIGSTOP)
    for side in sides:
        with side.awake():  # warm-up
            load(side.port, side.path, side.bodies[1], 8, 1.0)
    for number in range(rounds):
        for connections, rows in cases:
            for side in sides:
                with side.awake():
                    result = load(side.port, side.path, side.bodies[rows], connections, seconds)
                if set(result["statuses"]) - {"200"}:
                    raise SystemExit(f"{side.name} answered {result['statuses']} at {connections} connections")
                figures[connections, rows][side.name].append(
                    {name: result[name] for name in ("requests", "per_second", "p50_ms", "p99_ms")}
                )
            rates = {name: round(results[-1]["per_second"], 1) for name, results in figures[connections, rows].items()}
            print(f"round {number + 1}: {connections} connections, {rows} rows: {rates}", file=sys.stderr)
    return figures


def wait_for_empty_spools() -> None:
    """Wait until all recorded decisions are flushed, so that the next measurement does not include their cost."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        waiting = 0
        for path in spool_folder(AGENT).glob("*.sqlite"):
            file = SpoolFile(path)
            waiting += file.depth()
            file.close()
        if not waiting:
            return
        time.sleep(0.1)
    raise SystemExit("the spools are not emptied")


def measure_ceiling(load: Load, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Requests per second of the generator against a server that does nothing."""
    port = free_port()
    code = f"""
import asyncio, uvloop
class Nothing(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.left = transport, 0
    def data_received(self, data):
        if not self.left:
            head = data.find(b"\\r\\n\\r\\n")
            at = data.find(b"Content-Length: ")
            self.left = head + 4 + int(data[at + 16 : data.find(b"\\r", at)])
        self.left -= len(data)
        if self.left <= 0:
            self.left = 0
            self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\n{{}}")
async def main():
    server = await asyncio.get_running_loop().create_server(Nothing, "127.0.0.1", {port})
    await server.serve_forever()
uvloop.run(main())
"""
    with tempfile.TemporaryDirectory() as folder, server_process([sys.executable, "-c", code], Path(folder) / "log"):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        bodies = native_bodies(rows)
        return {f"{n}_rows": load(port, "/", bodies[n], 8, 2.0)["per_second"] for n in (1, ROWS)}


def bare_rows_per_second(home: Path, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rows per second of ONNX Runtime alone in this process, on encoded rows, by batch size."""
    import pandas as pd

    from stillhouse.variant import Variant, encode

    variant = Variant(champion_folder())
    rates = {}
    for size in (1, ROWS):
        matrix = encode(pd.DataFrame(list(rows[:size])), variant.columns)
        best = 0.0
        for _ in range(5):
            start, calls = time.perf_counter(), 0
            while time.perf_counter() - start < 0.4:
                variant.probabilities(matrix)
                calls += 1
            best = max(best, size * calls / (time.perf_counter() - start))
        rates[str(size)] = best
    return rates


def shares_of_bare(figures: Figures, bare: dict[str, float]) -> dict[str, float]:
    """Rows per second of stillhouse / those of ONNX Runtime alone at the same batch size."""
    return {
        f"{connections}x{rows}": rows
        * median_of(figures[connections, rows]["stillhouse"], "per_second")
        / bare[str(rows)]
        for connections, rows in figures
    }


# --------------------------------------------------------------------------- swapping


def swap_under_load(load: Load, home: Path, rows: Sequence[dict[str, Any]], swaps: int) -> dict[str, Any]:
    """Promote two versions in turn under the load of eight connections; then look up every decision."""
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.registry import Registry

    registry = Registry(AGENT)
    champion = registry.champion()
    versions = [entry.version for entry in registry.versions()]
    assert champion is not None and champion.version is not None
    if len(versions) < 2:
        raise SystemExit("there is only one version to swap with")
    other = next(version for version in versions if version != str(champion.version))
    port = free_port()
    taken_up = 0
    body = native_bodies(rows)[1]
    with server_process(serve_command(port), home / "swaps.log"):
        wait_for(port, "/healthz", home / "swaps.log")
        load.begin(port, NATIVE, body, 8, swaps * 6.0, keep_bodies=True)
        start = time.monotonic()
        for number in range(swaps):
            target = other if number % 2 == 0 else str(champion.version)
            registry.promote(target)
            deadline = time.monotonic() + 5.5
            while time.monotonic() < deadline:  # until the new champion decides, or the next swap is due
                version = post(port, NATIVE, body[0])["version"]
                if version == f"{AGENT}@{target}":
                    taken_up += 1
                    break
                time.sleep(0.2)
            time.sleep(max(0.0, start + (number + 1) * 5.5 - time.monotonic()))
        result = load.end()
    decisions = [json.loads(text) for text in result["bodies"] if text.startswith('{"decision_id"')]
    stored_ids = KnowledgeBase(config.load(AGENT)).read("decisions", columns=["decision_id"])["decision_id"]
    registry.promote(str(champion.version))
    acknowledged = {decision["decision_id"] for decision in decisions}
    return {
        "swaps": swaps,
        "taken_up": taken_up,
        "requests": result["requests"],
        "statuses": result["statuses"],
        "versions": sorted({decision["version"] for decision in decisions}),
        "p99_ms": result["p99_ms"],
        "failed": result["requests"] - len(decisions) + result["statuses"].get("0", 0),
        "unrecorded": len(acknowledged - set(stored_ids)),
        "recorded_twice": len(stored_ids) - stored_ids.nunique(),
    }


# --------------------------------------------------------------------------- goals


def median_of(results: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(result[name] for result in results)


def summarize(figures: Figures) -> dict[str, Any]:
    """Median, lowest and highest of each side in each case."""
    return {
        f"{connections} connections, {rows} rows": {
            side: {
                name: [median_of(results, name), min(m[name] for m in results), max(m[name] for m in results)]
                for name in ("per_second", "p50_ms", "p99_ms")
            }
            for side, results in by_side.items()
        }
        for (connections, rows), by_side in figures.items()
    }


def goals_of(figures: Figures, swap_result: dict[str, Any]) -> list[Goal]:
    """The worst goal over the connections, followed by one goal for each number of connections, and the swaps."""
    goals = []
    by_name: dict[str, list[Goal]] = {}
    for name, aim, better, rows, figure in (
        ("requests_vs_mlflow", 8.0, "higher", 1, "per_second"),
        ("rows_vs_mlflow", 6.0, "higher", ROWS, "per_second"),
        ("p99_vs_mlflow", 0.25, "lower", 1, "p99_ms"),
        ("p99_of_64_rows_vs_mlflow", 0.25, "lower", ROWS, "p99_ms"),
    ):
        for connections in CONNECTIONS:
            goal = ratio(f"{name}_{connections}", aim, better, figures[connections, rows], "mlflow", figure)  # type: ignore[arg-type]
            by_name.setdefault(name, []).append(goal)
    for name, goals_by_connections in by_name.items():
        pick = min if goals_by_connections[0].better == "higher" else max
        worst_goal = pick(goals_by_connections, key=lambda goal: goal.measured)
        goals.append(
            Goal(name, worst_goal.goal, worst_goal.better, worst_goal.measured, worst_goal.low, worst_goal.high)
        )
        goals += goals_by_connections
    for connections in CONNECTIONS:
        goals.append(
            ratio(
                f"requests_vs_litserve_{connections}", 1.0, "higher", figures[connections, 1], "litserve", "per_second"
            )
        )
    goals.append(Goal("swaps_taken_up", swap_result["swaps"], "higher", *[swap_result["taken_up"]] * 3))
    for name in ("failed", "unrecorded", "recorded_twice"):
        goals.append(Goal(f"swaps_{name}", 0, "lower", swap_result[name], swap_result[name], swap_result[name]))
    return goals


def ratio(
    name: str,
    aim: float,
    better: Literal["higher", "lower"],
    by_side: dict[str, list[dict[str, Any]]],
    against: str,
    figure: str,
) -> Goal:
    """Ratio of stillhouse to the better setting of the peer, round by round."""
    settings = [side for side in by_side if side.startswith(against)]
    best = max if figure == "per_second" else min
    chosen = best(settings, key=lambda side: median_of(by_side[side], figure))
    pairs = zip(by_side["stillhouse"], by_side[chosen], strict=True)
    ratios = [ours[figure] / theirs[figure] for ours, theirs in pairs]
    return Goal(name, aim, better, statistics.median(ratios), min(ratios), max(ratios))


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
