"""Columns of recent delays use only outcomes known before a departure, and both students are scored on every week."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import recent_delays as bench
from examples.flights import week_start
from stillhouse import config
from stillhouse.config import AgentConfig


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Every seventh departure of three weeks."""
    return bench.departures_with_outcomes(week_start(0), week_start(3)).iloc[::7].reset_index(drop=True)


def test_a_share_counts_the_recent_flights_whose_outcome_was_known(rows: pd.DataFrame) -> None:
    table = bench.with_recent_delays(rows)
    assert list(table.columns) == [*rows.columns, *bench.delay_columns()]
    for index in np.random.default_rng(0).choice(len(rows), 30, replace=False):
        row = table.iloc[index]
        recent = rows["observed_at"] >= row["observed_at"] - pd.Timedelta(days=7)
        known = rows["known_at"] < row["observed_at"]
        for name, same_group in (
            ("late_7d", True),
            ("late_7d_origin", rows["origin"] == row["origin"]),
            ("late_7d_carrier", rows["carrier"] == row["carrier"]),
        ):
            labels = rows.loc[known & recent & same_group, "label"]
            assert row[name] == pytest.approx(labels.mean(), nan_ok=True)


def test_no_column_changes_with_an_outcome_that_is_not_known_yet(rows: pd.DataFrame) -> None:
    moment = week_start(2)
    flipped = rows.assign(label=np.where(rows["known_at"] >= moment, 1 - rows["label"], rows["label"]))
    before, after = bench.with_recent_delays(rows), bench.with_recent_delays(flipped)
    until = rows["observed_at"] <= moment
    names = bench.delay_columns()
    pd.testing.assert_frame_equal(before.loc[until, names], after.loc[until, names])
    assert not before.loc[~until, names].equals(after.loc[~until, names])


def test_a_share_is_missing_where_no_outcome_was_known(rows: pd.DataFrame) -> None:
    table = bench.with_recent_delays(rows)
    first_day = rows["observed_at"] < rows["known_at"].min()
    assert table.loc[first_day, bench.delay_columns()].isna().all(axis=None)
    assert table.loc[~first_day, "late_28d"].iloc[1:].between(0, 1).all()


def test_a_student_learns_from_outcomes_known_at_its_training_alone(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "TRAINING_WEEKS", 1)
    window = bench.training_window(rows, week_start(2))
    assert len(window) and window["known_at"].max() < week_start(2)
    assert window["observed_at"].min() >= week_start(1)


def test_both_students_are_scored_and_only_one_is_retrained(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RETRAIN_EVERY_WEEKS", 1)
    moments: list[pd.Timestamp] = []
    train = bench.train

    def train_and_note(agent: AgentConfig, rows: pd.DataFrame, moment: pd.Timestamp) -> bench.Model:
        moments.append(moment)
        return train(agent, rows, moment)

    monkeypatch.setattr(bench, "train", train_and_note)
    agent = bench.with_seed(config.load("flights"), 3)
    agent = agent.model_copy(update={"distillation": agent.distillation.model_copy(update={"epochs": 1})})
    table = bench.with_recent_delays(rows)
    auc = bench.mean_weekly_auc(bench.with_delay_columns(agent), table, range(1, 3))
    assert moments == [week_start(1), week_start(2)]
    assert set(auc) == {"never_refreshed", "refreshed"} and all(0.2 < value < 0.9 for value in auc.values())
    model = train(bench.with_delay_columns(agent), table, week_start(1))
    assert set(bench.delay_columns()) <= {column["name"] for column in model.columns}
    assert not set(bench.delay_columns()) & {column["name"] for column in train(agent, table, week_start(1)).columns}


def test_the_gains_are_over_the_seeds() -> None:
    def result(gain: float) -> dict[str, dict[str, float]]:
        return {
            "without_columns": {"never_refreshed": 0.70, "refreshed": 0.70 + 2 * gain},
            "with_columns": {"never_refreshed": 0.72, "refreshed": 0.72 + gain},
        }

    without, with_columns = bench.goals_of([result(0.01), result(0.03), result(-0.01)])
    assert (without.name, with_columns.name) == ("gain_without_columns", "gain_with_columns")
    assert [without.measured, without.low, without.high] == pytest.approx([0.02, -0.02, 0.06])
    assert [with_columns.measured, with_columns.low, with_columns.high] == pytest.approx([0.01, -0.01, 0.03])
