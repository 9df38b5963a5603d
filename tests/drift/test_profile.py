"""Profiles: exact on few values, independent of order and batches, mergeable, and restored from bytes."""

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift import profile as profiles
from stillhouse.drift import tally
from stillhouse.drift.profile import CategoryProfile, NumberProfile, Profile, numbers_from_keys, order_keys
from stillhouse.drift.scan import ParquetRows, profile_frame, profile_numbers, scan
from stillhouse.errors import SchemaError, WindowError

COLUMNS = {
    "temp": NumberColumn(type="number"),
    "carrier": CategoryColumn(type="category"),
    "hour": NumberColumn(type="number", drift=False),
}

PROBABILITIES = (0.1, 0.3, 0.598, 0.001, 0.001)

SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "lognormal": lambda rng, n: rng.lognormal(0, 2, n),
    "pareto": lambda rng, n: 1 + rng.pareto(1.2, n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "zero-inflated": lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.exponential(3, n)),
    "rounded": lambda rng, n: np.round(rng.normal(10, 8, n), 1),
    "integers": lambda rng, n: rng.poisson(3, n).astype(float),
    "many integers": lambda rng, n: rng.integers(-(10**6), 10**6, n).astype(float),
    "narrow and far from zero": lambda rng, n: 1e9 + rng.normal(size=n),
    "ascending": lambda rng, n: np.sort(1.7e9 + rng.uniform(0, 3e7, n)),
    "two scales": lambda rng, n: np.where(rng.random(n) < 0.5, rng.normal(size=n) * 1e-200, 1e200 * rng.random(n)),
    "constant at first": lambda rng, n: np.r_[np.zeros(n // 2), rng.normal(size=n - n // 2)],
    "with infinities": lambda rng, n: rng.choice([np.inf, -np.inf, 1.0, 2.0, -0.0], n),
    "around zero, of either sign": lambda rng, n: np.round(rng.normal(0, 0.2, n), 1),
    "zeros and outliers": lambda rng, n: (
        rng.normal(size=n) * rng.choice([-0.0, 0.0, 1.0, 1e-99, 1e99], n, p=PROBABILITIES)
    ),
    "positive with outliers": lambda rng, n: (
        rng.random(n) * rng.choice([-1.0, 0.0, 1.0, 1e-99, 1e99], n, p=PROBABILITIES)
    ),
    "denormal": lambda rng, n: rng.integers(-5, 5, n) * -5e-324,
}


def values_of(shape: str, n: int, seed: int = 0) -> np.ndarray:
    return SHAPES[shape](np.random.default_rng(seed), n)


def table_of(n: int, seed: int = 0) -> pa.Table:
    """Every kind of column that can be profiled, with missing values."""
    rng = np.random.default_rng(seed)
    gaps = rng.random(n) < 0.1
    days = rng.integers(0, 30, n)
    return pa.table(
        {
            "float": pa.array(rng.normal(size=n), mask=gaps),
            "nan": np.where(gaps, np.nan, rng.normal(size=n)),
            "float32": pa.array(rng.normal(size=n).astype(np.float32)),
            "int8": pa.array(rng.integers(-5, 5, n).astype(np.int8), mask=gaps),
            "uint64": pa.array(rng.integers(0, 2**63, n).astype(np.uint64)),
            "decimal": pa.array([Decimal(int(cents)) / 100 for cents in rng.integers(0, 999, n)], pa.decimal128(9, 2)),
            "day": pa.array(days.astype(np.int32), pa.date32()),
            "moment": pa.array(days * 86_400_000, pa.timestamp("ms", "UTC"), mask=gaps),
            "flag": pa.array(rng.random(n) < 0.3, mask=gaps),
            "text": pa.array(rng.choice(["a", "b", "c"], n), mask=gaps),
            "coded": pa.array(rng.choice(["x", "y"], n), mask=gaps).dictionary_encode(),
            "void": pa.nulls(n),
        }
    )


# --------------------------------------------------------------------------- cells


def test_keys_are_ordered_like_their_numbers_and_invertible():
    rng = np.random.default_rng(0)
    bits = rng.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, 10_000)
    values = bits.view(np.float64)
    values = np.sort(np.r_[values[np.isfinite(values)], 0.0, -0.0, np.inf, -np.inf, 5e-324, -5e-324, 1.0, -1.0])
    keys = order_keys(values)
    assert (np.diff(keys) >= 0).all()
    assert np.array_equal(numbers_from_keys(keys), values)
    assert order_keys(np.array([-0.0])) == order_keys(np.array([0.0])) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_every_value_lies_in_its_cell(shape):
    values = values_of(shape, 50_000)
    profile = profile_numbers(values)
    cells, counts = np.unique(order_keys(values) >> profile.shift, return_counts=True)
    assert np.array_equal(profile.cells, cells) and np.array_equal(profile.counts, counts)
    assert (profile.low, profile.high, profile.rows) == (values.min(), values.max(), len(values))
    assert len(cells) <= profiles.MAX_CELLS
    finer = np.unique(order_keys(values) >> max(0, profile.shift - 1))
    assert profile.shift == 0 or len(finer) > profiles.MAX_CELLS


