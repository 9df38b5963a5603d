"""Figures of models over size, weeks and watches. Each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import product
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, FixedLocator
from matplotlib.transforms import Bbox

from stillhouse.quality import measure_title
from stillhouse.records import Proof, Quality, Scorecard, Verdict, WeightChange, drift_report
from stillhouse.shown import escape_label

__all__ = ["plot_demo_year", "plot_policies", "plot_quality", "plot_teacher_weights", "plot_tradeoff"]

_COLOURS = {"teacher": "#7a5195", "student": "#ef5675", "variant": "#2f6f9f", "champion": "#ffa600"}
_DISTINCT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Told apart by people with any colour vision (Okabe & Ito 2008, "Color universal design")."""
_DISTINCT_LINES = ("-", "--", "-.", ":")
_RESPONSE_MARKERS = {"redistil": "o", "recalibrate": "s", "reuse": "^"}
_MAX_VARIANT_CAPTIONS = 6  # with more variants only the chosen one is captioned


def plot_tradeoff(proof: Proof) -> Figure:
    """Size on disk (log scale) against the named measure on the test window.

    The marker area grows with the latency; a ring marks the chosen variant.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    captions = []
    cards = [proof.teacher, proof.student, *proof.variants, *([proof.champion] if proof.champion else [])]
    for card in cards:
        axes.scatter(card.bytes, card.test.score, s=_marker_area(card), color=_COLOURS[card.role], alpha=0.85, zorder=3)
        if card.role == "variant" and len(proof.variants) > _MAX_VARIANT_CAPTIONS and card.model != proof.chosen:
            continue
        position = (card.bytes, card.test.score)
        leader = {"arrowstyle": "-", "color": "#999999", "lw": 0.6}
        captions.append(
            axes.annotate(
                _caption_text(card), position, (8, 6), textcoords="offset points", fontsize=8, arrowprops=leader
            )
        )
    chosen = next(card for card in proof.variants if card.model == proof.chosen)
    axes.scatter(
        chosen.bytes, chosen.test.score, s=_marker_area(chosen) + 160, facecolors="none", edgecolors="black", zorder=4
    )
    axes.set(xscale="log", xlabel="size on disk", ylabel=f"{measure_title(chosen.test.measure)} on the test window")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.margins(x=0.35, y=0.2)
    axes.grid(alpha=0.3)
    axes.set_title(f"ringed: {escape_label(proof.why)}", fontsize=9)
    _separate_captions(figure, captions)
    return figure


def _separate_captions(figure: Figure, captions: Sequence[Annotation]) -> None:
    """Move each caption to the nearest position inside the frame where it covers no other caption and no marker."""
    figure.draw_without_rendering()
    radius = figure.dpi / 72 * 7
    frame = figure.axes[0].get_window_extent()
    marks = figure.axes[0].transData.transform([caption.xy for caption in captions])
    occupied = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    for caption in captions:
        for dy, dx in product((6, -14, 18, -26, 30, -38, 42, -50), (8, -8)):
            caption.xyann = (dx, dy)
            caption.set_horizontalalignment("left" if dx > 0 else "right")
            box = Text.get_window_extent(caption)  # without the leader line
            if frame.x0 <= box.x0 and box.x1 <= frame.x1 and not any(box.overlaps(other) for other in occupied):
                break
        occupied.append(box)


def _marker_area(card: Scorecard) -> float:
    return 40.0 if card.latency is None else 40.0 + min(card.latency.p50_ms, 5.0) * 60.0


def _caption_text(card: Scorecard) -> str:
    latency = "" if card.latency is None else f", {card.latency.p50_ms:.3f} ms"
    return f"{escape_label(card.model)}{latency}"


def plot_quality(verdicts: Sequence[Verdict]) -> Figure:
    """The champion's named measure on known outcomes at every watch; lines mark the verdicts of gates."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    qualities = [(v.as_of, _watched_quality(v)) for v in verdicts if v.kind == "watch"]
    measured = [(when, quality) for when, quality in qualities if quality is not None]
    measures = [quality.measure for _, quality in measured]
    measure = measures[-1] if measures else "accuracy"  # what the agent file named last
    if measure == "accuracy" and measures.count("auc"):
        measure = "auc"  # a window of one outcome has no AUC
    points = [(when, quality.score) for when, quality in measured if quality.measure == measure]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, color=_COLOURS["champion"], label="champion")
    _mark_gates(figure, [(v.as_of, v.result) for v in verdicts if v.kind == "gate"])
    axes.set(ylabel=f"{measure_title(measure)} on known outcomes")
    _format_dates(figure)
    return figure


