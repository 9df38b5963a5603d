"""Prefect artifacts: what a flow found, readable on its run's page."""

from __future__ import annotations

import base64
import io

from matplotlib.figure import Figure
from prefect.artifacts import create_markdown_artifact

from data_checks.report import markdown
from stillhouse.drift.figures import drift_figure
from stillhouse.evaluate import figures
from stillhouse.records import DataReport, DriftReport, Proof, Reason, Refresh, Scorecard, Verdict
from stillhouse.registry.connection import without_credentials
from tasks.common import engine_task, registry

__all__ = ["publish_promotion", "publish_refresh", "publish_watch"]


@engine_task(task_run_name="publish")
def publish_watch(verdict: Verdict, data: DataReport, report: DriftReport | None) -> None:
    """The watch's verdict, the data checks and the drift per column."""
    parts = [_heading(verdict), _reasons(verdict.reasons), markdown(data)]
    if report is not None:
        parts += ["## Drift", _picture(drift_figure(report), "PSI per column"), _drift(report)]
    create_markdown_artifact("\n\n".join(parts), key=f"watch-{verdict.agent}", description=_line(verdict))


@engine_task(task_run_name="publish")
def publish_refresh(job: Refresh, verdict: Verdict) -> None:
    """The gate's verdict and the scorecards of all models of the refresh."""
    proof = registry(job.agent).read_record(job.run_id, "proof.json", Proof)
    cards = [proof.teacher, proof.student, *proof.variants, *([proof.champion] if proof.champion else [])]
    parts = [
        _heading(verdict),
        f"Started by **{job.trigger}** ({job.cause}); trained on {job.train}, judged on {job.test}.",
        f"Put forward: {proof.why}.",
        _reasons(verdict.reasons),
        "## Scorecards",
        _scorecards(cards),
        _picture(figures.tradeoff(proof), "bytes, latency and AUC"),
        f"MLflow run {_link(job)}",
    ]
    create_markdown_artifact("\n\n".join(parts), key=f"refresh-{job.agent}", description=_line(verdict))


@engine_task(task_run_name="publish")
def publish_promotion(verdict: Verdict) -> None:
    """Who is champion now, instead of whom, and why."""
    create_markdown_artifact(_heading(verdict), key=f"promotion-{verdict.agent}", description=_line(verdict))


def _line(verdict: Verdict) -> str:
    """The verdict in a list of artifacts."""
    return f"{verdict.outcome.replace('_', ' ')}, as of {verdict.as_of:%Y-%m-%d %H:%M} UTC"


def _heading(verdict: Verdict) -> str:
    outcome = verdict.outcome.replace("_", " ")
    return f"# {verdict.agent}: {outcome}\n\n{verdict.summary}\n\nas of {verdict.as_of:%Y-%m-%d %H:%M} UTC, " \
           f"verdict `{verdict.verdict_id}`"  # fmt: skip


def _reasons(reasons: tuple[Reason, ...]) -> str:
    """A list: the cells of Prefect's tables do not wrap, and a sentence is cut off."""
    return "\n".join(f"- {'**crossed**' if r.crossed else 'held'} `{r.measure}`: {r.text}" for r in reasons)


def _link(job: Refresh) -> str:
    """The run's id; a link to its page where MLflow is a server."""
    models = registry(job.agent)
    if not models.uri.startswith("http"):
        return f"`{job.run_id}`"
    return f"[`{job.run_id}`]({without_credentials(models.uri)}/#/experiments/{models.experiment_id}/runs/{job.run_id})"


def _drift(report: DriftReport) -> str:
    columns = [*report.worst(len(report.columns)), *([report.output] if report.output else [])]
    rows = [f"| {c.column} | {c.psi:.3f} | {_number(c.ks)} | {c.missing_reference:.1%} | {c.missing_current:.1%} "
            f"| {', '.join(c.unseen)} |" for c in columns]  # fmt: skip
    return _table("| column | PSI | KS | missing before | missing now | never seen before |", rows)


def _scorecards(cards: list[Scorecard]) -> str:
    rows = []
    for card in cards:
        q, latency = card.test, card.latency
        rows.append(
            f"| {card.model} | {card.role} | {_number(q.auc)} | {q.log_loss:.4f} | {q.calibration_error:.4f} "
            f"| {_number(card.agreement)} | {card.bytes:,} | {_number(latency.p50_ms) if latency else ''} "
            f"| {_number(latency.p95_ms) if latency else ''} |"
        )
    return _table(
        "| model | role | AUC | log loss | calibration error | agreement | bytes | p50 (ms) | p95 (ms) |", rows
    )


def _table(header: str, rows: list[str]) -> str:
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *rows])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _picture(figure: Figure, what: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f"![{what}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
