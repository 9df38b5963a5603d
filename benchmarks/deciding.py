"""The cost of a decision on top of ONNX Runtime: for a mapping, for a pandas frame, and through ``mlflow.pyfunc``.

``python -m benchmarks.deciding`` exports two untrained students (the latency does not depend on the weights): one of
the shape of the flights agent's, and one that reads texts. It calls the variant in every way that it supports, 2,000
times each, all ways in random order, so that disturbances of the machine affect all of them. A goal is a difference of
two medians: the whole decision minus the graph alone on encoded rows, or ``pyfunc.predict`` on the champion minus the
same call on an empty model with the same signature. Lowest and highest are over five consecutive parts of the calls.
Batches of 64 and 900 rows are called less often, and their times are divided by the rows. ``--quick`` makes 100 calls
and writes no file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import Goal, begin
from stillhouse import config
from stillhouse.variant import Variant

CLAIM = (
    "in batches of 64 rows or more a champion adds less than a twentieth of a millisecond per row to ONNX Runtime; "
    "single rows miss every goal"
)
BLOCKS = 5
SIZES = (1, 64, 900)
CALL_DIVISORS = {1: 1, 64: 20, 900: 100}
"""Batch size to the divisor of the number of calls."""

ENCODING, MAPPING, FRAME, PYFUNC = 0.05, 0.05, 0.35, 0.3
"""Goals (ms per row): encoding; a mapping and a frame, above the graph alone; pyfunc, above an empty model."""

NOTHING = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Nothing(PythonModel):
    def predict(self, context, model_input, params=None):
        return None


set_model(Nothing())
"""

Ways = dict[str, Callable[[], object]]
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Champion:
    """A variant's folder, with rows as JSON gives them."""

    name: str
    folder: Path
    rows: list[dict[str, Any]]


def main() -> None:
    """Export the students, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="number of calls of each way, for one row")
    parser.add_argument("--quick", action="store_true", help="100 calls, no file written")
    options = parser.parse_args()
    run = begin("deciding", writes_result=not options.quick)
    calls = 100 if options.quick else options.calls
    goals, detail = list[Goal](), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="stillhouse-deciding-") as scratch:
        for champion in (flights(Path(scratch)), sentences(Path(scratch))):
            for size in SIZES:
                times = time_interleaved(timed_ways(champion, size), max(4 * BLOCKS, calls // CALL_DIVISORS[size]))
                goals += goals_of(champion.name, size, times)
                detail[f"{champion.name}, {size} rows"] = {
                    way: round(statistics.median(call_ms), 5) for way, call_ms in times.items()
                }
    if options.quick:
        print(json.dumps({"goals": {goal.name: round(goal.measured, 4) for goal in goals}, "ms": detail}, indent=1))
    else:
        run.write(CLAIM, goals, {"calls": calls, "median_ms": detail}, ("onnxruntime", "mlflow", "pandas", "numpy"))


# --------------------------------------------------------------------------- students


def flights(scratch: Path) -> Champion:
    """The flights agent's student with two days of flights."""
    from stillhouse.parts import resolve

    settings = config.load("flights")
    start = datetime(2013, 7, 20, tzinfo=UTC)
    frame = resolve(settings.observations.source)(start, start + timedelta(days=2))[[*settings.observations.columns]]
    return export_variant("flights", settings, frame, scratch)


def sentences(scratch: Path) -> Champion:
    """A text student with 150 actions, as the router agent's, with random sentences of 4 to 12 words."""
    words = [
        "book",
        "a",
        "table",
        "for",
        "two",
        "what",
        "is",
        "my",
        "balance",
        "transfer",
        "money",
        "to",
        "the",
        "savings",
        "account",
        "please",
        "weather",
        "tomorrow",
        "in",
        "berlin",
        "set",
        "an",
        "alarm",
        "at",
        "seven",
        "how",
        "do",
        "you",
        "say",
        "thanks",
        "play",
        "some",
        "music",
        "cancel",
        "reservation",
    ]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(1000)]
    flights = config.load("flights").model_dump()
    settings = config.AgentConfig.model_validate(
        {key: flights[key] for key in ("teachers", "windows", "outcomes")}
        | {
            "agent": "sentences",
            "actions": [f"intent {i}" for i in range(150)],
            "student": {"kind": "text"},
            "observations": flights["observations"]
            | {"columns": {"sentence": {"type": "text"}}, "rules": [], "unique": [], "volume": None},
            "watch": {"every": timedelta(days=7)},
        }
    )
    return export_variant("sentences", settings, pd.DataFrame({"sentence": texts}), scratch)


