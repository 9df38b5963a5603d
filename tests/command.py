"""Run the command line `stillhouse` in this process, so that torch, MLflow and Prefect are imported once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from stillhouse import cli

__all__ = ["Command", "Shown", "command"]

Command = Callable[..., "Shown"]


class Shown(NamedTuple):
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def command(home: Path, agents: Path, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> Command:
    """A function ``run("status", "toy")`` with its own ``STILLHOUSE_HOME`` and ``STILLHOUSE_AGENTS``."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_TRACKING"))]:
        patch.delenv(name)
    for name, value in {
        "STILLHOUSE_HOME": home,
        "STILLHOUSE_AGENTS": agents,
        "HOME": home.parent,
    }.items():
        patch.setenv(name, str(value))
    patch.setattr(cli.console, "_width", 160)  # rich reads COLUMNS only when the console is created
    patch.chdir(Path(__file__).parent.parent)

    def run(*arguments: str | Path) -> Shown:
        captured.readouterr()
        with pytest.MonkeyPatch.context() as here:
            here.setattr("sys.argv", ["stillhouse", *map(str, arguments)])
            before = dict(os.environ)
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:  # the command sets the embedded defaults, and the folder of a given agent file
                os.environ.clear()
                os.environ.update(before)
        return Shown(code, *captured.readouterr())

    return run
