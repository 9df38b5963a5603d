"""``stillhouse contract``: draft a data contract from observed rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.errors import ConfigError
from stillhouse.shown import escape_line

__all__ = ["contract"]


def contract(
    agent: AgentName,
    start: Annotated[datetime | None, typer.Option(help="start of the window (UTC)")] = None,
    end: Annotated[datetime | None, typer.Option(help="end of the window (UTC), not included")] = None,
    last: Annotated[
        str, typer.Option(metavar="DURATION", help="length of the window if --start or --end is not given: 12h, 8w")
    ] = "30d",
    source: Annotated[
        bool, typer.Option("--source", help="read from the agent's source even if the knowledge base has rows")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="write the draft to this new file")] = None,
) -> None:
    """Draft an agent's data contract from observed rows, for you to edit.

    Prints the `observations:` section of the agent file, with the observed values
    beside each line: ranges three times as wide as observed, missing shares with a
    margin, values of categories, the longest time without a row, rows per day,
    unique combinations of columns, and columns that never exceed one another.
    Keys that the agent file sets already are kept. The agent file is not changed.

    The rows are the newest ones of the knowledge base. If it is empty, they come
    from the agent's source, from `observations.since` on. Only the source has
    columns that the agent file does not name yet: read from it with --source.

    For example:

        stillhouse contract flights
        stillhouse contract flights --last 8w --source
        stillhouse contract flights --start 2013-03-01 --output draft.yaml
    """
    from stillhouse.contract_draft import draft, load_rows

    settings = config.load(agent)
    if output is not None and output.exists():
        raise ConfigError(f"{output} exists already, and nothing is overwritten: name another file")
    rows = load_rows(settings, _to_utc(start), _to_utc(end), _parse_duration(last), from_source=source)
    text = draft(rows, settings)
    if output is None:
        print(text, end="")
        return
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    console.done(f"{escape_line(output)}: edit it, then replace `observations` in the agent file by it")


def _parse_duration(text: str) -> timedelta:
    try:
        return config.parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--last") from error


def _to_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None