def test_few_values_are_stored_exactly():
    values = np.array([3.0, 0.0, -2.5, 3.0, 1e300, 0.0, 0.0])
    profile = profile_numbers(values)
    assert profile.counts.tolist() == [1, 3, 2, 1]
    assert profile.values.tolist() == [-2.5, 0.0, 3.0, 1e300]


def test_moments_come_from_the_cells():
    for shape in ("normal", "lognormal", "narrow and far from zero", "zero-inflated"):
        values = values_of(shape, 200_000)
        profile = profile_numbers(values)
        assert profiles._mean_and_std(profile)[0] == pytest.approx(values.mean(), rel=1e-4, abs=1e-4)
        assert profile.std == pytest.approx(values.std(), rel=1e-3)
    assert profile_numbers(np.array([1e308, -1e308])).std == pytest.approx(1e308, rel=1e-6)
    assert np.isnan(profile_numbers(np.array([np.nan, np.inf])).std)


# --------------------------------------------------------------------------- order and batches


@pytest.mark.parametrize("shape", SHAPES)
def test_a_profile_depends_on_the_rows_only(shape):
    values = values_of(shape, 70_000)
    combined = profile_numbers(values)
    shuffled = np.random.default_rng(1).permutation(values)
    assert profile_numbers(shuffled) == combined
    for cut in (1_000, 20_000, 70_000):
        batches = [pa.record_batch({"x": shuffled[i : i + cut]}) for i in range(0, len(values), cut)]
        assert scan(batches).columns["x"] == combined


@pytest.mark.parametrize("shape", SHAPES)
def test_merging_is_exact_associative_and_commutative_and_can_be_undone(shape):
    sizes = (100, 40_000, 15_000)
    parts = [values_of(shape, n, seed) for seed, n in enumerate(sizes)]
    a, b, c = (profile_numbers(part) for part in parts)
    combined = profile_numbers(np.concatenate(parts))
    assert (a + b) + c == a + (b + c) == (c + a) + b == combined
    difference = combined - b
    expected = np.r_[parts[0], parts[2]]
    cells, counts = np.unique(order_keys(expected) >> difference.shift, return_counts=True)
    assert np.array_equal(difference.cells, cells) and np.array_equal(difference.counts, counts)
    assert difference + b == combined


def test_profiles_are_added_and_subtracted_column_by_column():
    table = table_of(5_000)
    combined, first, second = scan(table), scan(table[:2_000]), scan(table[2_000:])
    assert first + second == second + first == combined
    difference = combined - first
    assert difference.rows == 3_000 and {column.rows for column in difference.columns.values()} == {3_000}
    assert difference.columns["text"] == second.columns["text"]
    with pytest.raises(WindowError, match="contains"):
        first - second
    with pytest.raises(WindowError, match="contains"):
        first - combined
    with pytest.raises(SchemaError, match="different columns"):
        combined + scan(table.select(["float"]))


