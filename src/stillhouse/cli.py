"""The command ``stillhouse``: check an agent file, see where an agent stands, read what was decided.

Heavy libraries are imported where they are used: ``stillhouse --help`` must answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse import config
from stillhouse.errors import StillhouseError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="stillhouse keeps the small model inside an agent fresh.\n\n"
    "Flows are run by Prefect, or by hand: python -m flows --help.",
)
console = Console()

AgentName = Annotated[str, typer.Argument(help="name of an agent file in agents/, such as flights")]


@app.command()
def check(
    agent_file: Annotated[Path, typer.Argument(help="the agent file, such as agents/flights.yaml")],
    rows: Annotated[int, typer.Option(min=100, max=100_000, help="rows of the tiny pass")] = 1000,
) -> None:
    """Check an agent file: its keys, the parts it names, and one tiny pass through each of them."""
    from stillhouse.rehearsal import rehearse

    settings = config.load_file(agent_file)
    console.print(f"[green]✓[/green] {agent_file}: keys, units and ranges")
    for step in rehearse(settings, rows):
        console.print(f"[green]✓[/green] {step}", highlight=False)
    console.print(f"agent [bold]{settings.agent}[/bold] is ready")


@app.command()
def status(agent: AgentName) -> None:
    """Where an agent stands: its models, its last verdict, its knowledge base."""
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.registry import Registry

    settings = config.load(agent)
    base = KnowledgeBase(settings)
    if settings.description:
        console.print(f"[bold]{agent}[/bold]: {settings.description}")
    with console.status("asking MLflow"):
        versions = Registry(agent).versions()
    if not versions:
        console.print(
            f"agent {agent!r} has no models yet: fill its knowledge base (python -m flows live), "
            f"then python -m flows refresh --agent {agent} --trigger bootstrap"
        )
    else:
        table = Table("version", "alias", "variant", "AUC (test)", "bytes", "p50 (ms)", "refresh", box=None)
        for v in versions:
            table.add_row(v.version, ", ".join(v.aliases), v.variant, _number(v.auc), f"{v.bytes or 0:,}",
                          _number(v.p50_ms), v.refresh_id)  # fmt: skip
        console.print(table)
    counts = ", ".join(f"{count:,} {name}" for name, count in base.counts().items())
    console.print(f"knowledge base {base.root}: {counts or 'empty'}")
    watched = [verdict for verdict in base.verdicts() if verdict.kind == "watch"]
    if watched:
        console.print(f"last watch, {watched[-1].as_of:%Y-%m-%d %H:%M}: {watched[-1].summary}")


@app.command()
def history(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=1, help="how many verdicts")] = 50,
    reasons: Annotated[bool, typer.Option("--reasons", help="with the numbers behind each")] = False,
) -> None:
    """Every verdict about an agent: watches, gates, promotions and roll-backs, oldest first."""
    from stillhouse.knowledge import KnowledgeBase

    verdicts = KnowledgeBase(config.load(agent)).verdicts()[-last:]
    if not verdicts:
        console.print(f"nothing has been decided about agent {agent!r} yet")
        return
    table = Table("as of", "kind", "outcome", "summary", "verdict", box=None)
    for verdict in verdicts:
        table.add_row(f"{verdict.as_of:%Y-%m-%d %H:%M}", verdict.kind, verdict.outcome.replace("_", " "),
                      verdict.summary, verdict.verdict_id)  # fmt: skip
        for reason in verdict.reasons if reasons else ():
            table.add_row("", "", "crossed" if reason.crossed else "held", reason.text, "")
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@contextmanager
def _plain_mistakes() -> Iterator[None]:
    """A user's mistake is told in its own words on standard error, with exit code 1 and no traceback."""
    try:
        yield
    except StillhouseError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/red]: ", end="")
        print(error, file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Entry point of the command."""
    config.use_embedded_defaults()
    with _plain_mistakes():
        app()
