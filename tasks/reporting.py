"""Prefect artifacts: what a flow found, readable on its run's page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from math import log
from pathlib import Path

from matplotlib.figure import Figure
from prefect.artifacts import create_markdown_artifact

from data_checks.report import markdown
from stillhouse import config
from stillhouse.compress.figures import frontier_figure
from stillhouse.compressing import FRONTIER
from stillhouse.drift.explain import rank_columns
from stillhouse.drift.figures import drift_figure, evidence_figure, slices_figure
from stillhouse.evaluate.figures import tradeoff, weights_over_time
from stillhouse.records import (
    Contradictions,
    Cost,
    DataReport,
    DriftReport,
    EvidenceStep,
    Frontier,
    Proof,
    Questions,
    Reason,
    Refresh,
    Scorecard,
    SliceDrift,
    Verdict,
    Weights,
    evidence_steps,
)
from stillhouse.registry.connection import without_credentials
from stillhouse.shown import code
from stillhouse.shown import markdown as md
from stillhouse.teachers.weighing import NOTEWORTHY, share_in
from tasks.common import DATA_DOCS, QUESTIONS, artifact_key, engine_task, knowledge_base, registry

__all__ = ["publish_promotion", "publish_refresh", "publish_watch"]

_MOST_CONTRADICTIONS = 30  # in a table; all of them are in MLflow
_MOST_VARIANTS = 8  # with a scorecard in the artifact; MLflow has those of all
_MOST_REFUSED = 10  # candidates that cannot serve, likewise


@engine_task(task_run_name="publish")
def publish_watch(
    verdict: Verdict, data: DataReport, report: DriftReport | None, weights: Weights | None = None
) -> None:
    """The watch's verdict, data checks, evidence and drift: an artifact here, curves and figures in MLflow."""
    agent, threshold = verdict.agent, config.load(verdict.agent).watch.thresholds.psi
    steps = _evidence(verdict)
    figures = _watch_figures(report, steps, threshold) | (_weights_figure(agent) if weights else {})
    run = _log_watch(verdict, data, report, steps, figures, weights) if report else None
    parts = [_heading(verdict), _reasons(verdict.reasons), _cost(verdict.cost), markdown(data)]
    parts += [f"## {title}\n\n{_picture(png, title)}" for title, png in figures.items()]
    if report is not None:
        parts += ["## Columns", _drift(report), _slices(report.slices)]
    parts += [_weights(weights)] if weights else []
    parts += [_links(agent, run)] if run else []
    page = "\n\n".join(filter(None, parts))
    create_markdown_artifact(page, key=artifact_key("watch", agent), description=_line(verdict))


@engine_task(task_run_name="publish")
def publish_refresh(job: Refresh, verdict: Verdict) -> None:
    """The gate's verdict and the scorecards of all models of the refresh."""
    models = registry(job.agent)
    proof = models.read_record(job.run_id, "proof.json", Proof)
    found = models.read_record(job.run_id, FRONTIER, Frontier)
    parts = [
        _heading(verdict),
        f"Started by **{job.trigger}** ({md(job.cause)}); trained on {job.train}, judged on {job.test}.",
        *([f"Put forward: {md(proof.why)}."] if proof else []),
        _reasons(verdict.reasons),
        *(_proof(proof, found) if proof else []),
        *(_compression(found) if found else []),
        _spending(job),
        *_teachers(job),
        _questions(job),
        _links(job.agent, job.run_id),
    ]
    page = "\n\n".join(filter(None, parts))
    create_markdown_artifact(page, key=artifact_key("refresh", job.agent), description=_line(verdict))


@engine_task(task_run_name="publish")
def publish_promotion(verdict: Verdict) -> None:
    """Who is champion now, instead of whom, and why."""
    create_markdown_artifact(
        _heading(verdict), key=artifact_key("promotion", verdict.agent), description=_line(verdict)
    )


def _line(verdict: Verdict) -> str:
    """The verdict in a list of artifacts."""
    return f"{verdict.outcome.replace('_', ' ')}, as of {verdict.as_of:%Y-%m-%d %H:%M} UTC"


def _heading(verdict: Verdict) -> str:
    outcome = verdict.outcome.replace("_", " ")
    return f"# {verdict.agent}: {outcome}\n\n{md(verdict.summary)}\n\nas of {verdict.as_of:%Y-%m-%d %H:%M} UTC, " \
           f"verdict {code(verdict.verdict_id)}"  # fmt: skip


def _reasons(reasons: tuple[Reason, ...]) -> str:
    """A list: the cells of Prefect's tables do not wrap, and a sentence is cut off."""
    return "\n".join(f"- {'**crossed**' if r.crossed else 'held'} {code(r.measure)}: {md(r.text)}" for r in reasons)


