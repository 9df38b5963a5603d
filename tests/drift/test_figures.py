"""The picture holds the report's columns, largest on top, and leaves pyplot alone."""

import subprocess
import sys

import pytest

from stillhouse.drift.figures import drift_figure


def test_bars_are_sorted_and_the_threshold_is_drawn(make, tmp_path):
    report = make.report({"a": 0.1, "b": 0.7, "c": 0.3}, disagreement=make.disagreement(0.15))
    figure = drift_figure(report, 0.25)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.3, 0.7]
    assert axes.lines[0].get_xdata()[0] == 0.25
    assert "disagreement 0.150" in figure.get_suptitle()
    figure.savefig(tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 5000


@pytest.mark.parametrize("psi", [{}, {"only": 0.0}, {f"c{i}": i / 100 for i in range(60)}])
def test_any_number_of_columns(make, tmp_path, psi):
    figure = drift_figure(make.report(psi), None)
    assert len(figure.axes[0].patches) == min(len(psi), 30)
    figure.savefig(tmp_path / "drift.png")


def test_matplotlib_is_imported_only_when_drawing():
    code = "import stillhouse.drift.figures, sys; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
