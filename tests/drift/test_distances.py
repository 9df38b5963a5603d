"""Distances compared with examples computed by hand, and with scipy and numpy on the raw rows."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import ks_2samp, wasserstein_distance

from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift import profile as profiles
from stillhouse.drift import tally
from stillhouse.drift.distances import compare_profiles, count_psi_bins, ks, measure_column, psi, psi_bin_edges
from stillhouse.drift.profile import CategoryProfile, Profile
from stillhouse.drift.scan import profile_frame, profile_numbers, scan
from stillhouse.errors import SchemaError, WindowError
from stillhouse.records import ColumnDrift


def drift_of(reference: np.ndarray, current: np.ndarray) -> ColumnDrift:
    return measure_column("x", profile_numbers(reference), profile_numbers(current))


def exact_psi(reference: np.ndarray, current: np.ndarray) -> float:
    """PSI on bins between numpy's quantiles, with a bin for each atom and one for missing values."""
    sides = [values[~np.isnan(values)] for values in (reference, current)]
    finite = sides[0][np.isfinite(sides[0])]
    quantiles, repeats = np.unique(
        np.quantile(finite, np.arange(1, 10) / 10, method="inverted_cdf"), return_counts=True
    )
    edges = np.union1d(quantiles, np.nextafter(quantiles[repeats > 1], -np.inf))
    counts = [np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) for side in sides]
    missing = [len(reference) - len(sides[0]), len(current) - len(sides[1])]
    return psi(np.append(counts[0], missing[0]), np.append(counts[1], missing[1]))


# --------------------------------------------------------------------------- the formulas


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
    reference = profile_numbers(rng.lognormal(size=20_000))
    values = [measure_column("x", reference, profile_numbers(rng.lognormal(size=1000))).psi for _ in range(50)]
    assert max(values) < 0.05


def test_ks_of_counts():
    assert ks(np.array([1, 1, 0]), np.array([0, 1, 1])) == 0.5
    with pytest.raises(WindowError):
        ks(np.array([1]), np.array([0]))


# --------------------------------------------------------------------------- numbers, against the raw rows

Shift = Callable[[np.random.Generator, int], np.ndarray]
PAIRS: dict[str, tuple[Shift, Shift]] = {
    "normal": (lambda rng, n: rng.normal(size=n), lambda rng, n: rng.normal(0.2, 1.1, n)),
    "lognormal": (lambda rng, n: rng.lognormal(0, 1.5, n), lambda rng, n: rng.lognormal(0.2, 1.5, n)),
    "exponential": (lambda rng, n: rng.exponential(1, n), lambda rng, n: rng.exponential(1.2, n)),
    "pareto": (lambda rng, n: 1 + rng.pareto(1.5, n), lambda rng, n: 1 + rng.pareto(1.8, n)),
    "cauchy": (lambda rng, n: rng.standard_cauchy(n), lambda rng, n: rng.standard_cauchy(n) + 0.3),
    "uniform": (lambda rng, n: rng.random(n), lambda rng, n: rng.random(n) ** 1.2),
    "zero-inflated": (
        lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.exponential(2, n)),
        lambda rng, n: np.where(rng.random(n) < 0.8, 0.0, rng.exponential(2, n)),
    ),
    "rounded": (lambda rng, n: np.round(rng.normal(12, 8, n), 1), lambda rng, n: np.round(rng.normal(13, 8, n), 1)),
    "integers": (lambda rng, n: rng.poisson(4, n) * 1.0, lambda rng, n: rng.poisson(4.4, n) * 1.0),
    "many integers": (
        lambda rng, n: rng.integers(0, 10**6, n) * 1.0,
        lambda rng, n: rng.integers(0, 1_100_000, n) * 1.0,
    ),
    "moments": (lambda rng, n: 1.7e9 + rng.uniform(0, 2.6e6, n), lambda rng, n: 1.7e9 + rng.uniform(1e6, 3.6e6, n)),
    "narrow and far from zero": (lambda rng, n: rng.normal(1013, 8, n), lambda rng, n: rng.normal(1015, 8, n)),
    "huge": (lambda rng, n: 1e300 * rng.normal(size=n), lambda rng, n: 1e300 * rng.normal(0.3, 1, n)),
    "tiny": (lambda rng, n: 1e-300 * rng.normal(size=n), lambda rng, n: 1e-300 * rng.normal(0.3, 1, n)),
    "negative": (lambda rng, n: -rng.lognormal(0, 2, n), lambda rng, n: -rng.lognormal(0.3, 2, n)),
    "one outlier": (lambda rng, n: np.r_[1e12, rng.normal(size=n - 1)], lambda rng, n: rng.normal(0.3, 1, n)),
    "missing": (
        lambda rng, n: np.where(rng.random(n) < 0.05, np.nan, rng.normal(size=n)),
        lambda rng, n: np.where(rng.random(n) < 0.1, np.nan, rng.normal(0.1, 1, n)),
    ),
}


