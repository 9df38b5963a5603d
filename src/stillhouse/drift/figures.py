"""Figures of drift, evidence and slices, for MLflow and for the watch page, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import log
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from stillhouse.drift.explain import rank_columns
from stillhouse.plotting import BLUE, FAINT, INK, ORANGE, PURPLE, SKY, VERMILLION
from stillhouse.records import (
    ColumnDrift,
    DriftReport,
    EvidenceStep,
    LabelKind,
    Process,
    SliceDrift,
    split_restarts,
    words_for,
)
from stillhouse.shown import escape_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_drift", "plot_evidence", "plot_slices"]

STABLE, SHIFTED = SKY, VERMILLION
PROCESS_COLOURS: dict[Process, str] = {
    "disagreement": BLUE,
    "student_outcomes": ORANGE,
    "teacher_outcomes": PURPLE,
}
PROCESS_TITLES: dict[Process, str] = {
    "disagreement": "disagreement of teacher and student",
    "student_outcomes": "student against outcomes",
    "teacher_outcomes": "teacher against outcomes",
}
MAX_LABEL_LENGTH = 36
MAX_NOTE_WIDTH = 98
LN_10 = log(10)
MIN_EXPONENT = -2.0
"""Evidence below this power of ten is drawn at it."""
LOG_SCALE_FROM = 2.0
"""If a PSI is larger, the axis is logarithmic above 0.25; otherwise the other bars would be too short to read."""


def plot_drift(report: DriftReport, threshold: float | None = 0.25, columns: int = 30) -> Figure:
    """PSI of the student's outputs and of the ``columns`` most shifted columns, the largest PSI / limit on top.

    A tick across a bar is the column's calibrated limit; a bar beyond it has the colour of a shift.

    :param threshold: PSI that is drawn as a line, and decides the colour of columns without a limit; None: no line.
    """
    from matplotlib.figure import Figure

    groups = [
        (title, rank_columns(drifts)[:max_bars][::-1])
        for title, drifts, max_bars in (
            ("student's output", report.outputs, len(report.outputs)),
            ("observations", report.columns, columns),
        )
        if drifts or title == "observations"
    ]
    heights = [max(len(drifts), 2) + 0.6 for _, drifts in groups]
    figure = Figure(figsize=(8, 1.5 + 0.27 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, drifts) in zip(panels, groups, strict=True):
        _plot_psi_bars(axes, drifts, threshold)
        if len(groups) > 1:
            axes.set_title(title, fontsize=9, color=INK, loc="left", pad=3)
    all_drifts = [drift for _, drifts in groups for drift in drifts]
    _format_psi_axis(panels[-1], all_drifts, threshold)
    if threshold is not None:
        panels[0].annotate(
            f"threshold {threshold:g}",
            (threshold, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            ha="center",
        )
    if any(drift.limit is not None for drift in all_drifts):
        _add_limit_legend(figure)
    _set_title(figure, _window_title(report), _drift_notes(report, len(groups[-1][1])))
    return figure


def plot_evidence(
    steps: Sequence[EvidenceStep],
    cooldowns: Sequence[tuple[datetime, datetime]] = (),
    labels: LabelKind = "outcomes",
) -> Figure:
    """Evidence over time on a logarithmic scale, and below it a panel per process with the mean loss of each step.

    The dashed line in the upper panel is the threshold of one process alone: the guaranteed average run length divided
    by its share of the agent's budget; together the processes may raise the alarm earlier. The dashed lines below are
    the null means. A line is interrupted where the evidence restarts.

    :param steps: of one agent, in any order.
    :param cooldowns: hatched: start and end of each time in which a watch held because the last refresh was too young.
    :param labels: what the agent's labels are.
    """
    from matplotlib.figure import Figure

    steps = sorted(steps, key=lambda step: step.end)
    processes = [process for process in PROCESS_TITLES if any(step.process == process for step in steps)]
    figure = Figure(figsize=(9, 3.2 + 1.35 * len(processes)), layout="constrained")
    panels = figure.subplots(
        1 + len(processes), 1, sharex=True, squeeze=False, height_ratios=[2.2, *[1.0] * len(processes)]
    )[:, 0].tolist()
    for process in processes:
        for run in split_restarts(step for step in steps if step.process == process):
            _plot_run(panels[0], run)
    _mark_champions(panels, steps)
    for start, end in cooldowns:
        panels[0].axvspan(*_to_date_numbers([start, end]), facecolor="none", edgecolor=FAINT, hatch="////", lw=0)
    _format_evidence_axes(panels[0], steps, processes, bool(cooldowns))
    for axes, process in zip(panels[1:], processes, strict=True):
        title = words_for(labels).say(PROCESS_TITLES[process])
        _plot_losses(axes, [step for step in steps if step.process == process], title)
    _format_time_axis(panels[-1], bool(steps))
    _set_title(figure, "Evidence of harm" + (f", {steps[-1].champion}" if steps else ""), _evidence_notes(steps))
    return figure


def plot_slices(report: DriftReport) -> Figure:
    """The slices that explain a rise of the disagreement: the contribution of each, and its share before and now."""
    from matplotlib.figure import Figure

    slices = report.slices[::-1]
    figure = Figure(figsize=(9, 1.7 + 0.32 * max(len(slices), 3)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    if slices:
        _plot_excess_bars(left, slices)
        _plot_share_dots(right, slices)
    else:
        _show_empty(left, "no slices")
        _show_empty(right, "")
    for axes in (left, right):
        _style_axes(axes, "x")
    _set_title(figure, _window_title(report), _slice_notes(report))
    return figure


# --------------------------------------------------------------------------- columns


def _plot_psi_bars(axes: Axes, drifts: Sequence[ColumnDrift], threshold: float | None) -> None:
    positions = range(len(drifts))
    colours = [SHIFTED if _is_shifted(drift, threshold) else STABLE for drift in drifts]
    axes.barh(positions, [drift.psi for drift in drifts], height=0.68, color=colours)
    for position, drift, colour in zip(positions, drifts, colours, strict=True):
        if drift.limit is not None:
            axes.plot(
                [drift.limit] * 2, [position - 0.42, position + 0.42], color=INK, linewidth=1.6, solid_capstyle="butt"
            )
        axes.annotate(
            _psi_label(drift),
            (1, position),
            xytext=(4, 0),
            xycoords=("axes fraction", "data"),
            va="center",
            textcoords="offset points",
            fontsize=8,
            color=SHIFTED if colour == SHIFTED else INK,
        )
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(positions, [_shorten(drift.column, MAX_LABEL_LENGTH) for drift in drifts], fontsize=9)
    axes.set_ylim(len(drifts) - 0.4 - max(len(drifts), 2), len(drifts) - 0.4)
    _style_axes(axes, "x")


def _psi_label(drift: ColumnDrift) -> str:
    if drift.limit is None:
        return f"{drift.psi:.3f}"
    return f"{drift.psi:.3f} {'>' if drift.unusual else '≤'} {drift.limit:.3f}"


def _is_shifted(drift: ColumnDrift, threshold: float | None) -> bool:
    if drift.limit is not None:
        return drift.unusual
    return threshold is not None and drift.psi > threshold


def _format_psi_axis(axes: Axes, drifts: Sequence[ColumnDrift], threshold: float | None) -> None:
    """A linear axis; if values exceed :data:`LOG_SCALE_FROM`, logarithmic above 0.25."""
    largest = max([threshold or 0.0, 0.05, *[max(drift.psi, drift.limit or 0.0) for drift in drifts]])
    if largest > LOG_SCALE_FROM:
        from matplotlib.ticker import FixedLocator

        axes.set_xscale("symlog", linthresh=0.25, linscale=1.0)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.1, 0.25, 1, 3, 10, 30, 100]))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0, 1.3 * largest)
    else:
        axes.set_xlim(0, 1.05 * largest)
    axes.set_xlabel("population stability index (bins: the reference's deciles, or its values)", fontsize=9, color=INK)


def _add_limit_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tick = Line2D([], [], color=INK, linewidth=1.6, marker="|", markersize=9, markeredgewidth=1.6, linestyle="none")
    figure.legend(
        [tick, Patch(color=SHIFTED)],
        ["calibrated limit", "beyond it"],
        fontsize=8,
        frameon=False,
        ncols=2,
        loc="outside lower right",
    )


def _drift_notes(report: DriftReport, bars: int) -> list[str]:
    notes = [f"{report.reference_rows:,} reference rows, {report.current_rows:,} current"]
    if bars < len(report.columns):
        notes.append(f"{bars} of {len(report.columns)} columns")
    if (result := report.screened) is not None and result.limit > 0:
        beyond = f"{len(result.beyond)} beyond the limits of {result.time_blocks} earlier time blocks"
        notes.append(f"{beyond} (p {result.p_value:.2g})")
    return [*notes, *_disagreement_notes(report)]


# --------------------------------------------------------------------------- evidence


def _plot_run(axes: Axes, run: Sequence[EvidenceStep]) -> None:
    colour = PROCESS_COLOURS[run[0].process]
    when = [step.end for step in run]
    powers = [max(step.log_evidence / LN_10, MIN_EXPONENT) for step in run]
    marker = "o" if len(run) == 1 else ""
    axes.plot(_to_date_numbers(when), powers, color=colour, linewidth=1.4, marker=marker, markersize=3)
    first = next((step for step in run if step.alarm), None)
    if first is not None:
        axes.plot(
            _to_date_numbers([first.end]),
            [first.log_evidence / LN_10],
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor=SHIFTED,
            markeredgewidth=1.8,
            linestyle="none",
            zorder=4,
        )


def _mark_champions(panels: Sequence[Axes], steps: Sequence[EvidenceStep]) -> None:
    """A thin line where each champion's evidence begins, except the first."""
    for since in sorted({step.since for step in steps})[1:]:
        for axes in panels:
            axes.axvline(_to_date_numbers([since])[0], color=STABLE, linewidth=0.8)


