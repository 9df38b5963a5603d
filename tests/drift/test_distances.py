"""Distances against hand-worked examples and scipy."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift.distances import compare, ks, number_drift, psi
from stillhouse.drift.profile import build, number_profile
from stillhouse.errors import SchemaError, WindowError


def test_psi_worked_by_hand():
    """Two bins, so one pseudo-row a side, spread 130 : 70. p = 50.65/101, 50.35/101; q = 80.65/101, 20.35/101."""
    by_hand = 30 / 101 * math.log(80.65 / 50.65) + 30 / 101 * math.log(50.35 / 20.35)
    assert by_hand == pytest.approx(0.40727, abs=1e-4)
    assert psi(np.array([50, 50]), np.array([80, 20])) == pytest.approx(by_hand)


def test_psi_of_many_rows_is_the_textbook_formula():
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.25, 0.25, 0.25, 0.25])
    textbook = float(np.sum((q - p) * np.log(q / p)))
    assert psi(p * 1e9, q * 1e9) == pytest.approx(textbook, rel=1e-6)


def test_psi_properties():
    p, q = np.array([10, 0, 40, 50]), np.array([0, 5, 10, 3])
    assert psi(p, q) == pytest.approx(psi(q, p))
    assert psi(p, p) == 0 and psi(p, 10 * p) < 0.01
    assert psi(p, q) == pytest.approx(psi(np.append(p, 0), np.append(q, 0)))
    assert 0 < psi(np.array([10**6, 0]), np.array([0, 10**6])) < 50
    assert psi(p, np.zeros(4)) == pytest.approx(0, abs=1e-12) and psi(np.zeros(4), np.zeros(4)) == 0


def test_psi_of_a_tiny_sample_does_not_explode():
    assert psi(np.full(10, 1000), np.array([1] + [0] * 9)) < 0.25


def test_psi_without_shift_stays_small():
    rng = np.random.default_rng(1)
    reference = number_profile(rng.lognormal(size=20_000))
    values = [number_drift("x", reference, rng.lognormal(size=1000)).psi for _ in range(50)]
    assert max(values) < 0.05


@pytest.mark.parametrize(
    "shift", [lambda x: x, lambda x: x + 0.1, lambda x: 2 * x, lambda x: x + 10, lambda x: x * 0 + 0.0333]
)
def test_ks_is_near_scipy_for_continuous_columns(shift):
    rng = np.random.default_rng(2)
    reference, current = rng.normal(size=30_000), shift(rng.normal(size=3000))
    found = number_drift("x", number_profile(reference), current).ks
    exact = ks_2samp(reference, current).statistic
    assert exact - 1 / 256 - 1e-9 <= found <= exact + 1e-12


def test_ks_is_scipys_for_few_distinct_values():
    rng = np.random.default_rng(3)
    reference, current = rng.poisson(6, 5000).astype(float), rng.poisson(7, 900).astype(float)
    reference, current = reference.clip(0, 12), current.clip(0, 12)
    found = number_drift("x", number_profile(reference), current).ks
    assert found == pytest.approx(ks_2samp(reference, current).statistic, abs=1 / 256)


@pytest.mark.parametrize("moved_to", [-0.001, 0.001])
def test_a_constant_that_moves_is_seen_on_either_side(moved_to):
    drift = number_drift("rain", number_profile(np.zeros(1000)), np.full(1000, moved_to))
    assert drift.ks == 1.0 and drift.psi > 5


def test_ks_of_counts():
    assert ks(np.array([1, 1, 0]), np.array([0, 1, 1])) == 0.5
    with pytest.raises(WindowError):
        ks(np.array([1]), np.array([0]))


def reference_frame(n: int = 4000) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    return pd.DataFrame({"temp": rng.normal(20, 5, n), "carrier": rng.choice(["AA", "DL", "UA"], n)})


COLUMNS = {"temp": NumberColumn(type="number"), "carrier": CategoryColumn(type="category")}


def test_compare_reports_shift_missing_and_unseen():
    reference = reference_frame()
    current = reference_frame(1000).set_index(np.arange(1000)[::-1] * 7)
    current.loc[current.index[:300], "temp"] = np.nan
    current.loc[current.index[:100], "carrier"] = "ZZ"
    current.loc[current.index[100:120], "carrier"] = None
    temp, carrier = compare(build(reference, COLUMNS), current.assign(extra=1))
    assert (temp.column, temp.kind, temp.missing_reference, temp.missing_current) == ("temp", "number", 0.0, 0.3)
    assert temp.psi > 0.25 and temp.ks is not None and temp.ks < 0.06
    assert (carrier.kind, carrier.ks, carrier.unseen, carrier.missing_current) == ("category", None, ("ZZ",), 0.02)
    assert carrier.psi > 0.25
    same = compare(build(reference, COLUMNS), reference)
    assert [column.psi for column in same] == [0, 0] and same[0].ks == 0


def test_thousands_of_values_do_not_drift_by_the_windows_size():
    rng = np.random.default_rng(5)
    planes = pd.Series(rng.integers(0, 3000, 60_000).astype(str))
    profile = build(planes.to_frame("carrier"), {"carrier": COLUMNS["carrier"]})
    same, other = rng.integers(0, 3000, 2000), rng.integers(0, 6000, 2000)
    drifts = [compare(profile, pd.DataFrame({"carrier": values.astype(str)}))[0] for values in (same, other)]
    assert drifts[0].psi < 0.15 and drifts[1].psi > 1


def test_all_missing_has_psi_but_no_ks():
    found = number_drift("x", number_profile(np.arange(100.0)), np.full(50, np.nan))
    assert found.ks is None and found.psi > 1 and found.missing_current == 1


def test_unusable_frames():
    profile = build(reference_frame(), COLUMNS)
    with pytest.raises(WindowError):
        compare(profile, reference_frame().iloc[:0])
    with pytest.raises(SchemaError, match="carrier"):
        compare(profile, reference_frame().drop(columns="carrier"))
    with pytest.raises(SchemaError, match="temp"):
        compare(profile, reference_frame().assign(temp="warm"))