def test_like_gives_columns_kinds_and_cells():
    rng = np.random.default_rng(0)
    reference = scan(pa.table({"x": rng.normal(size=40_000), "code": rng.choice(["1", "2"], 40_000)}))
    rows = pa.table({"code": [1, 2, 2, None], "other": [1, 2, 3, 4], "x": pa.array([0, 1, 1, 2], pa.int8())})
    profile = scan(rows, like=reference)
    assert list(profile.columns) == ["x", "code"]
    assert profile.columns["code"] == CategoryProfile({"2": 2, "1": 1}, missing=1)
    assert profile.columns["x"].shift == reference.columns["x"].shift > 0
    built = profile_frame(rows.to_pandas(), {"x": NumberColumn(type="number")}, like=reference)
    assert built.columns["x"] == profile.columns["x"]


# --------------------------------------------------------------------------- kinds of columns


def test_kinds_and_units():
    table = table_of(4_000)
    profile = scan(table)
    gaps = table["float"].null_count
    kinds = {name: column.kind for name, column in profile.columns.items()}
    assert [name for name, kind in kinds.items() if kind == "category"] == ["flag", "text", "coded", "void"]
    missing = {name for name, column in profile.columns.items() if column.missing == gaps}
    assert missing == {"float", "nan", "int8", "moment", "flag", "text", "coded"}
    assert profile.columns["void"] == CategoryProfile({}, missing=4_000)
    assert {column.rows for column in profile.columns.values()} == {profile.rows} == {4_000}
    assert profile.columns["day"].high == profile.columns["moment"].high == 29 * 86_400
    assert profile.columns["decimal"].counts.sum() == 4_000 and profile.columns["decimal"].high <= 9.99
    assert set(profile.columns["flag"].counts) == {"true", "false"}
    texts = table["text"].to_pandas().value_counts().to_dict()
    assert list(profile.columns["text"].counts.items()) == sorted(texts.items(), key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize(
    ("array", "seconds"),
    [
        (pa.array([dt.date(1970, 1, 2)], pa.date64()), 86_400),
        (pa.array([dt.time(1, 0, 0, 500_000)], pa.time64("us")), 3_600.5),
        (pa.array([dt.time(0, 1)], pa.time32("s")), 60),
        (pa.array([dt.timedelta(milliseconds=-1500)], pa.duration("ns")), -1.5),
        (pa.array([dt.datetime(1970, 1, 1, 0, 0, 2)], pa.timestamp("s")), 2),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_temporal_values_are_in_seconds(array, seconds):
    assert scan(pa.table({"x": array})).columns["x"].low == seconds


@pytest.mark.parametrize("type_", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_other_texts(type_):
    profile = scan(pa.table({"x": pa.array(["a", None, "b", "a"]).cast(type_)}))
    assert profile.columns["x"] == CategoryProfile({"a": 2, "b": 1}, missing=1)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}]),
        pa.array([b"\xff"]),
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([[1]])),
    ],
    ids=["list", "struct", "bytes", "interval", "dictionary"],
)
def test_a_column_that_cannot_be_profiled_is_named(array):
    with pytest.raises(SchemaError, match="'odd'"):
        scan(pa.table({"odd": array}))


def test_dictionaries_may_repeat_values_hold_nulls_and_change():
    def batch(indices, texts):
        return pa.record_batch({"x": pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), texts)})

    batches = [batch([0, 1, 2, None], ["a", "a", None]), batch([0, 0, 1], ["b", "a"]), batch([1], ["b", "a"])]
    assert scan(batches).columns["x"] == CategoryProfile({"a": 4, "b": 2}, missing=2)


def test_a_column_that_changes_its_kind_is_refused():
    batches = [pa.record_batch({"x": pa.nulls(2)}), pa.record_batch({"x": [1.0]}), pa.record_batch({"x": ["warm"]})]
    assert scan(batches[:2]).columns["x"].missing == 2
    with pytest.raises(SchemaError, match="'x' must be numeric; it is string"):
        scan(batches)
    with pytest.raises(SchemaError, match="'y'"):
        scan(batches[:1], columns=["y"])


