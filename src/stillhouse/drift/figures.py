"""Drift as pictures, for an MLflow artifact or a web page. Each is drawn without pyplot's global state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from math import log
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from stillhouse.drift.explain import rank_columns
from stillhouse.records import ColumnDrift, DriftReport, EvidenceStep, Process, SliceDrift
from stillhouse.shown import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["drift_figure", "evidence_figure", "slices_figure"]

STABLE, SHIFTED, INK, FAINT = "#8fa7bf", "#c8553d", "#26323f", "#d9dee4"
PROCESS_COLOURS: dict[Process, str] = {
    "disagreement": "#2f6f9f",
    "student_outcomes": "#b8860b",
    "teacher_outcomes": "#7a5195",
}
NAMES: dict[Process, str] = {
    "disagreement": "teacher and student disagree",
    "student_outcomes": "student against outcomes",
    "teacher_outcomes": "teacher against outcomes",
}
LONGEST_NAME = 36
WIDEST_LINE = 105
LOG10 = log(10)
LOWEST_POWER = -2.0
"""Evidence below this power of ten is drawn there: it is none."""
WIDE = 2.0
"""A PSI above this makes the axis logarithmic beyond 0.25: else one column would flatten all others."""


def drift_figure(report: DriftReport, threshold: float | None = 0.25, columns: int = 30) -> Figure:
    """PSI of the student's outputs and of the ``columns`` most shifted columns, farthest beyond the usual on top.

    A tick across a bar is the column's own limit, where one was calibrated; a bar beyond it is drawn as shifted.

    :param threshold: PSI that is drawn as a line, and judges the columns without a limit; None: no line.
    """
    from matplotlib.figure import Figure

    groups = [
        (title, rank_columns(drifts)[:most][::-1])
        for title, drifts, most in (
            ("student's output", report.outputs, len(report.outputs)),
            ("observations", report.columns, columns),
        )
        if drifts or title == "observations"
    ]
    heights = [max(len(drifts), 2) + 0.6 for _, drifts in groups]
    figure = Figure(figsize=(8, 1.5 + 0.27 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, drifts) in zip(panels, groups, strict=True):
        _psi_bars(axes, drifts, threshold)
        if len(groups) > 1:
            axes.set_title(title, fontsize=9, color=INK, loc="left", pad=3)
    shown = [drift for _, drifts in groups for drift in drifts]
    _psi_axis(panels[-1], shown, threshold)
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
    if any(drift.limit is not None for drift in shown):
        _limit_legend(figure)
    _title(figure, _of(report), _drift_notes(report, len(groups[-1][1])))
    return figure


def evidence_figure(steps: Sequence[EvidenceStep]) -> Figure:
    """Evidence over time above, on a logarithmic scale; below it, a panel per process, the mean loss of each step.

    The dashed line above is what one process alone must reach: the average run length promised, divided by its share in
    the agent's budget; together they may reach it sooner. Below, the dashed line is the mean loss that is still no
    harm. A line breaks where the evidence begins anew.

    :param steps: of one agent, in any order.
    """
    from matplotlib.figure import Figure

    steps = sorted(steps, key=lambda step: step.end)
    processes = [process for process in NAMES if any(step.process == process for step in steps)]
    figure = Figure(figsize=(9, 3.2 + 1.35 * len(processes)), layout="constrained")
    panels = figure.subplots(
        1 + len(processes), 1, sharex=True, squeeze=False, height_ratios=[2.2, *[1.0] * len(processes)]
    )[:, 0].tolist()
    for process in processes:
        for run in _runs(step for step in steps if step.process == process):
            _evidence_line(panels[0], run)
    _mark_champions(panels, steps)
    _evidence_axis(panels[0], steps, processes)
    for axes, process in zip(panels[1:], processes, strict=True):
        _loss_panel(axes, [step for step in steps if step.process == process])
    _time_axis(panels[-1], bool(steps))
    _title(figure, "Evidence of harm" + (f", {steps[-1].champion}" if steps else ""), _evidence_notes(steps))
    return figure


def slices_figure(report: DriftReport) -> Figure:
    """The slices that explain the disagreement: each one's part in its rise, and its share before and now."""
    from matplotlib.figure import Figure

    shown = report.slices[::-1]
    figure = Figure(figsize=(9, 1.7 + 0.32 * max(len(shown), 3)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    if shown:
        _excess_bars(left, shown)
        _share_dots(right, shown)
    else:
        _nothing(left, "no slices")
        _nothing(right, "")
    for axes in (left, right):
        _plain(axes, "x")
    _title(figure, _of(report), _slice_notes(report))
    return figure


# --------------------------------------------------------------------------- columns


def _psi_bars(axes: Axes, drifts: Sequence[ColumnDrift], threshold: float | None) -> None:
    places = range(len(drifts))
    colours = [SHIFTED if _beyond(drift, threshold) else STABLE for drift in drifts]
    axes.barh(places, [drift.psi for drift in drifts], height=0.68, color=colours)
    for place, drift, colour in zip(places, drifts, colours, strict=True):
        if drift.limit is not None:
            axes.plot([drift.limit] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=1.6, solid_capstyle="butt")
        axes.annotate(
            _psi_label(drift),
            (1, place),
            xytext=(4, 0),
            xycoords=("axes fraction", "data"),
            va="center",
            textcoords="offset points",
            fontsize=8,
            color=SHIFTED if colour == SHIFTED else INK,
        )
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(places, [_short(drift.column, LONGEST_NAME) for drift in drifts], fontsize=9)
    axes.set_ylim(len(drifts) - 0.4 - max(len(drifts), 2), len(drifts) - 0.4)
    _plain(axes, "x")


def _psi_label(drift: ColumnDrift) -> str:
    if drift.limit is None:
        return f"{drift.psi:.3f}"
    return f"{drift.psi:.3f} {'>' if drift.unusual else '≤'} {drift.limit:.3f}"


def _beyond(drift: ColumnDrift, threshold: float | None) -> bool:
    if drift.limit is not None:
        return drift.unusual
    return threshold is not None and drift.psi > threshold


def _psi_axis(axes: Axes, shown: Sequence[ColumnDrift], threshold: float | None) -> None:
    """Linear; where values beyond :data:`WIDE` have to be shown, logarithmic from 0.25 on."""
    reach = max([threshold or 0.0, 0.05, *[max(drift.psi, drift.limit or 0.0) for drift in shown]])
    if reach > WIDE:
        from matplotlib.ticker import FixedLocator

        axes.set_xscale("symlog", linthresh=0.25, linscale=1.0)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.1, 0.25, 1, 3, 10, 30, 100]))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(0, 1.3 * reach)
    else:
        axes.set_xlim(0, 1.05 * reach)
    axes.set_xlabel("population stability index (bins: the reference's deciles, or its values)", fontsize=9, color=INK)


