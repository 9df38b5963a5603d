"""The command ``stillhouse``: check an agent file, see where it stands, read what was decided, compress, serve.

Heavy libraries are imported where they are used: ``stillhouse --help`` must answer at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from stillhouse import config
from stillhouse.commands.keys import keys, sign, verify_model
from stillhouse.errors import ConfigError, SchemaError
from stillhouse.shown import shown
from stillhouse.terminal import Console, Table, plain_mistakes

if TYPE_CHECKING:
    from stillhouse.drift.profile import Profile
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.knowledge.base import Table as KnowledgeTable
    from stillhouse.knowledge.importing import Preview, Problem
    from stillhouse.records import CompressionCandidate, Frontier, SizeLimits

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="stillhouse keeps the small model inside an agent fresh.\n\n"
    "Flows are run by Prefect, or by hand: python -m flows --help.",
)
app.add_typer(keys, name="keys")
app.command()(sign)
app.command()(verify_model)
console = Console()

AgentName = Annotated[str, typer.Argument(help="name of an agent file in agents/, such as flights")]


@app.command()
def check(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="name of an agent file in agents/, or its path")],
    rows: Annotated[
        int | None, typer.Option(min=100, max=100_000, help="rows of the tiny pass; by default 1000, or 250 texts")
    ] = None,
) -> None:
    """Check an agent file: its keys, the parts it names, and one tiny pass through each of them."""
    from stillhouse.rehearsal import rehearse

    settings = _settings(agent)
    console.done(f"{settings.file}: keys, units and ranges")
    for step in rehearse(settings, rows):
        console.done(step)
    console.print(f"agent {settings.agent} is ready")


@app.command()
def status(agent: AgentName) -> None:
    """Where an agent stands: its models, its knowledge base, what its teachers have cost, its last verdict."""
    from stillhouse.knowledge import KnowledgeBase, integrity
    from stillhouse.registry import Registry

    settings = config.load(agent)
    base = KnowledgeBase(settings)
    if settings.description:
        console.print(Text.assemble((agent, "bold"), f": {shown(settings.description)}"))
    _show_machine(agent)
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
        table = Table("version", "alias", "variant", quality, "bytes", "p50 (ms)", "refresh")
        for v in versions:
            score = _number(v.auc if two else v.accuracy)
            table.add_row(
                v.version, ", ".join(v.aliases), v.variant, score, f"{v.bytes or 0:,}", _number(v.p50_ms), v.refresh_id
            )
        console.print(table)
    counts = ", ".join(f"{count:,} {name}" for name, count in base.counts().items())
    console.print(f"knowledge base {base.root}: {counts or 'empty'}")
    for problem in integrity.problems(base):
        console.print(f"problem: {problem}", soft_wrap=True)
    _show_spending(base)
    watched = base.verdicts("watch")
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
    table = Table("teacher", "kind", "by the agent file", "now", *own)
    for unit in config.units(settings):
        kinds = ", ".join(dict.fromkeys(leaf.teacher.kind for leaf in unit.leaves))
        shares = (_percent(now.get((name, unit.name))) for name in ("", *own))
        table.add_row(unit.name, kinds, f"{unit.share:.1%}", *shares)
    console.print(table)
    if weights is None:
        console.print("the champion's teachers count for what the agent file says")
    if not changes or not last:
        return
    table = Table("as of", "teacher", "slice", "before", "after", "why")
    for change in changes[-last:]:
        table.add_row(
            f"{change.as_of:%Y-%m-%d %H:%M}",
            change.teacher,
            change.slice,
            f"{change.before:.1%}",
            f"{change.after:.1%}",
            change.reason,
        )
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
    table = Table("as of", "kind", "outcome", "summary", "verdict")
    for verdict in verdicts:
        table.add_row(
            f"{verdict.as_of:%Y-%m-%d %H:%M}",
            verdict.kind,
            verdict.result.replace("_", " "),
            verdict.summary,
            verdict.verdict_id,
        )
        for reason in verdict.reasons if reasons else ():
            table.add_row("", "", "crossed" if reason.failed else "held", reason.text, "")
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
    from stillhouse.drift.distances import compare_profiles
    from stillhouse.drift.explain import rank_columns

    before = _profile(reference, columns, None, texts or ())
    now = _profile(current, columns, before, texts or ())
    if keep is not None:
        keep.write_bytes(before.to_bytes())
    measures = ("PSI", "KS", "Wasserstein", "effect size", "missing before", "missing now", "new values")
    table = Table("column", *measures)
    for column in rank_columns(compare_profiles(before, now)):
        unseen = ", ".join(column.unseen[:3]) + (
            f" and {len(column.unseen) - 3} more" if len(column.unseen) > 3 else ""
        )
        table.add_row(
            column.column,
            f"{column.psi:.3f}",
            _number(column.ks),
            _number(column.wasserstein),
            f"{column.effect:.3f}",
            f"{column.missing_reference:.1%}",
            f"{column.missing_current:.1%}",
            unseen,
        )
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
    console.done(f"{shown(output)}: edit it, and put it in the place of `observations` in the agent file")


@app.command("import")
def import_(
    agent: AgentName,
    files: Annotated[list[Path], typer.Argument(help="CSV, JSON lines (both also .gz) or Parquet")],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="only show what would happen: the first rows as they would be read, and what is wrong"
        ),
    ] = False,
) -> None:
    """Bring logs that exist already into an agent's knowledge base.

    What the columns are called is said by `importing` in the agent file;
    without it, as in the tables. Rows that cannot be used go to the quarantine
    with file and line, the others go on; an observation that is there already
    is not added again. An import that was killed goes on where it was, if it is
    asked for again. Exit code 1 where no row of any file can be used, or there
    is none.

    For example:

        stillhouse import flights --dry-run 2012.csv.gz
        stillhouse import flights 2011.parquet 2012.csv.gz log.jsonl
    """
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.knowledge.importing import import_files, preview

    settings = config.load(agent)
    if dry_run:
        base, known = KnowledgeBase(settings), dict["KnowledgeTable", set[str]]()
        usable = [_show_preview(each, base, known) for each in preview(settings, files)]
        console.print("nothing was written")
        if not any(usable):
            raise typer.Exit(1)
        return
    with _byte_bar(2 * sum(file.stat().st_size for file in files if file.is_file())) as on_bytes:
        summary = import_files(KnowledgeBase(settings), files, on_bytes)
    _show_problems(summary.problems, summary.quarantined, f"are in quarantine: stillhouse quarantine {agent}")
    for note in summary.notes:
        console.print(shown(note), style="dim")
    counted = ("rows", "before", "added", "duplicates", "quarantined", "decisions", "outcomes")
    table = Table("", *("dealt with before" if name == "before" else name for name in counted))
    table.add_row("imported", *(f"{getattr(summary, name):,}" for name in counted))
    console.print(table)
    if not summary.before + summary.added + summary.duplicates:
        raise typer.Exit(1)


@app.command()
def quarantine(
    agent: AgentName,
    last: Annotated[
        int, typer.Option("--last", "--limit", min=0, help="how many rows, the newest first; 0: only the counts")
    ] = 20,
) -> None:
    """Rows that were set aside, newest first, and how many broke which rule of which column.

    A row comes here when it breaks the data contract or cannot be imported, and
    no student learns from it. `observations` of the agent file says what is
    allowed.

    For example:

        stillhouse quarantine flights
        stillhouse quarantine flights --last 100
    """
    from stillhouse.data_contract import counted
    from stillhouse.knowledge import KnowledgeBase

    base = KnowledgeBase(config.load(agent))
    rows = base.read("quarantine").drop_duplicates("observation_id", keep="last")
    if rows.empty:
        console.print(f"no row of agent {agent!r} is in quarantine")
        return
    table = Table("observed at", "observation", "reasons")
    newest = rows.iloc[::-1].head(last)
    for moment, name, reasons in zip(newest["observed_at"], newest["observation_id"], newest["reasons"], strict=True):
        table.add_row(f"{moment:%Y-%m-%d %H:%M}", str(name), "; ".join(reasons))
    if last:
        console.print(table)
    table = Table("rows", "column", "rule")
    for (column, rule), count in counted(rows["reasons"]).items():
        table.add_row(f"{count:,}", column, rule)
    console.print(table)
    first, newest_at = rows["observed_at"].min(), rows["observed_at"].max()
    console.print(
        f"{len(rows):,} row{'s' * (len(rows) != 1)} in quarantine, of {first:%Y-%m-%d %H:%M} to "
        f"{newest_at:%Y-%m-%d %H:%M} UTC"
    )


@app.command()
def compress(
    model_uri: Annotated[
        str,
        typer.Argument(
            help="models:/name/3, models:/name@alias, models:/m-… or runs:/…/path: a torch module "
            "logged as pt2, or an ONNX classifier"
        ),
    ],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="rows as they occur: .npy, .npz (arrays by input), .parquet or .csv; without, "
            "the input example that was logged with the model"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="the classes 0…K−1 of the rows: a column, an array in the .npz, or a file; "
            "without, a decision is right if it is the float32 model's"
        ),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="of the artifact's files")] = None,
    max_p95_ms: Annotated[float | None, typer.Option(help="of one row's decision, on one core here (ms)")] = None,
    max_quality_loss: Annotated[
        float | None,
        typer.Option(
            help="below the float32 model: of AUC (two labelled classes), else of the share of "
            "right decisions; by default 0.005"
        ),
    ] = None,
    time: Annotated[str, typer.Option(metavar="DURATION", help="that the search may take: 90s, 5m, 1h")] = "5m",
    candidates: Annotated[int, typer.Option(help="made and measured at most")] = 40,
    steps: Annotated[
        str | None,
        typer.Option(
            help="what may be combined, separated by commas, such as prune_units,int8_dynamic; by default all"
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(help="forms recovered at once, each in a process of its own")] = 1,
    recover_epochs: Annotated[int, typer.Option(help="of the distillation after a structural step")] = 2,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|NAME",
            help="copy the chosen artifact to this folder, not there "
            "yet; or, where the model has several outputs, the name of the one to compress. "
            "May be given twice",
        ),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="in MLflow; by default compress-<model>")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="keep all candidates in MLflow")] = True,
) -> None:
    """Search the smallest form of a model from MLflow that keeps within your limits, and measure it here.

    Torch modules are pruned, factorised and quantised, ONNX graphs quantised.
    Every candidate is compared with the float32 model on rows that it has not
    learned from, and is refused where it disagrees too far. Nothing is
    unpickled. What fits is put into MLflow and --output; where nothing does,
    the answer is what would have to give, and exit code 1. A search that was
    killed goes on where it was, if it is asked for again.

    For example:

        stillhouse compress models:/intent/3 --rows rows.npz --max-bytes 200000
        stillhouse compress models:/churn@champion --rows rows.parquet --labels left
          --max-p95-ms 0.2 --max-quality-loss 0.01 --time 10m --output small
    """
    from stillhouse import compressing
    from stillhouse.registry.foreign import ForeignModels

    limits = compressing.limits_of(max_bytes, max_p95_ms, max_quality_loss)
    settings = compressing.settings_of(time, candidates, steps, parallel, recover_epochs)
    with console.status("asking MLflow"):
        model = ForeignModels().fetch_classifier(model_uri)
    folder, wanted = compressing.destinations(output or [], model)
    if folder is not None and folder.exists():
        raise ConfigError(f"--output {folder} is there already, and nothing is overwritten: name another folder")
    given = compressing.rows_of(rows, labels, model)
    with _progress(config.parse_duration(time).total_seconds(), limits) as on_candidate:
        frontier = compressing.compress_model(model, given, settings, limits, on_candidate, wanted)
    _show_frontier(frontier)
    if log:
        with console.status("writing to MLflow"):
            address = compressing.log_compression(model, given, settings, frontier, experiment)
        console.print(
            f"in MLflow: {address}, in the experiment {experiment or f'compress-{model.name}'}", soft_wrap=True
        )
    if not frontier.fits:
        raise typer.Exit(1)
    if folder is not None:
        compressing.keep(frontier, folder)
        console.done(f"{shown(folder)}: model.onnx, manifest.json")


@app.command()
def serve(
    agents: Annotated[list[str], typer.Argument(help="names of agent files in agents/, such as flights")],
    host: Annotated[
        str, typer.Option(help="address to listen on; others than loopback need STILLHOUSE_TOKENS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that decide")] = 1,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="of a request: 64KiB, 1MiB")] = "1MiB",
    max_rows: Annotated[int, typer.Option(min=1, help="observations or outcomes of one request")] = 1024,
) -> None:
    """Serve agents over HTTP: decisions, outcomes, their models, and what their teachers have said.

    Every decision is on this machine's disk before it is answered, and goes on
    into the knowledge base. A new champion is taken up without a pause. SIGTERM
    ends it: what is in hand is answered first. See docs/serving.md, or GET
    /openapi.json.

    Whoever asks needs a bearer token where the environment variable
    STILLHOUSE_TOKENS has some, separated by commas.

    For example:

        stillhouse serve flights
        STILLHOUSE_TOKENS=secret stillhouse serve flights router --host 0.0.0.0 --workers 4
    """
    if lacking := [name for name in _SERVE if find_spec(name) is None]:
        raise ConfigError(f"`stillhouse serve` needs {', '.join(lacking)}: pip install 'stillhouse[serve]'")
    from stillhouse.runtime.http import RequestLimits
    from stillhouse.runtime.serving import Settings, tokens_of
    from stillhouse.runtime.serving import serve as serve_until_told

    limits = RequestLimits(max_body=_bytes(max_body), max_rows=max_rows)
    settings = Settings(tuple(agents), host, port, workers, limits, tokens_of(os.environ.get("STILLHOUSE_TOKENS")))
    told = f"serving {', '.join(agents)} on"
    code = serve_until_told(
        settings,
        lambda address: console.print(told, address, f"({settings.access})", soft_wrap=True),
    )
    raise typer.Exit(code)


_SERVE = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")


@contextmanager
def _byte_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of bytes, told what is under way and of so many more."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=total)
        yield lambda what, count: progress.update(bar, description=shown(what), advance=count)


def _show_preview(found: Preview, base: KnowledgeBase, known: dict[KnowledgeTable, set[str]]) -> int:
    """The first rows of a file as they would be imported, and what is wrong with others; how many can be used.

    :param known: what the files before it would have added; that of this one is added to it.
    """
    rows = found.rows.head(10)
    table = Table(*map(shown, rows.columns))
    for row in rows.itertuples(index=False):
        table.add_row(*("" if value is None or value != value else str(value) for value in row))
    console.print(f"{shown(found.file)}:", soft_wrap=True)
    console.print(table)
    new = found.new(base, known)
    counts = [f"would add {new['observations']:,} observations"]
    counts += [f"{new[name]:,} {name}" for name in ("decisions", "outcomes") if len(found.tables[name])]
    problems, there = len(found.problems), len(found.rows) - new["observations"]
    counts += [f"would leave out {there:,} that are there already"] if there else []
    counts += [f"would put {problems:,} row{'s' * (problems != 1)} into quarantine"] if problems else []
    console.print(f"of its first {found.looked_at:,} rows, the import {', '.join(counts)}", soft_wrap=True)
    _show_problems(found.problems[:20], problems, "would go into quarantine")
    return len(found.rows)


def _show_problems(problems: Sequence[Problem], count: int, whither: str) -> None:
    for problem in problems:
        console.print(shown(problem), soft_wrap=True)
    if count > len(problems):
        console.print(f"and {count - len(problems):,} more; all {whither}", soft_wrap=True)


@contextmanager
def _progress(seconds: float, limits: SizeLimits) -> Iterator[Callable[[CompressionCandidate], None]]:
    """A bar of the search's seconds, told of every candidate; the best so far beside it."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from stillhouse.compress.frontier import choose

    made: list[CompressionCandidate] = []
    counted = TextColumn("{task.fields[made]} made, {task.fields[best]}", markup=False)
    with Progress(
        SpinnerColumn(), BarColumn(20), TimeElapsedColumn(), counted, console=console, transient=True
    ) as progress:
        bar = progress.add_task("", total=seconds, made=0, best="the float32 model comes first")

        def on_candidate(candidate: CompressionCandidate) -> None:
            made.append(candidate)
            best, fits, _ = choose(made, made[0], limits)
            told = f"{'best' if fits else 'nearest'}: {best.name}, {best.bytes:,} bytes"
            progress.update(bar, completed=sum(each.seconds for each in made), made=len(made), best=told)

        yield on_candidate


