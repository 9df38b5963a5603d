"""Result files of the benchmarks: claim, machine, versions, and the measured value of each goal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from stillhouse.compress.processor import processor

__all__ = ["Goal", "Run", "begin", "changed_files"]

RESULTS = Path(__file__).parent / "results"
GENERATED = ("benchmarks/results", "docs/benchmarks.md", "docs/images", "README.md")
"""Paths of the repository that benchmarks and pages write; they may differ from the commit of a result."""


@dataclass(frozen=True)
class Goal:
    """A limit to reach, and the median, lowest and highest value over the repeats.

    >>> Goal("watch_added_s", 0.5, "lower", measured=0.4, low=0.35, high=0.6).met
    True
    """

    name: str
    goal: float
    better: Literal["higher", "lower"]
    measured: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        """Whether the median reaches the limit."""
        return self.measured >= self.goal if self.better == "higher" else self.measured <= self.goal


@dataclass(frozen=True)
class Run:
    """One run of a benchmark, with the facts that are recorded at its start."""

    name: str
    arguments: tuple[str, ...]
    """Arguments of the command line; of paths only the last part."""
    commit: str
    started_at: str
    """Start time, ISO 8601, UTC."""
    load: float
    """Load average of the machine at the start, over one minute."""

    def write(self, claim: str, goals: Sequence[Goal], detail: Mapping[str, Any], libraries: Sequence[str]) -> None:
        """Print the goals as a table and write ``results/<name>.json``."""
        cpu = processor()
        content = {
            "claim": claim,
            "command": f"python -m benchmarks.{self.name}",
            "arguments": list(self.arguments),
            "commit": self.commit,
            "changed_during_run": changed_files() if _commit() == self.commit else [f"now at {_commit()}"],
            "started_at": self.started_at,
            "machine": {
                "cpu": cpu.name,
                "cores": os.cpu_count(),
                "flags": list(cpu.flags),
                "load": {"start": self.load, "end": os.getloadavg()[0]},
            },
            "versions": {library: version(library) for library in ("stillhouse", *libraries)},
            "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
            "detail": detail,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print_goals(claim, goals)


def begin(name: str, *, writes_result: bool) -> Run:
    """Record the commit, the arguments and the load before the measurement starts.

    :param writes_result: whether the run will write a result file. If so, the working tree must equal the commit, apart
        from results and generated pages, so that others can check out the measured code.
    :raises SystemExit: if the working tree has other changes.
    """
    commit = _commit()
    if writes_result and (changed := ["no git repository"] if commit == UNKNOWN else changed_files()):
        raise SystemExit(
            f"the result of benchmarks.{name} would belong to no commit: {', '.join(changed[:5])}"
            f"{' and more' if len(changed) > 5 else ''}. Commit or stash the changes, or measure with --quick, "
            "which writes nothing"
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(name, _without_folders(sys.argv[1:]), commit, now, os.getloadavg()[0])


def _without_folders(arguments: Sequence[str]) -> tuple[str, ...]:
    """The arguments, with paths cut to their last part: results are published, and folders are private."""
    return tuple(Path(argument).name if os.sep in argument else argument for argument in arguments)


def changed_files() -> list[str]:
    """Changed and untracked files, apart from results and generated pages."""
    excluded = (f":(top,exclude){path}" for path in GENERATED)
    status = _git("status", "--porcelain", "--", ":/", *excluded)
    return [line[3:] for line in status.splitlines()]


def print_goals(claim: str, goals: Sequence[Goal]) -> None:
    """Print the goals as a table."""
    table = Table("goal", "", "measured", "lowest", "highest", "", title=claim)
    for goal in goals:
        sign = "≥" if goal.better == "higher" else "≤"
        table.add_row(
            goal.name,
            f"{sign} {goal.goal:g}",
            f"{goal.measured:.4g}",
            f"{goal.low:.4g}",
            f"{goal.high:.4g}",
            "[green]met[/green]" if goal.met else "[red]missed[/red]",
        )
    Console(width=120).print(table)


UNKNOWN = "unknown"


def _commit() -> str:
    return _git("rev-parse", "--short", "HEAD").strip() or UNKNOWN


def _git(*arguments: str) -> str:
    completed = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    return completed.stdout