def test_numbers_without_any_value():
    for profile in (
        profile_numbers(np.full(10, np.nan)),
        scan(pa.table({"x": pa.nulls(10, pa.float64())})).columns["x"],
    ):
        assert (profile.missing, profile.rows, profile.low, len(profile.cells), len(profile.values)) == (
            10,
            10,
            None,
            0,
            0,
        )


# --------------------------------------------------------------------------- sources


def test_every_source_gives_the_same_profile(tmp_path):
    table = table_of(3_000).drop(["void"])
    combined = scan(table)
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=700)
    folder = tmp_path / "folder" / "day=1"
    folder.mkdir(parents=True)
    pq.write_table(table[:1_000], folder / "a.parquet")
    pq.write_table(table[1_000:], folder / "b.parquet", compression="zstd", use_dictionary=False)
    assert scan(tmp_path / "one.parquet") == scan(str(tmp_path / "one.parquet")) == combined
    assert scan(tmp_path / "folder") == combined
    assert scan(pa.dataset.dataset(tmp_path / "one.parquet")) == combined
    assert scan(table.to_reader(max_chunksize=311)) == scan(iter(table.to_batches(max_chunksize=311))) == combined
    assert scan(tmp_path / "one.parquet", columns=["text", "day"]).columns.keys() == {"text", "day"}
    with pytest.raises(SchemaError, match=r"no columns \['nix'\] in .*one.parquet"):
        scan(tmp_path / "one.parquet", columns=["nix"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WindowError, match="no Parquet file"):
        scan(empty)


def test_a_folder_is_read_as_arrow_reads_it(tmp_path):
    def put(path, **columns):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / path)

    put("month=2024-01/place=a%20b/one.parquet", x=[1.0, 2.0])
    put("month=2024-02/place=__HIVE_DEFAULT_PARTITION__/two.pq", x=[3.0], late=["new"])
    for hidden in ("_temporary/0/x.parquet", ".x.parquet", "month=2024-01/_x.parquet", ".git/x.parquet"):
        put(hidden, x=[9.0] * 100)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "month=2024-01" / "read.me").write_text("no rows")
    profile = scan(tmp_path)
    assert profile.rows == 3 and list(profile.columns) == ["x", "late", "month", "place"]
    assert profile.columns["late"].missing == 2 and profile.columns["late"].counts == {"new": 1}
    assert profile.columns["month"].counts == {"2024-01": 2, "2024-02": 1}
    assert (profile.columns["place"].counts, profile.columns["place"].missing) == ({"a b": 2}, 1)
    assert scan(tmp_path, columns=["late", "place"]).rows == 3
    assert scan(tmp_path, columns=["month"]).columns["month"] == profile.columns["month"]
    combined = pa.concat_tables(
        [pa.Table.from_batches([batch]) for batch in ParquetRows.from_path(tmp_path).by_row()],
        promote_options="permissive",
    )
    assert scan(combined, columns=list(profile.columns)) == profile
    put("numbered/day=1/one.parquet", x=[1.0])
    put("numbered/day=2/two.parquet", x=[1.0])
    assert scan(tmp_path / "numbered").columns["day"].kind == "number"


def test_columns_of_one_name_are_refused_by_name(tmp_path):
    repeated = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["x", "x"])
    pq.write_table(repeated, tmp_path / "repeated.parquet")
    pq.write_table(pa.table({"a": [1.0], "a.b": [2.0]}), tmp_path / "dotted.parquet")
    for source in (repeated, repeated.to_batches(), tmp_path / "repeated.parquet"):
        with pytest.raises(SchemaError, match="more than one column 'x'"):
            scan(source)
    with pytest.raises(SchemaError, match="more than one column 'x'"):
        profile_frame(pd.DataFrame([[1.0, 2.0]], columns=["x", "x"]), {"x": NumberColumn(type="number")})
    dotted = scan(tmp_path / "dotted.parquet")
    assert [column.rows for column in dotted.columns.values()] == [1, 1]


