"""Log a watch to the MLflow run of this champion's watches, and format its page."""

from __future__ import annotations

from datetime import datetime
from math import log
from pathlib import Path

from stillhouse.drift.explain import rank_columns
from stillhouse.drift.figures import plot_drift, plot_evidence, plot_slices
from stillhouse.evaluate.figures import plot_teacher_weights
from stillhouse.knowledge import KnowledgeBase
from stillhouse.pages import (
    draw_png,
    embed_png,
    format_heading,
    format_links,
    format_number,
    format_reasons,
    format_table,
    format_weights,
    join_first,
)
from stillhouse.records import (
    COLUMN_DISTANCES,
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
from stillhouse.shown import escape_markdown as md
from stillhouse.teachers.mixture_weights import slice_shares
from stillhouse.watching.window import WatchedWindow

__all__ = ["QUIET_RESULTS", "draw_watch_figures", "format_slices", "format_watch_page", "log_watch"]


QUIET_RESULTS = frozenset({"no_drift", "not_enough_evidence", "cooling_down"})
"""Results of a watch without figures: nothing has drifted, or nothing could be measured."""


def draw_watch_figures(
    watched: WatchedWindow, verdict: Verdict, report: DriftReport | None, mixture: TeacherWeights | None
) -> dict[str, bytes]:
    """The figures of the watch as PNG, by title; none for a quiet result."""
    if verdict.result in QUIET_RESULTS and verdict.response == "hold":
        return {}
    figures = {}
    if report is not None:
        figures["Drift by column"] = plot_drift(report, watched.settings.watch.thresholds.psi)
    if steps := _read_evidence(watched.base, verdict):
        figures["Evidence"] = plot_evidence(steps)
    if report is not None and report.slices:
        figures["Where teacher and student part"] = plot_slices(report)
    if mixture and (changes := watched.base.journal.weight_changes()):
        figures["Weights of the teachers"] = plot_teacher_weights(changes)
    return {title: draw_png(figure) for title, figure in figures.items()}


def log_watch(
    watched: WatchedWindow,
    verdict: Verdict,
    data: DataReport,
    report: DriftReport,
    figures: dict[str, bytes],
    mixture: TeacherWeights | None,
) -> str:
    """Log the watch to the run of this champion's watches: curves are continued, figures and pages replaced.

    :returns: the run's id.
    """
    registry, every = watched.registry, watched.settings.watch.every
    last_steps = evidence_steps(verdict)
    since = min((step.since for step in last_steps), default=report.reference.end)
    run_id = registry.runs.open_watch(report.champion, since)
    watch_step = int((verdict.as_of - since) / every)
    new_steps = _read_evidence(watched.base, verdict, after=report.current.start)
    points = [
        (step.end, int((step.end - since) / (step.end - step.start)), _evidence_metrics(step)) for step in new_steps
    ]
    pages = {names.DATA_DOCS: Path(data.docs).read_bytes()} if data.docs else {}
    registry.runs.log(
        run_id,
        files={
            names.VERDICT: verdict,
            **{f"figures/{title.lower().replace(' ', '_')}.png": image for title, image in figures.items()},
            **pages,
        },
        points=[*points, (verdict.as_of, watch_step, _drift_metrics(report) | _weight_metrics(mixture))],
        tags={"result": verdict.result, "data_docs": data.docs, "mlflow.note.content": md(verdict.summary)},
    )
    return run_id


def format_watch_page(
    watched: WatchedWindow,
    verdict: Verdict,
    data: DataReport,
    checks: str,
    report: DriftReport | None,
    mixture: TeacherWeights | None,
    figures: dict[str, bytes],
    run_id: str | None,
) -> str:
    """The page of a watch as Markdown: the verdict, the data checks, the figures and the drift of each column.

    :param checks: the report of the data checks, as Markdown.
    """
    parts = [format_heading(verdict), format_reasons(verdict.reasons), _format_cost(verdict.cost), checks]
    parts += [f"## {title}\n\n{embed_png(image, title)}" for title, image in figures.items()]
    if report is not None:
        parts += ["## Columns", _format_columns(report), format_slices(report.slices)]
    parts += [format_weights(mixture)] if mixture else []
    parts += [format_links(watched.registry, run_id, docs=data.docs is not None)] if run_id else []
    return "\n\n".join(filter(None, parts))


# --------------------------------------------------------------------------- inside


def _read_evidence(base: KnowledgeBase, verdict: Verdict, after: datetime | None = None) -> list[EvidenceStep]:
    """The evidence steps that the verdict is based on, oldest first.

    :param after: only steps that end later than this.
    """
    last_steps = evidence_steps(verdict)
    if not last_steps:
        return []
    ends = {step.process: step.end for step in last_steps}
    since = min(step.since for step in last_steps)
    recorded = (rows.step for rows in base.journal.evidence(last_steps[0].champion, since, after))
    return [step for step in recorded if step.end <= ends.get(step.process, step.end)]


def _evidence_metrics(step: EvidenceStep) -> dict[str, float]:
    metrics = {f"log10_evidence.{step.process}": step.log_evidence / log(10)}
    return metrics if step.mean is None else metrics | {f"mean_loss.{step.process}": step.mean}


def _drift_metrics(report: DriftReport) -> dict[str, float]:
    metrics = {"psi.largest": report.worst(1)[0].psi} if report.columns else {}
    if report.screened:
        metrics["screen.statistic"] = report.screened.statistic
    if report.disagreement:
        metrics["disagreement"] = report.disagreement.total_variation
    if report.quality:
        metrics[report.quality.measure] = report.quality.score
    return metrics


def _weight_metrics(mixture: TeacherWeights | None) -> dict[str, float]:
    if mixture is None:
        return {}
    return {f"weight/{name}": float(share) for name, share in zip(mixture.teachers, slice_shares(mixture), strict=True)}


def _format_cost(cost: Cost | None) -> str:
    if cost is None:
        return ""
    return (
        f"Cost: the teacher was asked about {cost.teacher_calls:,} rows, {cost.teacher_calls_since:,} since the "
        f"evidence on this champion began; {cost.seconds:.1f} s."
    )


def _format_columns(report: DriftReport) -> str:
    """A row per column, the largest drift first; the calibrated limit stands beside the PSI."""
    headings, rows = ["column"], []
    for distance in COLUMN_DISTANCES:
        headings += [distance.heading, "usual up to"] if distance.field == "psi" else [distance.heading]
    headings += ["missing before", "missing now", "never seen before", "seen no more"]
    for drift in rank_columns((*report.columns, *report.outputs)):
        cells = [md(drift.column)]
        for distance in COLUMN_DISTANCES:
            cells.append(distance.format(drift))
            if distance.field == "psi":
                cells.append(format_number(drift.limit))
        cells += [f"{drift.missing_reference:.1%}", f"{drift.missing_current:.1%}"]
        cells += [join_first(drift.unseen), join_first(drift.vanished)]
        rows.append(f"| {' | '.join(cells)} |")
    return format_table(f"| {' | '.join(headings)} |", rows)


def format_slices(slices: tuple[SliceDrift, ...]) -> str:
    """The table of the slices that contribute most to the disagreement; empty without slices."""
    if not slices:
        return ""
    rows = [
        f"| {md(drift.slice)} | {drift.share_reference:.1%} | {drift.share_current:.1%} | {drift.rows:,} "
        f"| {format_number(drift.disagreement)} | {drift.excess:+.4f} |"
        for drift in slices
    ]
    return "## Slices\n\n" + format_table(
        "| slice | share before | share now | audited rows | disagreement | part in the rise |", rows
    )
