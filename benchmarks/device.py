"""Memory and time to the first decision: a device, a web page, and ``mlflow.pyfunc``, with the same champion.

``python -m benchmarks.device`` makes one champion of the flights agent. Then each side starts and decides about the
same row, all in turn and in alternating order: ``examples/device.py`` in an environment with numpy, onnxruntime and
cryptography, which verifies the model's signature first; ``mlflow.pyfunc.load_model(…).predict`` on MLflow's files of
that champion, which verifies none; and ``examples/web`` in headless Chromium, with an empty cache, which verifies, too.

Time runs from the start of the process (or from the navigation of a browser that is running) to the first decision;
memory is the resident memory of the process right after it. A page's process has the browser's code in it: the figure
of a page is its process minus that of an empty page of the same site. Two hundred more rows are compared on all three.
``--quick`` measures each once and writes no file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.device_browser import resident_kib
from benchmarks.peers import peer
from benchmarks.report import Goal, begin
from examples import device_demo, device_page

CLAIM = "a device needs a quarter of the memory and time of mlflow.pyfunc until its first decision, a web page half"
DEVICE, PAGE, COMPARED_ROWS, LARGEST_DIFFERENCE = 0.25, 0.5, 200, 1e-5
"""Goals, stated before the first measurement: shares of pyfunc's memory and time, and of probability."""

REQUIREMENTS = ("numpy", "onnxruntime", "cryptography")
BROWSER = Path(__file__).parent.parent / ".venv-screens" / "bin" / "python"

PYFUNC = """
import json, sys
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
for line in sys.stdin:
    print(model.predict(pd.DataFrame([json.loads(line)])).to_json(orient="records", double_precision=15), flush=True)
"""

Side = Callable[[Sequence[str]], dict[str, Any]]


def main() -> None:
    """Make a champion, measure all sides, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="starts of each side")
    parser.add_argument("--quick", action="store_true", help="one start of each side, no file written")
    options = parser.parse_args()
    run = begin("device", writes_result=not options.quick)
    if not BROWSER.exists() or not (device_page.RUNTIME / "ort.wasm.min.mjs").exists():
        raise SystemExit(
            "the page's browser or runtime is missing: make .venv-screens/.installed .venv-peers/web/.installed"
        )
    device_demo.PYTHON = peer("device", REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="stillhouse-device-") as scratch:
        rows = [json.dumps(without_id(row)) for row in map(json.loads, prepare(Path(scratch)))]
        with sides_of(Path(scratch)) as sides:
            rounds = measure(sides, rows[0], 1 if options.quick else options.repeats)
            differences = compare(sides, rows[: COMPARED_ROWS // 10 if options.quick else COMPARED_ROWS])
    goals = [
        *ratio_goals("device", rounds, DEVICE),
        *ratio_goals("page", rounds, PAGE),
        Goal(
            "largest_difference", LARGEST_DIFFERENCE, "lower", max(differences.values()), 0.0, max(differences.values())
        ),
    ]
    if options.quick:
        print(
            json.dumps({"goals": {g.name: g.measured for g in goals}, "rounds": rounds, "diff": differences}, indent=1)
        )
    else:
        detail = {"rounds": rounds, "differences": differences, "median": medians(rounds)}
        run.write(CLAIM, goals, detail, ("onnxruntime", "mlflow", "pandas", "numpy", "cryptography"))


def without_id(row: dict[str, Any]) -> dict[str, Any]:
    """Only the columns that a model reads."""
    return {name: value for name, value in row.items() if name not in ("observation_id", "observed_at")}


# --------------------------------------------------------------------------- preparation


def prepare(folder: Path) -> list[str]:
    """A store with a champion, and a day of flights as JSON."""
    (folder / "agents").mkdir()
    device_demo.shorten(folder / "agents" / "flights.yaml")
    os.environ |= {"STILLHOUSE_HOME": str(folder / "store"), "STILLHOUSE_AGENTS": str(folder / "agents")}
    os.environ |= {"STILLHOUSE_TOKENS": (token := secrets.token_hex(16)), "STILLHOUSE_TOKEN": token}
    device_demo.make_champion()
    return device_demo.flights(0)


@contextlib.contextmanager
def sides_of(folder: Path) -> Iterator[dict[str, Side]]:
    """The sides by name: each starts, decides about rows, and ends."""
    from stillhouse.champion import open_registry

    registry = open_registry("flights")
    champion = registry.champion()
    assert champion is not None
    files = registry.models.fetch_whole(champion, folder / "pyfunc")
    device = device_demo.install(folder / "device")
    pyfunc = [sys.executable, "-W", "ignore", "-c", PYFUNC, str(files)]
    with device_demo.network(str(champion)) as server, open_browser() as ask:
        device_demo.decide([*device, server], [])  # pulls
        (key,) = (folder / "store" / "keys" / "trusted").glob("*.pub")
        page = device_page.make_server(key, server)
        threading.Thread(target=page.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{page.server_port}"
        yield {
            "device": lambda rows: start_process(device, rows, lambda answer: answer["probabilities"]),
            "pyfunc": lambda rows: start_process(pyfunc, rows, lambda answer: probabilities_of(answer[0])),
            "page": lambda rows: open_page(ask, address, rows),
        }
        page.shutdown()


def probabilities_of(prediction: dict[str, Any]) -> dict[str, float]:
    """Probabilities by action, of a row of pyfunc's answer."""
    return {name.removeprefix("p_"): value for name, value in prediction.items() if name.startswith("p_")}