def _links(agent: str, run_id: str) -> str:
    """The MLflow run and its page of data checks: links where MLflow is a server, else where they are to be found."""
    models = registry(agent)
    if not models.uri.startswith("http"):
        return f"MLflow run `{run_id}`, data checks in its artifact `{DATA_DOCS}`"
    page = f"{without_credentials(models.uri)}/#/experiments/{models.experiment_id}/runs/{run_id}"
    return f"[MLflow run `{run_id}`]({page}) · [data checks]({page}/artifacts/{DATA_DOCS})"


def _proof(proof: Proof, found: Frontier | None) -> list[str]:
    """Scorecards of teacher, student, champion, and the variants: of many, those that nothing beats."""
    many = found is not None and len(proof.variants) > _MOST_VARIANTS
    shown = {found.reference.name, *found.best, found.chosen} if found is not None and many else None
    variants = [card for card in proof.variants if shown is None or card.model in shown]
    cards = [proof.teacher, proof.student, *variants, *([proof.champion] if proof.champion else [])]
    return ["## Scorecards", _scorecards(cards), _picture(_png(tradeoff(proof)), "bytes, latency and quality")]


def _compression(found: Frontier) -> list[str]:
    """What the search made, the best first, and why it ended."""
    rows = [
        f"| {md(c.name)}{' **chosen**' if c.name == found.chosen else ''} | {c.quality:.4f} | {c.bytes:,} "
        f"| {_number(c.latency.p50_ms)} | {_number(c.latency.p95_ms)} | {_number(c.cpu_ms)} |"
        for c in (found.named(name) for name in found.best)
        if c.latency is not None
    ]
    table = _table("| candidate | quality | bytes | p50 (ms) | p95 (ms) | CPU (ms) |", rows)
    refused = [f"- refused: {code(c.name)}: {md(c.refused)}" for c in found.candidates if c.refused is not None]
    made = f"{len(found.candidates)} candidates were made, {len(found.best)} of which nothing beats"
    figure = _picture(_png(frontier_figure(found)), "what compression found")
    return ["## Compression", f"{made}: {md(found.stopped)}.", table, "\n".join(refused[:_MOST_REFUSED]), figure]


def _spending(job: Refresh) -> str:
    """What asking the teachers has cost this refresh."""
    spent = knowledge_base(job.agent).spending(job=job.refresh_id)
    return "\n".join(f"- teacher {code(name)}: {md(cost)}" for name, cost in spent.items())


def _questions(job: Refresh) -> str:
    """About how many rows the teachers were asked."""
    found = registry(job.agent).read_record(job.run_id, QUESTIONS, Questions)
    return f"Knowledge: {md(found)}." if found else ""


# --------------------------------------------------------------------------- several teachers


def _teachers(job: Refresh) -> list[str]:
    """What the teachers count for, and where they contradict each other; nothing for a single one."""
    models = registry(job.agent)
    weights = models.read_record(job.run_id, "weights.json", Weights)
    found = models.read_record(job.run_id, "contradictions.json", Contradictions)
    return ([_weights(weights)] if weights else []) + ([_contradictions(found)] if found and found.found else [])


def _weights(weights: Weights) -> str:
    count, everywhere = weights.everywhere.stretches, share_in(weights)
    rows = [
        f"| {md(name)} | {start:.1%} | {share:.1%} | {weights.losses[name] / count if count else 0:.4f} |"
        for name, start, share in zip(weights.teachers, weights.start, everywhere, strict=True)
    ]
    parts = ["## Weights of the teachers", _weights_rest_on(weights)]
    parts.append(_table("| teacher | at the start | share | log loss |", rows))
    slices = [(name, share_in(weights, name)) for name in weights.slices]
    own = [(name, shares) for name, shares in slices if abs(shares - everywhere).max() >= NOTEWORTHY]
    if own:
        header = "| slice | outcomes | " + " | ".join(map(md, weights.teachers)) + " |"
        rows = [f"| {md(name)} | {weights.slices[name].outcomes:,} | " + " | ".join(f"{s:.1%}" for s in shares) + " |"
                for name, shares in own]  # fmt: skip
        parts.append(_table(header, rows))
    return "\n\n".join(parts)


def _weights_rest_on(weights: Weights) -> str:
    count = weights.everywhere.outcomes
    text = {
        "file": "As the agent file says.",
        "outcomes": f"By {count:,} outcomes, in the order they became known.",
        "agreement": f"By how far the teachers agree, which is weaker than outcomes, and by {count:,} outcomes.",
    }
    if not count:
        return text[weights.by]
    return (
        f"{text[weights.by]} Log loss of the mean: {weights.losses[''] / count:.4f} as weighted at each time, "
        f"{weights.losses['start'] / count:.4f} as weighted at the start."
    )