def _limit_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tick = Line2D([], [], color=INK, linewidth=1.6, marker="|", markersize=9, markeredgewidth=1.6, linestyle="none")
    figure.legend(
        [tick, Patch(color=SHIFTED)],
        ["largest that is usual", "beyond it"],
        fontsize=8,
        frameon=False,
        ncols=2,
        loc="outside lower right",
    )


def _drift_notes(report: DriftReport, shown: int) -> list[str]:
    notes = [f"{report.reference_rows:,} reference rows, {report.current_rows:,} current"]
    if shown < len(report.columns):
        notes.append(f"{shown} of {len(report.columns)} columns")
    if (result := report.screened) is not None and result.limit > 0:
        beyond = f"{len(result.beyond)} beyond what {result.blocks} stretches of history showed"
        notes.append(f"{beyond} (p {result.p_value:.2g})")
    return [*notes, *_disagreement_notes(report)]


# --------------------------------------------------------------------------- evidence


def _runs(steps: Iterable[EvidenceStep]) -> list[list[EvidenceStep]]:
    """Cut where the evidence began anew."""
    runs: list[list[EvidenceStep]] = []
    for step in steps:
        if not runs or (runs[-1][-1].champion, runs[-1][-1].since) != (step.champion, step.since):
            runs.append([])
        runs[-1].append(step)
    return runs


def _evidence_line(axes: Axes, run: Sequence[EvidenceStep]) -> None:
    colour = PROCESS_COLOURS[run[0].process]
    when = [step.end for step in run]
    powers = [max(step.log_evidence / LOG10, LOWEST_POWER) for step in run]
    marker = "o" if len(run) == 1 else ""
    axes.plot(_dates(when), powers, color=colour, linewidth=1.4, marker=marker, markersize=3)
    first = next((step for step in run if step.alarm), None)
    if first is not None:
        axes.plot(
            _dates([first.end]),
            [first.log_evidence / LOG10],
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
            axes.axvline(_dates([since])[0], color=STABLE, linewidth=0.8)


def _evidence_axis(axes: Axes, steps: Sequence[EvidenceStep], processes: Sequence[Process]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    handles: list[Any] = [Line2D([], [], color=PROCESS_COLOURS[process], linewidth=1.4) for process in processes]
    names = [process.replace("_", " ") for process in processes]
    for threshold in sorted({step.log_threshold for step in steps}):
        axes.axhline(threshold / LOG10, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if steps:
        handles.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3))))
        names.append("alarm threshold")
        powers = [value / LOG10 for step in steps for value in (step.log_threshold, step.log_evidence)]
        lowest, highest = max(min(-1.0, *powers), LOWEST_POWER), max(powers)
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
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    _plain(axes, "y")
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


