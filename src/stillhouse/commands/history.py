"""``stillhouse history``: the verdicts about an agent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.records import RealisedGain, Verdict
from stillhouse.terminal import Table

__all__ = ["history"]


def history(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=1, help="how many verdicts to show")] = 50,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="show the reasons of each verdict, with their numbers")
    ] = False,
) -> None:
    """List the verdicts about an agent: watches, gates, promotions and roll-backs, oldest first.

    A new champion's gain a week over the replaced one stands beside the gain that was predicted.
    """
    from stillhouse.knowledge import KnowledgeBase

    verdicts = KnowledgeBase(config.load(agent)).journal.verdicts()[-last:]
    if not verdicts:
        console.print(f"nothing has been decided about agent {agent!r} yet")
        return
    gains = _read_gains(agent)
    columns = ("predicted", "realised") if gains else ()
    table = Table("as of", "kind", "result", "summary", *columns, "verdict")
    for verdict in verdicts:
        table.add_row(
            f"{verdict.as_of:%Y-%m-%d %H:%M}",
            verdict.kind,
            verdict.result.replace("_", " "),
            verdict.summary,
            *(_format_gain(verdict, gains) if gains else ()),
            verdict.verdict_id,
        )
        for reason in verdict.reasons if reasons else ():
            table.add_row("", "", reason.status, reason.text, *[""] * len(columns), "")
    console.print(table)


def _read_gains(agent: str) -> dict[datetime, RealisedGain]:
    """What each change of the champion gained, by its time; empty if no pool was scored yet."""
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.watching.payoff import realised_gains

    base = KnowledgeBase(config.load(agent))
    if base.tables.open("scores") is None:
        return {}
    return {gain.as_of: gain for gain in realised_gains(base)}


def _format_gain(verdict: Verdict, gains: Mapping[datetime, RealisedGain]) -> tuple[str, str]:
    """Predicted and realised gain a week of a change of the champion, in points of the named measure."""
    gain = gains.get(verdict.as_of)
    if gain is None or verdict.kind == "watch" or verdict.result not in ("promoted", "rolled_back"):
        return "", ""
    predicted = "" if gain.predicted is None else f"{gain.predicted:+.4f}"
    return predicted, f"{gain.realised:+.4f} ± {gain.standard_error:.4f}"
