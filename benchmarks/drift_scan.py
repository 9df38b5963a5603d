"""The cost of a drift measurement compared with known tools, its memory, and its error.

``python -m benchmarks.drift_scan`` takes about ten minutes on two cores; ``--quick`` takes half a minute and writes no
file.

There are two Parquet files of a million rows and twenty mixed columns (pyarrow's defaults: snappy, one row group); most
columns of the second are shifted a little. Each side runs in a child process, in turn. The time is user and system time
from after the imports to the last figure, including reading the files; the memory is the largest resident memory of the
whole process.

evidently
    ``DataDriftPreset(num_method="ks")`` on frames read by pandas; and the same with its default choice of methods. It
    omits the date column, returns p-values, and also prepares the figures of its report.
scipy
    ``ks_2samp`` and ``wasserstein_distance`` of each number and date, read one column at a time with pyarrow. No
    categories, no PSI.
ours
    profiles of both files, and PSI, KS, Wasserstein-1 and effect size of all columns; and the same with the profile of
    the reference read from its bytes.

The exact values are computed here from all rows with numpy and scipy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import ks_2samp, wasserstein_distance

from benchmarks.peers import peer
from benchmarks.report import Goal, begin
from stillhouse.drift.distances import psi
from stillhouse.drift.scan import scan

CLAIM = (
    "drift of a million rows is measured in a small fraction of the CPU time of evidently and SciPy, and within 1 % "
    "of the exact distances"
)

SCRIPTS = Path(__file__).parent / "scan_peers"
EVIDENTLY = ("evidently==0.7.23", "pandas<3")
SCIPY = ("scipy==1.17.1", "pyarrow==25.0.1")
MIN_PSI = 0.001

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Size:
    """Size of the measurement."""

    rows: int = 1_000_000
    rounds: int = 7
    evidently_rounds: int = 2
    many_rows: int = 10_000_000
    growing_rows: tuple[int, ...] = (100_000, 300_000, 1_000_000, 3_000_000)
    growing_columns: tuple[int, ...] = (5, 10, 20, 40)
    chunk: int = 1_000_000


QUICK = Size(30_000, 1, 1, 300_000, (10_000, 30_000), (5, 20), 100_000)


def main() -> None:
    """Write the files, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30,000 rows, one round, no file written")
    options = parser.parse_args()
    run = begin("drift_scan", writes_result=not options.quick)
    size = QUICK if options.quick else Size()
    with tempfile.TemporaryDirectory(prefix="stillhouse-scan-") as folder:
        goals, detail = measure(Path(folder), size)
    for unit in ("rows", "columns"):
        print(f"CPU seconds by {unit}:", ", ".join(f"{n:,}: {s:.2f}" for n, s in detail[f"cpu_s_by_{unit}"].items()))
    if options.quick:
        print(json.dumps({median_goal.name: round(median_goal.measured, 5) for median_goal in goals}, indent=1))
    else:
        run.write(CLAIM, goals, detail, ("numpy", "pyarrow", "scipy"))


def measure(folder: Path, size: Size, peers: bool = True) -> tuple[list[Goal], dict[str, Any]]:
    """All goals and their detail; with ``peers=False`` only the goals that need no peer."""
    files = [
        write_file(folder / f"{name}.parquet", size.rows, size, shift) for shift, name in enumerate(("before", "now"))
    ]
    rounds = run_rounds(files, size, peers)
    errors = compare_exact(files, rounds["ours"][0]["columns"])
    many = [run_ours("scan", write_file(folder / "many.parquet", size.many_rows, size))]
    detail = {
        "rounds": {name: [(run["cpu_s"], run["peak_mb"]) for run in runs] for name, runs in rounds.items()},
        "errors": errors,
        "many_rows": [(run["cpu_s"], run["peak_mb"]) for run in many],
        "cpu_s_by_rows": {rows: measure_growth(folder, size, rows=rows) for rows in size.growing_rows},
        "cpu_s_by_columns": {
            columns: measure_growth(folder, size, columns=columns) for columns in size.growing_columns
        },
        "requirements": {"evidently": EVIDENTLY, "scipy": SCIPY},
    }
    return [*(peer_goals(rounds) if peers else ()), *error_goals(errors, many)], detail


