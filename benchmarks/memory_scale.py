"""The agent `memory` at 1,000, 10,000 and 100,000 memories: quality, lag after a change, time and bytes of both models.

``python -m benchmarks.memory_scale`` takes about ten minutes on two cores; ``--quick`` takes less than a minute and
writes no file.

For each size a stream of `examples/memory.py` fills a real knowledge base: eight weeks, after which there are as many
memories as the size says, then the change of a third of the kinds, then two weeks. The teacher is the class that the
agent file names. The first student is distilled as a refresh would at the end of week eight (from what the memory said
then, on at most 8,000 of the newest rows), the second one a week after the change. Their ONNX files decide.

Accuracy is on the outcomes of up to 3,000 rows a week; a tenth of the outcomes is drawn at random. The lag of the
memory is the first day after the change for which, with the day after it, its accuracy is within 0.03 of that of the
week before. Times are of one row with one thread, interleaved; that of the memory includes the look whether the
tables have something new, which is also shown alone. Beside them: a k-d tree of the same columns (scipy), which finds
near rows exactly and fast in six dimensions, and knows neither ages nor what was known when.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from benchmarks.report import Goal, begin
from examples.memory import ACTIONS, COLUMNS, FIRST_DAY, Memory, make_stream
from stillhouse import KnowledgeBase, Variant, distil, load_config

CLAIM = (
    "the student of a memory decides as well as its memory, in a time and in bytes that do not grow with it, and the "
    "memory knows of a change within days"
)
SIZES, SEEDS, TURN, WEEKS = (1_000, 10_000, 100_000), (0, 1, 2), 8, 10
WEEK, DAY = pd.Timedelta(weeks=1), pd.Timedelta(days=1)
MAX_TRAIN_ROWS, MAX_WEEK_ROWS, RECOVERED, ROUNDS = 8_000, 3_000, 0.03, 200


def main() -> None:
    """Measure all sizes, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes, one seed; writes nothing")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = begin("memory_scale", writes_result=not options.quick)
    sizes, seeds, rounds = ((500, 2_000), (1000,), 20) if options.quick else (SIZES, SEEDS, ROUNDS)
    detail = {str(size): [measure(size, seed, rounds) for seed in seeds] for size in sizes}
    goals = make_goals(detail)
    if options.quick:
        print(detail)
        return
    run.write(CLAIM, goals, {"sizes": detail}, ["numpy", "onnxruntime", "scipy", "deltalake"])


