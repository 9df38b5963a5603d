"""The Prefect tasks of ``flows/maintain.py``; each makes one engine call."""

from __future__ import annotations

from datetime import datetime

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from stillhouse import maintaining
from stillhouse.knowledge.flush import FlushResult
from stillhouse.knowledge.upkeep import CompactionResult, DeletedRows, UpkeepReport, VacuumResult
from stillhouse.maintaining import ModelWindows, list_problems, resolve_time, summarize_report
from tasks.common import artifact_key, engine_task

__all__ = [
    "compact",
    "flush_spools",
    "free",
    "learned_windows",
    "list_problems",
    "look_for_damage",
    "publish",
    "remove_old_rows",
    "resolve_time",
    "summarize_report",
]


@engine_task("flush")
def flush_spools(agent: str) -> FlushResult:
    """Move the events in the spools of this machine's processes into the tables."""
    return maintaining.flush_spools(agent)


@engine_task("which windows are in use")
def learned_windows(agent: str) -> ModelWindows:
    """Return the windows of every registered version, or why the registry cannot list them."""
    return maintaining.read_model_windows(agent)


@engine_task("look for damage")
def look_for_damage(agent: str) -> tuple[str, ...]:
    """Return the problems of the tables, one sentence per problem."""
    return maintaining.find_damage(agent)


@engine_task("compact")
def compact(agent: str) -> tuple[CompactionResult, ...]:
    """Merge small files into large ones."""
    return maintaining.compact(agent)


@engine_task("remove old rows")
def remove_old_rows(agent: str, as_of: datetime, learned: ModelWindows) -> tuple[DeletedRows, ...]:
    """Delete rows past their retention on which no registered model was trained or evaluated."""
    return maintaining.delete_old_rows(agent, as_of, learned)


@engine_task("free the disk")
def free(agent: str, learned: ModelWindows) -> tuple[VacuumResult, ...]:
    """Delete the data files that only unused table versions refer to."""
    return maintaining.vacuum(agent, learned)


@engine_task("publish")
def publish(report: UpkeepReport) -> None:
    """Create an artifact of the report, and log its problems as warnings."""
    for problem in list_problems(report):
        get_run_logger().warning("%s", problem)
    key, page = artifact_key("maintain", report.agent), maintaining.format_report(report)
    create_markdown_artifact(page, key=key, description=summarize_report(report))
