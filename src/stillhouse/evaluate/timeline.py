"""An agent's life in one picture: champions, quality, evidence of drift, responses, and what these gained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stillhouse.plotting import BLACK, BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION
from stillhouse.quality import measure_title
from stillhouse.records import (
    EvidenceStep,
    LabelKind,
    Process,
    RealisedGain,
    VerdictResult,
    split_restarts,
    words_for,
)
from stillhouse.shown import escape_label, wrap_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Act", "Curve", "Reign", "TeacherScore", "Timeline", "plot_timeline"]

Curve = tuple[tuple[datetime, float], ...]
"""Time and value of each point, oldest first."""

_LN_10 = log(10)
_MIN_EXPONENT = -2.0  # evidence below this power of ten is drawn at it
_CURVES: dict[str, dict[str, Any]] = {
    "champion": {"color": BLUE, "lw": 2.2, "zorder": 4},
    "never refreshed": {"color": VERMILLION, "lw": 1.4, "ls": "--", "zorder": 3},
    "teacher": {"color": GREEN, "lw": 1.2, "ls": "-.", "zorder": 2},
}
_PROCESSES: dict[Process, dict[str, Any]] = {
    "disagreement": {"color": BLUE, "ls": "-"},
    "student_outcomes": {"color": ORANGE, "ls": "--"},
    "teacher_outcomes": {"color": PURPLE, "ls": "-."},
}
_RESULTS: dict[str, dict[str, Any]] = {
    "promoted": {"marker": "o", "color": GREEN},
    "rolled_back": {"marker": "<", "color": PURPLE},
    "refused": {"marker": "X", "color": VERMILLION},
    "rejected": {"marker": "X", "color": BLACK},
    "inconclusive": {"marker": "D", "color": ORANGE, "markerfacecolor": "none"},
    "awaiting_approval": {"marker": "s", "color": SKY},
}
_BAND_COLOURS = (SKY, ORANGE)  # neighbours differ; which champion it is says the label
_MIN_LABELLED_SHARE = 0.022  # of the width: a shorter reign has no room for its version


class Reign(NamedTuple):
    """A time during which one version was champion.

    :ivar champion: name@version.
    """

    champion: str
    start: datetime
    end: datetime


class TeacherScore(NamedTuple):
    """The quality of a teacher on the test window of its refresh, which it was not fitted on."""

    start: datetime
    end: datetime
    score: float


class Act(NamedTuple):
    """A response that was carried out, and what came out of it.

    :ivar kind: a response of a watch, ``"bootstrap"``, or ``"by hand"``.
    """

    at: datetime
    kind: str
    result: VerdictResult


@dataclass(frozen=True)
class Timeline:
    """What :func:`plot_timeline` draws.

    :ivar measure: name of the agent's measure; ``unit`` is its unit, ``better`` its direction.
    :ivar reigns: oldest first; the last one ends at ``end``.
    :ivar quality: the curves ``champion`` and ``never refreshed``, in the measure; of a demo also ``teacher``.
    :ivar teachers: scores of teachers on the test windows of their refreshes.
    :ivar steps: evidence of drift, of all champions.
    :ivar acts: refreshes and changes of the champion.
    :ivar gains: what changes of the champion were predicted to gain and have gained.
    :ivar cooldowns: times during which a watch found drift and held, because the last refresh was too young.
    :ivar labels: what the agent's labels are.
    """

    agent: str
    start: datetime
    end: datetime
    measure: str = "accuracy"
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    reigns: tuple[Reign, ...] = ()
    quality: tuple[tuple[str, Curve], ...] = ()
    teachers: tuple[TeacherScore, ...] = ()
    steps: tuple[EvidenceStep, ...] = ()
    acts: tuple[Act, ...] = ()
    gains: tuple[RealisedGain, ...] = ()
    cooldowns: tuple[tuple[datetime, datetime], ...] = ()
    labels: LabelKind = "outcomes"


def plot_timeline(timeline: Timeline) -> Figure:
    """The life of an agent: a panel each for champions, quality, evidence, responses and gains, over the same time.

    A panel without anything to show is left out, but quality never is. Colours and dashes tell the lines apart, shapes
    the results of responses.

    >>> from datetime import UTC
    >>> start, end = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    >>> figure = plot_timeline(Timeline("toy", start, end, reigns=(Reign("toy@1", start, end),)))
    >>> figure.get_suptitle()
    'toy: 8 weeks from 2026-01-05, champion toy@1'
    """
    from matplotlib.figure import Figure

    panels = [
        (height, draw)
        for height, draw, shown in (
            (0.42, _draw_reigns, timeline.reigns),
            (3.0, _draw_quality, True),
            (1.7, _draw_evidence, timeline.steps),
            (0.35 + 0.25 * len(_kinds(timeline)), _draw_acts, timeline.acts or timeline.cooldowns),
            (1.5, _draw_gains, timeline.gains),
        )
        if shown
    ]
    figure = Figure(figsize=(11, 1.5 + 1.05 * sum(height for height, _ in panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[height for height, _ in panels])
    for axes, (_, draw) in zip(rows[:, 0], panels, strict=True):
        _style(axes)
        draw(axes, timeline)
        _place_legend(axes)
        if draw is not _draw_reigns:
            _mark_changes(axes, timeline.reigns)
    _format_time(rows[-1, 0], timeline)
    figure.suptitle(_title(timeline), fontsize=11, color=INK, x=0.01, ha="left")
    return figure


# --------------------------------------------------------------------------- panels


def _draw_reigns(axes: Axes, timeline: Timeline) -> None:
    """A band for each reign, with its version where it has room."""
    whole = _number(timeline.end) - _number(timeline.start)
    for index, reign in enumerate(timeline.reigns):
        left, right = _number(reign.start), _number(reign.end)
        axes.axvspan(left, right, color=_BAND_COLOURS[index % 2], alpha=0.45, lw=0)
        if right - left >= _MIN_LABELLED_SHARE * whole:
            version = escape_label(reign.champion.rpartition("@")[2])
            axes.text((left + right) / 2, 0.5, version, ha="center", va="center", fontsize=8, color=BLACK)
    axes.set(ylim=(0, 1), yticks=[])
    axes.set_ylabel("champion,\nversion", fontsize=8.5, color=INK, rotation=0, ha="right", va="center")
    axes.grid(visible=False)


def _draw_quality(axes: Axes, timeline: Timeline) -> None:
    """The curves, and a bar for each teacher over its test window."""
    for name, curve in timeline.quality:
        if curve:
            size = 2.5 if len(curve) < 90 else 0
            axes.plot(
                _numbers(at for at, _ in curve),
                [value for _, value in curve],
                marker="o",
                ms=size,
                label=name,
                **_CURVES[name],
            )
    for index, score in enumerate(timeline.teachers):
        label = "teacher, on the test\nwindow of its refresh" if index == 0 else None
        axes.plot(_numbers((score.start, score.end)), [score.score] * 2, color=GREEN, lw=3.5, alpha=0.75, label=label)
    if not axes.lines:
        text = words_for(timeline.labels).say("no outcomes of a complete block are known yet")
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=INK)
        axes.set_yticks([])
    unit = f"{escape_label(timeline.unit)}; " if timeline.unit else ""
    direction = "more" if timeline.better == "higher" else "less"
    _label(axes, f"{escape_label(measure_title(timeline.measure))}\n({unit}{direction} is better)")


def _name_process(process: Process, labels: LabelKind) -> str:
    """The process in the legend; what is compared with outcomes elsewhere, is compared with recorded answers here.

    >>> _name_process("student_outcomes", "outcomes"), _name_process("student_outcomes", "teacher answers")
    ('student outcomes', 'student answers')
    """
    words = process.split("_")
    return " ".join("answers" if word == "outcomes" and labels == "teacher answers" else word for word in words)


def _draw_evidence(axes: Axes, timeline: Timeline) -> None:
    """The logarithm of the evidence of each process, interrupted where it restarts, and its threshold."""
    for process, style in _PROCESSES.items():
        steps = sorted((step for step in timeline.steps if step.process == process), key=lambda step: step.end)
        for index, run in enumerate(split_restarts(steps)):
            powers = [max(step.log_evidence / _LN_10, _MIN_EXPONENT) for step in run]
            label = _name_process(process, timeline.labels) if index == 0 else None
            axes.plot(_numbers(step.end for step in run), powers, lw=1.3, label=label, **style)
    for index, (since, until, threshold) in enumerate(_thresholds(timeline.steps)):
        name = "threshold of one\nprocess alone" if index == 0 else None
        axes.plot(_numbers((since, until)), [threshold] * 2, color=INK, lw=1, ls=(0, (2, 2)), label=name)
    alarms = [step for step in timeline.steps if step.alarm]
    if alarms:
        powers = [step.log_evidence / _LN_10 for step in alarms]
        ring: dict[str, Any] = {"marker": "o", "ms": 7, "markerfacecolor": "none", "color": VERMILLION, "ls": "none"}
        axes.plot(_numbers(step.end for step in alarms), powers, label="alarm", **ring)
    _format_powers(axes)
    _label(axes, "evidence of drift\n(Shiryaev–Roberts)")


def _draw_acts(axes: Axes, timeline: Timeline) -> None:
    """A row for each kind of response, a marker for each that was carried out; hatched: a cool-down."""
    kinds = _kinds(timeline)
    for index, (start, end) in enumerate(timeline.cooldowns):
        name = "cool-down" if index == 0 else None
        axes.axvspan(_number(start), _number(end), facecolor="none", edgecolor=GREY, hatch="////", lw=0, label=name)
    for result, style in _RESULTS.items():
        acts = [act for act in timeline.acts if act.result == result]
        if acts:
            rows = [kinds.index(act.kind) for act in acts]
            name = result.replace("_", " ")
            axes.plot(_numbers(act.at for act in acts), rows, ls="none", ms=7, zorder=3, label=name, **style)
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], fontsize=8)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    _label(axes, "response")


def _draw_gains(axes: Axes, timeline: Timeline) -> None:
    """Predicted and realised gain a week of each change of the champion, with the 95 % interval of the latter."""
    times = _numbers(gain.as_of for gain in timeline.gains)
    errors = [1.96 * gain.standard_error for gain in timeline.gains]
    axes.axhline(0, color=INK, lw=0.8)
    axes.errorbar(
        times,
        [gain.realised for gain in timeline.gains],
        errors,
        fmt="o",
        ms=5,
        color=BLUE,
        lw=1,
        capsize=2,
        label="realised, with its\n95 % interval",
    )
    predicted = [
        (time, gain.predicted) for time, gain in zip(times, timeline.gains, strict=True) if gain.predicted is not None
    ]
    if predicted:
        hollow: dict[str, Any] = {"marker": "D", "ms": 6, "markerfacecolor": "none", "color": ORANGE, "ls": "none"}
        axes.plot(*zip(*predicted, strict=True), label="predicted", zorder=3, **hollow)
    unit = escape_label(timeline.unit) or "points of the measure"
    _label(axes, f"gain a week over\nthe replaced champion\n({unit})")


# --------------------------------------------------------------------------- shared


def _kinds(timeline: Timeline) -> list[str]:
    """The kinds of responses, in the order in which they first occurred; at least one row for cool-downs."""
    return list(dict.fromkeys(act.kind for act in timeline.acts)) or ["none"]


def _thresholds(steps: Sequence[EvidenceStep]) -> list[tuple[datetime, datetime, float]]:
    """Start, end and power of ten of each threshold, joined where it stays the same."""
    spans: list[tuple[datetime, datetime, float]] = []
    for step in sorted(steps, key=lambda step: step.end):
        power = step.log_threshold / _LN_10
        if spans and spans[-1][2] == power:
            spans[-1] = (spans[-1][0], max(spans[-1][1], step.end), power)
        else:
            spans.append((step.start, step.end, power))
    return spans


def _mark_changes(axes: Axes, reigns: Sequence[Reign]) -> None:
    """A thin line where a champion replaced another."""
    for _, after in pairwise(reigns):
        axes.axvline(_number(after.start), color=GREY, lw=0.7, alpha=0.7, zorder=1)


def _format_powers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _MIN_EXPONENT - 0.3), max(high, 0.3))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(
        FuncFormatter(
            lambda power, _: "1" if power == 0 else f"{'≤ ' if power <= _MIN_EXPONENT else ''}$10^{{{power:.0f}}}$"
        )
    )


def _format_time(axes: Axes, timeline: Timeline) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    left, right = _number(timeline.start), _number(timeline.end)
    room = 0.01 * (right - left) or 0.5
    axes.set_xlim(left - room, right + room)
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("time (UTC)", fontsize=9, color=INK)


def _title(timeline: Timeline) -> str:
    days = (timeline.end - timeline.start).days
    length = f"{days // 7} weeks" if days >= 21 else f"{max(days, 1)} days"
    text = f"{timeline.agent}: {length} from {timeline.start:%Y-%m-%d}"
    if timeline.reigns:
        text += f", champion {timeline.reigns[-1].champion}"
    return wrap_label(text, 100)


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize=8.5, color=INK)


def _place_legend(axes: Axes) -> None:
    """To the right of the data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(1.005, 1.02), fontsize=8, frameon=False, borderpad=0
        )


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, which="both", length=0, labelsize=8.5)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _number(moment: datetime) -> float:
    from matplotlib.dates import date2num

    return float(date2num(moment))


def _numbers(moments: Iterable[datetime]) -> list[float]:
    return [_number(moment) for moment in moments]
