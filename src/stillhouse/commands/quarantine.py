"""``stillhouse quarantine``: rows that broke the data contract or could not be imported."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.terminal import Table

__all__ = ["quarantine"]


def quarantine(
    agent: AgentName,
    last: Annotated[
        int,
        typer.Option("--last", "--limit", min=0, help="how many rows to show, the newest first; 0: only the counts"),
    ] = 20,
) -> None:
    """Show the rows in quarantine, newest first, and how many broke each rule.

    A row goes to quarantine if it breaks the data contract or cannot be imported;
    no student is trained on it. The section `observations` of the agent file is
    the data contract.

    For example:

        stillhouse quarantine flights
        stillhouse quarantine flights --last 100
    """
    from stillhouse.data_contract import count_by_rule
    from stillhouse.knowledge import KnowledgeBase

    base = KnowledgeBase(config.load(agent))
    rows = base.read("quarantine").drop_duplicates("observation_id", keep="last")
    if rows.empty:
        console.print(f"no row of agent {agent!r} is in quarantine")
        return
    table = Table("observed at", "observation", "reasons")
    newest = rows.iloc[::-1].head(last)
    columns = (newest[name] for name in ("observed_at", "observation_id", "reasons"))
    for observed_at, observation_id, reasons in zip(*columns, strict=True):
        table.add_row(f"{observed_at:%Y-%m-%d %H:%M}", str(observation_id), "; ".join(reasons))
    if last:
        console.print(table)
    table = Table("rows", "column", "rule")
    for (column, rule), count in count_by_rule(rows["reasons"]).items():
        table.add_row(f"{count:,}", column, rule)
    console.print(table)
    start, end = rows["observed_at"].min(), rows["observed_at"].max()
    console.print(
        f"{len(rows):,} row{'s' * (len(rows) != 1)} in quarantine, of {start:%Y-%m-%d %H:%M} to "
        f"{end:%Y-%m-%d %H:%M} UTC"
    )
