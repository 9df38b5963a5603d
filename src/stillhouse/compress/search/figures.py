"""The result of a search as a table, a figure, an interactive page and metrics for MLflow."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter

from stillhouse.plotting import GREY, INK, VERMILLION, separate_captions
from stillhouse.records import CompressionCandidate, Frontier
from stillhouse.shown import escape_label, escape_line, wrap_label

__all__ = ["candidate_metrics", "draw_frontier", "format_frontier_page", "tabulate_frontier"]

_MAX_CAPTIONS = 8  # of the Pareto front; with more only the chosen candidate is named, and the page names all


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
    axes.scatter(chosen.bytes, quality[chosen.name], s=220, facecolors="none", edgecolors=INK, zorder=4)
    if limits.max_bytes is not None:
        axes.axvline(limits.max_bytes, color=VERMILLION, ls="--", lw=0.9)
        axes.annotate(
            "max_bytes",
            (limits.max_bytes, 1),
            (3, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            color=VERMILLION,
        )
    assert frontier.reference.quality is not None
    floor = frontier.reference.quality - limits.max_quality_loss
    axes.axhline(floor, color=VERMILLION, ls="--", lw=0.9)
    axes.annotate(
        "max_quality_loss",
        (0, floor),
        (4, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color=VERMILLION,
    )
    _limit_quality_axis(axes, servable, floor)
    axes.set(xscale="log", xlabel="size on disk (bytes)", ylabel="quality on the validation rows (0–1)")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(EngFormatter("B", places=0))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.grid(alpha=0.3)
    bar = figure.colorbar(points, ax=axes, label="p50 of one row (ms)").ax.yaxis
    bar.set_major_formatter("{x:.3g}")
    bar.set_minor_formatter("{x:.3g}")
    figure.suptitle(wrap_label(f"large: the Pareto front; ringed: {frontier.why}", 100), fontsize=9, color=INK)
    separate_captions(figure, [_caption(axes, candidate) for candidate in _list_captioned(frontier)])
    return figure


def format_frontier_page(frontier: Frontier) -> str:
    """A page of its own, without anything from elsewhere: the candidates as points that tell about themselves, a table.

    The axes can be chosen: bytes, latency, CPU time, quality. Without a script the table remains. Text from the search
    is data in it, never markup.
    """
    table = tabulate_frontier(frontier)
    names = [name or "standing" for name in table]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*table.values(), strict=True)]
    data = {"rows": rows, "limits": frontier.limits.model_dump(), "reference": frontier.reference.quality}
    cells = "\n".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows)
    template = files(__package__).joinpath("frontier.html").read_text(encoding="utf-8")
    parts = {
        "why": html.escape(escape_line(frontier.why)),
        "stopped": html.escape(escape_line(frontier.stopped)),
        "measure": html.escape(escape_line(frontier.measure or "quality")),
        "headings": "".join(f"<th>{html.escape(name)}</th>" for name in names),
        "cells": cells,
        "data": json.dumps(data).replace("<", "\\u003c").replace("&", "\\u0026"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else html.escape(f"{value:,}" if isinstance(value, int) else escape_line(value))


def _list_captioned(frontier: Frontier) -> list[CompressionCandidate]:
    """The candidates whose names the figure shows: the Pareto front, or of a long one only what was chosen."""
    names = frontier.best if len(frontier.best) <= _MAX_CAPTIONS else ()
    return [frontier.named(name) for name in dict.fromkeys([*names, frontier.chosen])]


def _caption(axes: Axes, candidate: CompressionCandidate) -> Annotation:
    return axes.annotate(
        escape_label(candidate.name),
        (candidate.bytes, candidate.quality or 0.0),
        (8, 6),
        textcoords="offset points",
        fontsize=7.5,
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6},
        annotation_clip=True,
    )


def _limit_quality_axis(axes: Axes, servable: tuple[CompressionCandidate, ...], floor: float) -> None:
    """Cut off candidates far below the allowed quality: they would compress the others into one line."""
    scores = [candidate.quality for candidate in servable if candidate.quality is not None]
    top = max(scores)
    span = max(top - floor, 1e-3)
    lowest = min((score for score in scores if score >= floor - 6 * span), default=floor)
    axes.set_ylim(min(lowest, floor) - 0.6 * span, top + 0.6 * span)


def _loss(candidate: CompressionCandidate, reference: CompressionCandidate) -> float | None:
    if candidate.quality is None or reference.quality is None:
        return None
    return reference.quality - candidate.quality
