"""The upkeep of an agent's tables, station by station, and the report of it."""

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
from stillhouse.shown import markdown as md

__all__ = [
    "Learned",
    "compact",
    "flush_spools",
    "free",
    "learned_windows",
    "line",
    "look_for_damage",
    "markdown",
    "moment",
    "remove_old_rows",
]


_PROMOTING: tuple[Literal["gate", "promotion"], ...] = ("gate", "promotion")


class Learned(NamedTuple):
    """What models were trained and proved on, or why that is not known."""

    windows: Mapping[str, tuple[Window, ...]]
    unknown: str = ""


def moment(agent: str, as_of: datetime | None) -> datetime:
    """The time that the upkeep speaks of: as given, else by the clock that the agent file names."""
    base = _base(agent)
    return base.resolve_time(as_of) if as_of or base.observed_until() else datetime.now(UTC)


def flush_spools(agent: str) -> FlushResult:
    """What the agent's processes on this machine recorded, into the tables."""
    return flush(_base(agent))


def learned_windows(agent: str) -> Learned:
    """The windows of every registered version; where the registry cannot tell, why not.

    A registry without any version is not believed where the knowledge base knows of promotions: it is another one.
    """
    try:
        windows = open_registry(agent).windows()
    except RegistryError as error:
        return Learned({}, str(error))
    promoted = sum(
        verdict.result == "promoted" for kind in _PROMOTING for verdict in _base(agent).journal.verdicts(kind)
    )
    if promoted and not windows:
        return Learned(
            {},
            f"the registry has no version of {agent}, yet {promoted} verdicts promoted one: is MLFLOW_TRACKING_URI the "
            "right one?",
        )
    return Learned(windows)


def look_for_damage(agent: str) -> tuple[str, ...]:
    """What is wrong with the tables, a sentence each."""
    return tuple(integrity.find_problems(_base(agent).tables))


def compact(agent: str) -> tuple[CompactionResult, ...]:
    """Small files to large ones."""
    return upkeep.compact(_base(agent).tables, config.load(agent).upkeep)


def remove_old_rows(agent: str, as_of: datetime, learned: Learned) -> tuple[DeletedRows, ...]:
    """Rows older than `upkeep.keep` that no registered model learned from."""
    keep = config.load(agent).upkeep.keep
    if keep is None or learned.unknown:
        return ()
    return upkeep.delete_old_rows(_base(agent).tables, as_of - keep, learned.windows)


def free(agent: str, learned: Learned) -> tuple[VacuumResult, ...]:
    """Files of table versions that nobody needs."""
    if learned.unknown:
        return ()
    return upkeep.vacuum(_base(agent).tables, config.load(agent).upkeep.grace, learned.windows)


def markdown(done: UpkeepReport) -> str:
    """The report to read."""
    flushed = done.flushed
    moved = ", ".join(f"{rows:,} {table}" for table, rows in flushed.rows.items()) or "none"
    wrong = [
        *flushed.problems,
        *done.problems,
        *(
            [f"{flushed.dead} events could not become rows: see the files `.dead` beside the spools"]
            * bool(flushed.dead)
        ),
        *([f"nothing was removed: {done.nothing_removed}"] * bool(done.nothing_removed)),
        *(
            f"{freed.table}@{version}, which {', '.join(models)} learned from, cannot be read"
            for freed in done.freed
            for version, models in freed.unreadable.items()
        ),
    ]
    compacted = [
        (
            each.table,
            each.month or "",
            _change(each.files_before, each.files_after),
            _change(each.bytes_before, each.bytes_after),
        )
        for each in done.compacted
    ]
    freed = [
        (
            each.table,
            _change(each.files_before, each.files_after),
            _change(each.bytes_before, each.bytes_after),
            "; ".join(f"{version} for {', '.join(models)}" for version, models in each.kept.items()),
        )
        for each in done.freed
    ]
    parts = [
        f"# {done.agent}: {line(done)}",
        "\n".join(f"- **{md(text)}**" for text in wrong),
        f"As of {done.as_of:%Y-%m-%d %H:%M} UTC. Flushed from {flushed.spools} spools: {moved}.",
        _table("CompactionResult", ("table", "month", "files", "bytes"), compacted),
        _table("Old rows removed", ("table", "rows"), [(each.table, f"{each.rows:,}") for each in done.removed]),
        _table("On the disk", ("table", "files", "bytes", "old versions kept"), freed),
    ]
    return "\n\n".join(filter(None, parts))


def _base(agent: str) -> KnowledgeBase:
    return KnowledgeBase(config.load(agent))


def _change(before: int, after: int) -> str:
    return f"{before:,} → {after:,}"


def line(done: UpkeepReport) -> str:
    """The report in a list of artifacts."""
    files = sum(c.files_before - c.files_after for c in done.compacted)
    freed = sum(f.bytes_before - f.bytes_after for f in done.freed)
    removed = (
        "nothing removed"
        if done.nothing_removed
        else f"{sum(r.rows for r in done.removed):,} old rows removed, {freed:,} bytes freed"
    )
    return f"{sum(done.flushed.rows.values()):,} rows flushed, {files:,} files fewer, {removed}"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *(tuple(map(md, row)) for row in rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
