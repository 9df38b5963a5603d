"""What a search found, for people: a table, a figure, and figures of one candidate under names that MLflow takes."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from stillhouse.records import CompressionCandidate, Frontier
from stillhouse.shown import label

__all__ = ["frontier_figure", "frontier_table", "measured"]


def measured(candidate: CompressionCandidate) -> dict[str, float]:
    """Figures of a candidate that can serve, by metric name: quality on the judged rows, CPU time, what it took."""
    found = {
        "compression/quality": candidate.quality,
        "compression/difference": candidate.difference,
        "compression/cpu_ms": candidate.cpu_ms,
        "compression/seconds": candidate.seconds,
        "compression/saturating_layers": float(len(candidate.saturates)),
    }
    if candidate.latency is not None:
        found |= {"compression/p50_ms": candidate.latency.p50_ms, "compression/p95_ms": candidate.latency.p95_ms}
    return {name: value for name, value in found.items() if value is not None}


def frontier_table(frontier: Frontier) -> dict[str, list[object]]:
    """All candidates, column by column: those that nothing beats first, smallest first, then the others, as made."""
    ordered = [frontier.named(name) for name in frontier.best]
    ordered += [candidate for candidate in frontier.candidates if candidate.name not in frontier.best]
    reference = frontier.reference
    rows = [
        {
            "candidate": candidate.name,
            "": "chosen" if candidate.name == frontier.chosen else "best" if candidate.name in frontier.best else "",
            "quality": candidate.quality,
            "loss": _loss(candidate, reference),
            "bytes": candidate.bytes or None,
            "p50_ms": candidate.latency.p50_ms if candidate.latency else None,
            "p95_ms": candidate.latency.p95_ms if candidate.latency else None,
            "cpu_ms": candidate.cpu_ms,
            "seconds": candidate.seconds,
            "refused": candidate.refused or "",
        }
        for candidate in ordered
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def frontier_figure(frontier: Frontier) -> Figure:
    """Bytes (log) against quality, coloured by median latency (log); what nothing beats in all three is large."""
    able = frontier.able
    quality = {each.name: each.quality or 0.0 for each in able}
    chosen, limits = frontier.named(frontier.chosen), frontier.limits
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    shades = axes.scatter(
        [each.bytes for each in able],
        [quality[each.name] for each in able],
        c=[each.latency.p50_ms if each.latency else 0.0 for each in able],
        s=[70 if each.name in frontier.best else 28 for each in able],
        cmap="viridis_r",
        norm="log",
        zorder=3,
    )
    axes.scatter(chosen.bytes, quality[chosen.name], s=220, facecolors="none", edgecolors="black", zorder=4)
    if limits.max_bytes is not None:
        axes.axvline(limits.max_bytes, color="#b00020", ls="--", lw=0.9)
        axes.annotate(
            "max_bytes",
            (limits.max_bytes, 1),
            (3, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color="#b00020",
        )
    assert frontier.reference.quality is not None
    floor = frontier.reference.quality - limits.max_quality_loss
    axes.axhline(floor, color="#b00020", ls="--", lw=0.9)
    axes.annotate(
        "max_quality_loss",
        (0, floor),
        (4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="#b00020",
    )
    _show_what_matters(axes, able, floor)
    axes.set(xscale="log", xlabel="size on disk", ylabel="quality on the judged rows")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(EngFormatter("B", places=0))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(alpha=0.3)
    figure.colorbar(shades, ax=axes, label="p50 of one row (ms)")
    figure.suptitle(_wrapped(f"large: what nothing beats; ringed: {frontier.why}"), fontsize=9)
    return figure


def _show_what_matters(axes: object, able: tuple[CompressionCandidate, ...], floor: float) -> None:
    """Leave candidates far below what is allowed out of sight, or they would press the others into one line."""
    scores = [each.quality for each in able if each.quality is not None]
    top = max(scores)
    span = max(top - floor, 1e-3)
    lowest = min((score for score in scores if score >= floor - 6 * span), default=floor)
    axes.set_ylim(min(lowest, floor) - 0.6 * span, top + 0.6 * span)  # type: ignore[attr-defined]


def _loss(candidate: CompressionCandidate, reference: CompressionCandidate) -> float | None:
    if candidate.quality is None or reference.quality is None:
        return None
    return reference.quality - candidate.quality


def _wrapped(text: str, width: int = 110) -> str:
    return "\n".join(map(label, textwrap.wrap(text, width)))
