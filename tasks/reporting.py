"""Prefect artifacts: what a flow found, readable on its run's page."""

from __future__ import annotations

import base64
import io
from math import log
from pathlib import Path

from matplotlib.figure import Figure
from prefect.artifacts import create_markdown_artifact

from data_checks.report import markdown
from stillhouse import config
from stillhouse.drift.explain import rank_columns
from stillhouse.drift.figures import drift_figure, evidence_figure, slices_figure
from stillhouse.evaluate.figures import tradeoff
from stillhouse.records import (
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    Proof,
    Questions,
    Reason,
    Refresh,
    Scorecard,
    SliceDrift,
    Verdict,
    evidence_steps,
)
from stillhouse.registry.connection import without_credentials
from tasks.common import DATA_DOCS, QUESTIONS, engine_task, knowledge_base, registry

__all__ = ["publish_promotion", "publish_refresh", "publish_watch"]


@engine_task(task_run_name="publish")
def publish_watch(verdict: Verdict, data: DataReport, report: DriftReport | None) -> None:
    """The watch's verdict, data checks, evidence and drift: an artifact here, curves and figures in MLflow."""
    agent, threshold = verdict.agent, config.load(verdict.agent).watch.thresholds.psi
    steps = _evidence(verdict)
    figures = _watch_figures(report, steps, threshold)
    run = _log_watch(verdict, data, report, steps, figures) if report else None
    parts = [_heading(verdict), _reasons(verdict.reasons), _cost(verdict.cost), markdown(data)]
    parts += [f"## {title}\n\n{_picture(png, title)}" for title, png in figures.items()]
    if report is not None:
        parts += ["## Columns", _drift(report), _slices(report.slices)]
    parts += [_links(agent, run)] if run else []
    create_markdown_artifact("\n\n".join(filter(None, parts)), key=f"watch-{agent}", description=_line(verdict))


@engine_task(task_run_name="publish")
def publish_refresh(job: Refresh, verdict: Verdict) -> None:
    """The gate's verdict and the scorecards of all models of the refresh."""
    proof = registry(job.agent).read_record(job.run_id, "proof.json", Proof)
    parts = [
        _heading(verdict),
        f"Started by **{job.trigger}** ({job.cause}); trained on {job.train}, judged on {job.test}.",
        *([f"Put forward: {proof.why}."] if proof else []),
        _reasons(verdict.reasons),
        *(_proof(proof) if proof else []),
        _spending(job),
        _questions(job),
        _links(job.agent, job.run_id),
    ]
    create_markdown_artifact("\n\n".join(filter(None, parts)), key=f"refresh-{job.agent}", description=_line(verdict))


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


def _links(agent: str, run_id: str) -> str:
    """The MLflow run and its page of data checks: links where MLflow is a server, else where they are to be found."""
    models = registry(agent)
    if not models.uri.startswith("http"):
        return f"MLflow run `{run_id}`, data checks in its artifact `{DATA_DOCS}`"
    page = f"{without_credentials(models.uri)}/#/experiments/{models.experiment_id}/runs/{run_id}"
    return f"[MLflow run `{run_id}`]({page}) · [data checks]({page}/artifacts/{DATA_DOCS})"


def _proof(proof: Proof) -> list[str]:
    cards = [proof.teacher, proof.student, *proof.variants, *([proof.champion] if proof.champion else [])]
    return ["## Scorecards", _scorecards(cards), _picture(_png(tradeoff(proof)), "bytes, latency and AUC")]


def _spending(job: Refresh) -> str:
    """What asking the teachers has cost this refresh."""
    spent = knowledge_base(job.agent).spending(job=job.refresh_id)
    return "\n".join(f"- teacher `{name}`: {cost}" for name, cost in spent.items())


def _questions(job: Refresh) -> str:
    """About how many rows the teachers were asked."""
    found = registry(job.agent).read_record(job.run_id, QUESTIONS, Questions)
    return f"Knowledge: {found}." if found else ""


# --------------------------------------------------------------------------- a watch


