"""``stillhouse tasks``: the closed questions that came through the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.commands.arguments import AsJson
from stillhouse.commands.output import console, format_number, print_json
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.gateway.tasks import TaskReport, TaskSummary

__all__ = ["tasks"]


def tasks(
    last: Annotated[int, typer.Option(min=1, help="how many of the most frequent tasks to show")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the tasks that came through the front door: how often, which answers, what they cost, how long they took.

    A task is a closed question that recurs. `stillhouse serve --upstream`
    records its requests; see docs/how-to/front-door.md. Prices of models are in
    STILLHOUSE_HOME/gateway/gateway.yaml.
    """
    report = _read_report()
    if as_json:
        print_json(report)
        return
    if not report.tasks:
        console.print("no tasks yet: send a language model's requests through `stillhouse serve --upstream URL`")
    else:
        _show(report.tasks[:last])
        if len(report.tasks) > last:
            console.print(f"and {len(report.tasks) - last} more: --last shows more")
    for what, text in (("captures", "records"), ("unrecognised", "passed on unrecorded")):
        counts = {name.partition(":")[2]: count for name, count in report.counts.items() if name.startswith(f"{what}:")}
        if counts:
            listed = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
            console.print(f"{text}: {listed}")


def _read_report() -> TaskReport:
    from stillhouse.gateway.settings import load_settings
    from stillhouse.gateway.store import GatewayStore, store_path
    from stillhouse.gateway.tasks import TaskReport

    if not GatewayStore.exists():
        return TaskReport(tasks=(), counts={})
    store = GatewayStore(store_path())
    try:
        return TaskReport(tasks=tuple(store.tasks(load_settings().prices)), counts=store.counts())
    finally:
        store.close()


def _show(summaries: tuple[TaskSummary, ...]) -> None:
    has_money = any(summary.money is not None for summary in summaries)
    compares = any(summary.compared for summary in summaries)
    optional = (["money"] if has_money else []), (["agreed"] if compares else [])
    numbers = ("requests", "local", *optional[1], "answers", "tokens", *optional[0], "p50 (ms)")
    table = Table("task", "model", *numbers)
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for summary in summaries:
        task, closed = summary.task, "" if summary.is_closed else ", not closed"
        actions = f" of {len(task.actions)}" if task.actions else ""
        table.add_row(
            (task.key if task.name is None else f"{task.key} {escape_line(task.name)}") + closed,
            escape_line(task.model),
            f"{summary.requests:,}",
            f"{summary.answered_locally:,}",
            *([f"{summary.agreed:,} of {summary.compared:,}"] if compares else []),
            f"{summary.answers:,}{actions}",
            f"{summary.input_tokens:,} + {summary.output_tokens:,}",
            *([format_number(summary.money)] if has_money else []),
            format_number(summary.median_ms),
        )
    console.print(table)
