"""``stillhouse forget``: remove a request's or a person's rows from everything that holds them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, print_json
from stillhouse.errors import ConfigError
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.records import ForgetReport

__all__ = ["forget"]


def forget(
    agent: AgentName,
    ids: Annotated[list[str] | None, typer.Option("--id", help="an observation id; may be repeated")] = None,
    decisions: Annotated[
        list[str] | None, typer.Option("--decision", help="a decision id: the observation that it was about")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="COLUMN=VALUE", help="all observations with that value in that column, such as user=ann"
        ),
    ] = None,
    callers: Annotated[
        list[str] | None, typer.Option("--caller", metavar="HASH", help="the keyed hash of a caller's credential")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="remove nothing; show what would be removed")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before removing")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a request's or a person's rows, and name the models that learned from them.

    They go from the spools, from all tables with their old versions, from the
    teachers' answers, caches, data docs, and from the examples and pages in MLflow.
    Rows that any of the options selects are removed. Models are not changed: make a
    new one and delete those that are named. A run that was killed is completed by
    the next one, also by the command without options.

    For example:

        stillhouse forget flights --id 2013-01-01/UA1545 --dry-run
        stillhouse forget support --where user=ann --yes
    """
    from stillhouse.forgetting.run import forget as carry_out
    from stillhouse.forgetting.run import preview
    from stillhouse.knowledge import forget_requests
    from stillhouse.records import ForgetRequest

    request = ForgetRequest(
        ids=tuple(ids or ()),
        decisions=tuple(decisions or ()),
        where=tuple(map(_condition, where or ())),
        callers=tuple(callers or ()),
    )
    unfinished = forget_requests.pending(agent)
    if not request.is_empty or not unfinished or dry_run:
        found = preview(agent, request)
        if dry_run or not (found.observations or found.rows):
            _show(found, as_json)
            return
        if not yes:
            _ask(found)
    with console.status("") as status:
        report = carry_out(agent, request, lambda place: status.update(f"cleaning {place}"))
    _show(report, as_json)
    if report.problems or report.left:
        raise typer.Exit(1)


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column:
        raise ConfigError(f"--where {text}: write a column, = and a value, such as user=ann")
    return column, value


def _ask(found: ForgetReport) -> None:
    """:raises ConfigError: if nobody can be asked."""
    question = f"{found.observations:,} observations of {found.agent} would be removed for ever"
    if not sys.stdin.isatty():
        raise ConfigError(f"{question}: allow it with --yes, or look with --dry-run")
    typer.confirm(f"{question}. Remove them?", abort=True, err=True)


def _show(report: ForgetReport, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for earlier in report.completed:
        console.print(f"completed the request {earlier}")
    if not report.observations and not report.rows:
        console.print(f"agent {report.agent!r} has no such row")
        return
    done = "would be forgotten" if report.dry_run else "forgotten"
    console.print(f"{done}: {report.observations:,} observation{'s' * (report.observations != 1)}")
    table = Table("place", "rows")
    for place, rows in report.rows.items():
        table.add_row(place, f"{rows:,}")
    console.print(table)
    for name, how in report.learned.items():
        console.print(f"{name} learned from them: {how}", soft_wrap=True)
    if report.learned:
        console.print(
            "a model keeps what it learned: refresh the agent, then delete these versions in MLflow", soft_wrap=True
        )
    for problem in report.problems:
        console.print(escape_line(problem), soft_wrap=True, style="bold")
    for path in report.left:
        console.print(f"still found in {escape_line(path)}", soft_wrap=True, style="bold")
    if not report.dry_run and not report.left:
        console.print("no file of the home shows their ids or texts any more", soft_wrap=True)
