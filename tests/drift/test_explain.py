"""Explanations of drift: excesses sum to the rise, a planted cause ranks first, slices with few rows do not."""

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.explain import rank_columns, rank_slices, score_shift
from stillhouse.drift.scan import profile_frame
from stillhouse.errors import SchemaError
from stillhouse.records import ColumnDrift

COLUMNS = {
    "x": NumberColumn(type="number"),
    "rain": NumberColumn(type="number"),
    "kind": CategoryColumn(type="category"),
    "port": CategoryColumn(type="category"),
}


def a_frame(rows, seed, shift=0.0):
    """Numbers with ties, atoms, missing values and infinities; categories with a long tail and missing values."""
    generator = np.random.default_rng(seed)
    x = np.where(generator.random(rows) < 0.05, np.nan, generator.normal(shift, 1, rows))
    x[generator.random(rows) < 0.01] = np.inf
    return pd.DataFrame(
        {
            "x": x,
            "rain": np.where(generator.random(rows) < 0.7, 0.0, generator.exponential(1, rows).round(2)),
            "kind": generator.choice(["a", "b", "c", None], rows, p=[0.5, 0.3, 0.15, 0.05]),
            "port": np.char.add("p", generator.zipf(1.3, rows).clip(max=400).astype(str)),
        }
    )


@pytest.fixture(scope="module")
def windows():
    """Reference and current rows, and their profiles."""
    before, now = a_frame(6000, 0), a_frame(3000, 1, shift=0.8)
    reference = profile_frame(before, COLUMNS)
    return before, now, reference, profile_frame(now, COLUMNS, like=reference)


def all_slices(rows, losses, weights, windows, expected, columns=tuple(COLUMNS), max_slices=10_000):
    return rank_slices(rows, losses, weights, windows[2], windows[3], expected, columns, max_slices)


def of_column(slices, name):
    return [part for part in slices if part.slice.startswith((f"{name}=", f"{name} in "))]


# --------------------------------------------------------------------------- columns


def drift(name, psi, limit=None):
    return ColumnDrift(column=name, kind="number", psi=psi, missing_reference=0, missing_current=0, limit=limit)


def test_columns_are_ranked_by_their_limit():
    drifts = [drift("wild", 3.0, 4.0), drift("calm", 0.2, 0.05), drift("middle", 0.3, 0.2)]
    assert [drift.column for drift in rank_columns(drifts)] == ["calm", "middle", "wild"]
    plain = [drift("a", 0.1), drift("b", 0.7), drift("c", 0.3)]
    assert [drift.column for drift in rank_columns(plain)] == ["b", "c", "a"]
    assert rank_columns([]) == ()


# --------------------------------------------------------------------------- slices


@pytest.mark.parametrize("seed", range(5))
def test_the_excesses_of_a_column_sum_to_the_rise(windows, seed):
    generator = np.random.default_rng(seed)
    rows = windows[1].sample(1500, random_state=seed)
    losses, weights, expected = generator.beta(1, 6, 1500), generator.uniform(0.3, 2, 1500), generator.random() / 3
    rise = np.average(losses, weights=weights) - expected
    ranked = all_slices(rows, losses, weights, windows, expected)
    for name in ("x", "rain", "kind"):
        parts = of_column(ranked, name)
        assert sum(part.excess for part in parts) == pytest.approx(rise, abs=1e-12)
        assert sum(part.rows for part in parts) == 1500
        assert sum(part.share_reference for part in parts) == pytest.approx(1)
        assert sum(part.share_current for part in parts) == pytest.approx(1)


def test_shares_rows_and_means_are_those_of_the_rows(windows):
    """All rows are audited, so each slice has exactly the rows that the profile counted in it."""
    _, now, _, _ = windows
    losses = np.random.default_rng(3).random(len(now))
    for part in all_slices(now, losses, np.ones(len(now)), windows, 0.0):
        assert part.rows == round(part.share_current * len(now))
    (part,) = [p for p in all_slices(now, losses, np.ones(len(now)), windows, 0.1) if p.slice == "kind=b"]
    chosen = (now["kind"] == "b").to_numpy()
    assert part.disagreement == pytest.approx(losses[chosen].mean())
    assert part.excess == pytest.approx((losses[chosen] - 0.1).sum() / len(now))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_that_of_the_lower_bounds(windows, seed):
    generator = np.random.default_rng(seed)
    rows = windows[1].sample(400, random_state=seed)
    losses, weights = generator.beta(1, 4, 400), generator.uniform(0.3, 2, 400)
    ranked = [part for part in all_slices(rows, losses, weights, windows, 0.1, ["kind"]) if part.disagreement]

    share = weights / weights.sum()
    mean = share @ losses
    bounds = {}
    for value in ("a", "b", "c", None):
        inside = (rows["kind"].isna() if value is None else rows["kind"] == value).to_numpy()
        own = share @ (inside * (losses - mean))
        influence = share * ((inside - share @ inside) * (losses - mean) - own)
        bounds[f"kind={'missing' if value is None else value}"] = own - 1.645 * np.sqrt((influence**2).sum())
    assert [part.slice for part in ranked] == sorted(bounds, key=lambda name: -bounds[name])


