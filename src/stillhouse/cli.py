"""The command ``stillhouse``: check an agent file, see where an agent stands, read what was decided.

Heavy libraries are imported where they are used: ``stillhouse --help`` must answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stillhouse import config
from stillhouse.errors import ConfigError, SchemaError, StillhouseError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

    from stillhouse.drift.profile import Profile
    from stillhouse.knowledge import KnowledgeBase

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
    """Where an agent stands: its models, its knowledge base, what its teachers have cost, its last verdict."""
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
        two = len(settings.actions) == 2
        quality = "AUC (test)" if two else "accuracy (test)"
        table = Table("version", "alias", "variant", quality, "bytes", "p50 (ms)", "refresh", box=None)
        for v in versions:
            score = _number(v.auc if two else v.accuracy)
            table.add_row(v.version, ", ".join(v.aliases), v.variant, score, f"{v.bytes or 0:,}",
                          _number(v.p50_ms), v.refresh_id)  # fmt: skip
        console.print(table)
    counts = ", ".join(f"{count:,} {name}" for name, count in base.counts().items())
    console.print(f"knowledge base {base.root}: {counts or 'empty'}")
    _show_spending(base)
    watched = [verdict for verdict in base.verdicts() if verdict.kind == "watch"]
    if watched:
        console.print(f"last watch, {watched[-1].as_of:%Y-%m-%d %H:%M}: {watched[-1].summary}")


@app.command()
def teachers(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=0, help="how many changes of weights")] = 10,
) -> None:
    """What each of an agent's teachers counts for, in which slices that differs, and why it changed."""
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.registry import Registry
    from stillhouse.teachers.ensemble import kept_weights, reference
    from stillhouse.teachers.following import standing

    settings, models = config.load(agent), Registry(agent)
    with console.status("asking MLflow"):
        champion = models.champion()
        folder = models.fetch(models.baseline(champion).teacher) if champion else None
    weights, version = (kept_weights(folder), reference(folder).version) if folder else (None, "")
    changes = KnowledgeBase(settings).weight_changes()
    now = standing(weights, [each for each in changes if each.version == version and each.job == "watch"])
    own = sorted({name for name, _ in now if name and _differs(now, name)})
    table = Table("teacher", "kind", "by the agent file", "now", *own, box=None)
    for unit in config.units(settings):
        kinds = ", ".join(dict.fromkeys(leaf.teacher.kind for leaf in unit.leaves))
        shares = (_percent(now.get((name, unit.name))) for name in ("", *own))
        table.add_row(unit.name, kinds, f"{unit.share:.1%}", *shares)
    console.print(table)
    if weights is None:
        console.print("the champion's teachers count for what the agent file says")
    table = Table("as of", "teacher", "slice", "before", "after", "why", box=None)
    for change in changes[-last:] if last else []:
        table.add_row(f"{change.as_of:%Y-%m-%d %H:%M}", change.teacher, change.slice, f"{change.before:.1%}",
                      f"{change.after:.1%}", change.reason)  # fmt: skip
    console.print(table)


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


@app.command()
def drift(
    reference: Annotated[
        Path, typer.Argument(exists=True, help="Parquet file or folder, Delta table, or a kept profile")
    ],
    current: Annotated[Path, typer.Argument(exists=True, help="the same, for the rows of now")],
    columns: Annotated[list[str] | None, typer.Option("--column", help="only this column; may be repeated")] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="a column of free text: watched by its characters and words")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="write the reference's profile here: next time it need not be read again")
    ] = None,
) -> None:
    """How far each column of one table moved from another, farthest first. One pass over each, in bounded memory."""
    from stillhouse.drift.distances import compare
    from stillhouse.drift.explain import rank_columns

    before = _profile(reference, columns, None, texts or ())
    now = _profile(current, columns, before, texts or ())
    if keep is not None:
        keep.write_bytes(before.to_bytes())
    table = Table("column", "PSI", "KS", "Wasserstein", "effect size", "missing before", "missing now", "new values",
                  box=None)  # fmt: skip
    for column in rank_columns(compare(before, now)):
        unseen = ", ".join(column.unseen[:3]) + (
            f" and {len(column.unseen) - 3} more" if len(column.unseen) > 3 else ""
        )
        table.add_row(column.column, f"{column.psi:.3f}", _number(column.ks), _number(column.wasserstein),
                      f"{column.effect:.3f}", f"{column.missing_reference:.1%}", f"{column.missing_current:.1%}",
                      unseen)  # fmt: skip
    console.print(table)
    console.print(f"{before.rows:,} rows before, {now.rows:,} now; PSI on the reference's deciles or values")


