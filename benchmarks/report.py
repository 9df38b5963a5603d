"""What every benchmark writes down: its claim, the machine, the versions, and each goal with what was measured."""

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
"""Of the repository: what results and pages are written into, and what therefore may differ from the commit."""


@dataclass(frozen=True)
class Goal:
    """A figure to be reached, its median over the repeats, and their lowest and highest."""

    name: str
    goal: float
    better: Literal["higher", "lower"]
    measured: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        """Whether the median reaches the goal."""
        return self.measured >= self.goal if self.better == "higher" else self.measured <= self.goal


@dataclass(frozen=True)
class Run:
    """One run of a benchmark, with what must be known from its start."""

    name: str
    arguments: tuple[str, ...]
    """Of the command line, as they were given."""
    commit: str
    started_at: str
    """ISO 8601, UTC."""
    load: float
    """Processes that ran or waited to run on the machine at the start, mean over a minute."""

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
    """Note the commit, the arguments and the load before anything is measured.

    :param writes_result: whether the run will write a result. If so, the tree must be as it was committed, apart from
        results and generated pages: a figure belongs to a commit that others can check out.
    :raises SystemExit: if it is not.
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
    """The arguments, of paths only the last part: results are published, and folders are somebody's own."""
    return tuple(Path(argument).name if os.sep in argument else argument for argument in arguments)


def changed_files() -> list[str]:
    """Files that differ from the commit or that git does not know, apart from results and generated pages."""
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
