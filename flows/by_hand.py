"""Command line that runs one flow in this process: ``python -m flows watch --agent flights``.

The servers that ``PREFECT_API_URL`` and ``MLFLOW_TRACKING_URI`` name are used. Without these variables, all data is
stored under ``STILLHOUSE_HOME``, and a temporary Prefect server runs until the flow ends.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from stillhouse import config
from stillhouse.commands.arguments import show_version
from stillhouse.commands.replay import show_report
from stillhouse.shown import escape_line, escape_paragraphs
from stillhouse.terminal import Console, Table, report_errors, show_log, show_stations
from tasks.prefect_server import ensure_server, without_heartbeats

if TYPE_CHECKING:
    from stillhouse.demonstrating import DemoResult
    from stillhouse.knowledge.upkeep import UpkeepReport
    from stillhouse.records import Verdict

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,  # the completion of a shell is by the name of a program, and this is `python -m flows`
    pretty_exceptions_enable=False,
    help="Run one stillhouse flow now, in this process.",
)
console = Console()

_MALLOC_OPTIONS = {-8: 2, -3: 2**20, -1: 2**24}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>

Agent = Annotated[
    str,
    typer.Option(
        metavar="AGENT",
        help="Name of the agent file in agents/, or its path.",
        parser=config.choose_agent,
    ),
]
AsOf = Annotated[datetime | None, typer.Option(help="Time (UTC) for which the flow runs. Default: now.")]


@app.command()
def demo(
    agent: Agent = "flights",
    weeks: Annotated[
        int | None, typer.Option(min=1, max=520, help="Weeks to replay after the bootstrap. Default: all.")
    ] = None,
    watch_days: Annotated[int, typer.Option(help="Days between two watches: 1 or 7.")] = 7,
    bootstrap_weeks: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=26,
            help="Weeks before the first champion. Default: 8, or a third of a history of less than 24 weeks.",
        ),
    ] = None,
) -> None:
    """Replay an agent's history week by week, with watches, refreshes and promotions, and print a summary.

    The history of the agent flights is one year.
    """
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")  # the table of weeks shows the progress
    if watch_days not in (1, 7):
        raise typer.BadParameter("must be 1 or 7", param_hint="--watch-days")
    flow = _flow("demo", agent)

    _show_demo(flow(agent=agent, bootstrap_weeks=bootstrap_weeks, weeks=weeks, watch_days=watch_days))


@app.command()
def live(
    until: Annotated[datetime, typer.Argument(help="End of the period (UTC), such as 2013-02-26.")],
    agent: Agent = "flights",
) -> None:
    """Read new observations and outcomes from the agent's sources; the champion decides each new observation.

    The period begins where the knowledge base ends.
    """
    with _running("live", agent) as flow:
        added = flow(agent=agent, end=until)
    console.print(f"{added} observations added")


@app.command()
def watch(
    agent: Agent = "flights",
    as_of: AsOf = None,
    on_drift: Annotated[
        Literal["announce", "refresh"],
        typer.Option(help="refresh: run the refresh in this process; announce: only emit an event."),
    ] = "refresh",
) -> None:
    """Check the current data, measure drift and decide; run a refresh if the decision asks for one."""
    with _running("watch", agent) as flow:
        verdict = flow(agent=agent, as_of=as_of, on_drift=on_drift)
    _show(verdict)


@app.command()
def refresh(
    agent: Agent = "flights",
    as_of: AsOf = None,
    trigger: Annotated[
        Literal["bootstrap", "drift", "manual"],
        typer.Option(help="What started the refresh; recorded with the models."),
    ] = "manual",
    cause: Annotated[
        str, typer.Option(help="Who asked for the refresh, and why; recorded with the models.")
    ] = "asked for by hand",
    teacher: Annotated[
        Literal["fit", "keep"], typer.Option(help="fit: fit a new teacher; keep: use the champion's teacher.")
    ] = "fit",
    mode: Annotated[
        Literal["recalibrate", "update", "redistil_warm", "redistil"],
        typer.Option(
            help="recalibrate: estimate the quantization ranges and confidence of the champion's student anew; update: "
            "fine-tune it on new rows; redistil_warm: train on the whole window from its weights; redistil: train from "
            "random weights."
        ),
    ] = "redistil",
) -> None:
    """Distil, compress and evaluate a challenger; the gate decides whether it is promoted."""
    with _running("refresh", agent, mode) as flow:
        verdict = flow(agent=agent, as_of=as_of, trigger=trigger, cause=cause, teacher=teacher, mode=mode)
    _show(verdict)


@app.command()
def promote(
    agent: Agent = "flights",
    action: Annotated[
        Literal["promote", "approve", "reject", "rollback"],
        typer.Option(
            help="promote: make the version, or without one the waiting challenger, the champion; approve: make the "
            "waiting challenger the champion; reject: refuse it; rollback: make the previous champion the champion."
        ),
    ] = "promote",
    version: Annotated[
        int | None, typer.Option(min=1, help="The version. Default: the challenger that waits for approval.")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="The same as --action rollback.")] = False,
    reason: Annotated[str, typer.Option(help="Why; recorded with the verdict. Required for reject.")] = "",
    by: Annotated[str, typer.Option(help="Who; recorded with the verdict. Default: the current user.")] = "",
) -> None:
    """Make another version the champion, by hand; approve or reject the waiting challenger; or go back."""
    if rollback and action not in ("promote", "rollback"):
        raise typer.BadParameter(f"--rollback goes back, and --action says {action}: give one of them")
    chosen = "rollback" if rollback else action
    with _running("promote", agent) as flow:
        verdict = flow(agent=agent, action=chosen, version=version, reason=reason, by=by)
    _show(verdict)


@app.command()
def maintain(agent: Agent = "flights", as_of: AsOf = None) -> None:
    """Flush the spools, compact small files, delete old rows and delete files that no model needs."""
    with _running("maintain", agent) as flow:
        report = flow(agent=agent, as_of=as_of)
    _show_upkeep(report)


@app.command()
def replay(
    agent: Agent = "flights",
    policy: Annotated[
        list[str] | None, typer.Option(help="May be repeated; see stillhouse replay --help. Default: three of them.")
    ] = None,
    weeks: Annotated[int | None, typer.Option(min=1, max=520, help="Weeks after the first ones. Default: all.")] = None,
    from_sources: Annotated[
        bool, typer.Option("--from-sources", help="Read the agent's sources instead of its knowledge base.")
    ] = False,
) -> None:
    """Play policies on an agent's history; table, figure and an MLflow experiment show what each would have gained."""
    chosen = {"policies": policy} if policy else {}
    with _running("replay", agent) as flow:
        report = flow(agent=agent, weeks=weeks, from_sources=from_sources, **chosen)
    show_report(console, report)


