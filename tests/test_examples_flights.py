"""The rows of the flights agent contain no information from after their departure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from examples import flights
from stillhouse.config import load_file


@pytest.fixture(scope="module")
def january() -> pd.DataFrame:
    return flights.departures(flights.week_start(0), flights.week_start(4))


def test_rows_have_the_agents_columns_in_order(january: pd.DataFrame) -> None:
    columns = load_file("agents/flights.yaml").observations.columns
    assert set(columns) == {*flights.NUMBERS, *flights.CATEGORIES}
    assert january["observation_id"].is_unique and january["observed_at"].is_monotonic_increasing
    assert january["observed_at"].dt.tz is not None
    for name, column in columns.items():
        if column.type == "number":
            assert january[name].min() >= column.min and january[name].max() <= column.max, name


def test_columns_do_not_depend_on_outcomes() -> None:
    schedule, weather = flights._read()
    schedule = schedule.head(20_000)
    other = schedule.assign(dep_time=np.nan, dep_delay=schedule["dep_delay"].sample(frac=1, random_state=0).to_numpy())
    before, after = flights._table(schedule, weather), flights._table(other, weather)
    assert (before["action"] != after["action"]).mean() > 0.5
    features = [*flights.CATEGORIES, *flights.NUMBERS]
    pd.testing.assert_frame_equal(before[features], after[features])


def test_columns_do_not_depend_on_later_weather() -> None:
    schedule, weather = flights._read()
    schedule = schedule.head(20_000)
    cut = pd.Timestamp("2013-01-10T12:00:00Z")
    later = pd.to_datetime(weather["time_hour"], utc=True) >= cut
    stormy = weather.assign(**{name: weather[name].where(~later, 99.0) for name in ("temp", "wind_speed", "precip")})
    before, after = flights._table(schedule, weather), flights._table(schedule, stormy)
    early = (before["observed_at"] < cut + pd.Timedelta(hours=1)).to_numpy()
    pd.testing.assert_frame_equal(before[early], after[early])
    assert not before[~early].equals(after[~early])


def test_outcomes_are_known_a_day_after_departure() -> None:
    outcomes = flights.lateness(flights.week_start(0), flights.week_start(1))
    assert ((outcomes["known_at"] - outcomes["observed_at"]) == pd.Timedelta(hours=24)).all()
    assert 0.05 < (outcomes["action"] == "late").mean() < 0.5


def test_saved_boosting_loads_identically_and_accepts_unknown_values(january: pd.DataFrame, tmp_path) -> None:
    outcome = (flights.lateness(flights.week_start(0), flights.week_start(4))["action"] == "late").to_numpy()
    teacher = flights.Boosting(trees=10, threads=1)
    teacher.fit(january, outcome.astype(int))
    teacher.save(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".txt", ".json"}
    strange = january.head(3).assign(carrier=["??", None, "UA"], temp=np.nan, extra=1)
    probs = teacher.predict_proba(strange)
    assert probs.shape == (3, 2) and np.allclose(probs.sum(axis=1), 1)
    np.testing.assert_array_equal(flights.Boosting.load(tmp_path).predict_proba(strange), probs)
