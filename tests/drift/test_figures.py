"""Figures show the values of the records at any size, and do not use pyplot."""

import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stillhouse.drift.figures import SHIFTED, STABLE, plot_drift, plot_evidence, plot_slices
from stillhouse.records import ColumnDrift, Disagreement, DriftReport, EvidenceStep, ScreenResult, SliceDrift, Window

NOW = datetime(2013, 6, 1, tzinfo=UTC)


def a_drift(name, psi, limit=None):
    return ColumnDrift(column=name, kind="number", psi=psi, missing_reference=0.0, missing_current=0.0, limit=limit)


def a_report(columns=(), outputs=(), **fields):
    return DriftReport(
        **{
            "agent": "toy",
            "champion": "toy@3",
            "reference": Window(name="train", start=NOW - timedelta(days=60), end=NOW - timedelta(days=7)),
            "current": Window.ending("current", NOW, timedelta(days=7)),
            "reference_rows": 5000,
            "current_rows": 1000,
            "columns": tuple(columns),
            "outputs": tuple(outputs),
            "seconds": 0.01,
            **fields,
        }
    )


def a_step(number, log_evidence, process="disagreement", champion="toy@3", mean=0.05):
    start = NOW + timedelta(hours=number)
    return EvidenceStep(
        process=process,
        champion=champion,
        since=NOW,
        start=start,
        end=start + timedelta(hours=1),
        looks=number + 1,
        rows=10 * number,
        step_rows=10,
        clusters=10,
        mean=mean,
        null_mean=0.08,
        log_bets=(log_evidence,),
        log_evidence=log_evidence,
        log_threshold=math.log(2160),
    )


def a_slice(name, excess, disagreement=0.2, rows=40):
    return SliceDrift(
        slice=name, share_reference=0.1, share_current=0.3, rows=rows, disagreement=disagreement, excess=excess
    )


def names(axes):
    """Labels of the bars from the top."""
    return [label.get_text() for label in axes.get_yticklabels()][::-1]


def colours(axes):
    """Colours of the bars from the top."""
    from matplotlib.colors import to_hex

    return [to_hex(bar.get_facecolor()) for bar in axes.patches][::-1]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def drawn(figure, tmp_path):
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 3000
    return figure


# --------------------------------------------------------------------------- columns


def test_without_limits_the_threshold_decides_the_colour(tmp_path):
    report = a_report(
        [a_drift("a", 0.1), a_drift("b", 0.7), a_drift("c", 0.3)],
        disagreement=Disagreement(rows=500, rate=0.1, total_variation=0.15),
    )
    figure = drawn(plot_drift(report, 0.25), tmp_path)
    (axes,) = figure.axes
    assert names(axes) == ["b", "c", "a"]
    assert [bar.get_width() for bar in axes.patches][::-1] == [0.7, 0.3, 0.1]
    assert colours(axes) == [SHIFTED, SHIFTED, STABLE]
    assert axes.lines[0].get_xdata()[0] == 0.25
    assert "disagreement\xa00.150" in figure.get_suptitle()
    assert "threshold 0.25" in texts(axes)


def test_limits_decide_colour_and_order(tmp_path):
    screened = ScreenResult(time_blocks=26, beyond=("calm",), statistic=4.0, limit=2.0, p_value=0.037, moved=True)
    report = a_report(
        [a_drift("wild", 0.9, 1.5), a_drift("calm", 0.2, 0.05)], [a_drift("p(yes)", 0.1, 0.2)], screened=screened
    )
    figure = drawn(plot_drift(report, None), tmp_path)
    outputs, observations = figure.axes
    assert names(outputs) == ["p(yes)"] and names(observations) == ["calm", "wild"]
    assert colours(observations) == [SHIFTED, STABLE] and colours(outputs) == [STABLE]
    assert [line.get_xdata()[0] for line in observations.lines] == [1.5, 0.05]
    assert texts(observations) == ["0.900 ≤ 1.500", "0.200 > 0.050"]
    assert "1\xa0beyond\xa0the\xa0limits\xa0of\xa026\xa0earlier\xa0time\xa0blocks" in figure.get_suptitle()


