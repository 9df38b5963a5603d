"""The stations of ``flows/maintain.py`` as Prefect tasks, one engine call each."""

from __future__ import annotations

from datetime import datetime

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from stillhouse import maintaining
from stillhouse.knowledge.flush import FlushResult
from stillhouse.knowledge.upkeep import CompactionResult, DeletedRows, UpkeepReport, VacuumResult
from stillhouse.maintaining import ModelWindows, resolve_time
from tasks.common import artifact_key, engine_task

__all__ = [
    "compact",
    "flush_spools",
    "free",
    "learned_windows",
    "look_for_damage",
    "publish",
    "remove_old_rows",
    "resolve_time",
]


@engine_task("flush")
def flush_spools(agent: str) -> FlushResult:
    """Move what the agent's processes on this machine recorded into the tables."""
    return maintaining.flush_spools(agent)


@engine_task("which windows are in use")
def learned_windows(agent: str) -> ModelWindows:
    """The windows of every registered version; where the registry cannot tell, why not."""
    return maintaining.read_model_windows(agent)


@engine_task("look for damage")
def look_for_damage(agent: str) -> tuple[str, ...]:
    """What is wrong with the tables, a sentence each."""
    return maintaining.find_damage(agent)


@engine_task("compact")
def compact(agent: str) -> tuple[CompactionResult, ...]:
    """Join small files into large ones."""
    return maintaining.compact(agent)


@engine_task("remove old rows")
def remove_old_rows(agent: str, as_of: datetime, learned: ModelWindows) -> tuple[DeletedRows, ...]:
    """Delete rows past their retention that no registered model learned from."""
    return maintaining.delete_old_rows(agent, as_of, learned)


@engine_task("free the disk")
def free(agent: str, learned: ModelWindows) -> tuple[VacuumResult, ...]:
    """Delete files of table versions that nobody needs."""
    return maintaining.vacuum(agent, learned)


@engine_task("publish")
def publish(done: UpkeepReport) -> None:
    """The report as an artifact; what is wrong is logged as well."""
    for problem in (*done.flushed.problems, *done.problems, *filter(None, [done.nothing_removed])):
        get_run_logger().warning("%s", problem)
    key, page = artifact_key("maintain", done.agent), maintaining.format_report(done)
    create_markdown_artifact(page, key=key, description=maintaining.summarize_report(done))
