"""Log a watch to the MLflow run of this champion's watches, and format its page."""

from __future__ import annotations

from datetime import datetime
from math import isnan, log
from pathlib import Path

from stillhouse.drift.explain import rank_columns
from stillhouse.drift.figures import plot_drift, plot_evidence, plot_slices
from stillhouse.evaluate.figures import plot_teacher_weights
from stillhouse.evaluate.timeline import plot_timeline
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
from stillhouse.quality import get_measure, measure_title
from stillhouse.records import (
    COLUMN_DISTANCES,
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    PoolEvidence,
    PoolMember,
    PoolState,
    Reckoning,
    SliceDrift,
    TeacherWeights,
    Verdict,
    evidence_steps,
)
from stillhouse.registry import names
from stillhouse.shown import escape_markdown as md
from stillhouse.teachers.mixture_weights import slice_shares
from stillhouse.watching.pool import EPOCH, ScoredPool, block_loss, loss_to_value
from stillhouse.watching.timeline import list_cooldowns, read_timeline
from stillhouse.watching.window import WatchedWindow

__all__ = [
    "QUIET_RESULTS",
    "draw_timeline",
    "draw_watch_figures",
    "format_pool",
    "format_reckoning",
    "format_slices",
    "format_watch_page",
    "log_watch",
    "read_pool",
]


_MAX_COLUMNS = 12  # on the page of a watch
_LARGEST_USEFUL_PSI = 3.0  # about the PSI of a column half of whose thousand rows take values never seen before

QUIET_RESULTS = frozenset({"no_drift", "not_enough_evidence", "cooling_down"})
"""Results of a watch without figures: nothing has drifted, or nothing could be measured."""


def draw_watch_figures(
    watched: WatchedWindow, verdict: Verdict, report: DriftReport | None, mixture: TeacherWeights | None
) -> dict[str, bytes]:
    """The figures of the watch as PNG, by title; none for a quiet result, and a timeline if something follows."""
    if verdict.result in QUIET_RESULTS and verdict.response == "hold":
        return {}
    figures = {}
    if report is not None:
        figures["Drift by column"] = plot_drift(report, watched.settings.watch.thresholds.psi)
    if steps := _read_evidence(watched.base, verdict):
        cooldowns = list_cooldowns(watched.base, steps[0].start, verdict.as_of)
        figures["Evidence"] = plot_evidence(steps, cooldowns, watched.settings.labels_are)
    if report is not None and report.slices:
        figures["Where teacher and student part"] = plot_slices(report)
    if mixture and (changes := watched.base.journal.weight_changes()):
        figures["Weights of the teachers"] = plot_teacher_weights(changes)
    drawn = {title: draw_png(figure) for title, figure in figures.items()}
    return drawn if verdict.response == "hold" else {"Timeline": draw_timeline(watched.base, verdict.as_of)} | drawn


def draw_timeline(base: KnowledgeBase, as_of: datetime) -> bytes:
    """The agent's life until ``as_of`` as PNG."""
    return draw_png(plot_timeline(read_timeline(base, as_of)))


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
        points=[
            *points,
            *_pool_points(watched, verdict),
            (
                verdict.as_of,
                watch_step,
                _drift_metrics(report) | _weight_metrics(mixture) | _gain_metrics(verdict),
            ),
        ],
        tags={
            "result": verdict.result,
            "data_docs": data.docs,
            "mlflow.note.content": md(verdict.summary),
            "mlflow.runName": f"{verdict.result.replace('_', ' ')} {verdict.as_of:%Y-%m-%d %H:%M} "
            f"(watch of {report.champion})",
        },
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
    say = watched.settings.words.say
    parts = [format_heading(verdict), "## Reasons", format_reasons(verdict.reasons), say(format_reckoning(verdict))]
    parts += [f"## {title}\n\n{embed_png(image, title)}" for title, image in figures.items()]
    if report is not None:
        parts += ["## Columns", _format_columns(report), format_slices(report.slices)]
    parts += [say(format_pool(verdict))]
    parts += [say(format_weights(mixture))] if mixture else []
    parts += [checks, _format_cost(verdict.cost)]
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


def _pool_points(watched: WatchedWindow, verdict: Verdict) -> list[tuple[datetime, int, dict[str, float]]]:
    """Each member's curve as one metric over time: the blocks that are new, or all of them for a new champion's run."""
    pool: ScoredPool | None = watched.pool
    state = read_pool(verdict)
    if pool is None or state is None:
        return []
    measure, block = get_measure(watched.settings), watched.settings.watch.block
    before = watched.base.journal.last_verdict("watch", before=verdict.as_of)
    earlier = read_pool(before) if before else None
    is_new_run = earlier is None or earlier.champion != state.champion
    scores = [score for of_member in pool.scores.values() for score in of_member] if is_new_run else pool.new
    points = []
    for score in scores:
        loss = block_loss(score, measure)
        if score.complete and not isnan(loss):
            name = f"pool.{score.member.replace('@', ':')}.{measure.name}"
            points.append((score.end, int((score.end - EPOCH) / block), {name: loss_to_value(loss, measure)}))
    return points