@contextmanager
def _running(name: str, agent: str, kind: str = "") -> Iterator[Callable[..., Any]]:
    """Yield the flow, and show where it is, with the time left by the last run of that kind.

    In a terminal the engine's log appears above the line that shows the progress, and Prefect's, which would be written
    into that line, does not; errors end the command with their message.
    """
    times = config.home() / "progress" / f"{'-'.join(filter(None, (name, kind, agent)))}.json"
    if console.is_terminal:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        show_log(console, "stillhouse")
    with show_stations(console, f"{name} {agent}", times):
        yield _flow(name, agent)


def _flow(name: str, agent: str) -> Callable[..., Any]:
    """Check that the agent exists and that a Prefect server answers, then return the flow ``flows.<name>.<name>``."""
    config.load(agent)
    wait_for_server = ensure_server()
    flow: Callable[..., Any] = getattr(importlib.import_module(f"flows.{name}"), name)
    wait_for_server()

    def run_without_heartbeats(**parameters: Any) -> Any:
        with without_heartbeats():
            return flow(**parameters)

    return run_without_heartbeats


def _show_upkeep(report: UpkeepReport) -> None:
    columns = (
        "table",
        "flushed\nrows",
        "files\njoined",
        "old rows\nremoved",
        "files\non the disk",
        "bytes",
        "old versions\nkept",
    )
    table = Table(*columns, title=f"{report.agent}, as of {report.as_of:%Y-%m-%d %H:%M} UTC")
    vacuums = {vacuum.table: vacuum for vacuum in report.freed}
    deleted_rows = {deletion.table: deletion.rows for deletion in report.removed}
    for name in dict.fromkeys([*report.flushed.rows, *(compaction.table for compaction in report.compacted), *vacuums]):
        compactions = [compaction for compaction in report.compacted if compaction.table == name]
        vacuum = vacuums.get(name)
        table.add_row(
            name,
            f"{report.flushed.rows.get(name, 0):,}",
            f"{sum(c.files_before for c in compactions):,} → {sum(c.files_after for c in compactions):,}",
            f"{deleted_rows.get(name, 0):,}",
            f"{vacuum.files_before:,} → {vacuum.files_after:,}" if vacuum else "",
            f"{vacuum.bytes_before:,} → {vacuum.bytes_after:,}" if vacuum else "",
            f"{len(vacuum.readable_versions)}" if vacuum else "",
        )
    console.print(table, no_wrap=True, crop=False)
    if report.nothing_removed:
        console.print(Text.assemble(("nothing was removed", "yellow"), f": {escape_line(report.nothing_removed)}"))
    for problem in report.flushed.problems:
        console.print(Text.assemble(("not flushed", "red"), f": {escape_line(problem)}"))
    for problem in report.problems:
        console.print(Text.assemble(("problem", "red"), f" with {escape_line(problem)}"))