@pytest.mark.parametrize("rows", [(200, 90), (60_000, 30_000)], ids=["few rows", "many rows"])
@pytest.mark.parametrize("pair", PAIRS)
def test_distances_of_numbers_agree_with_those_of_the_raw_rows(pair, rows):
    """KS within .001, Wasserstein-1 and PSI within 1 %; exact if every value is stored exactly."""
    rng = np.random.default_rng(3)
    reference, current = (draw(rng, n) for draw, n in zip(PAIRS[pair], rows, strict=True))
    drift = drift_of(reference, current)
    present = [values[~np.isnan(values)] for values in (reference, current)]
    exactly = rows[0] < 8_000
    assert drift.ks == pytest.approx(ks_2samp(*present).statistic, rel=0, abs=1e-12 if exactly else 1e-3)
    assert drift.wasserstein == pytest.approx(wasserstein_distance(*present), rel=1e-9 if exactly else 1e-2)
    assert drift.psi == pytest.approx(exact_psi(reference, current), rel=1e-9 if exactly else 1e-2)
    scale = np.abs(present[0]).max()  # otherwise the squares of huge values overflow
    assert drift.effect == pytest.approx(drift.wasserstein / (np.std(present[0] / scale) * scale), rel=1e-2)


def test_ks_is_too_small_by_at_most_the_largest_cell():
    rng = np.random.default_rng(4)
    for _ in range(20):
        reference = np.exp(rng.normal(0, rng.uniform(0, 30), 30_000))
        current = np.exp(rng.normal(0, rng.uniform(0, 30), 30_000))
        first, second = profile_numbers(reference), profile_numbers(current)
        coarser = max(first.shift, second.shift)
        largest = max(side.coarsen(coarser + 1).counts.max() / side.rows for side in (first, second))
        drift, exact = measure_column("x", first, second).ks, ks_2samp(reference, current).statistic
        assert exact - largest - 1e-12 <= drift <= exact + 1e-12


@pytest.mark.parametrize("moved_to", [-0.001, 0.001])
def test_a_constant_that_moves_is_detected_in_both_directions(moved_to):
    drift = drift_of(np.zeros(1000), np.full(1000, moved_to))
    assert drift.ks == 1.0 and drift.psi > 5
    assert drift.wasserstein == pytest.approx(0.001) and drift.effect == pytest.approx(2)
    still = drift_of(np.full(10, 4.0), np.full(7, 4.0))
    assert (still.psi, still.ks, still.wasserstein, still.effect) == (0, 0, 0, 0)


def test_infinities_count_for_ks_and_psi_but_have_no_distance():
    values = np.arange(1000.0)
    drift = drift_of(np.append(values, np.inf), np.r_[values, np.full(200, np.inf), -np.inf])
    assert drift.ks == pytest.approx(200 / 1201 - 1 / 1001, abs=2e-3) and drift.psi > 0.05
    assert drift.wasserstein == 0 and drift.effect == 0
    only = drift_of(values, np.array([np.inf]))
    assert only.ks == 1.0 and only.wasserstein is None


