"""Prefect tasks that publish a flow's results as artifacts on the page of its run."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from data_checks.report import markdown
from stillhouse.champion import open_registry
from stillhouse.explaining import format_promotion_page
from stillhouse.pages import format_line
from stillhouse.records import DataReport, DriftReport, Refresh, TeacherWeights, Verdict
from stillhouse.refreshing.page import format_refresh_page
from stillhouse.refreshing.session import get_session
from stillhouse.watching.publishing import draw_watch_figures, format_watch_page, log_watch
from stillhouse.watching.window import get_window
from tasks.common import artifact_key, engine_task

__all__ = ["publish_promotion", "publish_refresh", "publish_watch"]


@engine_task("publish")
def publish_watch(
    verdict: Verdict, data: DataReport, report: DriftReport | None, mixture: TeacherWeights | None = None
) -> None:
    """Publish verdict, data checks, evidence and drift of a watch as an artifact; metrics and figures go to MLflow."""
    watched = get_window(verdict.agent, data.window)
    figures = draw_watch_figures(watched, verdict, report, mixture)
    run_id = log_watch(watched, verdict, data, report, figures, mixture) if report else None
    page = format_watch_page(watched, verdict, data, markdown(data), report, mixture, figures, run_id)
    create_markdown_artifact(page, key=artifact_key("watch", verdict.agent), description=format_line(verdict))


@engine_task("publish")
def publish_refresh(job: Refresh, verdict: Verdict) -> None:
    """Publish the gate's verdict and the scorecards of all models of the refresh."""
    session = get_session(job)
    page = format_refresh_page(job, verdict, session.base, session.registry)
    create_markdown_artifact(page, key=artifact_key("refresh", job.agent), description=format_line(verdict))


@engine_task("publish")
def publish_promotion(verdict: Verdict) -> None:
    """Publish the new champion, the previous one, and the reason for the change."""
    key = artifact_key("promotion", verdict.agent)
    page = format_promotion_page(open_registry(verdict.agent), verdict)
    create_markdown_artifact(page, key=key, description=format_line(verdict))
