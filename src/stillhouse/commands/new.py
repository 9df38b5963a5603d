"""``stillhouse new``: begin an agent from a tested example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.output import console
from stillhouse.shown import escape_line

__all__ = ["new"]


def _complete_example(incomplete: str) -> list[str]:
    """The examples that begin with ``incomplete``, for the completion of a shell."""
    from stillhouse.new_agent import list_examples

    return [name for name in list_examples() if name.startswith(incomplete)]


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the new agent, such as tickets")],
    like: Annotated[
        str,
        typer.Option(
            metavar="EXAMPLE",
            help="the example to begin from, such as flights (a table) or router (texts); docs/tutorial/agents.md "
            "lists them all",
            autocompletion=_complete_example,
        ),
    ] = "flights",
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="where the files are written, together; by default the folder of agent files, agents/",
        ),
    ] = None,
) -> None:
    """Begin an agent: write its agent file, its Python and a test, as copies of an example that runs.

    The Python lies beside the agent file and is found there, from any working
    directory. Nothing is overwritten.

    For example:

        stillhouse new tickets --like flights
        stillhouse check tickets
        pytest agents/test_tickets.py
    """
    from stillhouse.new_agent import copy_example

    agents = config.agents_folder()
    files = copy_example(name, like, _shorten(agents) if folder is None else folder)
    for file in files:
        console.done(escape_line(str(file)))
    is_found = files[0].parent.resolve() == agents
    console.print(f"next: stillhouse check {name if is_found else escape_line(str(files[0]))}")


def _shorten(folder: Path) -> Path:
    """The folder relative to the working directory, if it lies below."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
