"""``stillhouse timeline``: an agent's life as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.errors import ConfigError
from stillhouse.shown import escape_line

__all__ = ["timeline"]


def timeline(
    agent: AgentName,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="PNG, SVG or PDF to write; default: timeline-AGENT.png", dir_okay=False),
    ] = None,
) -> None:
    """Draw an agent's life: champions, quality, evidence of drift, responses, and what these gained."""
    from stillhouse.evaluate.timeline import plot_timeline
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.watching.timeline import read_timeline

    path = file or Path(f"timeline-{agent}.png")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--file {str(path)!r}: the name must end in .png, .svg or .pdf")
    figure = plot_timeline(read_timeline(KnowledgeBase(config.load(agent))))
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"--file {str(path)!r} cannot be written: {error.strerror}") from error
    console.print(escape_line(path), soft_wrap=True, markup=False, highlight=False)
