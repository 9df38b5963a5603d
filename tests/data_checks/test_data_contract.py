"""The engine's own check of a data contract gives the same failures and bad rows as Great Expectations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import data_checks.check
from stillhouse import data_contract
from stillhouse.config import AgentConfig
from stillhouse.data_contract import count_by_rule, examine
from stillhouse.records import DataReport, Window

COLUMNS = {
    "temp": {"type": "number", "min": -40, "max": 50, "max_missing": 0.2},
    "wind": {"type": "number"},
    "carrier": {"type": "category", "values": ["AA", "DL", "UA"], "max_unknown": 0.1},
    "dest": {"type": "category", "max_missing": 0.5},
    "note": {"type": "text", "max_length": 10},
}
PROMISES: dict[str, Any] = {
    "columns": COLUMNS,
    "rules": [
        {"type": "ordered", "low": "wind", "high": "temp", "max_broken": 0.05},
        {"type": "pairs", "columns": ["carrier", "dest"], "allowed": [["AA", "LAX"], ["DL", "BOS"]], "max_broken": 0.9},
        {"type": "range_when", "column": "wind", "max": 3, "when": {"column": "carrier", "values": ["DL"]}},
        {"type": "present_when", "column": "dest", "when": {"column": "wind", "min": 7, "max": 8}, "max_broken": 0.5},
    ],
    "unique": [["wind"], ["observed_at", "carrier", "dest"]],
    "freshness": "3d",
    "volume": {"min_per_day": 13, "max_per_day": 14.5},
}


def _set(rows: pd.DataFrame, column: str, some: Any, value: Any) -> pd.DataFrame:
    rows = rows.astype({column: object}) if rows[column].dtype.kind not in "fM" else rows.copy()
    rows.loc[some, column] = value
    return rows


DAMAGE: dict[str, Any] = {
    "nothing": lambda rows: rows,
    "no rows": lambda rows: rows.iloc[:0],
    "a column is missing": lambda rows: rows.drop(columns=["temp", "observed_at"]),
    "a column too many": lambda rows: rows.assign(gate=1, content_key="k"),
    "twins": lambda rows: pd.concat([rows, rows[["temp"]]], axis=1),
    "numbers as text": lambda rows: rows.assign(temp="warm"),
    "times without a zone": lambda rows: rows.assign(observed_at=rows["observed_at"].dt.tz_localize(None)),
    "a text that is a number": lambda rows: _set(rows, "note", [3], 4.5),
    "whole numbers": lambda rows: rows.assign(temp=pd.Series([20] * 99 + [60]).astype("Int64")),
    "out of range": lambda rows: _set(_set(rows, "temp", [1], 50.5), "temp", [2, 3], -41),
    "infinite": lambda rows: _set(_set(rows, "wind", [1], np.inf), "temp", [2], -np.inf),
    "missing, allowed": lambda rows: _set(rows, "temp", range(20), np.nan),
    "missing, too many": lambda rows: _set(rows, "temp", range(21), np.nan),
    "missing, none allowed": lambda rows: _set(_set(rows, "wind", [4], np.nan), "carrier", [4, 5], None),
    "unknown": lambda rows: _set(rows, "carrier", range(3, 9), "ZZ | [x]"),
    "unknown, too many": lambda rows: _set(rows, "carrier", range(3, 20), "ZZ"),
    "empty and long texts": lambda rows: _set(_set(rows, "note", [1], "  "), "note", [2], "x" * 11),
    "repeated ids": lambda rows: _set(rows, "observation_id", [1, 2, 9], "o7"),
    "no id": lambda rows: _set(rows, "observation_id", [1, 2], None),
    "outside the window": lambda rows: _set(rows, "observed_at", [5], pd.Timestamp("2013-05-31", tz="UTC")),
    "no time": lambda rows: _set(rows, "observed_at", [5], pd.NaT),
    "one above another": lambda rows: _set(rows, "wind", [3, 4], [12.0, 13.0]),
    "one above another, too often": lambda rows: rows.assign(wind=rows["temp"] + 1),
    "pairs": lambda rows: _set(rows, "dest", [0, 3, 5], ["BOS", "JFK", None]),
    "range where": lambda rows: _set(
        _set(_set(rows, "carrier", [3, 4], "DL"), "dest", [3, 4], "BOS"), "wind", [3, 4], [5.0, 6.0]
    ),
    "present where": lambda rows: _set(_set(rows, "wind", [3, 4], [7.5, 7.75]), "dest", [3, 4], None),
    "twice": lambda rows: _set(rows, "wind", [3, 4], [1.5, 1.5]),
    "together twice": lambda rows: rows.assign(observed_at=rows["observed_at"].where(rows.index != 9).bfill()),
    "stale": lambda rows: rows.assign(observed_at=rows["observed_at"] - pd.Timedelta(hours=10)),
    "too few": lambda rows: rows.iloc[:80],
    "too many": lambda rows: pd.concat(
        [
            rows,
            rows.assign(
                observation_id="x" + rows["observation_id"],
                observed_at=rows["observed_at"] + pd.Timedelta(minutes=1),
                wind=rows["wind"] + 0.001,
            ),
        ],
        ignore_index=True,
    ),
    "all of it": lambda rows: rows.assign(temp=99.0, carrier="ZZ", dest=None, note=""),
}


@pytest.fixture
def sound(rows: pd.DataFrame) -> pd.DataFrame:
    more = {"temp": 10.0, "wind": np.arange(100) / 100, "carrier": "AA", "dest": "LAX", "note": "fine"}
    return rows[["observation_id", "observed_at"]].assign(**more)


@pytest.mark.parametrize("what", DAMAGE)
def test_engine_and_great_expectations_find_the_same_failures(
    what: str, sound: pd.DataFrame, window, configured
) -> None:
    report = _require_agreement(DAMAGE[what](sound), window, configured(student="text", **PROMISES))
    assert (not report.failures) == (what in ("nothing", "missing, allowed"))


@pytest.mark.parametrize("seed", range(8))
def test_engine_and_great_expectations_agree_on_random_rows_and_contracts(seed: int, window, configured) -> None:
    rng = np.random.default_rng(seed)
    config = configured(student="text", **_random_contract(rng))
    report = _require_agreement(_random_rows(rng, window), window, config)
    assert report.quarantined, "rows that break nothing would compare nothing"


def _require_agreement(frame: pd.DataFrame, window: Window, config: AgentConfig) -> DataReport:
    """Compare failures, bad rows and reasons of engine and suite; return the suite's report."""
    before = frame.copy()
    suite, suite_bad = data_checks.check.check(frame, window, config)
    engine, engine_bad = data_contract.check(frame, window, config)
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(engine_bad, suite_bad)
    assert [_comparable(failure) for failure in engine.failures] == [_comparable(failure) for failure in suite.failures]
    ignored = {"failures", "seconds"}
    assert engine.model_dump(exclude=ignored) == suite.model_dump(exclude=ignored)
    assert engine.broken == suite.broken and engine.quarantined == len(engine_bad)
    assert examine(frame, window, config.observations).failures == engine.failures
    return suite


