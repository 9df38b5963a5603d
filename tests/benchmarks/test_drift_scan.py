"""A small run of our side of the scan benchmark, and its independent exact distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import drift_scan
from benchmarks.drift_scan import Size, draw_table, exact_psi, measure, measure_growth, run_ours, run_rounds, write_file
from benchmarks.report import Goal

SMALL = Size(rows=4_000, rounds=1, many_rows=6_000, growing_rows=(500,), growing_columns=(40,), chunk=2_500)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Goal], dict]:
    goals, detail = measure(tmp_path_factory.mktemp("scan"), SMALL, peers=False)
    return {goal.name: goal for goal in goals}, detail


@pytest.mark.slow
def test_our_side_is_measured_and_exact_on_few_rows(measured: tuple[dict[str, Goal], dict]) -> None:
    goals, detail = measured
    assert set(goals) == {"peak_mb_10m_rows", "ks_error", "psi_error_percent", "w1_error_percent"}
    assert goals["ks_error"].measured < 1e-9 and goals["psi_error_percent"].measured < 1e-6
    assert len(detail["errors"]) == 16
    assert set(detail["cpu_s_by_columns"]) == {40}
    for side in ("ours", "ours_known"):
        assert all(cpu > 0 and peak > 20 for cpu, peak in detail["rounds"][side])


@pytest.mark.slow
def test_a_stored_profile_gives_the_same_distances(tmp_path: Path) -> None:
    files = [write_file(tmp_path / f"{shift}.parquet", 2_000, SMALL, shift) for shift in (0, 1)]
    rounds = run_rounds(files, SMALL, peers=False)
    assert len(rounds["ours"][0]["columns"]) == 20
    assert rounds["ours"][0]["columns"] == rounds["ours_known"][0]["columns"]


def test_files_come_in_row_groups_and_as_wide_as_asked(tmp_path: Path) -> None:
    file = write_file(tmp_path / "wide.parquet", 6_000, SMALL, columns=23)
    assert pq.ParquetFile(file).metadata.num_row_groups == 3
    schema = pq.read_schema(file)
    assert len(schema.names) == 23 and schema.names[20] == "normal_2"
    assert measure_growth(tmp_path, SMALL, rows=300, columns=3) > 0


def test_the_second_file_is_shifted() -> None:
    sides = [draw_table(np.random.default_rng(shift), 20_000, shift)["normal"].to_numpy() for shift in (0, 1)]
    assert sides[1].mean() - sides[0].mean() == pytest.approx(0.1, abs=0.03)
    assert exact_psi(*sides) > 0.005


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No such file"):
        run_ours("scan", tmp_path / "absent.parquet")


def test_goals_keep_their_range() -> None:
    goal = drift_scan.median_goal("x", 3, "higher", [5, 1, 4])
    assert (goal.low, goal.measured, goal.high, goal.met) == (1, 4, 5, True)
    assert drift_scan.max_goal("y", 1, [0.1, 0.5]).measured == 0.5