def run_rounds(files: Sequence[Path], size: Size, peers: bool) -> dict[str, list[dict[str, Any]]]:
    """CPU time, memory and distances of each side, round by round, the sides in turn."""
    profile = files[0].with_suffix(".profile")
    profile.write_bytes(scan(files[0]).to_bytes())
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: run_ours("compare", *files),
        "ours_known": lambda: run_ours("compare_known", profile, files[1]),
    }
    slow = {}
    if peers:
        evidently, scipy = peer("evidently", EVIDENTLY), peer("scipy", SCIPY)
        sides["scipy"] = lambda: run_child(scipy, "with_scipy.py", *files)
        slow["evidently_ks"] = lambda: run_child(evidently, "with_evidently.py", *files, "ks")
        slow["evidently_default"] = lambda: run_child(evidently, "with_evidently.py", *files)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in (*sides, *slow)}
    for round_index in range(size.rounds):
        for name, side in {**sides, **(slow if round_index < size.evidently_rounds else {})}.items():
            rounds[name].append(side())
    return rounds


def run_ours(command_name: str, *arguments: Path) -> dict[str, Any]:
    """Run stillhouse in a child process."""
    return run_child(Path(sys.executable), "with_stillhouse.py", command_name, *arguments)


def run_child(python: Path, script: str, *arguments: str | Path) -> dict[str, Any]:
    """Run ``script`` in a child process; return the last line of its output, parsed as JSON."""
    command = [python, SCRIPTS / script, *arguments]
    completed = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if completed.returncode:
        raise SystemExit(f"{script} failed:\n{completed.stderr[-3000:]}")
    printed: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return printed


def measure_growth(folder: Path, size: Size, rows: int | None = None, columns: int = 20) -> float:
    """CPU seconds of stillhouse on two files of ``rows`` × ``columns``, the lower of two runs."""
    files = [
        write_file(folder / f"growing{shift}.parquet", rows or size.rows, size, shift, columns) for shift in (0, 1)
    ]
    return min(run_ours("compare", *files)["cpu_s"] for _ in range(2))


# --------------------------------------------------------------------------- goals


def peer_goals(rounds: dict[str, list[dict[str, Any]]]) -> list[Goal]:
    """Ratios of the peers to stillhouse, round by round."""

    def ratios(numerator: str, denominator: str, key: str = "cpu_s") -> list[float]:
        return [a[key] / b[key] for a, b in zip(rounds[numerator], rounds[denominator], strict=False)]

    return [
        median_goal("cpu_vs_evidently_ks", 150, "higher", ratios("evidently_ks", "ours")),
        median_goal("cpu_vs_evidently_with_reference_profile", 300, "higher", ratios("evidently_ks", "ours_known")),
        median_goal("cpu_vs_scipy_ks_w1", 15, "higher", ratios("scipy", "ours")),
        median_goal("memory_vs_evidently", 0.125, "lower", ratios("ours", "evidently_ks", "peak_mb")),
    ]


def error_goals(errors: dict[str, dict[str, list[float]]], many: Sequence[dict[str, Any]]) -> list[Goal]:
    """Goals that need no peer: peak memory and errors."""
    ks_errors, psi_errors, w1_errors = [], [], []
    for column in errors.values():
        ks_errors.append(abs(column["ks"][0] - column["ks"][1]))
        psi_errors.append(100 * abs(column["psi"][0] - column["psi"][1]) / max(column["psi"][1], MIN_PSI))
        w1_errors.append(100 * abs(column["wasserstein"][0] / column["wasserstein"][1] - 1))
    return [
        median_goal("peak_mb_10m_rows", 250, "lower", [run["peak_mb"] for run in many]),
        max_goal("ks_error", 0.001, ks_errors),
        max_goal("psi_error_percent", 1, psi_errors),
        max_goal("w1_error_percent", 1, w1_errors),
    ]


def median_goal(name: str, aim: float, better: Literal["higher", "lower"], values: Sequence[float]) -> Goal:
    """Median and range of the rounds."""
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


def max_goal(name: str, aim: float, values: Sequence[float]) -> Goal:
    """The largest value over the columns; the goal ``aim`` is an upper limit."""
    return Goal(name, aim, "lower", max(values), min(values), max(values))


# --------------------------------------------------------------------------- exact distances


