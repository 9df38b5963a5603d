"""Figures of models over size, and of weights and policies over time. Each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from stillhouse.plotting import BLUE, DISTINCT, GREEN, GREY, INK, ORANGE, PURPLE, separate_captions
from stillhouse.quality import measure_title
from stillhouse.records import Proof, Scorecard, WeightChange
from stillhouse.shown import escape_label, wrap_label

__all__ = ["plot_policies", "plot_teacher_weights", "plot_tradeoff"]

_ROLES: dict[str, dict[str, Any]] = {
    "teacher": {"color": GREEN, "marker": "s"},
    "student": {"color": PURPLE, "marker": "^"},
    "variant": {"color": BLUE, "marker": "o"},
    "champion": {"color": ORANGE, "marker": "D"},
}
_DISTINCT_LINES = ("-", "--", "-.", ":")
_RESPONSE_MARKERS = {"redistil": "o", "recalibrate": "s", "reuse": "^"}
_MAX_VARIANT_CAPTIONS = 6  # with more variants only the chosen one is captioned


def plot_tradeoff(proof: Proof) -> Figure:
    """Size on disk (log scale) against the named measure on the test window.

    The marker area grows with the latency; a ring marks the chosen variant.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    captions = []
    cards = [proof.teacher, proof.student, *proof.variants, *([proof.champion] if proof.champion else [])]
    roles = {card.role for card in cards}
    for card in cards:
        axes.scatter(card.bytes, card.test.score, s=_marker_area(card), alpha=0.85, zorder=3, **_ROLES[card.role])
        if card.role == "variant" and len(proof.variants) > _MAX_VARIANT_CAPTIONS and card.model != proof.chosen:
            continue
        position = (card.bytes, card.test.score)
        leader = {"arrowstyle": "-", "color": GREY, "lw": 0.6}
        captions.append(
            axes.annotate(
                _caption_text(card), position, (8, 6), textcoords="offset points", fontsize=8, arrowprops=leader
            )
        )
    chosen = next(card for card in proof.variants if card.model == proof.chosen)
    axes.scatter(
        chosen.bytes,
        chosen.test.score,
        s=_marker_area(chosen) + 160,
        facecolors="none",
        edgecolors=INK,
        zorder=4,
    )
    axes.set(xscale="log", xlabel="size on disk (bytes)")
    axes.set_ylabel(f"{escape_label(measure_title(chosen.test.measure))} on the test window")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(EngFormatter("B", places=0))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.margins(x=0.35, y=0.2)
    axes.grid(alpha=0.3)
    handles = [Line2D([], [], ls="none", ms=7, label=role, **_ROLES[role]) for role in _ROLES if role in roles]
    handles.append(Line2D([], [], ls="none", marker="o", ms=11, mfc="none", color=INK, label="chosen"))
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    title = f"Put forward: {proof.why}. Area: latency, p50 of one row."
    figure.suptitle(wrap_label(title, 100), fontsize=9, color=INK)
    separate_captions(figure, captions)
    return figure


def _marker_area(card: Scorecard) -> float:
    return 40.0 if card.latency is None else 40.0 + min(card.latency.p50_ms, 5.0) * 60.0


def _caption_text(card: Scorecard) -> str:
    latency = "" if card.latency is None else f", {card.latency.p50_ms:.3f} ms"
    return f"{escape_label(card.model)}{latency}"


def plot_teacher_weights(changes: Sequence[WeightChange]) -> Figure:
    """Each teacher's share of the mixture over all slices; a marker per change, filled if by a refresh."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    overall = [change for change in changes if not change.slice]
    for number, name in enumerate(dict.fromkeys(change.teacher for change in overall)):
        history, colour = [change for change in overall if change.teacher == name], DISTINCT[number % len(DISTINCT)]
        dashes = _DISTINCT_LINES[number % len(_DISTINCT_LINES)]
        times = [date2num(change.as_of) for change in (history[0], *history)]
        shares = [history[0].before, *(change.after for change in history)]
        axes.step(times, shares, where="post", color=colour, ls=dashes, label=escape_label(name))
        for change in history:
            face = "none" if change.job == "watch" else colour
            when = float(date2num(change.as_of))
            axes.plot(when, change.after, "o", ms=4, color=colour, markerfacecolor=face)
    axes.set(ylim=(-0.03, 1.03), ylabel="share in the teachers' mean (0–1)", xlabel="time (UTC)")
    figure.suptitle("Weights of the teachers; filled: changed by a refresh, hollow: by a watch", fontsize=9, color=INK)
    axes.xaxis_date()
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
        colour = DISTINCT[number % len(DISTINCT)]
        line = _DISTINCT_LINES[number // len(DISTINCT) % len(_DISTINCT_LINES)]
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
    above.set(ylabel=escape_label(measure_title(measure)))
    below.set(xlabel="time (UTC)")
    below.set_yticks(range(len(quality)), [escape_label(name) for name in quality], fontsize=8)
    below.set(ylim=(len(quality) - 0.5, -0.5))
    figure.suptitle(wrap_label(title, 100))
    _format_dates(figure)
    return figure


def _format_dates(figure: Figure) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, loc="outside lower center", ncols=6, frameon=False)
    locator = AutoDateLocator()
    figure.axes[-1].xaxis.set_major_locator(locator)
    figure.axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
