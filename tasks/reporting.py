"""Prefect tasks that publish a flow's results as artifacts on the page of its run."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from data_checks.report import markdown
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.explaining import format_champion_page, format_promotion_page
from stillhouse.knowledge import KnowledgeBase
from stillhouse.pages import embed_png, format_line, insert_after_heading
from stillhouse.records import DataReport, DriftReport, Refresh, TeacherWeights, Verdict
from stillhouse.refreshing.page import format_refresh_page
from stillhouse.refreshing.publishing import read_challenger_name
from stillhouse.refreshing.session import get_session
from stillhouse.registry import names
from stillhouse.savings_page import refresh_savings_page
from stillhouse.watching.publishing import draw_timeline, draw_watch_figures, format_watch_page, log_watch
from stillhouse.watching.window import get_window
from tasks.common import artifact_key, engine_task
from tasks.forms import format_approval, link_answers, link_artifact

__all__ = ["publish_champion", "publish_promotion", "publish_refresh", "publish_timeline", "publish_watch"]


@engine_task("publish")
def publish_watch(
    verdict: Verdict, data: DataReport, report: DriftReport | None, mixture: TeacherWeights | None = None
) -> None:
    """Publish verdict, data checks, evidence and drift of a watch as an artifact; metrics and figures go to MLflow.

    What an agent behind the front door saves goes to the run of its champion.
    """
    watched = get_window(verdict.agent, data.window)
    figures = draw_watch_figures(watched, verdict, report, mixture)
    run_id = log_watch(watched, verdict, data, report, figures, mixture) if report else None
    page = format_watch_page(watched, verdict, data, markdown(data), report, mixture, figures, run_id)
    if champion := link_artifact("champion", verdict.agent, "Who is champion, why, and how to go back"):
        page = insert_after_heading(page, champion)
    create_markdown_artifact(page, key=artifact_key("watch", verdict.agent), description=format_line(verdict))
    refresh_savings_page(watched.settings)


@engine_task("publish")
def publish_refresh(job: Refresh, verdict: Verdict) -> None:
    """Publish the gate's verdict and the scorecards of all models of the refresh."""
    session = get_session(job)
    page = format_refresh_page(job, verdict, session.base, session.registry)
    if verdict.result == "awaiting_approval":
        version = session.registry.version_of(job.refresh_id, read_challenger_name(verdict))
        page = insert_after_heading(page, format_approval(job.agent, version))
    create_markdown_artifact(page, key=artifact_key("refresh", job.agent), description=format_line(verdict))


@engine_task("draw timeline")
def publish_timeline(verdict: Verdict, run_id: str | None = None) -> None:
    """Draw the agent's life until the verdict as an artifact, and as a figure of its MLflow run, if it has one."""
    image = draw_timeline(KnowledgeBase(load(verdict.agent)), verdict.as_of)
    if run_id is not None:
        open_registry(verdict.agent).runs.log_files(run_id, {names.TIMELINE_FIGURE: image})
    page = f"# {verdict.agent}\n\n{embed_png(image, 'champions, quality, evidence, responses and gains over time')}"
    create_markdown_artifact(page, key=artifact_key("timeline", verdict.agent), description=format_line(verdict))


@engine_task("publish champion")
def publish_champion(verdict: Verdict) -> None:
    """Publish who is champion, since when, and where to find why, what changed, how good it is and how to go back.

    :param verdict: that has changed the champion.
    """
    registry = open_registry(verdict.agent)
    if page := format_champion_page(registry, link_answers(verdict.agent)):
        line = f"{registry.champion()} since {verdict.as_of:%Y-%m-%d %H:%M} UTC"
        create_markdown_artifact(page, key=artifact_key("champion", verdict.agent), description=line)


@engine_task("publish")
def publish_promotion(verdict: Verdict) -> None:
    """Publish the new champion, the previous one, and the reason for the change; or what waits for a person."""
    page = format_promotion_page(open_registry(verdict.agent), verdict)
    if verdict.result == "awaiting_approval":
        form = format_approval(verdict.agent, str(verdict.evidence["challenger"]).rpartition("@")[2])
        page = insert_after_heading(page, form)
    create_markdown_artifact(page, key=artifact_key("promotion", verdict.agent), description=format_line(verdict))