def _show_frontier(frontier: Frontier) -> None:
    """What nothing beats, with the reference; what was refused; why the chosen one was."""
    reference = frontier.reference
    table = Table("candidate", "bytes", "ratio", "quality", "p50 (ms)", "p95 (ms)", "CPU (ms)", "")
    names = dict.fromkeys([*frontier.best, frontier.chosen, reference.name])
    for each in sorted(map(frontier.named, names), key=lambda candidate: candidate.bytes):
        assert each.latency is not None  # those that can serve were measured
        mark = "chosen" if each.name == frontier.chosen and frontier.fits else "float32" if each is reference else ""
        times = map(_number, (each.latency.p50_ms, each.latency.p95_ms, each.cpu_ms))
        ratio = f"{each.bytes / reference.bytes:.1%}"
        table.add_row(each.name, f"{each.bytes:,}", ratio, _number(each.quality), *times, mark)
    console.print(table)
    if frontier.measure:
        console.print(f"quality is {frontier.measure}", soft_wrap=True, highlight=False, markup=False)
    for note in frontier.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    refused = [each for each in frontier.candidates if each.refused is not None]
    console.print(
        f"{len(frontier.candidates)} candidates, {len(frontier.candidates) - len(names)} of them beaten or refused; "
        f"{frontier.stopped}"
    )
    for each in refused:
        console.print(f"refused: {shown(each.name)}: {shown(each.refused)}", style="dim")
    console.print(shown(frontier.why), style="bold")


