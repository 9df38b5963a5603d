"""``stillhouse history``: the verdicts about an agent."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.terminal import Table

__all__ = ["history"]


def history(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=1, help="how many verdicts to show")] = 50,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="show the reasons of each verdict, with their numbers")
    ] = False,
) -> None:
    """List the verdicts about an agent: watches, gates, promotions and roll-backs, oldest first."""
    from stillhouse.knowledge import KnowledgeBase

    verdicts = KnowledgeBase(config.load(agent)).journal.verdicts()[-last:]
    if not verdicts:
        console.print(f"nothing has been decided about agent {agent!r} yet")
        return
    table = Table("as of", "kind", "result", "summary", "verdict")
    for verdict in verdicts:
        table.add_row(
            f"{verdict.as_of:%Y-%m-%d %H:%M}",
            verdict.kind,
            verdict.result.replace("_", " "),
            verdict.summary,
            verdict.verdict_id,
        )
        for reason in verdict.reasons if reasons else ():
            table.add_row("", "", reason.status, reason.text, "")
    console.print(table)
