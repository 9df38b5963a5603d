"""What a watch leaves: curves and figures in the MLflow run of this champion's watches, and a page."""

from __future__ import annotations

from datetime import datetime
from math import log
from pathlib import Path

from stillhouse.drift.explain import rank_columns
from stillhouse.drift.figures import plot_drift, plot_evidence, plot_slices
from stillhouse.evaluate.figures import plot_teacher_weights
from stillhouse.knowledge import KnowledgeBase
from stillhouse.pages import first, heading, links, number, picture, png, reasons, table, weights_section
from stillhouse.records import (
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    SliceDrift,
    TeacherWeights,
    Verdict,
    evidence_steps,
)
from stillhouse.registry import names
from stillhouse.shown import markdown as md
from stillhouse.teachers.mixture_weights import slice_shares
from stillhouse.watching.window import WatchedWindow

__all__ = ["CALM", "log_watch", "slices_table", "watch_figures", "watch_page"]


CALM = frozenset({"no_drift", "not_enough_evidence", "cooling_down"})
"""Outcomes of a watch in which there is nothing to see: their pages have no pictures."""


def watch_figures(
    watched: WatchedWindow, verdict: Verdict, report: DriftReport | None, weights: TeacherWeights | None
) -> dict[str, bytes]:
    """PNG by title, each shown in MLflow and on the page; none for a calm watch."""
    if verdict.result in CALM and verdict.response == "hold":
        return {}
    figures = {}
    if report is not None:
        figures["Drift by column"] = plot_drift(report, watched.settings.watch.thresholds.psi)
    if steps := _evidence(watched.base, verdict):
        figures["Evidence"] = plot_evidence(steps)
    if report is not None and report.slices:
        figures["Where teacher and student part"] = plot_slices(report)
    if weights and (changes := watched.base.journal.weight_changes()):
        figures["Weights of the teachers"] = plot_teacher_weights(changes)
    return {title: png(figure) for title, figure in figures.items()}


def log_watch(
    watched: WatchedWindow,
    verdict: Verdict,
    data: DataReport,
    report: DriftReport,
    figures: dict[str, bytes],
    weights: TeacherWeights | None,
) -> str:
    """Log to the run of this champion's watches: curves go on, figures and pages are those of the last that had any.

    :returns: the run's id.
    """
    registry, every = watched.registry, watched.settings.watch.every
    last = evidence_steps(verdict)
    since = min((step.since for step in last), default=report.reference.end)
    run_id = registry.runs.open_watch(report.champion, since)
    look = int((verdict.as_of - since) / every)
    fresh = _evidence(watched.base, verdict, after=report.current.start)
    points = [(step.end, int((step.end - since) / (step.end - step.start)), _curves(step)) for step in fresh]
    pages = {names.DATA_DOCS: Path(data.docs).read_bytes()} if data.docs else {}
    registry.runs.log(
        run_id,
        files={
            names.VERDICT: verdict,
            **{f"figures/{title.lower().replace(' ', '_')}.png": image for title, image in figures.items()},
            **pages,
        },
        points=[*points, (verdict.as_of, look, _levels(report) | _weight_levels(weights))],
        tags={"result": verdict.result, "data_docs": data.docs, "mlflow.note.content": md(verdict.summary)},
    )
    return run_id


def watch_page(
    watched: WatchedWindow,
    verdict: Verdict,
    data: DataReport,
    checks: str,
    report: DriftReport | None,
    weights: TeacherWeights | None,
    figures: dict[str, bytes],
    run_id: str | None,
) -> str:
    """The verdict, the data checks, the drift and its pictures, as Markdown.

    :param checks: ``data``, what the data contract said, as Markdown.
    """
    parts = [heading(verdict), reasons(verdict.reasons), _cost(verdict.cost), checks]
    parts += [f"## {title}\n\n{picture(image, title)}" for title, image in figures.items()]
    if report is not None:
        parts += ["## Columns", _drift(report), slices_table(report.slices)]
    parts += [weights_section(weights)] if weights else []
    parts += [links(watched.registry, run_id, docs=data.docs is not None)] if run_id else []
    return "\n\n".join(filter(None, parts))


# --------------------------------------------------------------------------- inside


def _evidence(base: KnowledgeBase, verdict: Verdict, after: datetime | None = None) -> list[EvidenceStep]:
    """The steps of the evidence that the verdict was decided on, oldest first.

    :param after: only those that end later.
    """
    last = evidence_steps(verdict)
    if not last:
        return []
    ends = {step.process: step.end for step in last}
    counted = (each.step for each in base.journal.evidence(last[0].champion, min(step.since for step in last), after))
    return [step for step in counted if step.end <= ends.get(step.process, step.end)]


def _curves(step: EvidenceStep) -> dict[str, float]:
    metrics = {f"log10_evidence.{step.process}": step.log_evidence / log(10)}
    return metrics if step.mean is None else metrics | {f"mean_loss.{step.process}": step.mean}


def _levels(report: DriftReport) -> dict[str, float]:
    metrics = {"psi.largest": report.worst(1)[0].psi} if report.columns else {}
    if report.screened:
        metrics["screen.statistic"] = report.screened.statistic
    if report.disagreement:
        metrics["disagreement"] = report.disagreement.total_variation
    if report.quality:
        metrics[report.quality.measure] = report.quality.score
    return metrics


def _weight_levels(weights: TeacherWeights | None) -> dict[str, float]:
    if weights is None:
        return {}
    return {f"weight/{name}": float(share) for name, share in zip(weights.teachers, slice_shares(weights), strict=True)}


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return ""
    return (
        f"Cost: the teacher was asked about {cost.teacher_calls:,} rows, {cost.teacher_calls_since:,} since the "
        f"evidence on this champion began; {cost.seconds:.1f} s."
    )


def _drift(report: DriftReport) -> str:
    rows = [
        f"| {md(c.column)} | {c.psi:.3f} | {number(c.limit)} | {number(c.ks)} | {number(c.wasserstein)} "
        f"| {c.effect:.3f} | {c.missing_reference:.1%} | {c.missing_current:.1%} | {first(c.unseen)} "
        f"| {first(c.vanished)} |"
        for c in rank_columns((*report.columns, *report.outputs))
    ]
    return table(
        "| column | PSI | usual up to | KS | Wasserstein | effect size | missing before | missing now "
        "| never seen before | seen no more |",
        rows,
    )


def slices_table(slices: tuple[SliceDrift, ...]) -> str:
    if not slices:
        return ""
    rows = [
        f"| {md(s.slice)} | {s.share_reference:.1%} | {s.share_current:.1%} | {s.rows:,} "
        f"| {number(s.disagreement)} | {s.excess:+.4f} |"
        for s in slices
    ]
    return "## Slices\n\n" + table(
        "| slice | share before | share now | audited rows | disagreement | part in the rise |", rows
    )
