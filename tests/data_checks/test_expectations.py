"""The drift expectation in any suite, and in the suite of the contract, where drift is only noted."""

from __future__ import annotations

import json
from pathlib import Path

import great_expectations as gx
import numpy as np
import pandas as pd
import pytest
from great_expectations.core.batch_definition import BatchDefinition

from data_checks.check import check
from data_checks.expectations import ExpectColumnDriftToBeBelow, inline
from data_checks.suite import build_suite
from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift import distances, scan
from stillhouse.drift.profile import Profile

COLUMNS = {"temp": NumberColumn(type="number"), "dest": CategoryColumn(type="category")}


def frame(seed: int, shift: float = 0.0, missing: float = 0.0, dests: str = "ABC") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    temp = np.where(rng.random(2000) < missing, np.nan, rng.normal(shift, 2, 2000))
    return pd.DataFrame({"temp": temp, "dest": rng.choice(list(dests), 2000)})


@pytest.fixture(scope="module")
def reference() -> Profile:
    return scan.profile_frame(frame(0), COLUMNS)


@pytest.fixture(scope="module")
def batches() -> BatchDefinition:
    context = gx.get_context(mode="ephemeral")
    asset = context.data_sources.add_pandas("any").add_dataframe_asset("frame")
    return asset.add_batch_definition_whole_dataframe("whole")


def test_expectation_and_engine_measure_the_same_drift(batches, reference):
    now = frame(1, shift=1.0, missing=0.1)
    batch = batches.get_batch({"dataframe": now})
    result = batch.validate(ExpectColumnDriftToBeBelow(column="temp", reference=inline(reference), psi=0.1, ks=0.9))
    current = scan.profile_frame(now, COLUMNS, like=reference)
    expected = distances.measure_column("temp", reference.columns["temp"], current.columns["temp"])
    assert not result.success and result.result["observed_value"] == pytest.approx(expected.psi)
    details = result.result["details"]
    assert (details["beyond"], details["limits"]) == (["psi"], {"psi": 0.1, "ks": 0.9})
    assert details["effect"] == pytest.approx(expected.effect) and details["ks"] == pytest.approx(expected.ks)
    assert details["missing_current"] == now["temp"].isna().mean()
    for side in (1, 2):
        assert sum(bin[side] for bin in details["bins"]) == pytest.approx(1)
    assert json.loads(json.dumps(result.to_json_dict()))["result"]["details"]["beyond"] == ["psi"]


def test_same_distribution_passes_and_another_fails(batches, reference):
    same, other = (batches.get_batch({"dataframe": rows}) for rows in (frame(2), frame(3, shift=2, dests="CD")))
    for limits in ({"psi": 0.1}, {"effect": 0.3}, {"ks": 0.1, "wasserstein": 0.5}):
        expectation = ExpectColumnDriftToBeBelow(column="temp", reference=inline(reference), **limits)
        assert same.validate(expectation).success and not other.validate(expectation).success
    expectation = ExpectColumnDriftToBeBelow(column="dest", reference=inline(reference, "dest"), effect=0.1)
    assert same.validate(expectation).success
    details = other.validate(expectation).result["details"]
    assert (details["unseen"], sorted(details["vanished"])) == (["D"], ["A", "B"])


def test_changed_reference_file_is_read_again(batches, reference, tmp_path: Path):
    file = tmp_path / "reference.arrow"
    file.write_bytes(reference.to_bytes())
    batch = batches.get_batch({"dataframe": frame(4, shift=3)})
    expectation = ExpectColumnDriftToBeBelow(column="temp", reference=str(file), psi=0.1)
    assert not batch.validate(expectation).success
    file.write_bytes(scan.profile_frame(frame(5, shift=3), COLUMNS).to_bytes())
    assert batch.validate(expectation).success


def test_limits_may_be_suite_parameters(batches, reference):
    suite = gx.ExpectationSuite(name="drift")
    suite.add_expectation(
        ExpectColumnDriftToBeBelow(column="temp", reference=inline(reference), psi={"$PARAMETER": "limit"})
    )
    batch = batches.get_batch({"dataframe": frame(6, shift=0.5)})
    for limit, holds in ((0.001, False), (1.0, True)):
        assert batch.validate(suite, expectation_parameters={"limit": limit}).success is holds


def test_invalid_limits_and_references_are_refused(batches, reference):
    with pytest.raises(ValueError, match="give a limit: psi, ks, effect, wasserstein"):
        ExpectColumnDriftToBeBelow(column="temp", reference=inline(reference))
    batch = batches.get_batch({"dataframe": frame(7).assign(wind=1.0)})
    for column, limits, said in (
        ("dest", {"ks": 0.1}, "a category has no ks"),
        ("wind", {"psi": 0.1}, "the reference profile has no column 'wind'; it has: temp, dest"),
    ):
        result = batch.validate(ExpectColumnDriftToBeBelow(column=column, reference=inline(reference), **limits))
        assert not result.success and said in str(result.exception_info)


# --------------------------------------------------------------------------- in the suite of the contract


@pytest.fixture
def champion(rows, config) -> Profile:
    return scan.profile_frame(rows, config.observations.columns)


def test_drift_is_only_noted(rows, window, config, champion):
    report, _ = check(rows, window, config, reference=champion, limits={})
    assert report.failures == ()
    report, bad = check(rows.assign(temp=rows["temp"] + 15), window, config, reference=champion)
    assert not report.broken and bad.empty
    (noted,) = report.failures
    assert (noted.expectation, noted.column, noted.rows) == ("expect_column_drift_to_be_below", "temp", 0)
    assert noted.text.startswith("temp: PSI ") and noted.text.endswith("; the limit of the PSI is 0.25")


def test_limits_default_to_the_threshold(config, configured, champion):
    suite = build_suite(config, "drift", reference=champion, limits={"temp": 0.9})
    assert {e.column: e.psi for e in suite.expectations} == {"temp": 0.9, "wind": 0.25, "carrier": 0.25, "dest": 0.25}
    unwatched = configured(columns={"temp": {"type": "number", "drift": False}, "wind": {"type": "number"}})
    assert [e.column for e in build_suite(unwatched, "drift", reference=champion).expectations] == ["wind"]
    assert build_suite(config, "drift").expectations == []


def test_drift_is_measured_without_the_bad_rows(rows, window, config, champion):
    rows.loc[:8, "temp"] = 1000.0
    report, bad = check(rows, window, config, reference=champion, limits={"temp": 0.15})
    assert len(bad) == 9 and [failure.column for failure in report.failures] == ["temp"]