def _format_evidence_axes(
    axes: Axes, steps: Sequence[EvidenceStep], processes: Sequence[Process], with_cooldowns: bool
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    handles: list[Any] = [Line2D([], [], color=PROCESS_COLOURS[process], linewidth=1.4) for process in processes]
    names = [process.replace("_", " ") for process in processes]
    for threshold in sorted({step.log_threshold for step in steps}):
        axes.axhline(threshold / LN_10, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if steps:
        handles.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3))))
        names.append("alarm threshold")
        powers = [value / LN_10 for step in steps for value in (step.log_threshold, step.log_evidence)]
        lowest, highest = max(min(-1.0, *powers), MIN_EXPONENT), max(powers)
        room = 0.06 * (highest - lowest)
        axes.set_ylim(lowest - room, highest + room)
    if any(step.alarm for step in steps):
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                markersize=7,
                markerfacecolor="none",
                markeredgecolor=SHIFTED,
                markeredgewidth=1.8,
                linestyle="none",
            )
        )
        names.append("alarm")
    if with_cooldowns:
        handles.append(Patch(facecolor="none", edgecolor=STABLE, hatch="////"))
        names.append("cool-down")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_format_power_of_ten))
    _style_axes(axes, "y")
    if handles:
        axes.set_ylabel("evidence (Shiryaev–Roberts)", fontsize=9, color=INK)
        axes.legend(
            handles,
            names,
            fontsize=8,
            frameon=False,
            ncols=5,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderpad=0,
            columnspacing=1.4,
        )


