"""A small run of the knowledge-base benchmark: copied tables, opened files and row counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.knowledge_scale import (
    LAYOUTS,
    Size,
    draw_figure,
    files_of,
    fill_tables,
    ratio_goal,
    read_day,
    read_newest,
    read_sample,
)

SMALL = Size(per_day=60, ages=(5, 31, 40), rounds=4, sample=100, newest=90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    assert fill_tables(folder, SMALL)["rows"] == 40 * 60
    return folder


@pytest.mark.slow
def test_a_day_is_read_from_one_file_at_any_age(folder: Path) -> None:
    result = read_day(folder, SMALL)
    for layout in LAYOUTS:
        for age in SMALL.ages:
            assert result["opened"][layout][str(age)]["opened"] == 1
            rounds = result["rounds"][layout][str(age)]
            assert len(rounds) == 4 and all(cost["wall_s"] > 0 and cost["bytes"] > 0 for cost in rounds)
    assert files_of(folder, "as appended", 31) == {"files": 31, "opened": 1, "rows_opened": 60}
    assert files_of(folder, "compacted", 31) == {"files": 1, "opened": 1, "rows_opened": 31 * 60}
    detail = {"day": result, "fill": {"rows": 2400}}
    draw_figure(detail, folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 5_000


def test_the_sampled_and_the_newest_window_have_the_rows_they_should(folder: Path) -> None:
    assert read_sample(folder, SMALL)["rows"] == 100
    assert read_newest(folder, SMALL)["rows"] == 90


def test_a_ratio_is_that_of_medians() -> None:
    old = [{"wall_s": value} for value in (3.0, 1.0, 2.0, 9.0, 2.0)]
    young = [{"wall_s": value} for value in (1.0, 1.0, 2.0, 2.0, 2.0)]
    goal = ratio_goal("x", old, young, "wall_s")
    assert goal.measured == 1.0 and goal.met and goal.low <= 1 <= np.float64(goal.high)
