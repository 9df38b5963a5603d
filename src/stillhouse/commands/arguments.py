"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse import config
from stillhouse.version import __version__

__all__ = ["AGENT_HELP", "AgentName", "AgentNames", "AsJson", "complete_agent", "show_version"]

AGENT_HELP = "name of an agent file in agents/, such as flights, or its path"


def complete_agent(incomplete: str) -> list[str]:
    """The names of the agent files that begin with ``incomplete``, for the completion of a shell."""
    return sorted(path.stem for path in config.agents_folder().glob("*.yaml") if path.stem.startswith(incomplete))


AgentName = Annotated[
    str,
    typer.Argument(metavar="AGENT", help=AGENT_HELP, parser=config.choose_agent, autocompletion=complete_agent),
]
AgentNames = Annotated[
    list[str],
    typer.Argument(
        metavar="AGENT...",
        help="names of agent files in agents/, such as flights, or their paths, all in one folder",
        parser=config.choose_agent,
        autocompletion=complete_agent,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def show_version(wanted: bool) -> None:
    """Print the version and end the command, if the option ``--version`` was given."""
    if wanted:
        typer.echo(f"stillhouse {__version__}")
        raise typer.Exit
