"""Each kind of broken data contract, with its report and quarantine."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from data_checks.check import check
from stillhouse.records import DataReport


def reasons_of(quarantine: pd.DataFrame) -> dict[object, list[str]]:
    return dict(zip(quarantine["observation_id"], quarantine["reasons"], strict=True))


def fatal(report: DataReport) -> list[str]:
    return [failure.text for failure in report.failures if failure.fatal]


def test_good_window_meets_the_contract(rows, window, config):
    before = rows.copy()
    report, quarantine = check(rows, window, config)
    assert (report.rows, report.quarantined, report.failures, report.broken) == (100, 0, (), False)
    assert quarantine.empty and list(quarantine.columns) == ["observation_id", "observed_at", "reasons"]
    assert report.window == window and report.seconds > 0
    pd.testing.assert_frame_equal(rows, before)
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_empty_window_is_refused(rows, window, config):
    report, quarantine = check(rows.iloc[:0], window, config)
    assert fatal(report) == ["the window has no rows"] and quarantine.empty
    assert fatal(check(pd.DataFrame(), window, config)[0]) == ["the window has no rows"]


def test_missing_columns_are_named(rows, window, config):
    report, quarantine = check(rows.drop(columns=["temp", "observation_id"]), window, config)
    assert fatal(report) == ["missing columns: observation_id, temp"]
    assert report.quarantined == 0 and quarantine.empty
    assert fatal(check(rows.drop(columns="observed_at"), window, config)[0]) == ["missing columns: observed_at"]


def test_extra_columns_are_only_noted(rows, window, config):
    report, _ = check(rows.assign(gate="A1", content_key="k", note=None), window, config)
    assert not report.broken and len(report.failures) == 1
    assert (report.failures[0].rows, report.failures[0].fatal) == (0, False)
    assert report.failures[0].text == "columns that the contract does not know: gate, note"


def test_repeated_columns_are_refused(rows, window, config):
    report, _ = check(pd.concat([rows, rows[["temp"]]], axis=1), window, config)
    assert fatal(report) == ["columns ['temp'] are there more than once"]


@pytest.mark.parametrize("warm", [["warm"] * 100, [1.5, "warm"] * 50, [b"x"] * 100])
def test_numbers_of_the_wrong_type_are_refused(rows, window, config, warm):
    report, _ = check(rows.assign(temp=warm), window, config)
    assert len(fatal(report)) == 1 and fatal(report)[0].startswith("temp: must hold numbers")


@pytest.mark.parametrize("times", ["naive", "text", "numbers"])
def test_times_of_the_wrong_type_are_refused(rows, window, config, times):
    wrong = {
        "naive": rows["observed_at"].dt.tz_localize(None),
        "text": rows["observed_at"].astype(str),
        "numbers": range(100),
    }
    report, _ = check(rows.assign(observed_at=wrong[times]), window, config)
    assert len(fatal(report)) == 1 and "observed_at: must hold times with a time zone" in fatal(report)[0]


def test_numeric_types_of_all_kinds_are_numbers(rows, window, config):
    for dtype in ("int32", "Int64", "float32", "Float64", "double[pyarrow]"):
        report, quarantine = check(rows.assign(temp=pd.Series([20] * 99 + [60]).astype(dtype)), window, config)
        assert not report.broken and reasons_of(quarantine) == {"o99": ["temp: above 50"]}, dtype


def test_values_out_of_range_or_infinite_are_quarantined(rows, window, config):
    rows.loc[3, "temp"] = 50.5
    rows.loc[4, "temp"] = -41
    rows.loc[5, "temp"] = np.inf
    rows.loc[6, "wind"] = -np.inf
    rows.loc[7, "temp"] = 50
    report, quarantine = check(rows, window, config)
    assert not report.broken and report.quarantined == 4
    assert reasons_of(quarantine) == {
        "o3": ["temp: above 50"],
        "o4": ["temp: below -40"],
        "o5": ["temp: infinite"],
        "o6": ["wind: infinite"],
    }
    temp = next(failure for failure in report.failures if failure.column == "temp")
    assert (temp.rows, temp.expectation) == (3, "expect_column_values_to_be_between")
    assert temp.text == "temp: above 50, below -40, infinite in 3 of 100 rows (3.00%)"


def test_forbidden_missing_values_are_quarantined(rows, window, config):
    rows.loc[[1, 2], "temp"] = np.nan
    rows.loc[2, "carrier"] = None
    report, quarantine = check(rows, window, config)
    assert not report.broken
    assert reasons_of(quarantine) == {"o1": ["temp: missing"], "o2": ["temp: missing", "carrier: missing"]}


def test_allowed_missing_values_are_limited_by_their_share(rows, window, config):
    rows.loc[:19, "wind"] = np.nan
    report, quarantine = check(rows, window, config)
    assert report.failures == () and quarantine.empty
    rows.loc[20, "wind"] = np.nan
    report, quarantine = check(rows, window, config)
    assert fatal(report) == ["wind: missing in 21 of 100 rows (21.00%); at most 0.2 of the window may"]
    assert quarantine.empty


def test_column_without_any_value(rows, window, configured):
    config = configured(columns={"temp": {"type": "number", "max": 50, "max_missing": 1.0}})
    for nothing in (None, np.nan):
        report, _ = check(rows[["observation_id", "observed_at"]].assign(temp=nothing), window, config)
        assert report.failures == ()


def test_unknown_categories_are_quarantined_and_limited(rows, window, config):
    rows.loc[:9, "carrier"] = "ZZ"
    report, quarantine = check(rows, window, config)
    assert not report.broken and report.quarantined == 10
    assert reasons_of(quarantine)["o0"] == ["carrier: unknown value 'ZZ'"]
    rows.loc[10, "carrier"] = "QQ"
    report, quarantine = check(rows, window, config)
    assert report.broken and report.quarantined == 11
    assert fatal(report)[0].startswith("carrier: unknown value 'ZZ', unknown value 'QQ' in 11 of 100 rows")


def test_unknown_values_are_refused_by_default(rows, window, configured):
    config = configured(columns={"carrier": {"type": "category", "values": ["AA", "DL", "UA"]}})
    rows.loc[0, "carrier"] = "ZZ"
    report, _ = check(rows, window, config)
    assert report.broken


def test_duplicate_and_missing_ids(rows, window, config):
    rows.loc[7, "observation_id"] = "o6"
    rows.loc[8, "observation_id"] = None
    report, quarantine = check(rows, window, config)
    assert not report.broken and report.quarantined == 3
    assert quarantine["reasons"].tolist() == [
        ["observation_id: duplicate"],
        ["observation_id: duplicate"],
        ["observation_id: missing"],
    ]
    assert rows["observation_id"].isin(quarantine["observation_id"]).sum() == 3


def test_times_outside_the_window_are_quarantined(rows, window, config):
    rows.loc[0, "observed_at"] = window.start - pd.Timedelta("1s")
    rows.loc[1, "observed_at"] = pd.Timestamp(window.end)
    rows.loc[2, "observed_at"] = pd.NaT
    rows.loc[3, "observed_at"] = pd.Timestamp(window.start).tz_convert("America/New_York")
    report, quarantine = check(rows, window, config)
    assert not report.broken
    assert reasons_of(quarantine) == {
        "o0": ["observed_at: outside the window"],
        "o1": ["observed_at: outside the window"],
        "o2": ["observed_at: missing"],
    }
    moved = rows.assign(observed_at=rows["observed_at"].dt.tz_convert("America/New_York"))
    assert check(moved, window, config)[0].quarantined == 3


def test_too_many_bad_rows_refuse_the_window(rows, window, config):
    rows.loc[:9, "temp"] = 99
    assert not check(rows, window, config)[0].broken
    rows.loc[10, "temp"] = 99
    report, quarantine = check(rows, window, config)
    assert fatal(report) == ["11 of 100 rows (11.00%) are bad; at most 0.1 of the window may: temp: above 50 (11)"]
    assert report.failures[0].expectation == "max_bad_rows" and len(quarantine) == 11


def test_share_equal_to_its_limit_is_allowed(rows, window, configured):
    config = configured(max_bad_rows=0.29)
    rows.loc[:28, "temp"] = 99
    assert check(rows, window, config)[0].failures[0].rows == 29
    assert not check(rows, window, config)[0].broken


def test_concurrent_checks_in_threads_are_independent(rows, window, config):
    windows = [rows.assign(temp=[99.0] * bad + [20.0] * (100 - bad)) for bad in range(8)]
    with ThreadPoolExecutor(4) as pool:
        reports = pool.map(lambda window_rows: check(window_rows, window, config)[0], windows)
    assert [report.quarantined for report in reports] == list(range(8))


@pytest.mark.parametrize("index", ["shuffled", "repeated", "times", "two_levels"])
def test_index_of_any_type_is_accepted(rows, window, config, index):
    rows.loc[[3, 50], "temp"] = 99
    rows.index = {
        "shuffled": pd.Index(np.random.default_rng(1).permutation(100)),
        "repeated": pd.Index([7] * 100),
        "times": pd.DatetimeIndex(rows["observed_at"]),
        "two_levels": pd.MultiIndex.from_arrays([range(100), ["x"] * 100]),
    }[index]
    report, quarantine = check(rows, window, config)
    assert report.quarantined == 2
    assert reasons_of(quarantine) == {"o3": ["temp: above 50"], "o50": ["temp: above 50"]}
    assert quarantine.index.equals(rows.index[[3, 50]])


def test_categorical_and_unhashable_values_raise_no_error(rows, window, config):
    report, _ = check(rows.astype({"carrier": "category", "dest": "category"}), window, config)
    assert report.failures == ()
    assert check(rows.assign(carrier=[["AA"]] * 100), window, config)[0].broken
    assert check(rows.assign(observation_id=[["a"]] * 100), window, config)[0].broken
    assert check(rows.rename(columns={"temp": 3}), window, config)[0].broken


def test_great_expectations_analytics_are_off(rows, window, config):
    check(rows, window, config)
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_wide_window_loses_only_its_bad_rows(window, configured):
    rng = np.random.default_rng(0)
    n = 6500
    numbers, categories = [f"n{i}" for i in range(22)], [f"c{i}" for i in range(8)]
    config = configured(
        columns={name: {"type": "number", "min": -9, "max": 9} for name in numbers}
        | {name: {"type": "category", "values": list("abcdef"), "max_unknown": 0.1} for name in categories}
    )
    rows = pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(n)],
            "observed_at": pd.date_range(window.start, periods=n, freq="1min"),
        }
        | {name: rng.normal(size=n) for name in numbers}
        | {name: rng.choice(list("abcdef"), n) for name in categories}
    )
    rows.loc[:50, "n0"] = 99
    assert check(rows, window, config)[0].quarantined == 51


# --------------------------------------------------------------------------- texts


@pytest.fixture
def texts(rows):
    return rows.assign(said=[f"a taxi at {i}" for i in range(100)])[["observation_id", "observed_at", "said"]]


def text_config(configured, **column):
    return configured(student="text", columns={"said": {"type": "text", **column}})


@pytest.mark.parametrize("dtype", ["str", "object", "string"])
def test_good_texts_pass(texts, window, configured, dtype):
    report, quarantine = check(texts.astype({"said": dtype}), window, text_config(configured, max_length=12))
    assert report.failures == () and quarantine.empty


@pytest.mark.parametrize("nothing", ["", " \t\u00a0", None])
def test_empty_text_counts_as_missing(texts, window, configured, nothing):
    texts.loc[[3, 4], "said"] = nothing
    report, quarantine = check(texts, window, text_config(configured))
    assert reasons_of(quarantine) == {"o3": ["said: missing"], "o4": ["said: missing"]} and not report.broken
    report, quarantine = check(texts, window, text_config(configured, max_missing=0.02))
    assert report.failures == () and quarantine.empty
    report, _ = check(texts, window, text_config(configured, max_missing=0.01))
    assert fatal(report) == ["said: missing in 2 of 100 rows (2.00%); at most 0.01 of the window may"]


def test_too_long_text_is_quarantined(texts, window, configured):
    texts.loc[7, "said"] = "a" * 13
    report, quarantine = check(texts, window, text_config(configured, max_length=12))
    assert reasons_of(quarantine) == {"o7": ["said: longer than 12 characters"]}
    assert [failure.text for failure in report.failures] == ["said: longer than 12 characters in 1 of 100 rows (1.00%)"]


@pytest.mark.parametrize("wrong", [list(range(100)), ["a", 3] * 50])
def test_values_that_are_no_text_are_refused(texts, window, configured, wrong):
    report, _ = check(texts.assign(said=wrong), window, text_config(configured))
    assert len(fatal(report)) == 1 and fatal(report)[0].startswith("said: must hold text, holds")
