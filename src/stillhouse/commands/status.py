"""``stillhouse status``: the models, the knowledge base, the teacher costs and the last verdict of an agent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console, format_number
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.knowledge import KnowledgeBase

__all__ = ["show_spending", "status"]


def status(agent: AgentName) -> None:
    """Show an agent's models, its knowledge base, the cost of its teachers and its last verdict."""
    from stillhouse.knowledge import KnowledgeBase, integrity
    from stillhouse.promoting import describe_unrecorded_champion
    from stillhouse.quality import measure_title
    from stillhouse.registry import Registry

    settings = config.load(agent)
    base = KnowledgeBase(settings)
    if settings.description:
        console.print(Text.assemble((agent, "bold"), f": {escape_line(settings.description)}"))
    _show_local_state(agent)
    with console.status("asking MLflow"):
        registry = Registry(agent)
        versions, unrecorded = registry.versions(), describe_unrecorded_champion(agent)
        same_rows = registry.runs.newest_same_rows()
    if not versions:
        console.print(
            f"agent {agent!r} has no models yet: fill its knowledge base (python -m flows live), "
            f"then python -m flows refresh --agent {agent} --trigger bootstrap"
        )
    else:
        measure = settings.quality.name
        heading, own = f"{measure_title(measure)} on the same rows", f"{measure_title(measure)} on its own test window"
        table = Table("version", "alias", "variant", heading, own, "bytes", "p50 (ms)", "refresh")
        for version in versions:
            table.add_row(
                version.version,
                ", ".join(version.aliases),
                version.variant,
                format_number(same_rows.quality_of(f"{agent}@{version.version}") if same_rows else None),
                format_number(version.figure(measure)),
                f"{version.bytes or 0:,}",
                format_number(version.p50_ms),
                version.refresh_id,
            )
        console.print(table)
        if same_rows is not None:
            rows = f"{same_rows.rows:,} rows of {same_rows.window.dates}"
            console.print(f"the same rows: {rows}; figures of versions on their own test windows are not comparable")
    if unrecorded:
        console.print(f"problem: {escape_line(unrecorded)}", soft_wrap=True)
    counts = ", ".join(f"{count:,} {name}" for name, count in base.tables.count_rows().items())
    console.print(f"knowledge base {base.root}: {counts or 'empty'}")
    for problem in integrity.find_problems(base.tables):
        console.print(f"problem: {problem}", soft_wrap=True)
    show_spending(base)
    watch_verdicts = base.journal.verdicts("watch")
    if watch_verdicts:
        last = watch_verdicts[-1]
        console.print(f"last watch, {last.as_of:%Y-%m-%d %H:%M}: {last.summary}")


def show_spending(base: KnowledgeBase) -> None:
    """Print what each teacher has cost, today (UTC) and in total; nothing if no teacher was queried."""
    totals = base.answers.spending()
    if not totals:
        return
    today = base.answers.spending(asked_since=datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    table = Table("teacher", "", *("calls", "rows", "tokens in", "tokens out", "seconds", "money"))
    for name, total in totals.items():
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


def _show_local_state(agent: str) -> None:
    """Print how many rows wait in the spools of this machine, and the agent's current problems here."""
    from stillhouse.knowledge.spool import spool_folder, survey
    from stillhouse.serving.reports import read_local_problems

    spools = survey(spool_folder(agent))
    console.print(f"spools on this machine: {spools.rows:,} rows wait for the knowledge base")
    problems = [f"spool: {problem}" for problem in spools.problems]
    problems += [
        f"{side}: {problem.text}"
        for side, problem in read_local_problems(agent).items()
        if problem.over_at is None and side != "spool"
    ]
    for problem in problems:
        console.print(f"problem: {problem}", soft_wrap=True)