def _settings(agent: str) -> config.AgentConfig:
    """The agent of a name or of a path; where both are there, of the name."""
    file = config.agents_folder() / f"{agent}.yaml"
    if re.fullmatch(r"[\w-]+", agent) and (file.is_file() or not Path(agent).is_file()):
        return config.load(agent)
    return config.load_file(Path(agent))


def _duration(text: str) -> timedelta:
    try:
        return config.parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--last") from error


def _bytes(text: str) -> int:
    """A size such as ``64KiB``."""
    found = re.fullmatch(r"(\d{1,10})(B|KiB|MiB)?", text.strip())
    size = int(found[1]) * {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20}[found[2]] if found else 0
    if not 2**10 <= size <= 2**30:
        raise typer.BadParameter(f"{text!r} is no size from 1KiB to 1024MiB", param_hint="--max-body")
    return size


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None else None


def _profile(path: Path, columns: list[str] | None, like: Profile | None, texts: Sequence[str]) -> Profile:
    """The profile of a table, or a kept one; with a progress bar, for a table may be long."""
    from pyarrow import ArrowException
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from stillhouse.drift.profile import Profile
    from stillhouse.drift.scan import ParquetRows, scan
    from stillhouse.drift.texts import measure_text_batches

    if path.suffix == ".profile":
        try:
            kept = Profile.from_bytes(path.read_bytes())
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
        if absent := [name for name in columns or () if name not in kept.columns]:
            raise SchemaError(f"{path} lacks the columns {absent}; it has {list(kept.columns)}")
        return Profile(kept.rows, {name: kept.columns[name] for name in columns or kept.columns})
    source: Any = path
    if (path / "_delta_log").is_dir():
        from deltalake import DeltaTable

        if strange := config.unfit_in_path(path.resolve()):
            raise SchemaError(f"Delta Lake opens no path that has {', '.join(map(repr, strange))} in it: move {path}")
        source = DeltaTable(path).to_pyarrow_dataset()
    counted = TextColumn("{task.fields[file]}: {task.completed:,.0f} rows", markup=False)
    with Progress(SpinnerColumn(), counted, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("", total=None, file=shown(path.name))
        try:
            if texts:
                batches = ParquetRows.from_path(path).by_row() if source is path else source.to_batches()
                source = measure_text_batches(batches, texts)
            return scan(source, columns or None, like, on_rows=lambda rows: progress.advance(bar, rows))
        except (ArrowException, OSError) as error:
            raise SchemaError(f"{path} cannot be read as Parquet: {error}") from error


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
    table = Table("teacher", "", *("calls", "rows", "tokens in", "tokens out", "seconds", "money"))
    for name, total in spent.items():
        for when, cost in (("today", today.get(name)), ("in all", total)):
            if cost is not None:
                table.add_row(
                    name if when == "today" or name not in today else "",
                    when,
                    f"{cost.calls:,}",
                    f"{cost.rows:,}",
                    f"{cost.input_tokens:,}",
                    f"{cost.output_tokens:,}",
                    f"{cost.seconds:,.1f}",
                    f"{cost.money:,.4f}",
                )
    console.print(table)


def _show_machine(agent: str) -> None:
    """What waits in the spools of this machine, and what troubles the agent here."""
    from stillhouse.knowledge.spool import spool_folder, survey
    from stillhouse.runtime.reports import problems_here

    found = survey(spool_folder(agent))
    console.print(f"spools on this machine: {found.rows:,} rows wait for the knowledge base")
    problems = [f"spool: {problem}" for problem in found.problems]
    problems += [
        f"{side}: {problem.text}"
        for side, problem in problems_here(agent).items()
        if problem.over_at is None and side != "spool"
    ]
    for problem in problems:
        console.print(f"problem: {problem}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def main() -> None:
    """Entry point of the command."""
    with plain_mistakes():
        config.use_embedded_defaults()
        app()