@pytest.mark.parametrize(
    ("column", "where", "planted"),
    [
        ("kind", lambda rows: rows["kind"] == "c", "kind=c"),
        ("kind", lambda rows: rows["kind"].isna(), "kind=missing"),
        ("x", lambda rows: rows["x"].isna(), "x=missing"),
        ("rain", lambda rows: rows["rain"] == 0, "rain=0"),
        ("port", lambda rows: rows["port"] == "p2", "port=p2"),
    ],
)
def test_a_planted_cause_ranks_first(windows, column, where, planted):
    rows = windows[1].sample(1200, random_state=0)
    generator = np.random.default_rng(0)
    losses = np.clip(generator.beta(1, 15, 1200) + 0.4 * where(rows).to_numpy(), 0, 1)
    first = all_slices(rows, losses, np.ones(1200), windows, 0.06)[0]
    assert first.slice == planted and first.rows == int(where(rows).sum())
    assert first.excess > 0


def test_a_uniform_rise_is_not_explained_by_the_largest_slice(windows):
    """The largest slice has most of the rise but only its part; a small slice has more than its part."""
    rows = windows[1].sample(1500, random_state=2)
    generator = np.random.default_rng(2)
    odd = (rows["kind"] == "c").to_numpy()
    losses = np.clip(0.25 + 0.25 * odd + generator.normal(0, 0.05, 1500), 0, 1)
    ranked = all_slices(rows, losses, np.ones(1500), windows, 0.05, ["kind"])
    assert ranked[0].slice == "kind=c"
    assert max(ranked, key=lambda part: part.excess).slice == "kind=a"


def test_a_slice_of_few_rows_does_not_rank_first(windows):
    rows = windows[1].sample(600, random_state=1).assign(kind="a")
    rows.iloc[:2, rows.columns.get_loc("kind")] = "b"
    rows.iloc[2:60, rows.columns.get_loc("kind")] = "c"
    losses = np.where(rows["kind"] == "b", 1.0, np.where(rows["kind"] == "c", 0.3, 0.1))
    ranked = all_slices(rows, losses, np.ones(600), windows, 0.1, ["kind"])
    assert ranked[0].slice == "kind=c"
    (slice_b,) = [part for part in ranked if part.slice == "kind=b"]
    assert (slice_b.rows, slice_b.disagreement, slice_b.excess) == (2, None, 0.0)
    assert all(part.disagreement is None for part in ranked[ranked.index(slice_b) :])


def test_weights_count(windows):
    rows = windows[1].iloc[:200]
    inside = (rows["kind"] == "a").to_numpy()
    losses, weights = np.where(inside, 0.4, 0.1), np.where(inside, 0.5, 2.0)
    (part,) = [p for p in all_slices(rows, losses, weights, windows, 0.1, ["kind"]) if p.slice == "kind=a"]
    assert part.excess == pytest.approx(0.3 * weights[inside].sum() / weights.sum())
    scaled = all_slices(rows, losses, 1000 * weights, windows, 0.1, ["kind"])
    assert next(p for p in scaled if p.slice == "kind=a").excess == pytest.approx(part.excess)


def test_unseen_and_rare_values(windows):
    before, now, reference, _ = windows
    now = now.assign(kind=np.where(np.arange(len(now)) < 300, "new", now["kind"]))
    current = profile_frame(now, COLUMNS, like=reference)
    ranked = rank_slices(now, np.full(len(now), 0.1), np.ones(len(now)), reference, current, 0.1, ["kind", "port"], 999)
    unseen = next(part for part in ranked if part.slice == "kind=unseen")
    assert (unseen.share_reference, unseen.share_current, unseen.rows) == (0.0, 0.1, 300)
    others = next(part for part in ranked if part.slice == "port=others")
    values = before["port"].value_counts()
    assert others.rows == now["port"].isin(values.index[100:]).sum() or values.iloc[99] == values.iloc[100]


