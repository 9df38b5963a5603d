"""Run a flow by hand on the embedded default: ``python -m flows watch --agent flights``.

Servers named by ``PREFECT_API_URL`` and ``MLFLOW_TRACKING_URI`` are used where set; otherwise everything is kept
under ``STILLHOUSE_HOME``, and Prefect has a server of its own for as long as the run takes.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from stillhouse import config
from stillhouse.shown import paragraphs, shown
from stillhouse.terminal import Console, Table, report_errors
from tasks.prefect_server import ensure_server, without_heartbeats

if TYPE_CHECKING:
    from stillhouse.demonstrating import DemoResult
    from stillhouse.knowledge.upkeep import UpkeepReport
    from stillhouse.records import Verdict

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run one of stillhouse's flows, here and now.",
)
console = Console()

_MALLOC = {-8: 2, -3: 2**20, -1: 2**24}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>

Agent = Annotated[str, typer.Option(help="name of an agent file in agents/")]
AsOf = Annotated[datetime | None, typer.Option(help="the moment to speak of (UTC); without it: now")]


@app.command()
def demo(
    agent: Agent = "flights",
    weeks: Annotated[
        int | None, typer.Option(min=1, max=520, help="weeks to play after the bootstrap; without it: all there are")
    ] = None,
) -> None:
    """Play an agent's history (flights: a year): drift, refreshes, promotions, and a table at the end."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")  # the table tells it better
    flow = _flow("demo", agent)

    _show_demo(flow(agent=agent, weeks=weeks))


@app.command()
def live(
    until: Annotated[datetime, typer.Argument(help="up to when (UTC), such as 2013-02-26")],
    agent: Agent = "flights",
) -> None:
    """Take what the agent's sources have, from where the knowledge base ends, and decide it by the champion."""
    flow = _flow("live", agent)

    console.print(f"{flow(agent=agent, end=until)} observations added")


@app.command()
def watch(
    agent: Agent = "flights",
    as_of: AsOf = None,
    on_drift: Annotated[Literal["announce", "refresh"], typer.Option(help="refresh: in this same run")] = "refresh",
) -> None:
    """Check the data, measure drift, decide; refresh if drift asks for it."""
    flow = _flow("watch", agent)

    _show(flow(agent=agent, as_of=as_of, on_drift=on_drift))


@app.command()
def refresh(
    agent: Agent = "flights",
    as_of: AsOf = None,
    trigger: Annotated[
        Literal["bootstrap", "drift", "manual"], typer.Option(help="recorded with the models")
    ] = "manual",
    cause: Annotated[str, typer.Option(help="who asks, and why; recorded with the models")] = "asked for by hand",
    teacher: Annotated[Literal["fit", "keep"], typer.Option(help="fit a new teacher, or keep the champion's")] = "fit",
    mode: Annotated[
        Literal["recalibrate", "update", "redistil_warm", "redistil"],
        typer.Option(
            help="the champion's ranges and confidence anew; its student takes in what is new; a new training from its "
            "weights; or from none"
        ),
    ] = "redistil",
) -> None:
    """Distil, compress and prove a challenger; the gate decides."""
    flow = _flow("refresh", agent)

    _show(flow(agent=agent, as_of=as_of, trigger=trigger, cause=cause, teacher=teacher, mode=mode))


@app.command()
def promote(
    agent: Agent = "flights",
    version: Annotated[int | None, typer.Option(min=1, help="make this version the champion")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="make the previous champion the champion again")] = False,
    reason: Annotated[str, typer.Option(help="recorded with the verdict")] = "asked for by hand",
) -> None:
    """Move the champion by hand."""
    flow = _flow("promote", agent)

    _show(flow(agent=agent, action="rollback" if rollback else "promote", version=version, reason=reason))


@app.command()
def maintain(agent: Agent = "flights", as_of: AsOf = None) -> None:
    """Flush the spools, join small files, remove old rows and files that no model needs."""
    flow = _flow("maintain", agent)

    _show_upkeep(flow(agent=agent, as_of=as_of))