@app.command()
def contract(
    agent: AgentName,
    start: Annotated[datetime | None, typer.Option(help="begin of the window (UTC)")] = None,
    end: Annotated[datetime | None, typer.Option(help="its end (UTC), not included")] = None,
    last: Annotated[
        str, typer.Option(metavar="DURATION", help="length of the window where one end or both are not given: 12h, 8w")
    ] = "30d",
    source: Annotated[
        bool, typer.Option("--source", help="read from the agent's source, even where the knowledge base has rows")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="write to this file, which must not exist yet")] = None,
) -> None:
    """Draft an agent's data contract from what it has seen, for you to edit.

    Prints the `observations:` section of the agent file, each line with what was
    seen: ranges three times as wide as those seen, missing shares with room above
    them, the values of closed categories, the longest silence, the rows a day,
    combinations that are unique, columns that never exceed one another.
    What the agent file says already is kept. The file itself is never written.

    Rows come from the knowledge base: the newest ones. Where it is empty they
    come from the agent's source, from `observations.since` on. Only the source
    knows columns that the file does not name yet: ask it with --source.

    For example:

        stillhouse contract flights
        stillhouse contract flights --last 8w --source
        stillhouse contract flights --start 2013-03-01 --output draft.yaml
    """
    from stillhouse.contract import draft, rows_of

    settings = config.load(agent)
    if output is not None and output.exists():
        raise ConfigError(f"{output} is there already, and nothing is overwritten: name another file")
    text = draft(rows_of(settings, _utc(start), _utc(end), _duration(last), ask_source=source), settings)
    if output is None:
        print(text, end="")
        return
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    console.print(f"[green]✓[/green] {output}: edit it, and put it in the place of `observations` in the agent file")


def _duration(text: str) -> timedelta:
    try:
        return config.parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--last") from error


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None


def _profile(path: Path, columns: list[str] | None, like: Profile | None, texts: Sequence[str]) -> Profile:
    """The profile of a table, or a kept one; with a progress bar, for a table may be long."""
    from pyarrow import ArrowException
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from stillhouse.drift.profile import Profile, scan
    from stillhouse.drift.texts import measured_batches

    if path.suffix == ".profile":
        try:
            kept = Profile.from_bytes(path.read_bytes())
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
        if absent := [name for name in columns or () if name not in kept.columns]:
            raise SchemaError(f"{path} lacks the columns {absent}; it has {list(kept.columns)}")
        return Profile(kept.rows, {name: kept.columns[name] for name in columns or kept.columns})
    source: object = path
    if (path / "_delta_log").is_dir():
        from deltalake import DeltaTable

        source = DeltaTable(path).to_pyarrow_dataset()
    shown = TextColumn("{task.fields[file]}: {task.completed:,.0f} rows")
    with Progress(SpinnerColumn(), shown, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("", total=None, file=path.name)
        try:
            if texts:
                source = measured_batches(_batches(source), texts)
            return scan(source, columns or None, like, on_rows=lambda rows: progress.advance(bar, rows))
        except (ArrowException, OSError) as error:
            raise SchemaError(f"{path} cannot be read as Parquet: {error}") from error


def _batches(source: Any) -> Iterator[RecordBatch]:
    """Arrow batches of a Parquet file or folder, or of a dataset."""
    from pyarrow.dataset import dataset

    batches: Iterator[RecordBatch] = (dataset(source) if isinstance(source, Path) else source).to_batches()
    return batches


def _differs(shares: dict[tuple[str, str], float], name: str) -> bool:
    """Whether a slice has weights that one would tell from those of everywhere."""
    inside = ((share, shares.get(("", teacher), share)) for (each, teacher), share in shares.items() if each == name)
    return any(abs(share - everywhere) >= 0.01 for share, everywhere in inside)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _show_spending(base: KnowledgeBase) -> None:
    """What each teacher has cost, today (UTC) and in all; nothing where nobody was asked."""
    spent = base.spending()
    if not spent:
        return
    today = base.spending(asked_since=datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    table = Table("teacher", "", *("calls", "rows", "tokens in", "tokens out", "seconds", "money"), box=None)
    for name, total in spent.items():
        for when, cost in (("today", today.get(name)), ("in all", total)):
            if cost is not None:
                table.add_row(name if when == "today" or name not in today else "", when, f"{cost.calls:,}",
                              f"{cost.rows:,}", f"{cost.input_tokens:,}", f"{cost.output_tokens:,}",
                              f"{cost.seconds:,.1f}", f"{cost.money:,.4f}")  # fmt: skip
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