def test_without_audited_rows_slices_are_ranked_by_growth(windows):
    ranked = all_slices(windows[1].iloc[:0], np.empty(0), np.empty(0), windows, 0.1, max_slices=5)
    assert len(ranked) == 5
    assert all((part.rows, part.disagreement, part.excess) == (0, None, 0.0) for part in ranked)
    grown = [part.share_current - part.share_reference for part in ranked]
    assert grown == sorted(grown, reverse=True) and grown[0] > 0.05


def test_max_slices(windows):
    rows = windows[1].iloc[:100]
    assert len(all_slices(rows, np.zeros(100), np.ones(100), windows, 0.1, max_slices=3)) == 3
    assert all_slices(rows, np.zeros(100), np.ones(100), windows, 0.1, columns=[]) == ()


def test_all_of_one_column_missing():
    frame = pd.DataFrame({"x": [np.nan] * 50})
    profile = profile_frame(frame, {"x": COLUMNS["x"]})
    ranked = rank_slices(frame, np.full(50, 0.3), np.ones(50), profile, profile, 0.1, ["x"])
    assert [(part.slice, part.rows) for part in ranked] == [("x=missing", 50)]
    assert ranked[0].excess == pytest.approx(0.2)


@pytest.mark.parametrize("missing_from", ["rows", "profiles"])
def test_an_absent_column_is_named(windows, missing_from):
    rows = windows[1].iloc[:20]
    name = "x" if missing_from == "rows" else "other"
    rows = rows.drop(columns="x") if missing_from == "rows" else rows.assign(other=1.0)
    with pytest.raises(SchemaError, match=f"column '{name}'"):
        all_slices(rows, np.zeros(20), np.ones(20), windows, 0.1, [name])
    with pytest.raises(SchemaError, match=f"column '{name}'"):
        score_shift(rows, windows[2], windows[3], [name])


# --------------------------------------------------------------------------- scores


def test_scores_are_high_where_the_density_grew(windows):
    before, now, reference, current = windows
    scores = score_shift(now, reference, current, ["x"])
    x = now["x"].to_numpy()
    assert scores.shape == (len(now),) and (scores >= 0).all()
    assert (scores[np.isfinite(x) & (x < -1.5)] == 0).all()
    assert (scores[np.isfinite(x) & (x > 1.5)] > 0.7).all()  # e^0.7: twice as dense
    low, high = (x > 1.5) & np.isfinite(x), np.isfinite(x)
    edge = np.quantile(before["x"].replace(np.inf, np.nan).dropna(), 0.9)
    top = high & (x > edge) | np.isposinf(x)
    values = before["x"].to_numpy()
    ratio = np.log(top.mean() / np.mean(values > edge))
    assert scores[low].mean() == pytest.approx(ratio, abs=0.05)


def test_scores_take_the_column_that_shifted_most(windows):
    _, now, reference, current = windows
    by_column = [score_shift(now, reference, current, [name]) for name in COLUMNS]
    np.testing.assert_array_equal(score_shift(now, reference, current, list(COLUMNS)), np.max(by_column, axis=0))


def test_scores_without_shift_or_without_columns(windows):
    _, now, reference, current = windows
    assert not score_shift(now, reference, current, []).any()
    assert not score_shift(now, current, current, list(COLUMNS)).any()
    assert score_shift(now.iloc[:0], reference, current, ["x"]).shape == (0,)


def test_an_unseen_value_scores_highest(windows):
    _, now, reference, _ = windows
    now = now.assign(kind=np.where(np.arange(len(now)) < 300, "new", now["kind"]))
    scores = score_shift(now, reference, profile_frame(now, COLUMNS, like=reference), ["kind"])
    assert scores[:300].min() > 3 > scores[300:].max()
    assert np.isfinite(scores).all()


def test_slices_and_psi_use_the_same_bins(windows):
    """The PSI of a column can be computed from the shares of its slices."""
    ranked = all_slices(windows[1], np.zeros(3000), np.ones(3000), windows, 0.0)
    psi = {drift.column: drift.psi for drift in compare_profiles(windows[2], windows[3])}
    for name in ("x", "kind"):
        shares = np.array([(part.share_reference, part.share_current) for part in of_column(ranked, name)])
        before, now = shares[(shares > 0).all(axis=1)].T
        assert ((now - before) * np.log(now / before)).sum() == pytest.approx(psi[name], rel=0.05, abs=2e-3)
