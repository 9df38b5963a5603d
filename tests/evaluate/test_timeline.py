"""The timeline: what is in it is drawn, titles and labels are whole, and nothing depends on colour alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO
from math import log
from typing import Any

import pytest
from matplotlib.figure import Figure

from stillhouse.evaluate.timeline import Act, Reign, TeacherScore, Timeline, plot_timeline
from stillhouse.records import EvidenceStep, RealisedGain

START = datetime(2026, 1, 5, tzinfo=UTC)


def week(number: float) -> datetime:
    return START + timedelta(weeks=number)


def step(number: float, log_evidence: float, champion: str = "toy@1", since: float = 0) -> EvidenceStep:
    return EvidenceStep(
        process="disagreement",
        champion=champion,
        since=week(since),
        start=week(number),
        end=week(number + 1),
        looks=1,
        rows=10,
        step_rows=10,
        clusters=10,
        mean=0.1,
        null_mean=0.08,
        log_bets=(log_evidence,),
        log_evidence=log_evidence,
        log_threshold=log(270),
    )


def gain(number: float, predicted: float | None, realised: float) -> RealisedGain:
    return RealisedGain(
        response="redistil",
        as_of=week(number),
        champion="toy@2",
        replaced="toy@1",
        predicted=predicted,
        realised=realised,
        standard_error=0.01,
        rows=100,
        weeks=2.0,
    )


LIFE = Timeline(
    agent="toy",
    start=START,
    end=week(10),
    measure="log_loss",
    unit="nats",
    better="lower",
    reigns=(Reign("toy@1", START, week(4)), Reign("toy@2", week(4), week(10))),
    quality=(
        ("champion", ((week(1), 0.5), (week(5), 0.4))),
        ("never refreshed", ((week(1), 0.5), (week(5), 0.7))),
    ),
    teachers=(TeacherScore(week(2), week(3), 0.38), TeacherScore(week(5), week(6), 0.37)),
    steps=(step(0, -700.0), step(1, 1.0), step(2, 7.0), step(4, 0.5, "toy@2", 4)),
    acts=(
        Act(START, "bootstrap", "promoted"),
        Act(week(4), "redistil", "promoted"),
        Act(week(6), "update", "refused"),
        Act(week(7), "redistil", "inconclusive"),
    ),
    gains=(gain(4, 0.05, 0.3), gain(6, None, -0.1)),
    cooldowns=((week(4), week(5)),),
)


def draw(figure: Figure) -> None:
    """The figure is drawn, and every text of it lies within it."""
    figure.savefig(BytesIO(), format="png")
    width, height = figure.get_size_inches() * figure.dpi
    axes = [text for panel in figure.axes for text in (panel.yaxis.label, panel.xaxis.label, *panel.texts)]
    legends = [text for panel in figure.axes if (legend := panel.get_legend()) for text in legend.get_texts()]
    for text in [*axes, *legends, figure._suptitle]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_panel_shows_its_part_of_the_life() -> None:
    figure = plot_timeline(LIFE)
    draw(figure)
    reigns, quality, evidence, acts, gains = figure.axes
    assert figure.get_suptitle() == "toy: 10 weeks from 2026-01-05, champion toy@2"
    assert [text.get_text() for text in reigns.texts] == ["1", "2"]
    assert labels(quality) == ["champion", "never refreshed", "teacher, on the test\nwindow of its refresh"]
    assert quality.get_ylabel() == "log loss\n(nats; less is better)"
    assert labels(evidence) == ["disagreement", "threshold of one\nprocess alone", "alarm"]
    assert [list(line.get_ydata()) for line in evidence.lines[:2]] == [
        pytest.approx([-2, 1 / log(10), 7 / log(10)]),  # evidence of nothing is drawn at its floor
        pytest.approx([0.5 / log(10)]),
    ]
    assert [label.get_text() for label in acts.get_yticklabels()] == ["bootstrap", "redistil", "update"]
    assert labels(acts) == ["cool-down", "promoted", "refused", "inconclusive"]
    assert labels(gains) == ["predicted", "realised, with its\n95 % interval"]
    assert "(nats)" in gains.get_ylabel() and figure.axes[-1].get_xlabel() == "time (UTC)"


def test_lines_and_markers_differ_without_colour() -> None:
    _, quality, _, acts, _ = plot_timeline(LIFE).axes
    assert len({line.get_linestyle() for line in quality.lines[:2]}) == 2
    assert len({line.get_marker() for line in acts.lines if not line.get_label().startswith("_")}) == 3


@pytest.mark.parametrize("end", [START, START + timedelta(days=3), week(300)])
def test_a_life_without_anything(end: datetime) -> None:
    figure = plot_timeline(Timeline("toy", START, end))
    (quality,) = figure.axes
    assert quality.texts[0].get_text() == "no outcomes of a complete block are known yet"
    draw(figure)


def test_a_long_name_is_no_formula_and_not_cut() -> None:
    name = "a" * 62 + "$"
    reigns = (Reign(f"{name}@1234", START, week(60)),)
    figure = plot_timeline(Timeline(name, START, week(60), measure="$cost$", unit="€", reigns=reigns))
    draw(figure)
    assert r"\$" in figure.get_suptitle() and r"\$cost\$" in figure.axes[1].get_ylabel()