def start_process(
    command: Sequence[str], rows: Sequence[str], read: Callable[[Any], dict[str, float]]
) -> dict[str, Any]:
    """Start a process that answers a line for a line; measured at its first answer."""
    began, answers = time.perf_counter(), list[dict[str, float]]()
    found: dict[str, Any] = {}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        for row in rows:
            process.stdin.write(row + "\n")
            answers.append(read(json.loads(process.stdout.readline())))
            if not found:
                found = {"seconds": time.perf_counter() - began, "mib": resident_kib(process.pid) / 1024}
        process.stdin.close()
    return found | {"answers": answers}


Ask = Callable[[dict[str, Any]], dict[str, Any]]


@contextlib.contextmanager
def open_browser() -> Iterator[Ask]:
    """A running browser; yields a function that opens a page in a fresh profile."""
    command = [str(BROWSER), str(Path(__file__).with_name("device_browser.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            stdin.write(json.dumps(request) + "\n")
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield ask
        stdin.close()


def open_page(ask: Ask, address: str, rows: Sequence[str]) -> dict[str, Any]:
    """Open the page, and an empty one beside it."""
    empty = ask({"url": f"{address}/empty.html"})
    seen = ask({"url": f"{address}/?agent=flights", "rows": [json.loads(row) for row in rows]})
    if seen["error"]:
        raise SystemExit(f"the page does not decide: {seen['error']}")
    return {
        "seconds": seen["first_decision_ms"] / 1000,
        "mib": (seen["rss_kib"] - empty["rss_kib"]) / 1024,
        "whole_mib": seen["rss_kib"] / 1024,
        "answers": [decision["probabilities"] for decision in seen["decisions"]],
    }


# --------------------------------------------------------------------------- measuring


def measure(sides: dict[str, Side], row: str, repeats: int) -> list[dict[str, Any]]:
    """Start every side in each round, in alternating order, after one round that is not counted."""
    rounds = list[dict[str, Any]]()
    for repeat in range(repeats + 1):
        order = sorted(sides, reverse=bool(repeat % 2))
        found = {name: {key: value for key, value in sides[name]([row]).items() if key != "answers"} for name in order}
        if repeat:
            rounds.append({name: found[name] for name in sorted(found)})
    return rounds


def compare(sides: dict[str, Side], rows: Sequence[str]) -> dict[str, float]:
    """The largest absolute difference of a probability from pyfunc's, by side."""
    answers = {name: side(rows)["answers"] for name, side in sides.items()}
    return {
        name: max(
            abs(mine[action] - theirs[action])
            for mine, theirs in zip(answers[name], answers["pyfunc"], strict=True)
            for action in theirs
        )
        for name in sides
        if name != "pyfunc"
    }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median figures by side."""
    return {
        name: {key: statistics.median(found[name][key] for found in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }


def ratio_goals(side: str, rounds: Sequence[dict[str, Any]], aim: float) -> list[Goal]:
    """Memory and time of a side by pyfunc's in the same round: median, lowest and highest."""
    better: Literal["lower"] = "lower"
    goals = list[Goal]()
    for key, name in (("mib", "memory"), ("seconds", "first_decision")):
        ratios = [found[side][key] / found["pyfunc"][key] for found in rounds]
        assert not any(map(math.isnan, ratios))
        goals.append(Goal(f"{side}_{name}", aim, better, statistics.median(ratios), min(ratios), max(ratios)))
    return goals


if __name__ == "__main__":
    main()