def plot_teacher_weights(changes: Sequence[WeightChange]) -> Figure:
    """Each teacher's share of the mixture over all slices; a marker per change, filled if by a refresh."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    overall = [change for change in changes if not change.slice]
    for number, name in enumerate(dict.fromkeys(change.teacher for change in overall)):
        history, colour = [change for change in overall if change.teacher == name], f"C{number}"
        times = [date2num(change.as_of) for change in (history[0], *history)]
        shares = [history[0].before, *(change.after for change in history)]
        axes.step(times, shares, where="post", color=colour, label=name)
        for change in history:
            face = "none" if change.job == "watch" else colour
            when = float(date2num(change.as_of))
            axes.plot(when, change.after, "o", ms=4, color=colour, markerfacecolor=face)
    axes.set(ylim=(-0.03, 1.03), ylabel="share in the teachers' mean")
    axes.xaxis_date()
    _format_dates(figure)
    return figure


def plot_demo_year(
    weeks: Sequence[datetime],
    quality: dict[str, Sequence[float | None]],
    drift: Sequence[float | None],
    gates: Sequence[tuple[datetime, str]],
    measure: str = "auc",
    title: str = "One year at the decision point",
) -> Figure:
    """The weeks of a demo: the quality of each model above, the largest PSI below; lines mark the gate's verdicts.

    :param quality: the value of each week, by model.
    :param measure: name of the measure.
    :param drift: the largest PSI of each week.
    :param gates: time and result of each gate's verdict.
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
    above.set(ylabel=f"{measure_title(measure)} of the week")
    figure.suptitle(title)
    below.bar(weeks, [value or 0.0 for value in drift], width=5, color=_COLOURS["variant"])
    below.set_yscale("symlog", linthresh=1)
    below.set(ylabel="largest PSI")
    below.yaxis.set_major_locator(FixedLocator([0, 0.25, 1, 3, 10, 30, 100]))
    below.yaxis.set_major_formatter("{x:g}")
    _mark_gates(figure, gates)
    _format_dates(figure)
    return figure


def plot_policies(
    times: Sequence[datetime],
    quality: dict[str, Sequence[float | None]],
    responses: dict[str, Sequence[tuple[datetime, str, bool]]],
    measure: str,
    title: str,
) -> Figure:
    """Policies of a replay: the quality of each step above, and below, a line for each policy with its responses.

    A filled marker is a response that gained, a hollow one a response that gained nothing.

    :param times: end of each step.
    :param quality: the value of each step, by policy.
    :param responses: time, kind and whether it gained, by policy.
    :param measure: name of the measure.
    """
    figure = Figure(figsize=(11, 4.6 + 0.25 * len(quality)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1 + len(quality)])
    kinds = set()
    for number, (name, values) in enumerate(quality.items()):
        colour = _DISTINCT_COLOURS[number % len(_DISTINCT_COLOURS)]
        line = _DISTINCT_LINES[number // len(_DISTINCT_COLOURS) % len(_DISTINCT_LINES)]
        numbers = [float("nan") if value is None else value for value in values]
        above.plot(times, numbers, color=colour, ls=line, lw=1.6, label=escape_label(name))
        for when, kind, gained in responses[name]:
            marker, face = _RESPONSE_MARKERS.get(kind, "D"), colour if gained else "none"
            below.plot(float(date2num(when)), number, marker, ms=6, color=colour, markerfacecolor=face)
            kinds.add(kind)
    for kind in sorted(kinds):
        below.plot([], [], _RESPONSE_MARKERS.get(kind, "D"), ms=6, color="#555555", label=kind)
    if kinds:
        below.plot([], [], "o", ms=6, color="#555555", markerfacecolor="none", label="hollow: gained nothing")
    above.set(ylabel=measure_title(measure))
    below.set_yticks(range(len(quality)), [escape_label(name) for name in quality], fontsize=8)
    below.set(ylim=(len(quality) - 0.5, -0.5))
    figure.suptitle(escape_label(title))
    _format_dates(figure)
    return figure


def _watched_quality(verdict: Verdict) -> Quality | None:
    report = drift_report(verdict)
    return report.quality if report else None


def _mark_gates(figure: Figure, gates: Sequence[tuple[datetime, str]]) -> None:
    colours = {"promoted": "#2e8b57", "refused": "#c0392b", "inconclusive": "#d39b00"}
    in_legend = set()
    for when, result in gates:
        for number, axes in enumerate(figure.axes):
            label = result if number == 0 and result not in in_legend else None
            axes.axvline(
                float(date2num(when)), color=colours.get(result, "#555555"), lw=1, alpha=0.7, ls=":", label=label
            )
        in_legend.add(result)


def _format_dates(figure: Figure) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, loc="outside lower center", ncols=6, frameon=False)
    locator = AutoDateLocator()
    figure.axes[-1].xaxis.set_major_locator(locator)
    figure.axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