def _plot_losses(axes: Axes, steps: Sequence[EvidenceStep], title: str) -> None:
    colour = PROCESS_COLOURS[steps[0].process]
    means = [(step.end, step.mean) for step in steps if step.mean is not None]
    size = 3.5 if len(means) < 200 else 2.0
    axes.plot(
        _to_date_numbers([when for when, _ in means]),
        [mean for _, mean in means],
        color=colour,
        marker="o",
        markersize=size,
        linestyle="none",
        alpha=0.7,
        markeredgewidth=0,
    )
    for run in split_restarts(steps):
        when = [run[0].start, *[step.end for step in run]]
        axes.plot(
            _to_date_numbers(when),
            [run[0].null_mean, *[step.null_mean for step in run]],
            color=INK,
            linewidth=1,
            linestyle=(0, (4, 3)),
        )
    highest = max([step.null_mean for step in steps] + [mean for _, mean in means])
    axes.set_ylim(0, 1.15 * highest)
    axes.set_ylabel("loss (0–1)", fontsize=9, color=INK)
    axes.set_title(
        f"{title}: mean loss of each step; dashed: null mean",
        fontsize=8,
        color=INK,
        loc="left",
        pad=3,
    )
    _style_axes(axes, "y")


def _format_time_axis(axes: Axes, dated: bool) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if dated:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_xlabel("time (UTC)", fontsize=9, color=INK)
    else:
        _show_empty(axes, "no evidence yet")