def _gain_metrics(verdict: Verdict) -> dict[str, float]:
    """Predicted and realised gain of the last change of the champion."""
    state = read_pool(verdict)
    if state is None or not state.realised:
        return {}
    last = state.realised[-1]
    metrics = {"gain.realised": last.realised}
    return metrics if last.predicted is None else metrics | {"gain.predicted": last.predicted}


def read_pool(verdict: Verdict) -> PoolState | None:
    """The pool in the evidence of a watch's verdict; None if there was none."""
    found = verdict.evidence.get("pool")
    return PoolState.model_validate(found) if found else None


def format_pool(verdict: Verdict) -> str:
    """The section about the members of the pool and the evidence about each; empty without a pool."""
    state = read_pool(verdict)
    if state is None:
        return ""
    evidence = {one.member: one for one in state.evidence}
    rows = [_format_member(member, evidence.get(member.model)) for member in state.members]
    table = format_table(
        "| member | rows | gain over the champion | evidence that it is better | may become champion |", rows
    )
    parts = [
        f"## Pool\n\nReign {state.reign} of {md(state.champion)}, since {state.reign_began:%Y-%m-%d %H:%M}.",
        table,
    ]
    if state.realised:
        parts.append(
            format_table(
                "| since | response | champion | predicted gain a week | realised | weeks |",
                [
                    f"| {gain.as_of:%Y-%m-%d} | {gain.response} | {md(gain.champion)} instead of {md(gain.replaced)} "
                    f"| {format_number(gain.predicted)} | {gain.realised:+.4f} ± {gain.standard_error:.4f} "
                    f"| {gain.weeks:.1f} |"
                    for gain in state.realised
                ],
            )
        )
    return "\n\n".join(parts)


def _format_member(member: PoolMember, evidence: PoolEvidence | None) -> str:
    cells = [f"{md(member.model)} ({member.role.replace('_', ' ')})"]
    if evidence is None:
        cells += ["" if member.role == "champion" else "0", "", ""]
    else:
        cells += [
            f"{evidence.rows:,}",
            f"{evidence.gain:+.4f} ± {evidence.standard_error:.4f}",
            f"{evidence.log_better:.2f} of {evidence.log_threshold:.2f}",
        ]
    return f"| {' | '.join([*cells, 'yes' if member.promotable else md(member.why_not)])} |"


def format_reckoning(verdict: Verdict) -> str:
    """The section about what each response would gain; empty without a reckoning."""
    found = verdict.evidence.get("reckoning")
    if not found:
        return ""
    reckoning = Reckoning.model_validate(found)
    rows = []
    for one in reckoning.responses:
        name = one.response.replace("_", " ") + (f" {md(one.model)}" if one.model else "")
        mark = "**chosen**: " if (one.response, one.model) == (reckoning.chosen, reckoning.model) else ""
        rows.append(
            f"| {name} | {one.gain:+.4f} ± {one.standard_error:.4f} | {one.price:.4f} | {one.net:+.4f} "
            f"| {mark}{md(one.text)} |"
        )
    unit = f"{measure_title(reckoning.measure)}, {reckoning.unit} × weeks"
    table = format_table("| response | predicted gain | price | net | why |", rows)
    return f"## What would pay\n\n{md(reckoning.text)}\n\nIn {md(unit)}:\n\n{table}"


def _format_cost(cost: Cost | None) -> str:
    if cost is None:
        return ""
    return (
        f"Cost: the teacher was asked about {cost.teacher_calls:,} rows, {cost.teacher_calls_since:,} since the "
        f"evidence on this champion began; {cost.seconds:.1f} s."
    )


def _format_columns(report: DriftReport) -> str:
    """A row per column, the largest drift first; the calibrated limit stands beside the PSI."""
    shown = [distance for distance in COLUMN_DISTANCES if distance.on_pages]
    headings, rows = ["column"], []
    for distance in shown:
        headings += [distance.heading, "usual up to"] if distance.field == "psi" else [distance.heading]
    headings += ["missing", "never seen before"]
    ranked = rank_columns((*report.columns, *report.outputs))
    for drift in ranked[:_MAX_COLUMNS]:
        cells = [md(drift.column)]
        for distance in shown:
            cells.append(distance.format(drift))
            if distance.field == "psi":
                cells.append(_format_limit(drift.limit))
        cells += [f"{drift.missing_reference:.1%} → {drift.missing_current:.1%}", join_first(drift.unseen, 3)]
        rows.append(f"| {' | '.join(cells)} |")
    more = len(ranked) - len(rows)
    rest = f"\n\nAnd {more} more that moved less: `{names.VERDICT}` in the MLflow run has all." if more > 0 else ""
    return format_table(f"| {' | '.join(headings)} |", rows) + rest


def _format_limit(limit: float | None) -> str:
    """The largest usual PSI; of a short or restless history it says nothing, because no window could exceed it.

    >>> _format_limit(0.18), _format_limit(1234.0), _format_limit(None)
    ('0.18', 'not enough history', 'not enough history')
    """
    return "not enough history" if limit is None or limit > _LARGEST_USEFUL_PSI else format_number(limit)


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
