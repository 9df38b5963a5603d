"""``stillhouse new-answers``: what the teacher answers and the student was not taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, format_percent, print_json
from stillhouse.shown import escape_line

if TYPE_CHECKING:
    from stillhouse.records import NewAnswers

__all__ = ["new_answers"]


def new_answers(
    agent: AgentName,
    last: Annotated[str, typer.Option(metavar="DURATION", help="how far back to look, such as 7d")] = "7d",
    min_rows: Annotated[int, typer.Option(min=2, help="fewer similar rows are not reported")] = 5,
    out_of_scope: Annotated[
        str | None, typer.Option(metavar="ACTION", help='the action that stands for "none of these"')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show options that nobody was taught, and groups of texts that the student is unsure of and gets wrong.

    With examples and a suggested name. Nothing is learned from by itself.
    """
    from stillhouse.config.base import parse_duration
    from stillhouse.errors import ConfigError
    from stillhouse.new_answers import read_new_answers

    settings = config.load(agent)
    try:
        period = parse_duration(last)
    except ValueError as error:
        raise ConfigError(f"--last: {error}") from error
    if out_of_scope is not None and out_of_scope not in settings.actions:
        raise ConfigError(f"--out-of-scope: agent {settings.agent!r} has no action {out_of_scope!r}")
    found = read_new_answers(settings, period, min_rows=min_rows, out_of_scope=out_of_scope)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _show(found: NewAnswers) -> None:
    console.print(
        f"{found.rows:,} rows with an answer of the teacher; the student is unsure of and disagrees on {found.unsure:,}"
    )
    if not found.untaught and not found.clusters:
        console.print("no new answers")
    for answer in found.untaught:
        console.print(f"not taught: {escape_line(answer.action)}, {answer.rows:,} rows ({answer.taught} to learn from)")
        _show_examples(answer.examples)
    for cluster in found.clusters:
        most = f"the teacher answers {escape_line(cluster.action)} to {cluster.share:.0%}"
        console.print(f"unsure: {escape_line(cluster.name)}, {cluster.rows:,} similar rows; {most}")
        _show_examples(cluster.examples)
    if found.missed_out_of_scope is not None or found.false_out_of_scope is not None:
        console.print(
            f"out of scope: missed {format_percent(found.missed_out_of_scope) or 'none'}, "
            f"false {format_percent(found.false_out_of_scope) or 'none'}"
        )


def _show_examples(examples: tuple[str, ...]) -> None:
    for example in examples:
        console.print(f"  {escape_line(example)}", soft_wrap=True)
