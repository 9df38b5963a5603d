"""A whole measurement: reference and current window as profiles, the student's output among the columns."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import NewestRows
from stillhouse.drift.measure import OUTPUT, make_drift_report, profile_reference, profile_window
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


def said(rows: pd.DataFrame) -> np.ndarray:
    yes = 1 / (1 + np.exp(-rows["temp"].to_numpy()))
    return np.column_stack([1 - yes, yes])


def report(make, history: pd.DataFrame, rows: pd.DataFrame) -> DriftReport:
    before, usual = profile_reference(history, said(history), make.config(psi=0.25))
    now = profile_window(rows, said(rows), make.config(psi=0.25), like=Profile.from_bytes(before.to_bytes()))
    return make_drift_report(
        "toy",
        "toy@3",
        make.reference,
        make.current,
        before,
        now,
        usual,
        disagreement=make.disagreement(0.2),
        quality=make.quality(0.7),
    )


def test_a_window_like_the_history_has_not_moved(make, history):
    found = report(make, history, history.iloc[-500:])
    assert (found.reference_rows, found.current_rows) == (4000, 500)
    assert [column.column for column in found.columns] == ["temp", "wind", "gust", "carrier"]
    assert [column.column for column in found.outputs] == [f"{OUTPUT}p(yes)", f"{OUTPUT}margin", f"{OUTPUT}action"]
    assert found.screened is not None and found.screened.blocks == WEEKS and not found.screened.moved
    assert found.disagreement == make.disagreement(0.2) and found.disagreement_reference is None
    assert DriftReport.model_validate_json(found.model_dump_json()) == found


def test_a_column_that_moved_moves_the_output_with_it(make, history):
    moved = history.iloc[-500:].assign(temp=lambda frame: frame["temp"] + 1.5)
    found = report(make, history, moved)
    assert found.screened is not None and found.screened.moved
    assert set(found.screened.beyond) == {"temp", f"{OUTPUT}p(yes)", f"{OUTPUT}margin", f"{OUTPUT}action"} & set(
        found.screened.beyond
    )
    assert {"temp", f"{OUTPUT}p(yes)"} <= set(found.screened.beyond)
    temp = found.columns[0]
    assert (
        temp.unusual and temp.wasserstein == pytest.approx(1.5, rel=0.1) and temp.effect == pytest.approx(1.5, rel=0.1)
    )


def test_the_whole_is_the_sum_of_its_stretches(make, history):
    config = make.config(psi=0.25)
    before, usual = profile_reference(history, said(history), config)
    at_once = profile_window(history, said(history), config, like=before)
    assert before.rows == at_once.rows == 4000
    assert [drift.psi for drift in report(make, history, history).columns] == pytest.approx([0] * 4, abs=1e-9)
    assert usual.block == timedelta(days=7)


def test_stretches_of_too_few_rows_calibrate_nothing(make, history):
    short = history.iloc[::6]  # 83 rows a week, and 100 are asked for
    _, usual = profile_reference(short, said(short), make.config(psi=0.25))
    assert usual.blocks == 0
    with pytest.raises(WindowError, match="needs rows"):
        profile_reference(history.iloc[:0], said(history.iloc[:0]), make.config(psi=0.25))


def test_what_is_usual_is_judged_on_as_many_rows_as_a_sampled_window_has(make, history):
    """The profile is of all rows; the stretches, of a sample each, swing farther, as the sampled window does."""
    config = make.config(psi=0.25)
    sampled = config.model_copy(update={"windows": config.windows.model_copy(update={"sample": 120})})
    (before, whole), (thinned, usual) = (profile_reference(history, said(history), each) for each in (config, sampled))
    assert thinned.to_bytes() == before.to_bytes() and usual.blocks == whole.blocks == WEEKS
    assert np.median(usual.columns["temp"]) > 2 * np.median(whole.columns["temp"])
    assert profile_reference(history, said(history), sampled)[1] == usual


def test_stretches_of_a_window_by_count_have_about_as_many_rows(make, history):
    config = make.config(psi=0.25)
    windows = config.windows.model_copy(update={"current": NewestRows(rows=400)})
    _, usual = profile_reference(history, said(history), config.model_copy(update={"windows": windows}))
    assert usual.blocks == 10 and abs(usual.block - timedelta(days=5.6)) < timedelta(minutes=5)