def _evidence_notes(steps: Sequence[EvidenceStep]) -> list[str]:
    latest = {step.process: step for step in steps}
    return [
        f"{process.replace('_', ' ')}: {step.looks:,} steps, {step.rows:,} rows" for process, step in latest.items()
    ]


def _format_power_of_ten(power: float, _: int) -> str:
    return "1" if power == 0 else f"$10^{{{power:.0f}}}$"


def _to_date_numbers(when: Sequence[datetime]) -> list[float]:
    from matplotlib.dates import date2num

    return [float(date2num(moment)) for moment in when]


# --------------------------------------------------------------------------- slices


def _plot_excess_bars(axes: Axes, slices: Sequence[SliceDrift]) -> None:
    from matplotlib.ticker import MaxNLocator

    positions, excess = range(len(slices)), [slice_.excess for slice_ in slices]
    axes.barh(positions, excess, height=0.62, color=[SHIFTED if value > 0 else STABLE for value in excess])
    for position, slice_ in zip(positions, slices, strict=True):
        axes.annotate(
            _slice_label(slice_),
            (max(slice_.excess, 0.0), position),
            xytext=(4, 0),
            va="center",
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = min(0.0, *excess), max(0.0, *excess)
    reach = (high - low) or 0.01
    axes.set_xlim(low - (0.05 * reach if low < 0 else 0.0), high + 0.8 * reach)  # room for the labels
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("contribution to the rise of the mean disagreement", fontsize=9, color=INK)
    axes.set_yticks(positions, [_shorten(slice_.slice, 44) for slice_ in slices], fontsize=9)
    axes.set_ylim(len(slices) - 0.4 - max(len(slices), 3), len(slices) - 0.4)


def _plot_share_dots(axes: Axes, slices: Sequence[SliceDrift]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    positions = range(len(slices))
    before, now = [slice_.share_reference for slice_ in slices], [slice_.share_current for slice_ in slices]
    axes.hlines(positions, before, now, color=STABLE, linewidth=2)
    axes.scatter(before, positions, s=26, facecolor="white", edgecolor=INK, linewidth=1, zorder=3, label="reference")
    axes.scatter(now, positions, s=26, color=INK, zorder=4, label="current")
    axes.set_xlim(0, 1.08 * max(0.01, *before, *now))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of rows", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)


def _slice_label(slice_: SliceDrift) -> str:
    if slice_.disagreement is None:
        return f"too few rows compared ({slice_.rows:,})"
    return f"{slice_.excess:+.4f}  ({slice_.disagreement:.3f} on {slice_.rows:,} rows)"


def _slice_notes(report: DriftReport) -> list[str]:
    notes = _disagreement_notes(report) or ["teacher and student were not compared"]
    return [*notes, "ranked by what exceeds a uniform rise"] if report.slices else notes


# --------------------------------------------------------------------------- shared


def _window_title(report: DriftReport) -> str:
    return f"{report.champion}: {report.current} against {report.reference}"


def _disagreement_notes(report: DriftReport) -> list[str]:
    if report.disagreement is None:
        return []
    note = f"disagreement {report.disagreement.total_variation:.3f}"
    if report.disagreement_reference is not None:
        note += f" (was {report.disagreement_reference.total_variation:.3f})"
    return [note]


def _set_title(figure: Figure, subject: str, notes: Sequence[str]) -> None:
    """A title, and below it the notes."""
    lines = wrap(" · ".join(note.replace(" ", "\xa0") for note in notes), MAX_NOTE_WIDTH)
    text = "\n".join([*wrap(subject, MAX_NOTE_WIDTH), *(line.removesuffix(" ·") for line in lines)])
    figure.suptitle(text, fontsize=9.5, color=INK, x=0.02, ha="left", linespacing=1.5)


def _show_empty(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=INK)


def _style_axes(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, which="both", length=0, labelsize=9)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _shorten(name: str, max_length: int) -> str:
    """A label of at most ``max_length`` characters; the middle of a longer name is left out."""
    return escape_label(
        name if len(name) <= max_length else f"{name[: max_length // 2]}…{name[len(name) - max_length // 2 + 1 :]}"
    )
