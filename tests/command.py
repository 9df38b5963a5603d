"""Runs the command `stillhouse` as a person does, in this process: torch, MLflow and Prefect are imported once."""

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
    """What a command said."""

    returncode: int
    stdout: str
    stderr: str


def command(home: Path, agents: Path, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> Command:
    """``run("status", "toy")`` with a ``STILLHOUSE_HOME`` and ``STILLHOUSE_AGENTS`` of its own, from the root."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_TRACKING"))]:
        patch.delenv(name)
    for name, value in {
        "STILLHOUSE_HOME": home,
        "STILLHOUSE_AGENTS": agents,
        "HOME": home.parent,
    }.items():
        patch.setenv(name, str(value))
    patch.setattr(cli.console, "_width", 160)  # what rich read of COLUMNS when it was made
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
            finally:  # the command sets the embedded defaults
                for name in os.environ.keys() - before.keys():
                    del os.environ[name]
        return Shown(code, *captured.readouterr())

    return run