def _flow(name: str, agent: str) -> Callable[..., Any]:
    """The flow ``flows.<name>.<name>``, once its agent is known to exist and Prefect has a server."""
    config.load(agent)
    server_answers = ensure_server()
    flow: Callable[..., Any] = getattr(importlib.import_module(f"flows.{name}"), name)
    server_answers()

    def by_hand(**parameters: Any) -> Any:
        with without_heartbeats():
            return flow(**parameters)

    return by_hand


def _show_upkeep(done: UpkeepReport) -> None:
    columns = (
        "table",
        "flushed\nrows",
        "files\njoined",
        "old rows\nremoved",
        "files\non the disk",
        "bytes",
        "old versions\nkept",
    )
    table = Table(*columns, title=f"{done.agent}, as of {done.as_of:%Y-%m-%d %H:%M} UTC")
    freed, removed = {each.table: each for each in done.freed}, {each.table: each.rows for each in done.removed}
    for name in dict.fromkeys([*done.flushed.rows, *(each.table for each in done.compacted), *freed]):
        joined, on_disk = [each for each in done.compacted if each.table == name], freed.get(name)
        table.add_row(
            name,
            f"{done.flushed.rows.get(name, 0):,}",
            f"{sum(each.files_before for each in joined):,} → {sum(each.files_after for each in joined):,}",
            f"{removed.get(name, 0):,}",
            f"{on_disk.files_before:,} → {on_disk.files_after:,}" if on_disk else "",
            f"{on_disk.bytes_before:,} → {on_disk.bytes_after:,}" if on_disk else "",
            f"{len(on_disk.kept)}" if on_disk else "",
        )
    console.print(table, no_wrap=True, crop=False)
    if done.nothing_removed:
        console.print(Text.assemble(("nothing was removed", "yellow"), f": {shown(done.nothing_removed)}"))
    for problem in done.flushed.problems:
        console.print(Text.assemble(("not flushed", "red"), f": {shown(problem)}"))
    for problem in done.problems:
        console.print(Text.assemble(("problem", "red"), f" with {shown(problem)}"))


def _show(verdict: Verdict) -> None:
    outcome = verdict.result.replace("_", " ")
    console.print(Text.assemble((outcome, "bold"), f": {paragraphs(verdict.summary)}"))
    table = Table("", "measure", "value", "threshold", "")
    for reason in verdict.reasons:
        value, threshold = (("" if x is None else f"{x:.4g}") for x in (reason.value, reason.threshold))
        table.add_row("crossed" if reason.failed else "held", reason.measure, value, threshold, reason.text)
    console.print(table)


def _show_demo(year: DemoResult) -> None:
    s = year.summary
    name = {"auc": "AUC", "accuracy": "accuracy"}[s.measure]
    console.print(
        f"{s.weeks} weeks, {s.refreshes} refreshes: {s.promotions} promoted, {s.refused} refused by the gate\n"
        f"mean weekly {name}: never refreshed {_shown(s.quality_static, 4) or 'not known'}, "
        f"champion {_shown(s.quality_champion, 4) or 'not known'}, "
        f"teacher {_shown(s.quality_teacher, 4) or 'not asked, for it costs money'}\n"
        f"champion: {s.champion_bytes:,} bytes, {s.champion_p50_ms:.3f} ms; {s.teacher_calls:,} teacher calls; "
        f"{s.seconds:.0f} s\n"
        f"figure: {year.folder}/weeks.png; summary: {year.folder}/summary.json\n"
        f"compare the versions in MLflow: make ui"
    )


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """Set the embedded defaults before Prefect is imported, and tell a user's mistake in one sentence."""
    with report_errors():
        config.use_embedded_defaults()
        _give_memory_back()
        app()


def _give_memory_back() -> None:
    """Let glibc, where that is what allocates, give freed memory back to the system.

    By default every thread has a heap of its own, and freed tables of up to 32 MB stay in it: over the demo's year
    that is a gigabyte.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


if __name__ == "__main__":
    main()