def export_variant(name: str, settings: Any, frame: pd.DataFrame, scratch: Path) -> Champion:
    """Export an untrained student as a float32 variant."""
    from stillhouse.compress.search.greedy import search
    from stillhouse.compress.variants import target_from_student, variant_writer
    from stillhouse.config import Compression, Fp32
    from stillhouse.distill.students import columns_of, new_student
    from stillhouse.records import SizeLimits
    from stillhouse.variant import encode

    columns = columns_of(settings, frame)
    student = new_student(settings, columns, encode(frame, columns))
    target = target_from_student(
        student,
        columns,
        settings.actions,
        calibration=lambda columns: encode(frame, columns),
        validation=lambda columns: encode(frame, columns),
        quality=lambda probabilities: 0.0,
    )
    fp32_only = Compression(recipes=((Fp32(method="fp32"),),), search=None)
    frontier = search(
        lambda: target, fp32_only, SizeLimits(), variant_writer(name, settings.actions, {}), scratch / name
    )
    rows = json.loads(frame.head(SIZES[-1]).to_json(orient="records", double_precision=15))
    return Champion(name, Path(frontier.reference.folder), rows)


# --------------------------------------------------------------------------- calls


def timed_ways(champion: Champion, size: int) -> Ways:
    """The timed calls by name; all but ``empty`` return the same decisions."""
    variant = Variant(champion.folder)
    rows = champion.rows[:size]
    mapping: Any = rows[0] if size == 1 else rows
    frame = pd.DataFrame(rows)
    matrix = variant.encoder(rows)
    model, empty = load_pyfunc(champion, frame)
    ways: Ways = {
        "bare": lambda: variant.probabilities(matrix),
        "encode": lambda: variant.encoder(mapping),
        "mapping": lambda: variant.decide(mapping),
        "frame": lambda: variant.predict(frame),
        "pyfunc": lambda: model.predict(frame),
        "empty": lambda: empty.predict(frame),
    }
    expected = variant.probabilities(matrix)
    for way in ("frame", "pyfunc"):
        np.testing.assert_allclose(np.asarray(ways[way]().iloc[:, 1:]), expected, rtol=1e-5)  # type: ignore[attr-defined]
    return ways


def load_pyfunc(champion: Champion, frame: pd.DataFrame) -> tuple[Any, Any]:
    """The champion loaded by MLflow, and a model with the same signature that does nothing."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from stillhouse.registry.packaging import save_variant

    with tempfile.TemporaryDirectory() as folder:
        save_variant(champion.folder, frame, Path(folder, "champion"), Model())
        model = mlflow.pyfunc.load_model(str(Path(folder, "champion")))
        code = Path(folder, "nothing.py")
        code.write_text(NOTHING, encoding="utf-8")
        mlflow.pyfunc.save_model(Path(folder, "empty"), python_model=code, signature=model.metadata.signature)
        return model, mlflow.pyfunc.load_model(str(Path(folder, "empty")))


def time_interleaved(ways: Ways, calls: int) -> Times:
    """Milliseconds of each call, by way; the ways take turns in random order."""
    times: Times = {way: [] for way in ways}
    rng = random.Random(0)
    for number in range(calls + calls // 10):
        for way in rng.sample([*ways], len(ways)):  # no way always follows the same other one
            call = ways[way]
            start = time.perf_counter()
            call()
            elapsed_ms = 1000 * (time.perf_counter() - start)
            if number >= calls // 10:  # the first calls warm up
                times[way].append(elapsed_ms)
    return times


# --------------------------------------------------------------------------- goals


def goals_of(name: str, size: int, times: Times) -> list[Goal]:
    """Goals in milliseconds per row."""
    goals_by_way = (
        ("encode", ENCODING, None),
        ("mapping", MAPPING, "bare"),
        ("frame", FRAME, "bare"),
        ("pyfunc", PYFUNC, "empty"),
    )
    goals = []
    for way, goal, baseline in goals_by_way:
        differences = [
            median_of(times, way, baseline, block) / size for block in [slice(None), *call_blocks(len(times[way]))]
        ]
        goals.append(Goal(f"{name}_{way}_{size}_ms", goal, "lower", differences[0], min(differences), max(differences)))
    return goals


def call_blocks(calls: int) -> Sequence[slice]:
    """Consecutive blocks of calls of equal length."""
    length = calls // BLOCKS
    return [slice(i * length, (i + 1) * length) for i in range(BLOCKS)]


def median_of(times: Times, way: str, baseline: str | None, block: slice) -> float:
    """Median of one way, minus that of ``baseline``."""
    median = statistics.median(times[way][block])
    return median if baseline is None else median - statistics.median(times[baseline][block])


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
