"""``stillhouse check``: check an agent file before anything depends on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AGENT_HELP, complete_agent
from stillhouse.commands.output import console

__all__ = ["check"]


def check(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help=AGENT_HELP, autocompletion=complete_agent)],
    rows: Annotated[
        int | None, typer.Option(min=100, max=100_000, help="rows of the short pass; by default 1000, or 250 for texts")
    ] = None,
) -> None:
    """Check an agent file: its keys, the objects that it names, and one short pass through each of them."""
    from stillhouse.rehearsal import rehearse

    settings = _load_settings(agent)
    console.done(f"{settings.file}: keys, units and ranges")
    for step in rehearse(settings, rows):
        console.done(step)
    console.print(f"agent {settings.agent} is ready")


def _load_settings(agent: str) -> config.AgentConfig:
    """Load an agent file by name or by path; if both exist, by name."""
    file = config.agents_folder() / f"{agent}.yaml"
    if re.fullmatch(r"[\w-]+", agent) and (file.is_file() or not Path(agent).is_file()):
        return config.load(agent)
    return config.load_file(Path(agent))