def measure(size: int, seed: int, rounds: int) -> dict[str, Any]:
    """Quality, lag, times (ms) and bytes with ``size`` memories at the change."""
    stream = make_stream(size // TURN, weeks=WEEKS, turns=(TURN,), seed=seed)
    with tempfile.TemporaryDirectory() as name:
        base, memory = remember(stream, Path(name))
        first = distil_student(memory, stream, TURN, Path(name) / "first")
        second = distil_student(memory, stream, TURN + 1, Path(name) / "second")
        judged = sample_weeks(stream, seed)
        models = {"memory": memory, "first": first, "second": second}
        right = {model: is_right(decider.predict_proba(judged), judged) for model, decider in models.items()}
        weeks = ((judged["observed_at"] - FIRST_DAY) // WEEK).to_numpy()
        accuracy = {
            model: {str(week): float(hits[weeks == week].mean()) for week in range(TURN - 1, WEEKS)}
            for model, hits in right.items()
        }
        days = ((judged["observed_at"] - FIRST_DAY) // DAY).to_numpy() - 7 * TURN
        return {
            "seed": seed,
            "memories": len(memory.recall()[0]),
            "accuracy": accuracy,
            "by_day": [float(right["memory"][days == day].mean()) for day in range(7 * (WEEKS - TURN))],
            "lag_days": find_lag(right["memory"], days),
            "ms": measure_times(memory, first, stream, rounds),
            "reading_again_ms": measure_reading(base, memory),
            "bytes": {
                "memory, tables": memory.bytes_elsewhere,
                "memory, arrays": sum(values.nbytes for values in memory.recall()[1:]),
                "student": folder_bytes(Path(name) / "first"),
            },
        }


def sample_weeks(stream: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Up to :data:`MAX_WEEK_ROWS` rows of the week before the change and of each week after it, by time."""
    weeks = (stream["observed_at"] - FIRST_DAY) // WEEK
    chosen = [
        stream[weeks == week].sample(min(MAX_WEEK_ROWS, int((weeks == week).sum())), random_state=seed).sort_index()
        for week in range(TURN - 1, WEEKS)
    ]
    return pd.concat(chosen, ignore_index=True)


def remember(stream: pd.DataFrame, folder: Path) -> tuple[KnowledgeBase, Memory]:
    """A knowledge base with the whole stream, appended week by week, and the memory that searches it."""
    base, memory = KnowledgeBase(load_config("memory"), folder / "base"), Memory()
    for week, rows in stream.groupby((stream["observed_at"] - FIRST_DAY) // WEEK):
        base.append_observations(rows, batch=str(week))
        base.append_outcomes(rows, batch=str(week))
    memory.use_knowledge_base(base)
    return base, memory


def distil_student(memory: Memory, stream: pd.DataFrame, week: int, folder: Path) -> Variant:
    """The student of what the memory says at the end of ``week``, on the rows of the three weeks before."""
    until = FIRST_DAY + week * WEEK
    taught = memory.at(until.to_pydatetime(), until.to_pydatetime())
    taught.use_knowledge_base(memory.base)
    rows = stream[stream["observed_at"].between(until - 3 * WEEK, until, inclusive="left")].tail(MAX_TRAIN_ROWS)
    student = {"kind": "tabular", "widths": [64, 32], "bins": 8, "embedding": 2}
    distilled = distil(
        rows[list(COLUMNS)], taught.predict_proba(rows), actions=ACTIONS, student=student, augment={"copies": 0}
    )
    return distilled.compress(folder, search=None)


def is_right(probs: np.ndarray[Any, Any], stream: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Which rows are decided as their outcome says, bool ``[n]``."""
    return np.asarray(np.array(ACTIONS)[probs.argmax(axis=1)] == stream["action"].to_numpy())


def find_lag(right: np.ndarray[Any, Any], days: np.ndarray[Any, Any]) -> int:
    """The first day after the change for which, with the day after it, the accuracy is as before up to RECOVERED.

    >>> find_lag(np.array([True] * 7 + [False, False, True, True]), np.array([*range(-7, 0), 0, 1, 2, 3]))
    2
    """
    before, last = right[(days < 0) & (days >= -7)].mean(), int(days.max())

    def has_recovered(day: int) -> bool:
        return bool(right[(days == day) | (days == day + 1)].mean() >= before - RECOVERED)

    return next((day for day in range(last) if has_recovered(day)), last + 1)


def measure_times(memory: Memory, student: Variant, stream: pd.DataFrame, rounds: int) -> dict[str, float]:
    """Median time of one row (ms), interleaved."""
    rows = [stream.iloc[[index]] for index in np.linspace(0, len(stream) - 1, rounds).astype(int)]
    columns = np.asarray(memory.recall()[1])
    tree = cKDTree(columns)
    calls: dict[str, Callable[[pd.DataFrame], object]] = {
        "memory": memory.predict_proba,
        "student": student.predict_proba,
        "memory: look for new rows": lambda row: memory.recall(),
        "k-d tree": lambda row: tree.query(row[list(COLUMNS)].to_numpy(), k=25),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for row in rows:
        for name, call in calls.items():
            began = time.perf_counter()
            call(row)
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_reading(base: KnowledgeBase, memory: Memory) -> float:
    """Time of reading all memories again after a new outcome (ms)."""
    late = make_stream(1, weeks=1, turns=(), seed=7)
    late["observation_id"] = "late"
    base.append_observations(late, batch="late")
    base.append_outcomes(late, batch="late")
    began = time.perf_counter()
    memory.recall()
    return 1000 * (time.perf_counter() - began)


def folder_bytes(folder: Path) -> int:
    """Size of the files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def make_goals(detail: dict[str, list[dict[str, Any]]]) -> list[Goal]:
    """The figures of the largest size, against those of the smallest."""
    small, *_, large = detail.values()

    def goal(name: str, limit: float, values: list[float]) -> Goal:
        return Goal(name, limit, "lower", statistics.median(values), min(values), max(values))

    def ratios(get: Callable[[dict[str, Any]], float]) -> list[float]:
        return [get(many) / get(few) for few, many in zip(small, large, strict=True)]

    before = str(TURN - 1)
    return [
        goal("student_ms_growth", 1.2, ratios(lambda one: one["ms"]["student"])),
        goal("student_bytes_growth", 1.1, ratios(lambda one: one["bytes"]["student"])),
        goal(
            "student_loss",
            0.02,
            [one["accuracy"]["memory"][before] - one["accuracy"]["first"][before] for one in large],
        ),
        goal("memory_lag_days", 5, [one["lag_days"] for one in large]),
    ]


if __name__ == "__main__":
    main()
