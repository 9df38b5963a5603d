"""The benchmark of the knowledge base, small: what it keeps aside, reads and counts is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.knowledge_scale import LAYOUTS, Size, day, draw, files_of, fill, newest, ratio, sample

SMALL = Size(per_day=60, ages=(5, 31, 40), rounds=4, sample=100, newest=90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    assert fill(folder, SMALL)["rows"] == 40 * 60
    return folder


def test_a_day_is_read_from_one_file_at_any_age(folder: Path) -> None:
    found = day(folder, SMALL)
    for layout in LAYOUTS:
        for age in SMALL.ages:
            assert found["opened"][layout][str(age)]["opened"] == 1
            rounds = found["rounds"][layout][str(age)]
            assert len(rounds) == 4 and all(each["wall_s"] > 0 and each["bytes"] > 0 for each in rounds)
    assert files_of(folder, "as appended", 31) == {"files": 31, "opened": 1, "rows_opened": 60}
    assert files_of(folder, "compacted", 31) == {"files": 1, "opened": 1, "rows_opened": 31 * 60}
    detail = {"day": found, "fill": {"rows": 2400}}
    draw(detail, folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 5_000


def test_the_sampled_and_the_newest_window_have_the_rows_they_should(folder: Path) -> None:
    assert sample(folder, SMALL)["rows"] == 100
    assert newest(folder, SMALL)["rows"] == 90


def test_a_ratio_is_that_of_medians() -> None:
    old = [{"wall_s": value} for value in (3.0, 1.0, 2.0, 9.0, 2.0)]
    young = [{"wall_s": value} for value in (1.0, 1.0, 2.0, 2.0, 2.0)]
    goal = ratio("x", old, young, "wall_s")
    assert goal.measured == 1.0 and goal.met and goal.low <= 1 <= np.float64(goal.high)
