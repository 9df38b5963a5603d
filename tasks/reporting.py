"""Prefect tasks that publish a flow's results as artifacts on the page of its run."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from data_checks.report import markdown
from stillhouse.pages import heading, line
from stillhouse.records import DataReport, DriftReport, Refresh, TeacherWeights, Verdict
from stillhouse.refreshing.page import refresh_page
from stillhouse.refreshing.session import session_of
from stillhouse.watching.publishing import log_watch, watch_figures, watch_page
from stillhouse.watching.window import window_of
from tasks.common import artifact_key, engine_task

__all__ = ["publish_promotion", "publish_refresh", "publish_watch"]


@engine_task("publish")
def publish_watch(
    verdict: Verdict, data: DataReport, report: DriftReport | None, weights: TeacherWeights | None = None
) -> None:
    """Publish verdict, data checks, evidence and drift of a watch as an artifact; metrics and figures go to MLflow."""
    watched = window_of(verdict.agent, data.window)
    figures = watch_figures(watched, verdict, report, weights)
    run_id = log_watch(watched, verdict, data, report, figures, weights) if report else None
    page = watch_page(watched, verdict, data, markdown(data), report, weights, figures, run_id)
    create_markdown_artifact(page, key=artifact_key("watch", verdict.agent), description=line(verdict))


@engine_task("publish")
def publish_refresh(job: Refresh, verdict: Verdict) -> None:
    """Publish the gate's verdict and the scorecards of all models of the refresh."""
    session = session_of(job)
    page = refresh_page(job, verdict, session.base, session.registry)
    create_markdown_artifact(page, key=artifact_key("refresh", job.agent), description=line(verdict))


@engine_task("publish")
def publish_promotion(verdict: Verdict) -> None:
    """Publish the new champion, the previous one, and the reason for the change."""
    key = artifact_key("promotion", verdict.agent)
    create_markdown_artifact(heading(verdict), key=key, description=line(verdict))