def test_on_rows_is_called_with_the_rows_counted(tmp_path):
    table = table_of(3_000)
    pq.write_table(table, tmp_path / "one.parquet")
    for source in (table, tmp_path / "one.parquet"):
        counted: list[int] = []
        assert scan(source, on_rows=counted.append).rows == sum(counted) == 3_000


def test_a_scan_imports_nothing_heavy(tmp_path):
    table = table_of(200)
    pq.write_table(table, tmp_path / "one.parquet")
    (tmp_path / "one.profile").write_bytes(scan(table).to_bytes())
    code = (
        "import sys; from pathlib import Path; from stillhouse.drift.distances import compare_profiles;"
        "from stillhouse.drift.profile import Profile; from stillhouse.drift.scan import scan;"
        "folder = Path(sys.argv[1]);"
        "compare_profiles(Profile.from_bytes((folder / 'one.profile').read_bytes()), scan(folder / 'one.parquet'));"
        "print(sorted({'pandas', 'scipy', 'mlflow', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_slice_of_an_array_is_a_slice():
    for part in (slice(137, 641), slice(8, 16), slice(999, 1_000), slice(3, 3)):
        table = table_of(1_000)[part]
        assert scan(table) == scan(pa.Table.from_pylist(table.to_pylist(), schema=table.schema))


# --------------------------------------------------------------------------- many values


def test_heavy_hitters_keep_their_error_bound(monkeypatch):
    for module in (profiles, tally):
        monkeypatch.setattr(module, "MAX_VALUES", 50)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        texts = [rng.zipf(1.3, 3_000).clip(max=5_000).astype(str) for _ in range(4)]
        truth = pd.Series(np.concatenate(texts)).value_counts().to_dict()
        parts = [scan(pa.table({"x": part})).columns["x"] for part in texts]
        batches = (pa.record_batch({"x": part[i : i + 100]}) for part in texts for i in range(0, 3_000, 100))
        for profile in (parts[0] + parts[1] + (parts[2] + parts[3]), scan(batches).columns["x"]):
            assert profile.rows == 12_000 and len(profile.counts) <= 50
            assert 0 < profile.error <= 12_000 / 51
            assert all(count <= truth[value] <= count + profile.error for value, count in profile.counts.items())
            assert all(truth[value] <= profile.error for value in truth.keys() - profile.counts.keys())
        difference = parts[0] + parts[1] - parts[1]
        alone = pd.Series(texts[0]).value_counts().to_dict()
        assert difference.rows == 3_000
        assert all(
            difference.counts.get(v, 0) <= n <= difference.counts.get(v, 0) + difference.error for v, n in alone.items()
        )


def test_a_profile_is_bounded():
    rng = np.random.default_rng(0)
    columns = {
        "spread": np.exp(rng.uniform(-700, 700, 300_000)) * rng.choice([-1, 1], 300_000),
        "id": rng.random(300_000),
    }
    profile = scan(pa.table(columns | {"name": rng.integers(0, 10**9, 300_000).astype(str)}))
    assert len(profile.columns["spread"].cells) <= profiles.MAX_CELLS
    assert len(profile.columns["name"].counts) <= profiles.MAX_VALUES
    assert len(profile.to_bytes()) < 500_000


# --------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("seed", range(5))
def test_bytes_restore_an_equal_profile(seed):
    rng = np.random.default_rng(seed)
    table = table_of(int(rng.integers(1, 5_000)), seed)
    table = table.append_column("shape", pa.array(values_of(rng.choice(list(SHAPES)), len(table), seed)))
    profile = scan(table)
    again = Profile.from_bytes(profile.to_bytes())
    assert again == profile and list(again.columns) == list(profile.columns)
    assert list(again.columns["text"].counts) == list(profile.columns["text"].counts)
    assert again + profile == profile + profile
    assert Profile.from_bytes(again.to_bytes()).to_bytes() == profile.to_bytes()


def test_bytes_of_capped_categories_and_of_nothing(monkeypatch):
    for module in (profiles, tally):
        monkeypatch.setattr(module, "MAX_VALUES", 3)
    result = scan(pa.table({"x": list("aaabbccdde")}))
    assert result.columns["x"] == CategoryProfile({"a": 1}, missing=0, others=9, error=2)
    for profile in (result, Profile(0, {}), scan(pa.table({"x": pa.array([], pa.float64())}))):
        assert Profile.from_bytes(profile.to_bytes()) == profile


def test_garbage_is_refused():
    sound = scan(table_of(500)).to_bytes()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1]}))
    for garbage in (b"", b"garbage", sound[: len(sound) // 2], sound[200:], sink.getvalue().to_pybytes()):
        with pytest.raises(SchemaError, match="these bytes"):
            Profile.from_bytes(garbage)
    empty = np.empty(0, np.int64)
    unordered = NumberProfile(30, np.array([2, 1]), np.array([1, 1]), 0, 0.0, 1.0)
    for broken in (unordered, NumberProfile(30, np.array([1]), empty, 0, 0.0, 1.0)):
        with pytest.raises(SchemaError, match="'x' has no ascending cells"):
            Profile.from_bytes(Profile(1, {"x": broken}).to_bytes())


# --------------------------------------------------------------------------- frames


def make_frame(n: int = 1000) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"hour": 1, "carrier": rng.choice(["AA", "UA", None], n), "temp": rng.normal(size=n)},
        index=rng.permutation(n) * 3,
    )