@pytest.mark.parametrize("psi", [{}, {"only": 0.0}, {f"c{i}": i / 100 for i in range(60)}])
@pytest.mark.parametrize("threshold", [None, 0.25])
def test_any_number_of_columns(tmp_path, psi, threshold):
    figure = drawn(plot_drift(a_report([a_drift(*item) for item in psi.items()]), threshold), tmp_path)
    assert len(figure.axes[0].patches) == min(len(psi), 30)
    assert ("30\xa0of\xa060" in figure.get_suptitle()) == (len(psi) == 60)


def test_one_huge_value_does_not_hide_the_others(tmp_path):
    figure = drawn(plot_drift(a_report([a_drift("huge", 30.0), a_drift("small", 0.2)]), None), tmp_path)
    (axes,) = figure.axes
    left, small, right = axes.transData.transform([(0, 0), (0.2, 0), (30, 0)])[:, 0]
    assert (small - left) / (right - left) > 0.1


def test_a_long_name_is_shortened(tmp_path):
    figure = drawn(plot_drift(a_report([a_drift("x" * 200, 0.1)]), None), tmp_path)
    assert len(names(figure.axes[0])[0]) < 40
    assert figure.axes[0].get_position().width > 0.4


# --------------------------------------------------------------------------- evidence


def test_evidence_per_process_with_threshold_and_alarm(tmp_path):
    steps = [a_step(n, n / 10) for n in range(100)] + [a_step(n, 0.0, "student_outcomes") for n in range(100)]
    figure = drawn(plot_evidence(steps[::-1]), tmp_path)
    above, *below = figure.axes
    assert len(below) == 2
    assert any(line.get_ydata()[0] == pytest.approx(math.log10(2160)) for line in above.lines)
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert labels == ["disagreement", "student outcomes", "alarm threshold", "alarm"]
    (alarm,) = [line for line in above.lines if line.get_marker() == "o"]
    assert alarm.get_ydata()[0] == pytest.approx(7.7 / math.log(10))  # the first step at or above ln 2160 = 7.678
    for axes in below:
        assert axes.lines[1].get_ydata()[0] == 0.08  # the null mean


def test_a_new_champion_starts_a_new_line(tmp_path):
    steps = [a_step(0, 1.0), a_step(1, 3.0), a_step(2, 0.1, champion="toy@4"), a_step(3, 0.2, champion="toy@4")]
    figure = drawn(plot_evidence(steps), tmp_path)
    runs = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(runs) == 2
    assert "toy@4" in figure.get_suptitle()


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [a_step(0, 0.3)],
        [a_step(0, -708.0, mean=None)],
        [a_step(n, 1.75 * n) for n in range(400)],
        [a_step(n, -1.75 * n, mean=None) for n in range(400)],
    ],
    ids=["none", "one", "no evidence", "300 orders up", "300 orders down"],
)
def test_any_evidence(tmp_path, steps):
    figure = drawn(plot_evidence(steps), tmp_path)
    assert all(math.isfinite(value) for axes in figure.axes for value in axes.get_ylim())
    if not steps:
        assert "no evidence yet" in texts(figure.axes[0])


# --------------------------------------------------------------------------- slices


def test_slices_in_their_order(tmp_path):
    slices = (
        a_slice("kind=a", 0.03),
        a_slice("x in (0, 1]", 0.04),
        a_slice("kind=b", -0.01),
        a_slice("kind=c", 0.0, disagreement=None, rows=2),
    )
    figure = drawn(plot_slices(a_report(slices=slices)), tmp_path)
    left, right = figure.axes
    assert names(left) == ["kind=a", "x in (0, 1]", "kind=b", "kind=c"]
    assert colours(left) == [SHIFTED, SHIFTED, STABLE, STABLE]
    assert texts(left)[::-1][0] == "+0.0300  (0.200 on 40 rows)"
    assert texts(left)[0] == "too few rows compared (2)"
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["reference", "current"]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_any_number_of_slices(tmp_path, count):
    slices = tuple(a_slice(f"{'x' * 90} in ({i}, {i + 1}]", i / 100) for i in range(count))
    figure = drawn(plot_slices(a_report(slices=slices)), tmp_path)
    assert len(figure.axes[0].patches) == count


# --------------------------------------------------------------------------- imports


def test_matplotlib_is_imported_only_when_drawing():
    code = "import stillhouse.drift.figures, sys; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pyplot_is_not_imported():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_figures as t\n"
        "t.plot_drift(t.a_report()); t.plot_evidence([]); t.plot_slices(t.a_report())\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
