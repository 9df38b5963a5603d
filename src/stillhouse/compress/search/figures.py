"""The result of a search as a table, a figure and metrics for MLflow."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from stillhouse.records import CompressionCandidate, Frontier
from stillhouse.shown import escape_label

__all__ = ["candidate_metrics", "draw_frontier", "tabulate_frontier"]


def candidate_metrics(candidate: CompressionCandidate) -> dict[str, float]:
    """Metrics of a candidate that can serve, by their name in MLflow."""
    metrics = {
        "compression/quality": candidate.quality,
        "compression/difference": candidate.difference,
        "compression/cpu_ms": candidate.cpu_ms,
        "compression/seconds": candidate.seconds,
        "compression/saturating_layers": float(len(candidate.saturates)),
    }
    if candidate.latency is not None:
        metrics |= {"compression/p50_ms": candidate.latency.p50_ms, "compression/p95_ms": candidate.latency.p95_ms}
    return {name: value for name, value in metrics.items() if value is not None}


def tabulate_frontier(frontier: Frontier) -> dict[str, list[object]]:
    """All candidates, by column: first the Pareto front, smallest first, then the others, in the order built."""
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


def draw_frontier(frontier: Frontier) -> Figure:
    """Bytes (log) against quality, coloured by median latency (log); candidates of the Pareto front are large."""
    servable = frontier.servable
    quality = {candidate.name: candidate.quality or 0.0 for candidate in servable}
    chosen, limits = frontier.named(frontier.chosen), frontier.limits
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    points = axes.scatter(
        [candidate.bytes for candidate in servable],
        [quality[candidate.name] for candidate in servable],
        c=[candidate.latency.p50_ms if candidate.latency else 0.0 for candidate in servable],
        s=[70 if candidate.name in frontier.best else 28 for candidate in servable],
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
    _limit_quality_axis(axes, servable, floor)
    axes.set(xscale="log", xlabel="size on disk", ylabel="quality on the validation rows")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(EngFormatter("B", places=0))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(alpha=0.3)
    figure.colorbar(points, ax=axes, label="p50 of one row (ms)")
    figure.suptitle(_wrap(f"large: the Pareto front; ringed: {frontier.why}"), fontsize=9)
    return figure


def _limit_quality_axis(axes: object, servable: tuple[CompressionCandidate, ...], floor: float) -> None:
    """Cut off candidates far below the allowed quality: they would compress the others into one line."""
    scores = [candidate.quality for candidate in servable if candidate.quality is not None]
    top = max(scores)
    span = max(top - floor, 1e-3)
    lowest = min((score for score in scores if score >= floor - 6 * span), default=floor)
    axes.set_ylim(min(lowest, floor) - 0.6 * span, top + 0.6 * span)  # type: ignore[attr-defined]


def _loss(candidate: CompressionCandidate, reference: CompressionCandidate) -> float | None:
    if candidate.quality is None or reference.quality is None:
        return None
    return reference.quality - candidate.quality


def _wrap(text: str, width: int = 110) -> str:
    return "\n".join(map(escape_label, textwrap.wrap(text, width)))