def _evidence(verdict: Verdict) -> list[EvidenceStep]:
    """Every step of the evidence that the verdict was decided on, oldest first."""
    last = evidence_steps(verdict)
    if not last:
        return []
    base = knowledge_base(verdict.agent)
    ends = {step.process: step.end for step in last}
    counted = (each.step for each in base.evidence(last[0].champion, min(step.since for step in last)))
    return [step for step in counted if step.end <= ends.get(step.process, step.end)]


def _watch_figures(report: DriftReport | None, steps: list[EvidenceStep], threshold: float | None) -> dict[str, bytes]:
    """PNG by title: drawing one takes a fifth of a second, and it is shown in two places."""
    found = {}
    if report is not None:
        found["Drift by column"] = drift_figure(report, threshold)
    if steps:
        found["Evidence"] = evidence_figure(steps)
    if report is not None and report.slices:
        found["Where teacher and student part"] = slices_figure(report)
    return {title: _png(figure) for title, figure in found.items()}


def _log_watch(
    verdict: Verdict, data: DataReport, report: DriftReport, steps: list[EvidenceStep], figures: dict[str, bytes]
) -> str:
    """The run of this champion's watches: curves go on, figures and pages are those of the last watch."""
    models = registry(verdict.agent)
    since = steps[0].since if steps else report.reference.end
    run_id = models.open_watch(report.champion, since)
    number = int((verdict.as_of - since) / config.load(verdict.agent).watch.every)
    fresh = [step for step in steps if step.end > report.current.start]
    points = [(step.end, int((step.end - since) / (step.end - step.start)), _curves(step)) for step in fresh]
    models.log_curve(run_id, [*points, (verdict.as_of, number, _levels(report))])
    for title, png in figures.items():
        models.log_file(run_id, png, f"figures/{title.lower().replace(' ', '_')}.png")
    models.log_record(run_id, verdict, "verdict.json")
    if data.docs:
        models.log_file(run_id, Path(data.docs).read_bytes(), DATA_DOCS)
    models.tag(run_id, outcome=verdict.outcome, data_docs=data.docs, **{"mlflow.note.content": verdict.summary})
    return run_id


def _curves(step: EvidenceStep) -> dict[str, float]:
    found = {f"log10_evidence.{step.process}": step.log_evidence / log(10)}
    return found if step.mean is None else found | {f"mean_loss.{step.process}": step.mean}


def _levels(report: DriftReport) -> dict[str, float]:
    found = {"psi.largest": report.worst(1)[0].psi} if report.columns else {}
    if report.screened:
        found["screen.statistic"] = report.screened.statistic
    if report.disagreement:
        found["disagreement"] = report.disagreement.total_variation
    if report.quality and report.quality.auc is not None:
        found["auc"] = report.quality.auc
    return found


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return ""
    return (
        f"Cost: the teacher was asked about {cost.teacher_calls:,} rows, {cost.teacher_calls_since:,} since the "
        f"evidence on this champion began; {cost.seconds:.1f} s."
    )


def _slices(slices: tuple[SliceDrift, ...]) -> str:
    if not slices:
        return ""
    rows = [f"| {s.slice} | {s.share_reference:.1%} | {s.share_current:.1%} | {s.rows:,} | {_number(s.disagreement)} "
            f"| {s.excess:+.4f} |" for s in slices]  # fmt: skip
    return "## Slices\n\n" + _table(
        "| slice | share before | share now | audited rows | disagreement | part in the rise |", rows
    )


def _drift(report: DriftReport) -> str:
    rows = [f"| {c.column} | {c.psi:.3f} | {_number(c.limit)} | {_number(c.ks)} | {_number(c.wasserstein)} "
            f"| {c.effect:.3f} | {c.missing_reference:.1%} | {c.missing_current:.1%} | {', '.join(c.unseen[:10])} "
            f"| {', '.join(c.vanished[:10])} |" for c in rank_columns((*report.columns, *report.outputs))]  # fmt: skip
    return _table(
        "| column | PSI | usual up to | KS | Wasserstein | effect size | missing before | missing now "
        "| never seen before | seen no more |", rows
    )  # fmt: skip


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


def _picture(png: bytes, what: str) -> str:
    return f"![{what}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _png(figure: Figure) -> bytes:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out; savefig would do it twice more
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
