"""Figures for people who would rather look than read. Each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import product
from typing import Any, Literal

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, FixedLocator
from matplotlib.transforms import Bbox

from stillhouse.records import Proof, Quality, Scorecard, Verdict, WeightChange, drift_report
from stillhouse.shown import label

__all__ = ["quality_over_time", "tradeoff", "weights_over_time", "year"]

_COLOURS = {"teacher": "#7a5195", "student": "#ef5675", "variant": "#2f6f9f", "champion": "#ffa600"}
_MOST_CAPTIONS = 6  # of variants: of more, only the chosen one has its name beside it
_NAMES = {"auc": "AUC", "accuracy": "accuracy"}


def tradeoff(proof: Proof) -> Figure:
    """Bytes on disk (log) against AUC on the test window, marker area by latency; the chosen variant is ringed.

    For more than two actions it is the accuracy.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    captions = []
    cards = [proof.teacher, proof.student, *proof.variants, *([proof.champion] if proof.champion else [])]
    for card in cards:
        axes.scatter(card.bytes, card.test.score, s=_area(card), color=_COLOURS[card.role], alpha=0.85, zorder=3)
        if card.role == "variant" and len(proof.variants) > _MOST_CAPTIONS and card.model != proof.chosen:
            continue
        place = (card.bytes, card.test.score)
        leader = {"arrowstyle": "-", "color": "#999999", "lw": 0.6}
        captions.append(
            axes.annotate(_caption(card), place, (8, 6), textcoords="offset points", fontsize=8, arrowprops=leader)
        )
    chosen = next(card for card in proof.variants if card.model == proof.chosen)
    axes.scatter(
        chosen.bytes, chosen.test.score, s=_area(chosen) + 160, facecolors="none", edgecolors="black", zorder=4
    )
    axes.set(xscale="log", xlabel="size on disk", ylabel=f"{_NAMES[chosen.test.measure]} on the test window")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.margins(x=0.35, y=0.2)
    axes.grid(alpha=0.3)
    axes.set_title(f"ringed: {label(proof.why)}", fontsize=9)
    _keep_apart(figure, captions)
    return figure


def _keep_apart(figure: Figure, captions: Sequence[Annotation]) -> None:
    """Move each caption to the nearest place in the frame where it covers no other caption and no marker."""
    figure.draw_without_rendering()
    radius = figure.dpi / 72 * 7
    frame = figure.axes[0].get_window_extent()
    marks = figure.axes[0].transData.transform([caption.xy for caption in captions])
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    for caption in captions:
        for height, side in product((6, -14, 18, -26, 30, -38, 42, -50), (8, -8)):
            caption.xyann = (side, height)
            caption.set_horizontalalignment("left" if side > 0 else "right")
            box = Text.get_window_extent(caption)  # without the leader
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _area(card: Scorecard) -> float:
    return 40.0 if card.latency is None else 40.0 + min(card.latency.p50_ms, 5.0) * 60.0


def _caption(card: Scorecard) -> str:
    latency = "" if card.latency is None else f", {card.latency.p50_ms:.3f} ms"
    return f"{label(card.model)}{latency}"


def quality_over_time(verdicts: Sequence[Verdict]) -> Figure:
    """The champion's AUC or accuracy on known outcomes at every watch, and when a gate promoted or refused."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    watched = [(v.as_of, _watched(v)) for v in verdicts if v.kind == "watch"]
    measured = [(when, quality) for when, quality in watched if quality is not None]
    two = all(quality.actions == 2 for _, quality in measured)
    points = [(when, quality.auc if two else quality.score) for when, quality in measured]
    points = [(when, value) for when, value in points if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, color=_COLOURS["champion"], label="champion")
    _mark_gates(figure, [(v.as_of, v.result) for v in verdicts if v.kind == "gate"])
    axes.set(ylabel=f"{_NAMES['auc' if two else 'accuracy']} on known outcomes")
    _dated(figure)
    return figure


def weights_over_time(changes: Sequence[WeightChange]) -> Figure:
    """Each teacher's share in the mean of all, everywhere; a point for each recorded change, filled for a refresh."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    shown = [change for change in changes if not change.slice]
    for number, name in enumerate(dict.fromkeys(change.teacher for change in shown)):
        own, colour = [change for change in shown if change.teacher == name], f"C{number}"
        times = [date2num(change.as_of) for change in (own[0], *own)]
        shares = [own[0].before, *(change.after for change in own)]
        axes.step(times, shares, where="post", color=colour, label=name)
        for change in own:
            face = "none" if change.job == "watch" else colour
            when = float(date2num(change.as_of))
            axes.plot(when, change.after, "o", ms=4, color=colour, markerfacecolor=face)
    axes.set(ylim=(-0.03, 1.03), ylabel="share in the teachers' mean")
    axes.xaxis_date()
    _dated(figure)
    return figure


def year(
    weeks: Sequence[datetime],
    quality: dict[str, Sequence[float | None]],
    drift: Sequence[float | None],
    gates: Sequence[tuple[datetime, str]],
    measure: Literal["auc", "accuracy"] = "auc",
    title: str = "One year at the decision point",
) -> Figure:
    """A demo's weeks: each model's quality above, the largest PSI below, the gate's verdicts as lines.

    :param measure: what the quality is: the AUC, or the accuracy.
    """
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    styles: dict[str, dict[str, Any]] = {
        "never refreshed": {"color": "#888888", "ls": "--"},
        "champion": {"color": _COLOURS["champion"], "lw": 2.4},
        "teacher": {"color": _COLOURS["teacher"], "lw": 1},
    }
    for name, values in quality.items():
        above.plot(weeks, values, label=name, marker="o", ms=3, **styles.get(name, {}))
    above.set(ylabel=f"{_NAMES[measure]} of the week")
    figure.suptitle(title)
    below.bar(weeks, [value or 0.0 for value in drift], width=5, color=_COLOURS["variant"])
    below.set_yscale("symlog", linthresh=1)
    below.set(ylabel="largest PSI")
    below.yaxis.set_major_locator(FixedLocator([0, 0.25, 1, 3, 10, 30, 100]))
    below.yaxis.set_major_formatter("{x:g}")
    _mark_gates(figure, gates)
    _dated(figure)
    return figure


def _watched(verdict: Verdict) -> Quality | None:
    report = drift_report(verdict)
    return report.quality if report else None


def _mark_gates(figure: Figure, gates: Sequence[tuple[datetime, str]]) -> None:
    colours = {"promoted": "#2e8b57", "refused": "#c0392b"}
    labelled = set()
    for when, outcome in gates:
        for number, axes in enumerate(figure.axes):
            label = outcome if number == 0 and outcome not in labelled else None
            axes.axvline(
                float(date2num(when)), color=colours.get(outcome, "#555555"), lw=1, alpha=0.7, ls=":", label=label
            )
        labelled.add(outcome)


def _dated(figure: Figure) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, loc="outside lower center", ncols=6, frameon=False)
    locator = AutoDateLocator()
    figure.axes[-1].xaxis.set_major_locator(locator)
    figure.axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
