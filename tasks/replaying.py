"""The Prefect tasks of ``flows/replay.py``; each makes one engine call."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timedelta

from prefect.artifacts import create_image_artifact, create_markdown_artifact

from stillhouse import config, stations
from stillhouse.pages import draw_png
from stillhouse.replay import publishing
from stillhouse.replay.publishing import summarize
from stillhouse.replay.report import ReplayReport
from stillhouse.replay.run import replay
from tasks.common import artifact_key, engine_task

__all__ = ["play", "publish", "summarize"]


@engine_task("play policies", retries=0, timeout_seconds=12 * 3600)
def play(
    agent: str,
    policies: Sequence[str],
    *,
    since: datetime | None,
    weeks: int | None,
    first_weeks: int,
    step: timedelta,
    exchange_rate: float | None,
    from_sources: bool,
) -> ReplayReport:
    """Train a student for each step and play the policies; nothing is written."""
    return replay(
        agent,
        policies,
        since=since,
        weeks=weeks,
        first_weeks=first_weeks,
        step=step,
        exchange_rate=exchange_rate,
        from_sources=from_sources,
        progress=stations.report,
    )


@engine_task("publish")
def publish(report: ReplayReport) -> None:
    """Write the report, create artifacts of table and figure, and log a run for each policy to MLflow."""
    publishing.write_report(report, config.home() / "replay" / report.agent)
    key = artifact_key("replay", report.agent)
    create_markdown_artifact(publishing.format_page(report), key=key, description=summarize(report))
    picture = f"data:image/png;base64,{base64.b64encode(draw_png(publishing.draw_report(report))).decode()}"
    create_image_artifact(picture, key=f"{key}-figure", description="quality over time, and responses")
    publishing.log_replay(report)