def _show(verdict: Verdict) -> None:
    result = verdict.result.replace("_", " ")
    console.print(Text.assemble((result, "bold"), f": {escape_paragraphs(verdict.summary)}"))
    for reason in verdict.reasons:
        console.print_indented(f"{reason.status}: {reason.text}", 2)


def _show_demo(year: DemoResult) -> None:
    from stillhouse.quality import measure_title

    summary = year.summary
    name = measure_title(summary.measure)
    console.print(
        f"{summary.weeks} weeks, {summary.refreshes} refreshes: {summary.promotions} promoted, "
        f"{summary.refused} refused by the gate, {summary.inconclusive} inconclusive\n"
        f"mean weekly {name}: never refreshed {_format(summary.quality_static) or 'not known'}, "
        f"champion {_format(summary.quality_champion) or 'not known'}, "
        f"teacher {_format(summary.quality_teacher) or 'not measured, because its answers cost money'}\n"
        f"champion: {summary.champion_bytes:,} bytes, {summary.champion_p50_ms:.3f} ms; "
        f"{summary.teacher_calls:,} teacher calls; {summary.seconds:.0f} s\n"
        f"timeline: {year.folder}/timeline.png\nsummary: {year.folder}/summary.json\n"
        f"to compare the versions in MLflow: make ui"
    )


def _format(quality: float | None) -> str:
    return "" if quality is None else f"{quality:.4f}"


_ADVICE = {
    "demo": "the weeks so far are kept; run the same command again to go on",
    "live": "the rows so far are kept; run the same command again to go on",
    "replay": "a replay keeps nothing before its end; run the same command again",
}
_KEPT = "finished steps are kept; run the same command again to complete it"


@app.callback()
def prepare(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run one stillhouse flow now, in this process."""
    config.use_embedded_defaults()  # before Prefect is imported
    _return_freed_memory()


def main() -> None:
    """Run a command; report user errors in one sentence."""
    with report_errors(_ADVICE, _KEPT):
        app()


def _return_freed_memory() -> None:
    """Make glibc's allocator, where it is used, return freed memory to the operating system.

    By default, each thread has its own heap, which keeps freed tables of up to 32 MB. During the demo's year, these
    heaps grow to one gigabyte.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC_OPTIONS.items():
            mallopt(parameter, value)
