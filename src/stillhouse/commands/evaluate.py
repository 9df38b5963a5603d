"""``stillhouse evaluate``: score champion, previous champion and teacher on files of rows with outcomes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, format_number, print_json
from stillhouse.errors import ConfigError
from stillhouse.shown import escape_line
from stillhouse.terminal import Console, Table

if TYPE_CHECKING:
    from stillhouse.evaluating import Contestant, LabelledRows
    from stillhouse.records import EvaluatedModel, Evaluation, IntervalEstimate, Words

__all__ = ["evaluate"]


def evaluate(
    agent: AgentName,
    files: Annotated[list[Path], typer.Argument(help="CSV, JSON lines (both also .gz) or Parquet")],
    outcome: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="column of the true action; by default importing.outcome.action, else outcome"
        ),
    ] = None,
    version: Annotated[
        list[int] | None, typer.Option(min=1, help="score this version of the agent, too; may be repeated")
    ] = None,
    include_trained: Annotated[
        bool,
        typer.Option(
            "--include-trained",
            help="score also the rows of the time that the models were trained on; their figures are then too good",
        ),
    ] = False,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="score the champion's teacher, too")] = True,
    max_cost: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="the most that the teacher may cost, in the currency of its prices; without it you are asked first; "
            "0: only stored answers",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.51, max=0.999, help="confidence of the intervals")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Score an agent's models on files of rows with outcomes.

    The champion, the previous champion and the champion's teacher are scored in
    the measure that the agent file names, with an interval, and in accuracy. Each
    is compared with the champion on the same rows. The files are read as by
    `stillhouse import`; unusable lines are named, and nothing is imported.

    Rows of the time that a model was trained on are left out.

    For example:

        stillhouse evaluate flights december.csv
        stillhouse evaluate flights test.parquet --outcome arrived --version 5
    """
    from stillhouse import evaluating

    settings, progress = config.load(agent), Console(stderr=True)
    with progress.status("reading"):
        labelled = evaluating.read_labelled_rows(settings, files, outcome)
    with progress.status("asking MLflow"):
        contestants = evaluating.choose_contestants(settings, version or ())
        if not include_trained:
            labelled = evaluating.leave_out_trained(labelled, contestants)
    with_teacher = teacher and _accept_price(labelled, contestants[0], max_cost)
    with progress.status("scoring") as status:
        evaluation = evaluating.evaluate(
            settings,
            labelled,
            contestants,
            max_cost=max_cost,
            with_teacher=with_teacher,
            confidence=confidence,
            on_model=lambda name: status.update(f"scoring {name}"),
        )
    if as_json:
        print_json(evaluation)
    else:
        _show(evaluation, settings.words)


def _accept_price(labelled: LabelledRows, champion: Contestant, max_cost: float | None) -> bool:
    """Whether the teacher may be asked; a person is asked before it costs money.

    :raises ConfigError: if it would cost money, there is no limit, and nobody can be asked.
    """
    from stillhouse.evaluating import price_teacher

    price = price_teacher(labelled, champion)
    if max_cost is not None or not price.money:
        return True
    question = f"the teacher's answers to {price.rows:,} rows may cost up to {price.money:,.4g}"
    if not sys.stdin.isatty():
        raise ConfigError(f"{question}: allow it with --max-cost, or leave the teacher out with --no-teacher")
    return typer.confirm(f"{question}. Ask it?", err=True)


def _show(evaluation: Evaluation, words: Words) -> None:
    from stillhouse.quality import measure_title

    for problem in evaluation.problems:
        console.print(escape_line(problem), soft_wrap=True)
    if evaluation.unusable > len(evaluation.problems):
        console.print(f"and {evaluation.unusable - len(evaluation.problems):,} more unusable lines")
    share = f"{evaluation.confidence:.4g}"
    interval = f"{float(share) * 100:g} % interval"
    title = f"{measure_title(evaluation.measure)} {evaluation.unit}".rstrip()
    headings = ("model", "rows", title, interval, words.accuracy, "difference", interval)
    table = Table(*headings, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[3].no_wrap = table.columns[6].no_wrap = True
    for model in evaluation.models:
        difference = model.difference
        table.add_row(
            _name(model),
            f"{model.rows:,}",
            format_number(model.quality.value),
            _format_interval(model.quality),
            f"{model.accuracy:.2%}",
            "" if difference is None else f"{difference.value:+.4f}",
            "" if difference is None else _format_interval(difference, signed=True),
        )
    console.print(table)
    for model in evaluation.models:
        if model.role != "champion":
            console.print(f"{_name(model)}: {_judge(model.difference)}", soft_wrap=True)
    console.print(
        f"{evaluation.rows_read:,} rows read: {evaluation.rows:,} scored, {evaluation.unusable:,} unusable, "
        f"{evaluation.without_outcome:,} {words.say('without an outcome')}, {evaluation.duplicates:,} repeated, "
        f"{evaluation.trained_on:,} trained on",
        soft_wrap=True,
    )
    for note in evaluation.notes:
        console.print(f"note: {escape_line(note)}", soft_wrap=True)


def _name(model: EvaluatedModel) -> str:
    number = model.name.rpartition("@")[2]
    return "teacher" if model.role == "teacher" else f"{model.role} {number}"


def _format_interval(estimate: IntervalEstimate, *, signed: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return "too few rows"
    if signed:
        return f"{estimate.low:+.4f} … {estimate.high:+.4f}"
    return f"{format_number(estimate.low)} … {format_number(estimate.high)}"


def _judge(difference: IntervalEstimate | None) -> str:
    """What the difference to the champion proves."""
    if difference is None or difference.low is None or difference.high is None:
        return "not compared with the champion: too few rows"
    if difference.low > 0:
        return f"better than the champion, by {difference.low:.4f} at least"
    if difference.high < 0:
        return f"worse than the champion, by {-difference.high:.4f} at least"
    return "no difference to the champion is proven"
