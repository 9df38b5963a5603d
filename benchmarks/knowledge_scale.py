"""A knowledge base of ten million observations: memory for writing and reading, and the cost of one day by age.

``python -m benchmarks.knowledge_scale`` takes about a quarter of an hour on two cores; ``--quick`` takes less than a
minute and writes no file.

Three years of an agent, some nine thousand observations a day with five numbers and three categories, are appended day
by day as a flush appends them, with an outcome each. At ages from one month to three years the tables are copied as
they are, and once more with their small files compacted, as upkeep leaves them. Then one process opens each copy in
turn, round by round, and reads the window of the last day: wall time, CPU time, the bytes that the process has read
(``rchar`` of Linux), and the rows of the files that the window opens.

Memory is the peak resident size of one process per kind of work, compared with the size of the observations as one
Arrow table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from deltalake import DeltaTable

from benchmarks.report import Goal, begin
from benchmarks.scan_peers.usage import cpu, peak_mb
from stillhouse.config import AgentConfig, Upkeep
from stillhouse.knowledge import KnowledgeBase, windows
from stillhouse.knowledge.pruning import observed_in

CLAIM = (
    "ten million observations are appended, read by window and sampled in bounded memory, and after compaction the "
    "last day costs about the same to read at three years as at three months"
)
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "knowledge_scale.png"

START = datetime(2022, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LAYOUTS = ("as appended", "compacted")


@dataclass(frozen=True)
class Size:
    """Size of the measurement; the field names are keys of the result."""

    per_day: int = 9_132
    ages: tuple[int, ...] = (31, 90, 181, 365, 730, 1_096)  # days, each up to the end of a month
    rounds: int = 25
    sample: int = 50_000
    newest: int = 50_000


QUICK = Size(per_day=400, ages=(31, 90, 120), rounds=5, sample=2_000, newest=2_000)


def main() -> None:
    """Fill the tables, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four months of 400 a day, five rounds, no file written")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    if options.work:
        work_result = WORK[options.work](options.folder, size)
        print(json.dumps({"peak_mb": peak_mb(), "cpu_s": cpu(), **work_result}))
        return
    run = begin("knowledge_scale", writes_result=not options.quick)
    with tempfile.TemporaryDirectory(prefix="stillhouse-scale-") as folder:
        goals, detail = measure(Path(folder), size, quick=options.quick)
    if options.quick:
        print(json.dumps({goal.name: round(goal.measured, 4) for goal in goals}, indent=1))
    else:
        draw_figure(detail, FIGURE)
        run.write(CLAIM, goals, detail, ("deltalake", "numpy", "pandas", "pyarrow"))