def compare_exact(files: Sequence[Path], measured: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """By column and distance: the measured value and the exact one, computed from all rows."""
    distances = {}
    for field in pq.read_schema(files[0]):
        if pa.types.is_string(field.type) or pa.types.is_boolean(field.type):
            continue
        sides = [read_numbers(file, field.name) for file in files]
        present = [side[~np.isnan(side)] for side in sides]
        exact = (exact_psi(*sides), ks_2samp(*present).statistic, wasserstein_distance(*present))
        pairs = zip(measured[field.name], map(float, exact), strict=True)
        distances[field.name] = dict(zip(("psi", "ks", "wasserstein"), map(list, pairs), strict=True))
    return distances


def read_numbers(file: Path, name: str) -> Array:
    """A column as float64; missing values are NaN, dates are seconds."""
    column = pq.read_table(file, columns=[name]).column(0)
    if pa.types.is_date32(column.type):
        return column.cast(pa.int32()).to_numpy() * 86400.0
    return column.to_numpy().astype(np.float64)


def exact_psi(reference: Array, current: Array) -> float:
    """PSI in bins between the reference's deciles; atoms and missing values have their own bins.

    >>> reference = np.arange(100.0)
    >>> exact_psi(reference, reference), round(exact_psi(reference, reference + 10), 2)
    (0.0, 0.42)
    """
    sides = [values[~np.isnan(values)] for values in (reference, current)]
    deciles = np.quantile(sides[0], np.arange(1, 10) / 10, method="inverted_cdf")
    edges, repeats = np.unique(deciles, return_counts=True)
    edges = np.union1d(edges, np.nextafter(edges[repeats > 1], -np.inf))
    counts = [np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) for side in sides]
    missing = [len(reference) - len(sides[0]), len(current) - len(sides[1])]
    return psi(np.append(counts[0], missing[0]), np.append(counts[1], missing[1]))


# --------------------------------------------------------------------------- data


def write_file(file: Path, rows: int, size: Size, shift: int = 0, columns: int = 20) -> Path:
    """Write a Parquet file in chunks of ``size.chunk`` rows; with ``shift=1`` most columns are slightly shifted."""
    rng = np.random.default_rng(shift)
    writer = None
    for start in range(0, rows, size.chunk):
        table = draw_table(rng, min(size.chunk, rows - start), shift, columns)
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return file


def draw_table(rng: np.random.Generator, n: int, shift: int, columns: int = 20) -> pa.Table:
    """The first ``columns`` of 15 numbers, a date, a boolean and 3 categories; beyond 20 they repeat, drawn anew."""
    columns_by_name: dict[str, Any] = {}
    while len(columns_by_name) < columns:
        suffix = "" if len(columns_by_name) < 20 else f"_{len(columns_by_name) // 20 + 1}"
        columns_by_name |= {name + suffix: values for name, values in _draw_twenty(rng, n, shift).items()}
    return pa.table(columns_by_name).select(list(columns_by_name)[:columns])


def _draw_twenty(rng: np.random.Generator, n: int, shift: int) -> dict[str, Any]:
    days = rng.integers(20_000, 20_030 + 10 * shift, n)
    return {
        "normal": rng.normal(0.1 * shift, 1, n),
        "lognormal": rng.lognormal(0.1 * shift, 1.5, n),
        "passengers": rng.poisson(4 + 0.3 * shift, n),
        "carrier": _draw_words(rng, n, 16, shift),
        "rain": np.where(rng.random(n) < 0.9 - 0.05 * shift, 0.0, rng.exponential(2, n)),
        "exponential": rng.exponential(1 + 0.1 * shift, n),
        "delay": pa.array(rng.normal(5, 30, n), mask=rng.random(n) < 0.05 + 0.02 * shift),
        "member": rng.random(n) < 0.3 + 0.05 * shift,
        "day": pa.array(days.astype(np.int32), pa.date32()),
        "city": pa.array(_draw_words(rng, n, 300, 0), mask=rng.random(n) < 0.03),
        "pareto": 1 + rng.pareto(1.5 + 0.1 * shift, n),
        "student_t": rng.standard_t(2, n) + 0.1 * shift,
        "uniform": rng.random(n),
        "gamma": rng.gamma(2, 3, n),
        "temperature": np.round(rng.normal(12 + shift, 8, n), 1),
        "pressure": rng.normal(1013 + shift, 8, n),
        "amount": rng.integers(0, 1_000_000 + 50_000 * shift, n),
        "share": rng.beta(2, 5 + 0.3 * shift, n),
        "load": np.where(rng.random(n) < 0.4 + 0.05 * shift, rng.normal(10, 1, n), rng.normal(60, 15, n)),
        "plane": _draw_words(rng, n, 20_000, shift),
    }


def _draw_words(rng: np.random.Generator, n: int, size: int, shift: int) -> Array:
    """Random words; a few of them are frequent (Pareto)."""
    ranks = np.minimum(rng.pareto(1.2 + 0.1 * shift, n) * size / 20, size - 1).astype(np.int64)
    return np.array([f"word {rank:05d}" for rank in range(size)])[ranks]


if __name__ == "__main__":
    main()
