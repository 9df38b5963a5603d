"""What every benchmark writes down: its claim, the machine, the versions, and each goal with what was measured."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from stillhouse.compress.processor import processor

__all__ = ["Goal", "write"]

RESULTS = Path(__file__).parent / "results"


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


def write(name: str, claim: str, goals: Sequence[Goal], detail: Mapping[str, Any], libraries: Sequence[str]) -> None:
    """Print the goals as a table and write ``results/<name>.json``."""
    cpu = processor()
    content = {
        "claim": claim,
        "command": f"python -m benchmarks.{name}",
        "commit": _commit(),
        "machine": {"cpu": cpu.name, "cores": os.cpu_count(), "flags": list(cpu.flags)},
        "versions": {library: version(library) for library in ("stillhouse", *libraries)},
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
        "detail": detail,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = Table("goal", "", "measured", "lowest", "highest", "", title=claim)
    for goal in goals:
        sign = "≥" if goal.better == "higher" else "≤"
        table.add_row(goal.name, f"{sign} {goal.goal:g}", f"{goal.measured:.4g}", f"{goal.low:.4g}", f"{goal.high:.4g}",
                      "[green]met[/green]" if goal.met else "[red]missed[/red]")  # fmt: skip
    Console(width=120).print(table)


def _commit() -> str:
    """The commit that was measured, with a plus sign where the tree had changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"
