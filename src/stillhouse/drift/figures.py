"""A drift report as a picture, for an MLflow artifact or a web page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.records import DriftReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drift_figure"]

STABLE, SHIFTED, INK, FAINT = "#8fa7bf", "#c8553d", "#26323f", "#d9dee4"


def drift_figure(report: DriftReport, threshold: float | None = 0.25, columns: int = 30) -> Figure:
    """PSI of the ``columns`` most shifted columns as bars, largest on top; drawn without pyplot's global state.

    :param threshold: PSI beyond which a bar is drawn as shifted; None draws no line.
    """
    from matplotlib.figure import Figure

    shown = report.worst(columns)[::-1]
    values = [column.psi for column in shown]
    limit = float("inf") if threshold is None else threshold

    figure = Figure(figsize=(8, 1.7 + 0.27 * max(len(shown), 3)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(range(len(shown)), values, height=0.68)
    for bar, value in zip(bars, values, strict=True):
        bar.set_facecolor(SHIFTED if value > limit else STABLE)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=4, fontsize=8, color=INK)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"threshold {threshold:g}", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", fontsize=8, color=INK, ha="center",
        )  # fmt: skip

    axes.set_yticks(range(len(shown)), [column.column for column in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4 - max(len(shown), 3), len(shown) - 0.4)
    axes.set_xlim(0, 1.14 * max([*values, 0.0 if threshold is None else threshold, 0.05]))
    axes.set_xlabel("population stability index (bins: the reference's deciles, or its values)", fontsize=9, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    figure.suptitle(_title(report, len(shown)), fontsize=9.5, color=INK, x=0.02, ha="left", linespacing=1.5)
    return figure


def _title(report: DriftReport, shown: int) -> str:
    """Which model on which windows; below it what is known beside the columns."""
    notes = [f"{report.reference_rows:,} reference rows, {report.current_rows:,} current"]
    if shown < len(report.columns):
        notes.append(f"{shown} of {len(report.columns)} columns")
    if report.output is not None:
        notes.append(f"output PSI {report.output.psi:.3f}")
    if report.disagreement is not None:
        notes.append(f"disagreement {report.disagreement.total_variation:.3f}")
        if report.disagreement_reference is not None:
            notes[-1] += f" (was {report.disagreement_reference.total_variation:.3f})"
    return f"{report.champion}: {report.current} against {report.reference}\n" + " · ".join(notes)
