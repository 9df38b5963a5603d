"""A complete measurement: profiles of reference and current window, with the student's output among the columns."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import NewestRows
from stillhouse.drift.measure import OUTPUT_PREFIX, make_drift_report, profile_reference, profile_window
from stillhouse.drift.profile import Profile
from stillhouse.errors import WindowError
from stillhouse.records import DriftReport

WEEKS = 8


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    """Eight weeks of 500 rows each."""
    rng = np.random.default_rng(0)
    n = 500 * WEEKS
    return pd.DataFrame(
        {
            "observed_at": pd.Timestamp("2013-03-01T00Z") + pd.to_timedelta(np.arange(n) * 10_080 / 500, unit="min"),
            "temp": rng.normal(size=n),
            "wind": rng.exponential(size=n),
            "gust": np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
            "carrier": rng.choice(["AA", "UA"], n),
        }
    )


def predict(rows: pd.DataFrame) -> np.ndarray:
    yes = 1 / (1 + np.exp(-rows["temp"].to_numpy()))
    return np.column_stack([1 - yes, yes])


def report(make, history: pd.DataFrame, rows: pd.DataFrame) -> DriftReport:
    before, calibration = profile_reference(history, predict(history), make.config(psi=0.25))
    now = profile_window(rows, predict(rows), make.config(psi=0.25), like=Profile.from_bytes(before.to_bytes()))
    return make_drift_report(
        "toy",
        "toy@3",
        make.reference,
        make.current,
        before,
        now,
        calibration,
        disagreement=make.disagreement(0.2),
        quality=make.quality(0.7),
    )


def test_a_window_like_the_history_has_not_moved(make, history):
    drift_report = report(make, history, history.iloc[-500:])
    assert (drift_report.reference_rows, drift_report.current_rows) == (4000, 500)
    assert [column.column for column in drift_report.columns] == ["temp", "wind", "gust", "carrier"]
    assert [column.column for column in drift_report.outputs] == [
        f"{OUTPUT_PREFIX}p(yes)",
        f"{OUTPUT_PREFIX}margin",
        f"{OUTPUT_PREFIX}action",
    ]
    assert (
        drift_report.screened is not None
        and drift_report.screened.time_blocks == WEEKS
        and not drift_report.screened.moved
    )
    assert drift_report.disagreement == make.disagreement(0.2) and drift_report.disagreement_reference is None
    assert DriftReport.model_validate_json(drift_report.model_dump_json()) == drift_report


def test_a_column_that_moved_moves_the_output_with_it(make, history):
    moved = history.iloc[-500:].assign(temp=lambda frame: frame["temp"] + 1.5)
    drift_report = report(make, history, moved)
    assert drift_report.screened is not None and drift_report.screened.moved
    assert set(drift_report.screened.beyond) == {
        "temp",
        f"{OUTPUT_PREFIX}p(yes)",
        f"{OUTPUT_PREFIX}margin",
        f"{OUTPUT_PREFIX}action",
    } & set(drift_report.screened.beyond)
    assert {"temp", f"{OUTPUT_PREFIX}p(yes)"} <= set(drift_report.screened.beyond)
    temp = drift_report.columns[0]
    assert (
        temp.unusual and temp.wasserstein == pytest.approx(1.5, rel=0.1) and temp.effect == pytest.approx(1.5, rel=0.1)
    )


def test_the_reference_is_the_sum_of_its_time_blocks(make, history):
    config = make.config(psi=0.25)
    before, calibration = profile_reference(history, predict(history), config)
    at_once = profile_window(history, predict(history), config, like=before)
    assert before.rows == at_once.rows == 4000
    assert [drift.psi for drift in report(make, history, history).columns] == pytest.approx([0] * 4, abs=1e-9)
    assert calibration.block_length == timedelta(days=7)


def test_blocks_of_too_few_rows_give_no_calibration(make, history):
    short = history.iloc[::6]  # 83 rows a week; at least 100 are needed
    _, calibration = profile_reference(short, predict(short), make.config(psi=0.25))
    assert calibration.time_blocks == 0
    with pytest.raises(WindowError, match="needs rows"):
        profile_reference(history.iloc[:0], predict(history.iloc[:0]), make.config(psi=0.25))


def test_the_calibration_uses_as_many_rows_as_a_sampled_window(make, history):
    """The profile is of all rows; the blocks are sampled and vary more, like a sampled window."""
    config = make.config(psi=0.25)
    sampled = config.model_copy(update={"windows": config.windows.model_copy(update={"sample": 120})})
    (before, all_rows), (thinned, calibration) = (
        profile_reference(history, predict(history), settings) for settings in (config, sampled)
    )
    assert thinned.to_bytes() == before.to_bytes() and calibration.time_blocks == all_rows.time_blocks == WEEKS
    assert np.median(calibration.columns["temp"]) > 2 * np.median(all_rows.columns["temp"])
    assert profile_reference(history, predict(history), sampled)[1] == calibration


def test_blocks_of_a_window_by_count_have_about_that_many_rows(make, history):
    config = make.config(psi=0.25)
    windows = config.windows.model_copy(update={"current": NewestRows(rows=400)})
    _, calibration = profile_reference(history, predict(history), config.model_copy(update={"windows": windows}))
    assert calibration.time_blocks == 10 and abs(calibration.block_length - timedelta(days=5.6)) < timedelta(minutes=5)