def _loss_panel(axes: Axes, steps: Sequence[EvidenceStep]) -> None:
    colour = PROCESS_COLOURS[steps[0].process]
    known = [(step.end, step.mean) for step in steps if step.mean is not None]
    size = 3.5 if len(known) < 200 else 2.0
    axes.plot(
        _dates([when for when, _ in known]),
        [mean for _, mean in known],
        color=colour,
        marker="o",
        markersize=size,
        linestyle="none",
        alpha=0.7,
        markeredgewidth=0,
    )
    for run in _runs(steps):
        when = [run[0].start, *[step.end for step in run]]
        axes.plot(
            _dates(when),
            [run[0].null_mean, *[step.null_mean for step in run]],
            color=INK,
            linewidth=1,
            linestyle=(0, (4, 3)),
        )
    highest = max([step.null_mean for step in steps] + [mean for _, mean in known])
    axes.set_ylim(0, 1.15 * highest)
    axes.set_ylabel("loss", fontsize=9, color=INK)
    axes.set_title(
        f"{NAMES[steps[0].process]}: mean loss of each step; dashed: still no harm",
        fontsize=8,
        color=INK,
        loc="left",
        pad=3,
    )
    _plain(axes, "y")


def _time_axis(axes: Axes, dated: bool) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if dated:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    else:
        _nothing(axes, "no evidence yet")


def _evidence_notes(steps: Sequence[EvidenceStep]) -> list[str]:
    latest = {step.process: step for step in steps}
    return [
        f"{process.replace('_', ' ')}: {step.looks:,} steps, {step.rows:,} rows" for process, step in latest.items()
    ]


def _power_of_ten(power: float, _: int) -> str:
    return "1" if power == 0 else f"$10^{{{power:.0f}}}$"


def _dates(when: Sequence[datetime]) -> list[float]:
    from matplotlib.dates import date2num

    return [float(date2num(moment)) for moment in when]


# --------------------------------------------------------------------------- slices


def _excess_bars(axes: Axes, shown: Sequence[SliceDrift]) -> None:
    from matplotlib.ticker import MaxNLocator

    places, excess = range(len(shown)), [part.excess for part in shown]
    axes.barh(places, excess, height=0.62, color=[SHIFTED if value > 0 else STABLE for value in excess])
    for place, part in zip(places, shown, strict=True):
        axes.annotate(
            _slice_label(part),
            (max(part.excess, 0.0), place),
            xytext=(4, 0),
            va="center",
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = min(0.0, *excess), max(0.0, *excess)
    reach = (high - low) or 0.01
    axes.set_xlim(low - (0.05 * reach if low < 0 else 0.0), high + 0.8 * reach)  # room for the words
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("part in the rise of the mean disagreement", fontsize=9, color=INK)
    axes.set_yticks(places, [_short(part.slice, 44) for part in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4 - max(len(shown), 3), len(shown) - 0.4)


def _share_dots(axes: Axes, shown: Sequence[SliceDrift]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    places = range(len(shown))
    before, now = [part.share_reference for part in shown], [part.share_current for part in shown]
    axes.hlines(places, before, now, color=STABLE, linewidth=2)
    axes.scatter(before, places, s=26, facecolor="white", edgecolor=INK, linewidth=1, zorder=3, label="reference")
    axes.scatter(now, places, s=26, color=INK, zorder=4, label="current")
    axes.set_xlim(0, 1.08 * max(0.01, *before, *now))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of rows", fontsize=9, color=INK)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)


def _slice_label(part: SliceDrift) -> str:
    if part.disagreement is None:
        return f"too few rows compared ({part.rows:,})"
    return f"{part.excess:+.4f}  ({part.disagreement:.3f} on {part.rows:,} rows)"


def _slice_notes(report: DriftReport) -> list[str]:
    notes = _disagreement_notes(report) or ["teacher and student were not compared"]
    return [*notes, "first: most beyond an even share of the rise"] if report.slices else notes


# --------------------------------------------------------------------------- all of them


def _of(report: DriftReport) -> str:
    return f"{report.champion}: {report.current} against {report.reference}"


def _disagreement_notes(report: DriftReport) -> list[str]:
    if report.disagreement is None:
        return []
    note = f"disagreement {report.disagreement.total_variation:.3f}"
    if report.disagreement_reference is not None:
        note += f" (was {report.disagreement_reference.total_variation:.3f})"
    return [note]


def _title(figure: Figure, subject: str, notes: Sequence[str]) -> None:
    """What is shown; below it what is known beside it."""
    lines = wrap(" · ".join(note.replace(" ", "\xa0") for note in notes), WIDEST_LINE)
    text = "\n".join([subject, *(line.removesuffix(" ·") for line in lines)])
    figure.suptitle(text, fontsize=9.5, color=INK, x=0.02, ha="left", linespacing=1.5)


def _nothing(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=INK)


def _plain(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, which="both", length=0, labelsize=9)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _short(name: str, most: int) -> str:
    """A name that fits as a label, its middle left out if it is too long."""
    return label(name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - most // 2 + 1 :]}")
