"""Uniqueness, freshness, volume and rules between columns: what breaks them, and the texts of the failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from data_checks.check import check
from data_checks.suite import build_suite, parameters
from stillhouse.records import DataReport

COLUMNS = {
    "temp": {"type": "number", "min": -40, "max": 50, "max_missing": 0.2},
    "wind speed": {"type": "number", "max_missing": 1.0},
    "carrier": {"type": "category", "values": ["AA", "D'L", "UA"]},
    "dest": {"type": "category", "max_missing": 0.5},
}
ORDERED = {"type": "ordered", "low": "wind speed", "high": "temp", "max_broken": 0.05}
PAIRS = {"type": "pairs", "columns": ["carrier", "dest"], "allowed": [["AA", "LAX"], ["D'L", "BOS"], ["UA", "LAX"]]}
RANGE = {"type": "range_when", "column": "wind speed", "max": 3, "when": {"column": "carrier", "values": ["D'L"]}}
PRESENT = {"type": "present_when", "column": "dest", "when": {"column": "wind speed", "min": 7, "max": 8}}


@pytest.fixture
def rows(rows: pd.DataFrame) -> pd.DataFrame:
    sound = {"temp": 10.0, "wind speed": 5.0, "carrier": "AA", "dest": "LAX"}
    return rows[["observation_id", "observed_at"]].assign(**sound)


@pytest.fixture
def checked(rows, window, configured) -> Any:
    def checked(*, frame: pd.DataFrame = rows, **promises: Any) -> tuple[DataReport, dict[str, list[str]]]:
        before = frame.copy()
        report, bad = check(frame, window, configured(columns=COLUMNS, **promises))
        pd.testing.assert_frame_equal(frame, before)
        return report, dict(zip(bad["observation_id"], bad["reasons"], strict=True))

    return checked


def test_window_that_meets_all_rules(checked):
    report, reasons = checked(
        rules=[ORDERED, PAIRS, RANGE, PRESENT],
        unique=[["observed_at", "carrier"]],
        freshness="3d",
        volume={"min_per_day": 14, "max_per_day": 15},
    )
    assert report.failures == () and reasons == {}


def test_ordered_numbers(rows, checked):
    rows.loc[3, "wind speed"] = 11
    rows.loc[4, "wind speed"] = 10  # equal values break no rule
    rows.loc[5, ["temp", "wind speed"]] = [np.nan, 99]  # missing values break no rule
    report, reasons = checked(rules=[ORDERED])
    assert reasons == {"o3": ["wind speed: above temp"]} and not report.broken
    assert report.failures[0].text == "wind speed: above temp in 1 of 100 rows (1.00%)"
    rows.loc[10:14, "wind speed"] = 11
    report, reasons = checked(rules=[ORDERED])
    assert report.broken and len(reasons) == 6
    assert report.failures[0].text.endswith("; at most 0.05 of the window may")


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_pairs_that_are_not_allowed_are_quarantined(rows, checked, dtype):
    rows.loc[7, "dest"] = "BOS"
    rows.loc[8, "dest"] = None
    rows.loc[9, ["carrier", "dest"]] = ["D'L", "BOS"]
    report, reasons = checked(rules=[PAIRS], frame=rows.astype({"carrier": dtype, "dest": dtype}))
    assert reasons == {"o7": ["carrier/dest: not an allowed pair: AA, BOS"]}
    assert report.broken and report.failures[0].column == "carrier/dest"  # max_broken is 0 unless given
    assert not checked(rules=[{**PAIRS, "max_broken": 0.01}])[0].broken


def test_range_on_rows_that_meet_a_condition(rows, checked):
    rows.loc[2, "carrier"] = "D'L"
    rows.loc[3, ["carrier", "wind speed"]] = ["D'L", 2]
    rows.loc[4, ["carrier", "wind speed"]] = ["D'L", np.nan]
    report, reasons = checked(rules=[{**RANGE, "max_broken": 0.5}])
    assert reasons == {"o2": ["wind speed: above 3 where carrier is D'L"]} and not report.broken


def test_value_that_must_be_present_under_a_condition(rows, checked):
    rows.loc[:5, "dest"] = None
    rows.loc[:5, "wind speed"] = [6.9, 7, 8, 8.1, np.nan, 7.5]
    _, reasons = checked(rules=[PRESENT])
    word = "dest: missing where wind speed is at least 7 and at most 8"
    assert reasons == {"o1": [word], "o2": [word], "o5": [word]}


def test_rules_agree_with_pandas_on_random_rows(checked, rows):
    rng = np.random.default_rng(7)
    for _ in range(5):
        n = len(rows)
        frame = rows.assign(
            **{
                "temp": np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 6, n)),
                "wind speed": np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 9, n)),
                "carrier": rng.choice(["AA", "D'L", "UA"], n),
                "dest": rng.choice(np.array(["LAX", "BOS", None], dtype=object), n),
            }
        )
        allowed = {tuple(pair) for pair in PAIRS["allowed"]}
        wind, dest = frame["wind speed"], frame["dest"]
        together = pd.Series(list(zip(frame["carrier"], dest, strict=True)))
        wrong = {
            "wind speed: above temp": wind > frame["temp"],
            "carrier/dest: not an": dest.notna() & ~together.isin(allowed),
            "wind speed: above 3 ": (frame["carrier"] == "D'L") & (wind > 3),
            "dest: missing where": dest.isna() & wind.between(7, 8),
        }
        quarantine = checked(rules=[ORDERED, PAIRS, RANGE, PRESENT], frame=frame, max_bad_rows=1)[1]
        for word, rows_ in wrong.items():
            ids = {name for name, reasons in quarantine.items() if any(reason.startswith(word) for reason in reasons)}
            assert ids == set(frame.loc[rows_, "observation_id"]), word


def test_unique_combinations(rows, checked):
    rows.loc[5, "observed_at"] = rows.loc[4, "observed_at"]
    rows.loc[7:8, "dest"] = None
    report, reasons = checked(unique=[["observed_at", "carrier"]])
    assert reasons == {name: ["observed_at/carrier: duplicate"] for name in ("o4", "o5")} and not report.broken
    rows.loc[5, "carrier"] = "UA"
    assert checked(unique=[["observed_at", "carrier"]])[1] == {}
    rows["dest"] = [f"d{i}" for i in range(98)] + [None, None]
    assert checked(unique=[["dest"]])[0].failures == (), "missing values are not compared"
    assert checked(unique=[["carrier", "dest"]])[0].failures == ()
    rows.loc[3, "dest"] = "d2"
    assert checked(unique=[["dest"]])[1] == {name: ["dest: duplicate"] for name in ("o2", "o3")}


def test_freshness_is_that_of_the_newest_good_row(rows, checked, window):
    assert not checked(freshness="69h")[0].broken  # the newest is 69 h before the end
    report, _ = checked(freshness="68.9h")
    assert [failure.text for failure in report.failures] == [
        "the newest row is of 2013-06-05 03:00 UTC, 2d 21h before the window's end; at most 2d 20h are allowed"
    ]
    assert report.broken and report.failures[0].column == "observed_at"
    rows.loc[99, "observed_at"] = pd.Timestamp(window.end) + pd.Timedelta(
        "1D"
    )  # a time in the future does not count as fresh
    assert checked(freshness="69h")[0].broken


def test_volume_limits_scale_with_the_length_of_the_window(rows, checked):
    assert not checked(volume={"min_per_day": 100 / 7, "max_per_day": 100 / 7})[0].broken
    report, _ = checked(volume={"min_per_day": 14.3})
    assert report.failures[0].text == "100 rows in 7 days are 14.29 a day; at least 14.3 are expected"
    assert checked(volume={"min_per_day": 3, "max_per_day": 14.2})[0].broken
    assert checked(volume={"min_per_day": 14}, frame=rows.iloc[:97])[0].broken


def test_time_before_the_history_does_not_count_for_volume(rows, window, configured):
    def refused(since: pd.Timestamp, frame: pd.DataFrame = rows, **volume: float) -> list[str]:
        config = configured(columns=COLUMNS, since=since, volume=volume)
        return [failure.text for failure in check(frame, window, config)[0].failures]

    three_days = window.end - pd.Timedelta("3D")
    assert not refused(three_days, min_per_day=30)  # 100 rows in three days, not in seven
    assert refused(three_days, rows.iloc[:89], min_per_day=30)[0].startswith("89 rows in 3 days are 29.67 a day")
    assert not refused(window.end, min_per_day=30, max_per_day=31)


def test_window_without_good_rows_fails_freshness_and_volume(rows, checked):
    rows["temp"] = 99.0
    report, reasons = checked(max_bad_rows=1, freshness="1d", volume={"min_per_day": 1})
    assert len(reasons) == 100
    assert [failure.text for failure in report.failures if failure.fatal] == [
        "no row is left that could be new; at most 1d are allowed",
        "0 rows in 7 days are 0 a day; at least 1 are expected",
    ]


def test_one_suite_is_valid_for_all_windows(configured, window):
    config = configured(columns=COLUMNS, freshness="1h", volume={"min_per_day": 2})
    suite = build_suite(config, "window")
    assert [e.expectation_type for e in suite.expectations] == [
        "expect_column_max_to_be_between",
        "expect_table_row_count_to_be_between",
    ]
    given = parameters(window, config.observations)
    assert given["end"] - given["fresh_from"] == pd.Timedelta("1h")
    assert given["min_rows"] == 14 and given["max_rows"] > 1e15
    assert all("2013" not in str(e.configuration.kwargs) for e in build_suite(config).expectations)
