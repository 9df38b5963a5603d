"""``stillhouse import``: bring existing logs into the knowledge base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console
from stillhouse.config import AgentConfig
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.knowledge.importing import ImportSource, Preview, RowProblem, Skipped
    from stillhouse.knowledge.schemas import Table as KnowledgeTable

__all__ = ["CallFormat", "import_"]


class CallFormat(StrEnum):
    """What wrote a log of calls to a language model."""

    openai = "openai"
    otel = "otel"
    mlflow = "mlflow"


_HEADINGS = {"before": "dealt with before", "answers": "knowledge"}


def import_(
    agent: AgentName,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="CSV, JSON lines (both also .gz) or Parquet; with --format JSON lines, or names of MLflow experiments"
        ),
    ],
    form: Annotated[
        CallFormat | None,
        typer.Option(
            "--format",
            help="logs of calls to a language model: requests and responses of the OpenAI protocol, spans of "
            "OpenTelemetry (OTLP), or traces of MLflow",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="with --format: the task whose calls are imported, by its key, or `any`; needed if there are several"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="with --format: the teacher whose knowledge the answers are; by default the one that asks that model"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="write nothing; show the first rows as they would be imported, and the errors in them"
        ),
    ] = False,
) -> None:
    """Import existing logs into an agent's knowledge base.

    The section `importing` of the agent file maps the columns of the files to
    those of the tables; without it the names must be the same. Rows that cannot
    be used go to quarantine with file and line. Observations that the knowledge
    base has already are not added again. An import that was killed continues
    where it stopped when it is run again. The exit code is 1 if no row of any
    file can be used.

    With --format the files are logs of calls to a language model. The last user
    message of a call fills the agent's text column, and the answer becomes
    knowledge of the agent's teacher that asks this model, so that a refresh
    does not ask it again. Calls that do not answer the agent's question are
    counted with the reason, and not stored.

    For example:

        stillhouse import flights --dry-run 2012.csv.gz
        stillhouse import flights 2011.parquet 2012.csv.gz log.jsonl
        stillhouse import intents --format openai --dry-run proxy.jsonl.gz
        stillhouse import intents --format mlflow "support chat"
    """
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.knowledge.importing import import_files, preview

    settings = config.load(agent)
    if form is None and (task or teacher):
        raise typer.BadParameter("--task and --teacher belong to --format")
    with _open(settings, files, form, task, teacher) as (sources, notes):
        for note in notes:
            console.print(escape_line(note), soft_wrap=True)
        if dry_run:
            base, known_ids = KnowledgeBase(settings), dict["KnowledgeTable", set[str]]()
            usable_rows = [_show_preview(file_preview, base, known_ids) for file_preview in preview(settings, sources)]
            console.print("nothing was written")
            if not any(usable_rows):
                raise typer.Exit(1)
            return
        paths = [source if isinstance(source, Path) else source.file.path for source in sources]
        with _progress_bar(2 * sum(file.stat().st_size for file in paths if file.is_file())) as on_bytes:
            summary = import_files(KnowledgeBase(settings), sources, on_bytes)
    _show_skipped(summary.skipped, "are left out")
    _show_problems(summary.problems, summary.quarantined, f"are in quarantine: stillhouse quarantine {agent}")
    for note in summary.notes:
        console.print(escape_line(note), style="dim")
    counts = ["rows", "before", "added", "duplicates", "quarantined", "decisions", "outcomes"]
    counts += ["answers"] if form else []
    table = Table("", *(_HEADINGS.get(name, settings.words.say(name)) for name in counts))
    table.add_row("imported", *(f"{getattr(summary, name):,}" for name in counts))
    console.print(table)
    if not summary.before + summary.added + summary.duplicates:
        raise typer.Exit(1)


def _show_preview(preview: Preview, base: KnowledgeBase, known_ids: dict[KnowledgeTable, set[str]]) -> int:
    """Print the first rows of a file as they would be imported, and the errors in them.

    :param known_ids: ids that the previous files would add, by table; those of this file are added.
    :returns: the number of usable rows.
    """
    rows = preview.rows.head(10)
    table = Table(*map(escape_line, rows.columns))
    for row in rows.itertuples(index=False):
        table.add_row(*("" if value is None or value != value else str(value) for value in row))
    console.print(f"{escape_line(preview.file)}:", soft_wrap=True)
    console.print(table)
    new = preview.count_new(base, known_ids)
    counts = [f"would add {new['observations']:,} observations"]
    say = base.config.words.say
    counts += [f"{new[name]:,} {say(name)}" for name in ("decisions", "outcomes") if len(preview.tables[name])]
    counts += [f"{preview.answers:,} answers as knowledge of a teacher"] if preview.answers else []
    problems, existing = len(preview.problems), len(preview.rows) - new["observations"]
    counts += [f"would leave out {existing:,} that are there already"] if existing else []
    counts += [f"would put {problems:,} row{'s' * (problems != 1)} into quarantine"] if problems else []
    console.print(f"of its first {preview.lines_read:,} rows, the import {', '.join(counts)}", soft_wrap=True)
    _show_problems(preview.problems[:20], problems, "would go into quarantine")
    _show_skipped(preview.skipped, "would be left out")
    return len(preview.rows)


def _show_problems(problems: Sequence[RowProblem], count: int, destination: str) -> None:
    """Print ``problems``, and how many of ``count`` in total were left out."""
    for problem in problems:
        console.print(escape_line(problem), soft_wrap=True)
    if count > len(problems):
        console.print(f"and {count - len(problems):,} more; all {destination}", soft_wrap=True)


def _show_skipped(skipped: Mapping[str, Skipped], verb: str) -> None:
    """Print how many calls were left out for each reason, and where the first of them is."""
    for reason, found in sorted(skipped.items(), key=lambda item: -item[1].count):
        first = f"the first is {found.first.file}:{found.first.line}"
        console.print(escape_line(f"{found.count:,} calls {verb}: {reason} ({first})"), soft_wrap=True)


@contextmanager
def _open(
    settings: AgentConfig, files: Sequence[Path], form: CallFormat | None, task: str | None, teacher: str | None
) -> Iterator[tuple[Sequence[Path | ImportSource], Sequence[str]]]:
    """What to import, and what to tell about it first."""
    if form is None:
        yield files, ()
        return
    from stillhouse.call_logs import open_call_logs

    with open_call_logs(settings, [str(file) for file in files], form.value, task, teacher) as opened:
        yield opened.sources, opened.notes


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar of bytes; yields a function that takes the name of the current file and the bytes to add."""
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
        yield lambda file, count: progress.update(bar, description=escape_line(file), advance=count)
