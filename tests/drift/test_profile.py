"""Profiles: edges are the reference's quantiles, counts are exact, JSON gives them back."""

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift.profile import CategoryProfile, NumberProfile, Profile, bin_counts, build, number_profile
from stillhouse.errors import SchemaError, WindowError

COLUMNS = {
    "temp": NumberColumn(type="number"),
    "carrier": CategoryColumn(type="category"),
    "hour": NumberColumn(type="number", drift=False),
}


def frame(n: int = 1000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"hour": 1, "carrier": rng.choice(["AA", "UA", None], n), "temp": rng.normal(size=n)},
        index=rng.permutation(n) * 3,
    )


def test_only_watched_columns_in_the_order_of_the_agent_file():
    profile = build(frame(), COLUMNS)
    assert profile.rows == 1000
    assert list(profile.columns) == ["temp", "carrier"]
    assert all(column.rows == 1000 for column in profile.columns.values())


def test_psi_edges_are_the_deciles_and_belong_to_the_fine_edges():
    profile = number_profile(np.arange(1, 1001, dtype=float))
    assert profile.psi_edges == (100, 200, 300, 400, 500, 600, 700, 800, 900)
    assert set(profile.psi_edges) <= set(profile.edges)
    assert 256 <= len(profile.edges) <= 256 + 9
    assert sum(profile.counts) == 1000 and len(profile.counts) == len(profile.edges) + 1


def test_bins_are_closed_on_the_right_and_open_at_the_ends():
    counts = bin_counts(np.array([3.0, -np.inf, 1.0, 1.5, 2.0, np.inf]), np.array([1.0, 2.0]))
    assert counts.tolist() == [2, 2, 2]


def test_duplicate_quantiles_collapse_and_an_atom_has_its_own_bin():
    profile = number_profile(np.r_[np.zeros(950), np.linspace(1, 2, 50)])
    assert profile.psi_edges == (np.nextafter(0, -1), 0.0)
    assert profile.counts[:2] == (0, 950)


def test_constant_missing_and_infinite_values():
    assert number_profile(np.full(10, 4.0)).counts == (0, 10, 0)
    empty = number_profile(np.full(10, np.nan))
    assert (empty.missing, empty.edges, empty.counts) == (10, (), (0,))
    assert sum(number_profile(np.array([1.0, np.inf, -np.inf])).counts) == 3


def test_categories_are_counted_by_value_most_frequent_first():
    rows = pd.DataFrame({"carrier": pd.Categorical(["b", "a", "b", None], categories=["a", "b", "never"])})
    found = build(rows, {"carrier": COLUMNS["carrier"]}).columns["carrier"]
    assert found == CategoryProfile(missing=1, counts={"b": 2, "a": 1})


@pytest.mark.parametrize("dtype", ["int32", "Int64", "float32", "bool"])
def test_numeric_types(dtype):
    rows = pd.DataFrame({"temp": pd.Series([0, 1, 1, 0], dtype=dtype)})
    assert build(rows, {"temp": COLUMNS["temp"]}).columns["temp"].rows == 4


def test_json_round_trip():
    profile = build(frame().assign(temp=lambda f: f["temp"].clip(lower=0)), COLUMNS)  # an atom at zero
    again = Profile.model_validate_json(profile.model_dump_json())
    assert again == profile
    assert isinstance(again.columns["temp"], NumberProfile)


def test_unusable_frames():
    with pytest.raises(WindowError, match="none"):
        build(frame().iloc[:0], COLUMNS)
    with pytest.raises(SchemaError, match="temp"):
        build(frame().drop(columns="temp"), COLUMNS)
    with pytest.raises(SchemaError, match="'temp' must be numeric"):
        build(frame().assign(temp="warm"), COLUMNS)
