"""``stillhouse teachers``: the weights of an agent's teachers, and their changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, format_percent, print_json
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.records import Contradictions, TeacherReport

__all__ = ["teachers"]


def teachers(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=0, help="how many changes of the weights to show")] = 10,
    contradictions: Annotated[
        bool,
        typer.Option("--contradictions", help="also show where the champion and its teachers contradict each other"),
    ] = False,
    within: Annotated[
        str, typer.Option(metavar="DURATION", help="of the observations of which time, such as 7d")
    ] = "28d",
    examples: Annotated[int, typer.Option(min=0, help="how many rows to show of each contradiction")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the weight of each of an agent's teachers, the slices where it differs, and why it changed.

    With --contradictions also for whoever writes rules: where the champion, which has learned from outcomes, decides
    otherwise than its teachers, which of them the outcomes support, and examples. Nothing is written.
    """
    with console.status("asking MLflow"):
        report = _read_report(agent, last)
        if contradictions:
            report = report.model_copy(update={"contradictions": _read_contradictions(agent, within, examples)})
    if as_json:
        print_json(report)
    else:
        _show(report)


def _read_report(agent: str, last: int) -> TeacherReport:
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.records import TeacherReport, TeacherShare
    from stillhouse.registry import Registry
    from stillhouse.teachers.ensemble import read_reference, read_weights
    from stillhouse.teachers.weight_updates import current_weights

    settings, registry = config.load(agent), Registry(agent)
    champion = registry.champion()
    folder = registry.models.fetch(registry.baseline(champion).teacher) if champion else None
    mixture, version = (read_weights(folder), read_reference(folder).version) if folder else (None, "")
    changes = KnowledgeBase(settings).journal.weight_changes()
    now = current_weights(
        mixture, [change for change in changes if change.version == version and change.job == "watch"]
    )
    return TeacherReport(
        agent=agent,
        teachers=tuple(
            TeacherShare(
                teacher=member.name,
                kinds=tuple(dict.fromkeys(leaf.teacher.kind for leaf in member.leaves)),
                by_file=member.share,
                now={name: share for (name, teacher), share in now.items() if teacher == member.name},
            )
            for member in config.weighted_teachers(settings)
        ),
        changes=tuple(changes[-last:] if last else ()),
    )


def _read_contradictions(agent: str, within: str, examples: int) -> Contradictions:
    from stillhouse.config.base import parse_duration
    from stillhouse.errors import ConfigError
    from stillhouse.student_contradictions import read_contradictions

    try:
        period = parse_duration(within)
    except ValueError as error:
        raise ConfigError(f"--within: {error}") from error
    return read_contradictions(config.load(agent), period, examples=examples)


def _show(report: TeacherReport) -> None:
    """The weights as a table, with a column for each slice where they differ, and a line for each change."""
    slices = sorted({name for share in report.teachers for name in share.now if name and _differs(share.now, name)})
    table = Table("teacher", "kind", "by the agent file", "now", *slices)
    for share in report.teachers:
        shares = (format_percent(share.now.get(name)) for name in ("", *slices))
        table.add_row(share.teacher, ", ".join(share.kinds), f"{share.by_file:.1%}", *shares)
    console.print(table)
    if not any(share.now for share in report.teachers):
        console.print("the champion's teachers have the weights of the agent file")
    if report.contradictions is not None:
        _show_contradictions(report.contradictions)
    for change in report.changes:
        where = f" on {change.slice}" if change.slice else ""
        text = f"{change.as_of:%Y-%m-%d %H:%M}  {change.teacher}{where}: {change.before:.1%} → {change.after:.1%}"
        console.print(escape_line(text), soft_wrap=True)
        console.print_indented(change.reason, 4)


def _show_contradictions(contradictions: Contradictions) -> None:
    """A line for each comparison, and its examples below it."""
    console.print(f"\ncontradictions, {contradictions.window.dates}:")
    for c in contradictions.contradictions:
        if not c.contradicting:
            continue
        rows = f"{c.contradicting:,} of {c.rows:,} rows ({c.share:.1%})"
        right = f"of {c.known:,} outcomes {c.first_right:,} are as {c.first} says, {c.second_right:,} as {c.second}"
        console.print(escape_line(f"{c.slice or f'{c.first} and {c.second}'}: {rows}; {right}"), soft_wrap=True)
        for example in c.examples:
            values = ", ".join(f"{name} {value}" for name, value in example.values.items())
            outcome = f", outcome {example.outcome}" if example.outcome is not None else ""
            line = (
                f"{c.first} {example.first}, {c.second} {example.second}{outcome}: {values} ({example.observation_id})"
            )
            console.print_indented(escape_line(line), 4)


def _differs(shares: Mapping[str, float], name: str) -> bool:
    """Whether the weight in the slice ``name`` differs from that on all rows by a percentage point or more."""
    return abs(shares[name] - shares.get("", shares[name])) >= 0.01