def test_only_watched_columns_in_the_order_of_the_agent_file():
    profile = profile_frame(make_frame(), COLUMNS)
    assert profile.rows == 1000
    assert list(profile.columns) == ["temp", "carrier"]
    assert all(column.rows == 1000 for column in profile.columns.values())
    assert profile == scan(pa.Table.from_pandas(make_frame()), columns=["temp", "carrier"])


def test_categories_are_counted_by_value_most_frequent_first():
    rows = pd.DataFrame({"carrier": pd.Categorical(["b", "a", "b", None], categories=["a", "b", "never"])})
    profile = profile_frame(rows, {"carrier": COLUMNS["carrier"]}).columns["carrier"]
    assert profile == CategoryProfile(missing=1, counts={"b": 2, "a": 1}) and list(profile.counts) == ["b", "a"]
    flags = profile_frame(pd.DataFrame({"carrier": [True, False, True]}), {"carrier": COLUMNS["carrier"]})
    assert flags.columns["carrier"].counts == {"true": 2, "false": 1}


@pytest.mark.parametrize("dtype", ["int32", "Int64", "float32", "bool"])
def test_numeric_types(dtype):
    rows = pd.DataFrame({"temp": pd.Series([0, 1, 1, 0], dtype=dtype)})
    assert profile_frame(rows, {"temp": COLUMNS["temp"]}).columns["temp"].counts.tolist() == [2, 2]


def test_two_columns_of_one_name_are_refused(tmp_path):
    twice = pa.table([pa.array([1]), pa.array(["x"]), pa.array([2])], names=["a", "b", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for use in (
        lambda: scan(tmp_path / "twice.parquet"),
        lambda: scan(twice),
        lambda: scan(tmp_path / "twice.parquet", ["b"]),
        lambda: profile_frame(pd.DataFrame([[1, 2]], columns=["a", "a"]), {}),
    ):
        with pytest.raises(SchemaError, match="have more than one column 'a'"):
            use()


def test_unusable_frames():
    with pytest.raises(WindowError, match="none"):
        profile_frame(make_frame().iloc[:0], COLUMNS)
    with pytest.raises(SchemaError, match="temp"):
        profile_frame(make_frame().drop(columns="temp"), COLUMNS)
    with pytest.raises(SchemaError, match="'temp' must be numeric"):
        profile_frame(make_frame().assign(temp="warm"), COLUMNS)
