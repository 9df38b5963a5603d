"""``stillhouse replay``: which policy would have paid on an agent's history."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config, stations
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.errors import ConfigError
from stillhouse.terminal import Console, Table, show_stations

if TYPE_CHECKING:
    from stillhouse.replay.report import ReplayReport

__all__ = ["replay", "show_report"]


def replay(
    agent: AgentName,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="never, always, every:4w, psi:0.25, adwin, page-hinkley, payoff or oracle (the best schedule in "
            "hindsight); with @script, such as every:4w@script, played with a plain script's own student. May be "
            "repeated; by default never, every:4w and payoff",
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="a further agent file to play every policy under"),
    ] = None,
    since: Annotated[datetime | None, typer.Option(help="begin (UTC); by default observations.since")] = None,
    weeks: Annotated[int | None, typer.Option(min=1, help="weeks after the first ones; by default all")] = None,
    first_weeks: Annotated[int, typer.Option(min=1, help="weeks before the first champion is trained")] = 8,
    step: Annotated[str, typer.Option(metavar="DURATION", help="time between two decisions: 1w, 1d")] = "1w",
    exchange_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="what a redistillation is worth: points of quality (1: the whole range) for one week; by default "
            "watch.payoff.exchange_rate",
        ),
    ] = None,
    from_sources: Annotated[
        bool,
        typer.Option(
            "--from-sources/--from-knowledge-base",
            help="read the functions that the agent file names, or what is stored already",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="for replay.json and replay.png; by default replay/<agent> in the home"),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="that train models; by default one a core")] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="log a run for each policy to the experiment <agent>-replay, too")
    ] = False,
) -> None:
    """Try policies on an agent's history: when to retrain, and what it would have gained.

    One student is trained for each step, on all cores, and scored on all later steps; every policy is then arithmetic
    on that table. Outcomes are used from the moment on at which they were known. Models are neither compressed nor
    judged by the gate. Nothing is written but the report.

    stillhouse replay flights --from-sources --policy never --policy every:4w --policy payoff
    """
    from stillhouse.replay.publishing import log_replay, write_report
    from stillhouse.replay.run import replay as play

    try:
        length = config.parse_duration(step)
    except ValueError as error:
        raise ConfigError(f"--step {step}: {error}") from error
    with show_stations(console, f"replay {agent}"):
        report = play(
            agent,
            policy or ["never", "every:4w", "payoff"],
            files=[config.load_file(path) for path in file or ()],
            since=since,
            weeks=weeks,
            step=length,
            first_weeks=first_weeks,
            exchange_rate=exchange_rate,
            from_sources=from_sources,
            processes=processes,
            progress=stations.report,
        )
    folder = out or config.home() / "replay" / agent
    write_report(report, folder)
    show_report(console, report)
    if mlflow:
        log_replay(report)
        console.done(f"logged to the MLflow experiment {agent}-replay")
    console.done(f"{folder}: replay.json, replay.png")


def show_report(console: Console, report: ReplayReport) -> None:
    """Print the table of the policies, without their responses where a terminal is narrow: these follow as lines."""
    from stillhouse.replay.publishing import list_headings, list_rows, summarize

    headings, rows = list_headings(report), list(list_rows(report))
    responses = headings.index("responses")
    is_wide = console.width >= 120
    shown = [index for index in range(len(headings)) if is_wide or index != responses]
    table = Table(*(headings[index] for index in shown), padding=(0, 1, 0, 0), pad_edge=False)
    for column, index in zip(table.columns, shown, strict=True):
        column.justify = "left" if index in (0, responses) else "right"
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    for row in rows if not is_wide else ():
        console.print_indented(f"{row[0]}: {row[responses]}", 2)
    console.print(summarize(report))
    console.print("total: mean log loss plus price, nats per week; less is better")