def _contradictions(found: Contradictions) -> str:
    rows = [
        f"| {md(c.first)} and {md(c.second)} | {md(c.slice or 'everywhere')} "
        f"| {c.contradicting:,} of {c.rows:,} | {c.share:.1%} "
        f"| {c.low:.1%} … {c.high:.1%} | {c.known:,} | {c.first_right:,} | {c.second_right:,} | {md(c.better or '')} |"
        for c in found.found[:_MOST_CONTRADICTIONS]
    ]
    return "## Where teachers contradict each other\n\n" + _table(
        "| teachers | slice | rows | share | 95 % interval | outcome known | first right | second right "
        "| better beyond chance |", rows
    )  # fmt: skip


def _weights_figure(agent: str) -> dict[str, bytes]:
    changes = knowledge_base(agent).weight_changes()
    return {"Weights of the teachers": _png(weights_over_time(changes))} if changes else {}


def _weight_levels(weights: Weights | None) -> dict[str, float]:
    if weights is None:
        return {}
    return {f"weight/{name}": float(share) for name, share in zip(weights.teachers, share_in(weights), strict=True)}


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
    verdict: Verdict, data: DataReport, report: DriftReport, steps: list[EvidenceStep], figures: dict[str, bytes],
    weights: Weights | None,
) -> str:  # fmt: skip
    """The run of this champion's watches: curves go on, figures and pages are those of the last watch."""
    models = registry(verdict.agent)
    since = steps[0].since if steps else report.reference.end
    run_id = models.open_watch(report.champion, since)
    number = int((verdict.as_of - since) / config.load(verdict.agent).watch.every)
    fresh = [step for step in steps if step.end > report.current.start]
    points = [(step.end, int((step.end - since) / (step.end - step.start)), _curves(step)) for step in fresh]
    models.log_curve(run_id, [*points, (verdict.as_of, number, _levels(report) | _weight_levels(weights))])
    for title, png in figures.items():
        models.log_file(run_id, png, f"figures/{title.lower().replace(' ', '_')}.png")
    models.log_record(run_id, verdict, "verdict.json")
    if data.docs:
        models.log_file(run_id, Path(data.docs).read_bytes(), DATA_DOCS)
    models.tag(run_id, outcome=verdict.outcome, data_docs=data.docs, **{"mlflow.note.content": md(verdict.summary)})
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
    if report.quality:
        found[report.quality.measure] = report.quality.score
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
    rows = [f"| {md(s.slice)} | {s.share_reference:.1%} | {s.share_current:.1%} | {s.rows:,} "
            f"| {_number(s.disagreement)} | {s.excess:+.4f} |" for s in slices]  # fmt: skip
    return "## Slices\n\n" + _table(
        "| slice | share before | share now | audited rows | disagreement | part in the rise |", rows
    )


def _drift(report: DriftReport) -> str:
    rows = [f"| {md(c.column)} | {c.psi:.3f} | {_number(c.limit)} | {_number(c.ks)} | {_number(c.wasserstein)} "
            f"| {c.effect:.3f} | {c.missing_reference:.1%} | {c.missing_current:.1%} | {_first(c.unseen)} "
            f"| {_first(c.vanished)} |" for c in rank_columns((*report.columns, *report.outputs))]  # fmt: skip
    return _table(
        "| column | PSI | usual up to | KS | Wasserstein | effect size | missing before | missing now "
        "| never seen before | seen no more |", rows
    )  # fmt: skip


def _first(values: Sequence[str], most: int = 10) -> str:
    return md(", ".join(values[:most]))


def _scorecards(cards: list[Scorecard]) -> str:
    """One row a model; the AUC only of agents that are judged by it."""
    rows, auc = [], all(card.test.measure == "auc" for card in cards)
    for card in cards:
        q, latency = card.test, card.latency
        area = f"| {_number(q.auc)} " if auc else ""
        rows.append(
            f"| {md(card.model)} | {card.role} {area}| {q.accuracy:.4f} | {q.log_loss:.4f} "
            f"| {q.calibration_error:.4f} | {_number(card.agreement)} | {card.bytes:,} "
            f"| {_number(latency.p50_ms) if latency else ''} | {_number(latency.p95_ms) if latency else ''} |"
        )
    return _table(
        f"| model | role {'| AUC ' if auc else ''}| accuracy | log loss | calibration error | agreement | bytes "
        "| p50 (ms) | p95 (ms) |",
        rows,
    )


def _table(header: str, rows: list[str]) -> str:
    """A table; its header has no pipes but its own."""
    return "\n".join([header, "|" + "---|" * (len(re.findall(r"(?<!\\)\|", header)) - 1), *rows])


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