def test_extremes_do_not_overflow():
    drift = drift_of(np.array([-1.7e308, -1.6e308]), np.array([1.6e308, 1.7e308]))
    assert drift.wasserstein == np.finfo(float).max and drift.effect < np.inf


def test_all_missing_has_psi_but_no_ks():
    drift = drift_of(np.arange(100.0), np.full(50, np.nan))
    assert drift.ks is None and drift.wasserstein is None and drift.psi > 1 and drift.missing_current == 1
    assert drift_of(np.array([1.0]), np.array([2.0])).ks == 1.0


# --------------------------------------------------------------------------- bins


def test_bin_edges_are_the_deciles():
    values = np.arange(1, 1001, dtype=float)
    edges = psi_bin_edges(profile_numbers(values))
    assert edges.tolist() == [100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert psi_bin_edges(profile_numbers(np.full(9, np.nan))).tolist() == []


def test_an_atom_has_a_bin_of_its_own():
    rain = profile_numbers(np.r_[np.zeros(950), np.linspace(1, 2, 50)])
    edges = psi_bin_edges(rain)
    assert len(edges) == 2 and edges[0] < 0 == edges[1]
    labels, before, now = count_psi_bins(rain, profile_numbers(np.array([-1e-9, 0.0, 1e-9, np.nan])))
    assert labels == ["(-∞, 0)", "0", "(0, ∞)", "missing"]
    assert before.tolist() == [0, 950, 50, 0] and now.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("pair", PAIRS)
def test_bins_hold_the_rows_between_the_edges(pair):
    rng = np.random.default_rng(5)
    reference, current = PAIRS[pair][0](rng, 40_000), PAIRS[pair][1](rng, 20_000)
    first, second = profile_numbers(reference), profile_numbers(current)
    labels, before, now = count_psi_bins(first, second)
    edges = psi_bin_edges(first.coarsen(max(first.shift, second.shift)))
    assert (np.diff(edges) > 0).all() and len(labels) == len(set(labels)) == len(edges) + 2
    for values, counts in ((reference, before), (current, now)):
        bins = np.searchsorted(edges, values[~np.isnan(values)])
        assert np.array_equal(counts[:-1], np.bincount(bins, minlength=len(edges) + 1))
        assert counts[-1] == np.isnan(values).sum()


def test_labels_of_bins():
    def labels(values):
        profile = profile_numbers(np.asarray(values, dtype=float))
        return count_psi_bins(profile, profile)[0]

    assert labels([1, 1, 2, 2, 3, 3, 4, 4]) == [
        "(-∞, 1)",
        "1",
        "(1, 2)",
        "2",
        "(2, 3)",
        "3",
        "(3, 4)",
        "4",
        "(4, ∞)",
        "missing",
    ]
    assert labels(np.arange(1, 11)) == ["(-∞, 1]", *[f"({i}, {i + 1}]" for i in range(1, 9)], "(9, ∞)", "missing"]
    assert labels([]) == ["(-∞, ∞)", "missing"]
    assert labels(1e9 + np.arange(20))[1] == "(1000000001, 1000000003]"
    assert labels(np.linspace(0, 1, 11) / 3)[1] == "(0.03333, 0.06667]"


# --------------------------------------------------------------------------- categories


def test_categories_worked_by_hand():
    """Shares .5, .3, .1, missing .1 before; .2, .3, 0, missing .3 and unseen .2 now."""
    before = CategoryProfile({"a": 50, "b": 30, "c": 10}, missing=10)
    now = CategoryProfile({"b": 15, "a": 10, "z": 10}, missing=15)
    labels, p, q = count_psi_bins(before, now)
    assert labels == ["a", "b", "c", "others", "missing", "unseen"]
    assert p.tolist() == [50, 30, 10, 0, 10, 0] and q.tolist() == [10, 15, 0, 0, 15, 10]
    drift = measure_column("x", before, now)
    assert drift.effect == pytest.approx((0.3 + 0 + 0.1 + 0.2 + 0.2) / 2)
    assert (drift.unseen, drift.vanished, drift.ks, drift.wasserstein) == (("z",), ("c",), None, None)
    assert drift.psi == pytest.approx(psi(p, q)) and drift.missing_current == 0.3


def test_named_values_are_the_most_frequent():
    before = CategoryProfile({f"old{i}": 100 - i for i in range(30)}, missing=0)
    now = CategoryProfile({f"new{i}": 100 - i for i in range(30)}, missing=0)
    drift = measure_column("x", before, now)
    assert drift.unseen == tuple(f"new{i}" for i in range(20))
    assert drift.vanished == tuple(f"old{i}" for i in range(20))
    assert drift.effect == pytest.approx(1)


def test_heavy_hitters_name_only_what_is_certain(monkeypatch):
    for module in (profiles, tally):
        monkeypatch.setattr(module, "MAX_VALUES", 4)
    few = scan(pa.table({"x": list("aaaabbbz")})).columns["x"]
    many = scan(pa.table({"x": list("aaaabbbbcccdddeeffgh")})).columns["x"]
    assert many.error and not few.error
    assert measure_column("x", many, few).unseen == ()  # the reference may have had z among its others
    assert set(measure_column("x", many, few).vanished) <= set("cdefgh")
    assert measure_column("x", few, many).vanished == ()
    for first, second in ((few, many), (many, few)):
        labels, before, now = count_psi_bins(first, second)
        assert len(labels) == len(before) and (before.sum(), now.sum()) == (first.rows, second.rows)
        assert 0 <= measure_column("x", first, second).effect <= 1


def test_the_psi_of_thousands_of_values_does_not_depend_on_the_window_size():
    rng = np.random.default_rng(5)
    planes = pd.Series(rng.integers(0, 3000, 60_000).astype(str))
    column = {"carrier": COLUMNS["carrier"]}
    profile = profile_frame(planes.to_frame("carrier"), column)
    same, other = rng.integers(0, 3000, 2000), rng.integers(0, 6000, 2000)
    drifts = [
        compare_profiles(profile, profile_frame(pd.DataFrame({"carrier": values.astype(str)}), column))[0]
        for values in (same, other)
    ]
    assert drifts[0].psi < 0.15 and drifts[1].psi > 1


# --------------------------------------------------------------------------- whole profiles


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
    reference_profile = profile_frame(reference, COLUMNS)
    temp, carrier = compare_profiles(reference_profile, scan(pa.Table.from_pandas(current.assign(extra=1))))
    assert (temp.column, temp.kind, temp.missing_reference, temp.missing_current) == ("temp", "number", 0.0, 0.3)
    assert temp.psi > 0.25 and temp.ks is not None and temp.ks < 0.06
    assert (carrier.kind, carrier.ks, carrier.unseen, carrier.missing_current) == ("category", None, ("ZZ",), 0.02)
    assert carrier.psi > 0.25
    for same in compare_profiles(reference_profile, profile_frame(reference, COLUMNS)):
        assert (same.psi, same.effect) == (0, 0)


def test_profiles_that_cannot_be_compared():
    profile = profile_frame(reference_frame(), COLUMNS)
    with pytest.raises(WindowError):
        compare_profiles(profile, Profile(0, profile.columns))
    with pytest.raises(SchemaError, match="carrier"):
        compare_profiles(profile, Profile(10, {"temp": profile.columns["temp"]}))
    with pytest.raises(SchemaError, match="number cannot be compared with a category"):
        compare_profiles(profile, Profile(10, dict.fromkeys(profile.columns, profile.columns["carrier"])))
