"""Maintain an agent's tables: flush, find damage, compact, delete old rows, vacuum; and format the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import RegistryError
from stillhouse.knowledge import KnowledgeBase, integrity, upkeep
from stillhouse.knowledge.flush import FlushResult, flush
from stillhouse.knowledge.upkeep import CompactionResult, DeletedRows, UpkeepReport, VacuumResult
from stillhouse.records import Window
from stillhouse.shown import escape_markdown as md

__all__ = [
    "ModelWindows",
    "compact",
    "delete_old_rows",
    "find_damage",
    "flush_spools",
    "format_report",
    "list_problems",
    "read_model_windows",
    "resolve_time",
    "summarize_report",
    "vacuum",
]


_PROMOTION_KINDS: tuple[Literal["gate", "promotion"], ...] = ("gate", "promotion")


class ModelWindows(NamedTuple):
    """The windows that each registered model was trained and proved on, or why they are unknown."""

    windows: Mapping[str, tuple[Window, ...]]
    unknown: str = ""


def resolve_time(agent: str, as_of: datetime | None) -> datetime:
    """``as_of`` in UTC; if that is None, the present by the clock that the agent file names."""
    base = _open_base(agent)
    return base.resolve_time(as_of) if as_of or base.observed_until() else datetime.now(UTC)


def flush_spools(agent: str) -> FlushResult:
    """Move what the agent's processes on this machine recorded into the tables."""
    return flush(_open_base(agent))


def read_model_windows(agent: str) -> ModelWindows:
    """The windows of every registered version, or the reason why the registry cannot give them.

    If the registry has no version although the knowledge base records promotions, it must be another registry, and the
    windows are unknown.
    """
    try:
        windows = open_registry(agent).windows()
    except RegistryError as error:
        return ModelWindows({}, str(error))
    promoted = sum(
        verdict.result == "promoted"
        for kind in _PROMOTION_KINDS
        for verdict in _open_base(agent).journal.verdicts(kind)
    )
    if promoted and not windows:
        return ModelWindows(
            {},
            f"the registry has no version of {agent}, yet {promoted} verdicts promoted one: is MLFLOW_TRACKING_URI the "
            "right one?",
        )
    return ModelWindows(windows)


def find_damage(agent: str) -> tuple[str, ...]:
    """The problems of the tables, one sentence each."""
    return tuple(integrity.find_problems(_open_base(agent).tables))


def compact(agent: str) -> tuple[CompactionResult, ...]:
    """Compact small files of the tables into large ones."""
    return upkeep.compact(_open_base(agent).tables, config.load(agent).upkeep)


def delete_old_rows(agent: str, as_of: datetime, models: ModelWindows) -> tuple[DeletedRows, ...]:
    """Delete rows older than `upkeep.keep`, except in the windows of registered models."""
    keep = config.load(agent).upkeep.keep
    if keep is None or models.unknown:
        return ()
    return upkeep.delete_old_rows(_open_base(agent).tables, as_of - keep, models.windows)


def vacuum(agent: str, models: ModelWindows) -> tuple[VacuumResult, ...]:
    """Delete files of old table versions, except of versions that a registered model was trained or proved on."""
    if models.unknown:
        return ()
    return upkeep.vacuum(_open_base(agent).tables, config.load(agent).upkeep.grace, models.windows)


def format_report(report: UpkeepReport) -> str:
    """The report as Markdown.

    >>> from datetime import UTC, datetime
    >>> from stillhouse.knowledge.flush import FlushResult
    >>> from stillhouse.knowledge.upkeep import UpkeepReport
    >>> flushed = FlushResult(spools=2, rows={"decisions": 1200})
    >>> report = UpkeepReport(agent="flights", as_of=datetime(2026, 1, 5, tzinfo=UTC), flushed=flushed)
    >>> print(format_report(report))
    # flights: 1,200 rows flushed, 0 files fewer, 0 old rows removed, 0 bytes freed
    <BLANKLINE>
    As of 2026-01-05 00:00 UTC. Flushed from 2 spools: 1,200 decisions.
    """
    flushed = report.flushed
    flushed_rows = ", ".join(f"{rows:,} {table}" for table, rows in flushed.rows.items()) or "none"
    problems = list_problems(report)
    compacted = [
        (
            result.table,
            result.month or "",
            _format_change(result.files_before, result.files_after),
            _format_change(result.bytes_before, result.bytes_after),
        )
        for result in report.compacted
    ]
    deleted = [(result.table, f"{result.rows:,}") for result in report.removed]
    freed = [
        (
            result.table,
            _format_change(result.files_before, result.files_after),
            _format_change(result.bytes_before, result.bytes_after),
            "; ".join(f"{version} for {', '.join(models)}" for version, models in result.readable_versions.items()),
        )
        for result in report.freed
    ]
    parts = [
        f"# {report.agent}: {summarize_report(report)}",
        "\n".join(f"- **{md(text)}**" for text in problems),
        f"As of {report.as_of:%Y-%m-%d %H:%M} UTC. Flushed from {flushed.spools} spools: {flushed_rows}.",
        _format_table("Compacted", ("table", "month", "files", "bytes"), compacted),
        _format_table("Old rows removed", ("table", "rows"), deleted),
        _format_table("On the disk", ("table", "files", "bytes", "old versions kept"), freed),
    ]
    return "\n\n".join(filter(None, parts))


def list_problems(report: UpkeepReport) -> list[str]:
    """What a person should look at, one sentence each; empty if all went well."""
    return [
        *report.flushed.problems,
        *report.problems,
        *(
            [f"{report.flushed.dead} events could not become rows: see the files `.dead` beside the spools"]
            * bool(report.flushed.dead)
        ),
        *([f"nothing was removed: {report.nothing_removed}"] * bool(report.nothing_removed)),
        *(
            f"{result.table}@{version}, which {', '.join(models)} learned from, cannot be read"
            for result in report.freed
            for version, models in result.unreadable.items()
        ),
    ]


def summarize_report(report: UpkeepReport) -> str:
    """The report in one line, for a list of artifacts."""
    files = sum(result.files_before - result.files_after for result in report.compacted)
    freed = sum(result.bytes_before - result.bytes_after for result in report.freed)
    removed = (
        "nothing removed"
        if report.nothing_removed
        else f"{sum(result.rows for result in report.removed):,} old rows removed, {freed:,} bytes freed"
    )
    return f"{sum(report.flushed.rows.values()):,} rows flushed, {files:,} files fewer, {removed}"


def _open_base(agent: str) -> KnowledgeBase:
    return KnowledgeBase(config.load(agent))


def _format_change(before: int, after: int) -> str:
    return f"{before:,} → {after:,}"


def _format_table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [header, ("---",) * len(header), *(tuple(map(md, row)) for row in rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
