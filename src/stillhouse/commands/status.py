"""``stillhouse status``: the champion, the versions, the knowledge base and the teacher costs of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, format_number, format_percent, print_json
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.agent_status import AgentStatus
    from stillhouse.gateway.savings import DoorStatus
    from stillhouse.records import Spending

__all__ = ["show_spending", "status"]


def status(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=0, help="how many of the newest versions to show")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show who is champion, since when and why, and whether it is still good.

    Then the newest versions, the rows of the knowledge base, the cost of the
    teachers, and problems. With --json everything is printed, all versions too.
    """
    from stillhouse.agent_status import read_status

    settings = config.load(agent)
    with console.status("asking MLflow"):
        read = read_status(settings)
    if as_json:
        print_json(read)
        return
    _show_champion(read)
    if read.promise is not None:
        promised = f"{100 * read.promise.promise.agreement:g} % agreement with the teacher"
        console.print(f"promise of {promised} ({read.promise.champion}): {escape_line(read.promise.why)}")
    if read.door is not None:
        _show_door(read.door)
    for problem in read.problems:
        console.print(f"problem: {escape_line(problem)}", soft_wrap=True)
    _show_versions(read, last)
    counts = ", ".join(f"{count:,} {settings.words.say(name)}" for name, count in read.tables.items())
    console.print(f"knowledge base {read.folder}: {counts or 'empty'}")
    console.print(f"spools on this machine: {read.rows_in_spools:,} rows wait for the knowledge base")
    show_spending(read.spent, read.spent_today)


def _show_champion(read: AgentStatus) -> None:
    """Who is champion, since when, why, and is it still good? A sentence each."""
    champion, watch, agent = read.champion, read.last_watch, read.agent
    if champion is None:
        missing = "champion" if read.versions else "models"
        advice = f"fill its knowledge base (python -m flows live), then python -m flows refresh --agent {agent}"
        console.print(f"agent {agent!r} has no {missing} yet: {advice} --trigger bootstrap")
    else:
        since = f"since {champion.since:%Y-%m-%d %H:%M}" if champion.since else "; no verdict says since when"
        console.print(f"{champion.model} is champion {since}".replace(" ;", ";"), style="bold")
        if champion.why:
            console.print(f"why: {escape_line(champion.why)} (verdict {champion.verdict_id})")
        judged: str = "not watched since then" if champion.still_good == "not known" else champion.still_good
        if watch is not None and champion.still_good != "not known":
            judged += f", by the watch of {watch.as_of:%Y-%m-%d %H:%M}: {watch.result.replace('_', ' ')}"
        console.print(f"still good: {judged}")
    if read.challenger:
        console.print(
            f"{read.challenger} waits for approval: python -m flows promote --agent {agent} --action approve, or reject"
        )
    if watch is not None:
        console.print(f"last watch, {watch.as_of:%Y-%m-%d %H:%M}: {escape_line(watch.summary)}")
    if read.description:
        console.print(f"{agent}: {escape_line(read.description)}")


_STANDINGS = {
    "recording": "records, as there is no champion",
    "shadow": "is in shadow: what the champion would say is compared, nothing is answered",
    "answering": "lets the champion answer where it may",
}


def _show_door(door: DoorStatus) -> None:
    """What the front door does with the agent's task, and how much of it was answered locally of late."""
    lately = "no requests in the last 7 days"
    if door.share is not None:
        lately = f"{format_percent(door.share)} of {door.requests:,} requests answered locally in the last 7 days"
    console.print(f"front door, task {door.task}: {_STANDINGS[door.standing]}; {lately}")


def _show_versions(read: AgentStatus, last: int) -> None:
    """The newest ``last`` versions and those with an alias; the refresh of each where the terminal has room for it."""
    from stillhouse.quality import measure_title

    if not read.versions or not last:
        return
    is_wide = console.width >= 100
    title, same_rows = measure_title(read.measure), read.same_rows
    headings = ["version", "alias", "variant", f"{title}, same rows", f"{title}, own rows", "bytes", "p50 (ms)"]
    table = Table(*headings, *(["refresh"] if is_wide else []))
    for column in table.columns[3:7]:
        column.justify = "right"
    shown = [version for index, version in enumerate(read.versions) if index < last or version.aliases]
    for version in shown:
        table.add_row(
            version.version,
            ", ".join(version.aliases),
            version.variant,
            format_number(same_rows.quality_of(f"{read.agent}@{version.version}") if same_rows else None),
            format_number(version.figure(read.measure)),
            f"{version.bytes:,}",
            format_number(version.p50_ms),
            *([version.refresh_id] if is_wide else []),
        )
    console.print(table)
    if same_rows is not None:
        rows = f"{same_rows.rows:,} rows of {same_rows.window.dates}"
        console.print(f"same rows: {rows}; figures on a version's own test window are not comparable")
    if len(read.versions) > len(shown):
        console.print(f"and {len(read.versions) - len(shown)} older versions: --last shows more")


def show_spending(spent: Mapping[str, Spending], today: Mapping[str, Spending]) -> None:
    """Print what each teacher has cost, today (UTC) and in all; nothing if no teacher was queried."""
    if not spent:
        return
    table = Table("teacher", "", *("calls", "rows", "tokens in", "tokens out", "seconds", "money"))
    for column in table.columns[2:]:
        column.justify = "right"
    for name, total in spent.items():
        for period, cost in (("today", today.get(name)), ("in all", total)):
            if cost is not None:
                table.add_row(
                    name if period == "today" or name not in today else "",
                    period,
                    f"{cost.calls:,}",
                    f"{cost.rows:,}",
                    f"{cost.input_tokens:,}",
                    f"{cost.output_tokens:,}",
                    f"{cost.seconds:,.1f}",
                    f"{cost.money:,.4f}",
                )
    console.print(table)