def measure(folder: Path, size: Size, quick: bool = False) -> tuple[list[Goal], dict[str, Any]]:
    """All goals and their detail."""

    def run_child(work: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.knowledge_scale", "--work", work, "--folder", str(folder)]
        completed = subprocess.run([*command, *["--quick"] * quick], capture_output=True, text=True, check=False)
        if completed.returncode:
            raise SystemExit(f"{work} failed:\n{completed.stderr}")
        work_result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
        return work_result

    detail: dict[str, Any] = {"size": asdict(size)} | {work: run_child(work) for work in WORK}
    rounds = detail["day"]["rounds"]
    base, last = str(size.ages[1]), str(size.ages[-1])
    young, old = rounds["compacted"][base], rounds["compacted"][last]
    goals = [
        ratio_goal("day_at_three_years", old, young, "wall_s"),
        ratio_goal("bytes_of_a_day_at_three_years", old, young, "bytes"),
    ]
    table_mb = detail["fill"]["table_mb"]
    for work in ("fill", "day", "sample", "newest"):
        peak = detail[work]["peak_mb"]
        goals.append(Goal(f"peak_mb_{work}", 1_500, "lower", peak, peak, peak))
    peaks = [detail[work]["peak_mb"] / table_mb for work in ("fill", "sample", "newest")]
    goals.append(Goal("peak_per_table_in_memory", 1, "lower", max(peaks), min(peaks), max(peaks)))
    return goals, detail


def ratio_goal(name: str, old: list[dict[str, float]], young: list[dict[str, float]], key: str) -> Goal:
    """Ratio of the median cost at the higher age to that at the lower; lowest and highest are quartiles of rounds."""
    ratios = [a[key] / b[key] for a, b in zip(old, young, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(a[key] for a in old) / statistics.median(b[key] for b in young)
    return Goal(name, 1.25, "lower", middle, min(low, middle), max(high, middle))


# --------------------------------------------------------------------------- the measured processes


def fill_tables(folder: Path, size: Size) -> dict[str, Any]:
    """Append day by day; copy the tables at each age, as they are and compacted."""
    base = KnowledgeBase(agent_config(), folder / "base")
    seconds = 0.0
    for day in range(size.ages[-1]):
        rows = draw_day(day, size)
        start = time.perf_counter()
        base.append_observations(rows, batch=f"day {day}")
        outcomes = rows[["observation_id", "observed_at"]].assign(known_at=rows["observed_at"] + DAY, action="go")
        base.tables.append("outcomes", outcomes, batch=f"day {day}")
        seconds += time.perf_counter() - start
        if day + 1 in size.ages:
            for layout in LAYOUTS:
                copy_tables(base.root, tables_folder(folder, layout, day + 1), compact=layout == "compacted")
    disk = sum(file.stat().st_size for file in (base.root / "observations").rglob("*.parquet"))
    return {
        "rows": base.tables.count_rows()["observations"],
        "table_mb": sum(batch.nbytes for batch in base.stream("observations")) / 2**20,
        "disk_mb": disk / 2**20,
        "append_s": seconds,
        "commits": size.ages[-1],
    }


def read_day(folder: Path, size: Size) -> dict[str, Any]:
    """Read the window of the last day of each copy, in turn."""
    rng = random.Random(0)
    turns = [(layout, age) for layout in LAYOUTS for age in size.ages]
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {
        layout: {str(age): [] for age in size.ages} for layout in LAYOUTS
    }
    opened = {layout: {str(age): files_of(folder, layout, age) for age in size.ages} for layout in LAYOUTS}
    for round_index in range(size.rounds + 1):
        for layout, age in rng.sample(turns, len(turns)):
            start = time.perf_counter(), cpu(), read_bytes()
            base = KnowledgeBase(agent_config(), tables_folder(folder, layout, age))
            end = START + age * DAY
            rows = base.read_observations(base.window("current", end - DAY, end))
            cost = {
                "wall_s": time.perf_counter() - start[0],
                "cpu_s": cpu() - start[1],
                "bytes": read_bytes() - start[2],
            }
            if len(rows) != size.per_day:
                raise SystemExit(f"a day of {size.per_day} rows was read as {len(rows)}")
            if round_index:  # the first round is a warm-up
                rounds[layout][str(age)].append(cost)
    return {"rounds": rounds, "opened": opened}


def read_sample(folder: Path, size: Size) -> dict[str, Any]:
    """Sample rows from all days, with their outcomes."""
    base = KnowledgeBase(agent_config(), tables_folder(folder, "compacted", size.ages[-1]))
    full_window = base.window("whole", START, START + size.ages[-1] * DAY)
    start = time.perf_counter()
    window = windows.sample_window(full_window, size.sample, "scale")
    rows = base.read_labelled(window, known_by=full_window.end + 2 * DAY)
    return {"rows": len(rows), "seconds": time.perf_counter() - start}


def read_newest(folder: Path, size: Size) -> dict[str, Any]:
    """Read the newest rows by count."""
    base = KnowledgeBase(agent_config(), tables_folder(folder, "compacted", size.ages[-1]))
    start = time.perf_counter()
    window = windows.newest_window(base, "current", size.newest, START + size.ages[-1] * DAY)
    rows = base.read_observations(window)
    return {"rows": len(rows), "seconds": time.perf_counter() - start}


WORK: dict[str, Callable[[Path, Size], dict[str, Any]]] = {
    "fill": fill_tables,
    "day": read_day,
    "sample": read_sample,
    "newest": read_newest,
}


# --------------------------------------------------------------------------- agent, rows and tables


def agent_config() -> AgentConfig:
    """An agent with five numbers and three categories."""
    names = {f"x{i}": {"type": "number"} for i in range(5)} | {f"c{i}": {"type": "category"} for i in range(3)}
    return AgentConfig.model_validate(
        {
            "agent": "scale",
            "actions": ["wait", "go"],
            "observations": {"source": "none:rows", "since": START, "columns": names},
            "outcomes": {"source": "none:outcomes", "delay": "1d"},
            "teachers": [{"kind": "python", "name": "none", "target": "none:Teacher"}],
            "student": {"kind": "tabular"},
            "windows": {"train": "8w", "test": "1w", "current": "1d"},
            "watch": {},
        }
    )


def draw_day(day: int, size: Size) -> pd.DataFrame:
    """Random observations of one day."""
    rng = np.random.default_rng(day)
    n = size.per_day
    times_us = np.sort(rng.integers(0, 86_400_000_000, n)) + day * 86_400_000_000
    ids = [f"{day:04d}-{i:06d}" for i in range(n)]
    rows = pd.DataFrame(
        {"observation_id": ids, "observed_at": pd.Timestamp(START) + pd.to_timedelta(times_us, unit="us")}
    )
    for i in range(5):
        rows[f"x{i}"] = rng.normal(size=n)
    for i, words in enumerate((3, 20, 300)):
        rows[f"c{i}"] = np.array([f"word {word}" for word in range(words)], dtype=object)[rng.integers(0, words, n)]
    return rows


def tables_folder(folder: Path, layout: str, age: int) -> Path:
    """Folder of the tables of one layout and age (days)."""
    return folder / layout / str(age)


def copy_tables(root: Path, target_folder: Path, compact: bool) -> None:
    """Copy the tables; data files are hard links, since Delta never changes them."""

    def copy_file(source: str, target: str) -> None:
        if source.endswith(".parquet") and "_delta_log" not in source:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(root, target_folder, copy_function=copy_file)
    if compact:
        for table in filter(Path.is_dir, target_folder.iterdir()):
            delta = DeltaTable(str(table))
            delta.optimize.compact(target_size=Upkeep().target_bytes)
            delta.create_checkpoint()


def files_of(folder: Path, layout: str, age: int) -> dict[str, int]:
    """Number of files of observations, and of the files and rows that the window of the last day opens."""
    delta = DeltaTable(str(tables_folder(folder, layout, age) / "observations"))
    end = START + age * DAY
    dataset, condition = observed_in(delta, end - DAY, end)
    fragments = list(dataset.get_fragments(filter=condition))
    return {
        "files": len(delta.file_uris()),
        "opened": len(fragments),
        "rows_opened": sum(fragment.count_rows() for fragment in fragments),
    }


def read_bytes() -> int:
    """Bytes that this process has read so far (``rchar``)."""
    line = Path("/proc/self/io").read_text(encoding="ascii").splitlines()[0]
    return int(line.removeprefix("rchar: "))


def draw_figure(detail: dict[str, Any], file: Path) -> None:
    """Draw the cost of reading one day by the age of the knowledge base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    time_axis, byte_axis = figure.subplots(1, 2)
    for layout, colour in zip(LAYOUTS, ("#b0532e", "#2e6f9e"), strict=True):
        rounds = detail["day"]["rounds"][layout]
        months = [int(age) / 30.44 for age in rounds]
        for axis, key, unit in ((time_axis, "wall_s", 1e-3), (byte_axis, "bytes", 2**20)):
            quartiles = np.array(
                [np.quantile([cost[key] / unit for cost in costs], (0.25, 0.5, 0.75)) for costs in rounds.values()]
            )
            axis.plot(months, quartiles[:, 1], "o-", color=colour, label=layout, markersize=4)
            axis.fill_between(months, quartiles[:, 0], quartiles[:, 2], color=colour, alpha=0.2, linewidth=0)
    rows = detail["fill"]["rows"]
    for axis, label in ((time_axis, "milliseconds"), (byte_axis, "MiB read")):
        axis.set(xlabel=f"age (months; {rows / 1e6:.0f} million rows at the end)", ylabel=label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    time_axis.set_title("opening the tables and reading one day", fontsize=10)
    byte_axis.set_title("what that reads", fontsize=10)
    time_axis.legend(frameon=False)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    main()
