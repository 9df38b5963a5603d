"""The page of a refresh: its verdict, the scorecards of its models, compression, teachers and costs, as Markdown."""

from __future__ import annotations

from stillhouse.knowledge import KnowledgeBase
from stillhouse.pages import heading, links, number, picture, reasons, table, weights_section
from stillhouse.records import Contradictions, Frontier, Proof, Questions, Refresh, Scorecard, TeacherWeights, Verdict
from stillhouse.registry import Registry, names
from stillhouse.shown import code
from stillhouse.shown import markdown as md

__all__ = ["refresh_page"]

_MOST_CONTRADICTIONS = 30  # in a table; all of them are in MLflow
_MOST_VARIANTS = 8  # with a scorecard on the page; MLflow has those of all
_MOST_REFUSED = 10  # candidates that cannot serve, likewise


def refresh_page(job: Refresh, verdict: Verdict, base: KnowledgeBase, registry: Registry) -> str:
    """The gate's verdict and the scorecards of all models of the refresh, from what its run holds."""
    proof = registry.runs.read_record(job.run_id, names.PROOF, Proof)
    frontier = registry.runs.read_record(job.run_id, names.FRONTIER, Frontier)
    parts = [
        heading(verdict),
        f"Started by **{job.trigger}** ({md(job.cause)}); trained on {job.train}, judged on {job.test}.",
        *([f"Put forward: {md(proof.why)}."] if proof else []),
        reasons(verdict.reasons),
        *(_proof(proof, frontier, registry.runs.read_file(job.run_id, names.TRADEOFF_FIGURE)) if proof else []),
        *(_compression(frontier, registry.runs.read_file(job.run_id, names.FRONTIER_FIGURE)) if frontier else []),
        _spending(job, base),
        *_teachers(job, registry),
        _questions(job, registry),
        links(registry, job.run_id),
    ]
    return "\n\n".join(filter(None, parts))


def _proof(proof: Proof, found: Frontier | None, image: bytes) -> list[str]:
    """Scorecards of teacher, student, champion, and the variants: of many, those that nothing beats."""
    many = found is not None and len(proof.variants) > _MOST_VARIANTS
    shown = {found.reference.name, *found.best, found.chosen} if found is not None and many else None
    variants = [card for card in proof.variants if shown is None or card.model in shown]
    cards = [proof.teacher, proof.student, *variants, *([proof.champion] if proof.champion else [])]
    return ["## Scorecards", _scorecards(cards), picture(image, "bytes, latency and quality")]


def _compression(found: Frontier, image: bytes) -> list[str]:
    """What the search made, the best first, and why it ended."""
    rows = [
        f"| {md(c.name)}{' **chosen**' if c.name == found.chosen else ''} | {c.quality:.4f} | {c.bytes:,} "
        f"| {number(c.latency.p50_ms)} | {number(c.latency.p95_ms)} | {number(c.cpu_ms)} |"
        for c in (found.named(name) for name in found.best)
        if c.latency is not None
    ]
    listing = table("| candidate | quality | bytes | p50 (ms) | p95 (ms) | CPU (ms) |", rows)
    refused = [f"- refused: {code(c.name)}: {md(c.refused)}" for c in found.candidates if c.refused is not None]
    made = f"{len(found.candidates)} candidates were made, {len(found.best)} of which nothing beats"
    figure = picture(image, "what compression found")
    return ["## Compression", f"{made}: {md(found.stopped)}.", listing, "\n".join(refused[:_MOST_REFUSED]), figure]


def _spending(job: Refresh, base: KnowledgeBase) -> str:
    """What asking the teachers has cost this refresh."""
    spent = base.answers.spending(job=job.refresh_id)
    return "\n".join(f"- teacher {code(name)}: {md(cost)}" for name, cost in spent.items())


def _questions(job: Refresh, registry: Registry) -> str:
    """About how many rows the teachers were asked."""
    found = registry.runs.read_record(job.run_id, names.QUESTIONS, Questions)
    return f"Knowledge: {md(found)}." if found else ""


def _teachers(job: Refresh, registry: Registry) -> list[str]:
    """What the teachers count for, and where they contradict each other; nothing for a single one."""
    weights = registry.runs.read_record(job.run_id, names.WEIGHTS, TeacherWeights)
    found = registry.runs.read_record(job.run_id, names.CONTRADICTIONS, Contradictions)
    return ([weights_section(weights)] if weights else []) + ([_contradictions(found)] if found and found.found else [])


def _contradictions(found: Contradictions) -> str:
    rows = [
        f"| {md(c.first)} and {md(c.second)} | {md(c.slice or 'everywhere')} "
        f"| {c.contradicting:,} of {c.rows:,} | {c.share:.1%} "
        f"| {c.low:.1%} … {c.high:.1%} | {c.known:,} | {c.first_right:,} | {c.second_right:,} | {md(c.better or '')} |"
        for c in found.found[:_MOST_CONTRADICTIONS]
    ]
    return "## Where teachers contradict each other\n\n" + table(
        "| teachers | slice | rows | share | 95 % interval | outcome known | first right | second right "
        "| better beyond chance |",
        rows,
    )


def _scorecards(cards: list[Scorecard]) -> str:
    """One row a model; the AUC only of agents that are judged by it."""
    rows, auc = [], all(card.test.measure == "auc" for card in cards)
    for card in cards:
        q, latency = card.test, card.latency
        area = f"| {number(q.auc)} " if auc else ""
        rows.append(
            f"| {md(card.model)} | {card.role} {area}| {q.accuracy:.4f} | {q.log_loss:.4f} "
            f"| {q.calibration_error:.4f} | {number(card.agreement)} | {card.bytes:,} "
            f"| {number(latency.p50_ms) if latency else ''} | {number(latency.p95_ms) if latency else ''} |"
        )
    return table(
        f"| model | role {'| AUC ' if auc else ''}| accuracy | log loss | calibration error | agreement | bytes "
        "| p50 (ms) | p95 (ms) |",
        rows,
    )