def _random_contract(rng: np.random.Generator) -> dict[str, Any]:
    """Return the contract's rules with random limits; each rule is present with probability 0.5."""
    shares = rng.choice([0.0, 0.1, 0.3, 0.6, 1.0], 5).tolist()
    columns = {
        "temp": {**COLUMNS["temp"], "max_missing": shares[0]},
        "wind": {"type": "number", "max_missing": shares[1]},
        "carrier": {**COLUMNS["carrier"], "max_unknown": shares[2], "max_missing": shares[3]},
        "dest": COLUMNS["dest"],
        "note": {**COLUMNS["note"], "max_missing": shares[4]},
    }
    rules = [
        {**rule, "max_broken": float(rng.choice([0.0, 0.2, 1.0]))} for rule in PROMISES["rules"] if rng.random() < 0.5
    ]
    unique = [names for names in [*PROMISES["unique"], ["note"]] if rng.random() < 0.5]
    hours = int(rng.integers(1, 200))
    volume = {"min_per_day": float(rng.uniform(0, 8)), "max_per_day": float(rng.uniform(8, 16))}
    limit = float(rng.choice([0.2, 0.8, 1.0]))
    return {
        "columns": columns,
        "rules": rules,
        "unique": unique,
        "freshness": f"{hours}h",
        "volume": volume,
        "max_bad_rows": limit,
    }


def _random_rows(rng: np.random.Generator, window: Window) -> pd.DataFrame:
    """Return up to 90 rows whose values may be good, missing or wrong, with an unordered index."""
    n = int(rng.integers(1, 90))
    ids = np.array([f"o{number}" for number in range(int(n * 1.5) + 1)] + [None], dtype=object)
    times = pd.Series(pd.Timestamp(window.start) + pd.to_timedelta(rng.integers(-6, 175, n), unit="h"))
    frame = pd.DataFrame(
        {
            "observation_id": rng.choice(ids, n),
            "observed_at": times.mask(rng.random(n) < 0.05),
            "temp": rng.choice([-41.0, -40.0, 3.0, 7.5, 50.0, 50.5, np.inf, np.nan], n),
            "wind": rng.choice([*np.arange(0, 9, 0.25), -np.inf, np.nan], n),
            "carrier": rng.choice(np.array(["AA", "DL", "UA", "ZZ", "Q'Q", None], dtype=object), n),
            "dest": rng.choice(np.array(["LAX", "BOS", None], dtype=object), n),
            "note": rng.choice(np.array(["fine", "well", "", " ", "x" * 10, "x" * 11, None], dtype=object), n),
        }
    )
    dtype = rng.choice(["object", "string", "category"])
    return frame.astype({"carrier": dtype, "dest": dtype}).set_index(rng.permutation(n))


def _comparable(failure: Any) -> dict[str, Any]:
    """Remove the observed type from the text, because each library describes it in its own words."""
    return failure.model_dump() | {"text": failure.text.partition(", holds ")[0]}


def test_refused_window_names_columns_and_rules(sound: pd.DataFrame, window, configured) -> None:
    config = configured(student="text", columns=COLUMNS)
    result = examine(sound.assign(temp=99.0, note=["x" * 11] * 30 + ["y"] * 70), window, config.observations)
    assert result.refused == (
        "100 of 100 rows (100.00%) are bad; at most 0.1 of the window may: temp: above 50 (100), "
        "note: longer than 10 characters (30)",
    )


def test_reasons_are_counted_by_rule_without_values() -> None:
    reasons = [
        ["temp: above 50", "carrier: unknown value 'ZZ: 3'"],
        ['carrier: unknown value "it\'s"', "carrier/dest: not an allowed pair: AA, B: C"],
        ["log.csv:12: temp: 'a: b' is no number"],
        ["log.csv:13: has 3 values, and there are 7 columns"],
    ]
    assert count_by_rule(reasons) == {
        ("carrier", "unknown value"): 2,
        ("temp", "above 50"): 1,
        ("carrier/dest", "not an allowed pair"): 1,
        ("temp", "is no number"): 1,
        ("", "has 3 values, and there are 7 columns"): 1,
    }
