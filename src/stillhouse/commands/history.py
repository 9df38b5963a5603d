"""``stillhouse history``: the verdicts about an agent."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, print_json

if TYPE_CHECKING:
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.records import HistoryEntry, RealisedGain, Verdict

__all__ = ["history"]

_CHANGES = ("promoted", "rolled_back")


def history(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=1, help="how many verdicts to show, the newest at the end")] = 50,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="show the reasons of each verdict, with their numbers")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the verdicts about an agent: watches, gates, promotions and roll-backs.

    They stand in the order in which they were decided, the newest at the end. The
    time is that of the agent's clock: a watch or refresh for an earlier time may
    come later. Under a change of the champion stands what it was predicted to gain
    a week over the replaced one, and what it has gained.
    """
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.records import History

    base = KnowledgeBase(config.load(agent))
    verdicts = base.journal.decided(last)
    gains = _read_gains(base) if verdicts else {}
    entries = [_make_entry(recorded_at, verdict, gains) for recorded_at, verdict in verdicts]
    if as_json:
        print_json(History(agent=agent, entries=tuple(entries)))
        return
    if not entries:
        console.print(f"nothing has been decided about agent {agent!r} yet")
    for entry in entries:
        _show(entry, with_reasons=reasons)


def _read_gains(base: KnowledgeBase) -> dict[datetime, RealisedGain]:
    """What each change of the champion gained, by its time; empty if no pool was scored yet."""
    from stillhouse.watching.payoff import realised_gains

    if base.tables.open("scores") is None:
        return {}
    return {gain.as_of: gain for gain in realised_gains(base)}


def _make_entry(recorded_at: datetime, verdict: Verdict, gains: dict[datetime, RealisedGain]) -> HistoryEntry:
    from stillhouse.records import HistoryEntry

    is_change = verdict.kind != "watch" and verdict.result in _CHANGES
    return HistoryEntry(
        recorded_at=recorded_at,
        gain=gains.get(verdict.as_of) if is_change else None,
        **verdict.model_dump(include=set(HistoryEntry.model_fields)),
    )


def _show(entry: HistoryEntry, *, with_reasons: bool) -> None:
    """One line that fits any terminal, and below it the summary, indented."""
    result = entry.result.replace("_", " ")
    line = f"{entry.as_of:%Y-%m-%d %H:%M}  {entry.kind:<9}  {result:<19}  {entry.verdict_id}"
    console.print(line, soft_wrap=True, style="bold" if entry.result in _CHANGES else None)
    console.print_indented(entry.summary, 4)
    if entry.gain is not None:
        predicted = "no prediction" if entry.gain.predicted is None else f"predicted {entry.gain.predicted:+.4f}"
        realised = f"realised {entry.gain.realised:+.4f} ± {entry.gain.standard_error:.4f}"
        console.print_indented(f"gain a week over {entry.gain.replaced}: {predicted}, {realised}", 4)
    for reason in entry.reasons if with_reasons else ():
        console.print_indented(f"{reason.status}: {reason.text}", 6)
