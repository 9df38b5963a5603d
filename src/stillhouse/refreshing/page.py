"""Format the page of a refresh: its verdict, the scorecards of its models, compression, teachers and costs."""

from __future__ import annotations

from stillhouse.knowledge import KnowledgeBase
from stillhouse.pages import (
    embed_png,
    format_heading,
    format_links,
    format_number,
    format_reasons,
    format_table,
    format_weights,
)
from stillhouse.quality import measure_title
from stillhouse.records import (
    Contradictions,
    Frontier,
    Proof,
    Questions,
    Refresh,
    Scorecard,
    TeacherWeights,
    Verdict,
    Words,
    words_for,
)
from stillhouse.registry import Registry, names
from stillhouse.shown import escape_code
from stillhouse.shown import escape_markdown as md

__all__ = ["format_refresh_page"]

_ADVICE = "Rows to look at: `stillhouse teachers {agent} --contradictions`."
_MAX_CONTRADICTIONS = 8  # rows of the table; MLflow has all contradictions
_MAX_VARIANTS = 8  # with a scorecard on the page; MLflow has all scorecards
_MAX_REFUSED = 10  # refused candidates on the page; MLflow has all


def format_refresh_page(job: Refresh, verdict: Verdict, base: KnowledgeBase, registry: Registry) -> str:
    """The page of a refresh as Markdown, from the records and figures of its MLflow run."""
    proof = registry.runs.read_record(job.run_id, names.PROOF, Proof)
    frontier = registry.runs.read_record(job.run_id, names.FRONTIER, Frontier)
    parts = [
        format_heading(verdict),
        f"Started by **{job.trigger}** ({md(job.cause)}); trained on {job.train.dates}, judged on {job.test.dates}.",
        "## Reasons",
        format_reasons(verdict.reasons),
        *(_format_proof(proof, frontier, registry.runs.read_file(job.run_id, names.TRADEOFF_FIGURE)) if proof else []),
        *(
            _format_compression(frontier, registry.runs.read_file(job.run_id, names.FRONTIER_FIGURE))
            if frontier
            else []
        ),
        _format_spending(job, base),
        *map(base.config.words.say, _format_teachers(job, registry)),
        base.config.words.say(_format_questions(job, registry)),
        format_links(registry, job.run_id, why=True),
    ]
    return "\n\n".join(filter(None, parts))


def _format_proof(proof: Proof, frontier: Frontier | None, image: bytes) -> list[str]:
    """Scorecards of teacher, student, champion and variants; if there are many variants, of the Pareto front."""
    many = frontier is not None and len(proof.variants) > _MAX_VARIANTS
    shown = {frontier.reference.name, *frontier.best, frontier.chosen} if frontier is not None and many else None
    variants = [card for card in proof.variants if shown is None or card.model in shown]
    cards = [proof.teacher, proof.student, *variants, *([proof.champion] if proof.champion else [])]
    return [
        "## Models on the test window",
        _format_scorecards(cards, words_for(proof.certificate.labels)),
        embed_png(image, "bytes, latency and quality"),
    ]


def _format_compression(frontier: Frontier, image: bytes) -> list[str]:
    """The candidates of the search on its Pareto front, the refused ones, and why the search ended.

    Their latencies are not repeated: the gate measures each model again, side by side, and judges by that.
    """
    rows = [
        f"| {md(c.name)}{' **chosen**' if c.name == frontier.chosen else ''} | {c.quality:.4f} | {c.bytes:,} |"
        for c in (frontier.named(name) for name in frontier.best)
        if c.quality is not None
    ]
    listing = format_table("| candidate | quality on the validation days | bytes |", rows)
    refused = [
        f"- refused: {escape_code(c.name)}: {md(c.refused)}" for c in frontier.candidates if c.refused is not None
    ]
    made = f"{len(frontier.candidates)} candidates were made, {len(frontier.best)} of which nothing beats"
    figure = embed_png(image, "what compression found")
    return ["## Compression", f"{made}: {md(frontier.stopped)}.", listing, "\n".join(refused[:_MAX_REFUSED]), figure]


def _format_spending(job: Refresh, base: KnowledgeBase) -> str:
    """The cost of the teachers in this refresh."""
    spending = base.answers.spending(job=job.refresh_id)
    return "\n".join(f"- teacher {escape_code(name)}: {md(cost)}" for name, cost in spending.items())


def _format_questions(job: Refresh, registry: Registry) -> str:
    """How many rows the teachers were asked about."""
    questions = registry.runs.read_record(job.run_id, names.QUESTIONS, Questions)
    return f"Knowledge: {md(questions)}." if questions else ""


def _format_teachers(job: Refresh, registry: Registry) -> list[str]:
    """The weights of several teachers, and where they, or the challenger and they, contradict each other."""
    mixture = registry.runs.read_record(job.run_id, names.WEIGHTS, TeacherWeights)
    parts = [format_weights(mixture)] if mixture else []
    for name, heading, advice in (
        (names.CONTRADICTIONS, "Where teachers contradict each other", ""),
        (names.STUDENT_CONTRADICTIONS, "Where the challenger and its teachers contradict each other", _ADVICE),
    ):
        contradictions = registry.runs.read_record(job.run_id, name, Contradictions)
        if contradictions is not None and any(c.contradicting for c in contradictions.contradictions):
            examples = f"\n\n{advice.format(agent=job.agent)}" if advice else ""
            parts.append(f"## {heading}\n\n{_format_contradictions(contradictions)}{examples}")
    return parts


def _format_contradictions(contradictions: Contradictions) -> str:
    rows = [
        f"| {md(c.first)} and {md(c.second)} | {md(c.slice or 'everywhere')} | {c.contradicting:,} of {c.rows:,} "
        f"({c.share:.1%}) | {c.first_right:,} and {c.second_right:,} of {c.known:,} | {md(c.better or '')} |"
        for c in contradictions.contradictions[:_MAX_CONTRADICTIONS]
    ]
    heading = "| models | slice | rows that contradict | each right, of known outcomes | better beyond chance |"
    return format_table(heading, rows)


def _name_column(measure: str) -> str:
    """The heading of a named measure; the log loss beside it is not clipped."""
    return "log loss, clipped" if measure == "log_loss" else md(measure_title(measure))


def _format_scorecards(cards: list[Scorecard], words: Words) -> str:
    """One row per model; the first figure is the named measure, if all models are measured by it."""
    measures = {card.test.measure for card in cards}
    same = measures.pop() if len(measures) == 1 else "accuracy"
    named = None if same in ("accuracy", "agreement") else same
    headings = [
        "model",
        *([_name_column(named)] if named else []),
        words.accuracy,
        "calibration error",
        "bytes",
        "p95 (ms)",
    ]
    rows = []
    for card in cards:
        quality, name = card.test, md(card.model)
        cells = [name if card.role == card.model else f"{name} ({card.role})"]
        cells += [f"{quality.score:.4f}"] if named else []
        cells += [f"{quality.accuracy:.4f}", f"{quality.calibration_error:.4f}", f"{card.bytes:,}"]
        cells.append(format_number(card.latency.p95_ms if card.latency else None))
        rows.append(f"| {' | '.join(cells)} |")
    return format_table(f"| {' | '.join(headings)} |", rows)
