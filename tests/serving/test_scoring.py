"""MLflow's scoring protocol read as observations: values by their types, CSV as in `stillhouse import`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.runtime.rows import Batch, ObservationSchema, to_micros
from stillhouse.serving.scoring import ScoringReader
from tests.runtime.conftest import AGENT

READER = ScoringReader(ObservationSchema(AgentConfig.model_validate(AGENT)))
COLUMNS = READER._schema.columns


def read_csv(text: str) -> Batch:
    return READER.frame_batch(READER.read_csv(text.encode()))


def read_rows(*changes: dict[str, Any]) -> Batch:
    return READER.batch([{"wind": 1.0, "hour": 2.0, "origin": "EWR"} | row for row in changes])


def column(batch: Batch, name: str) -> list[Any]:
    return [row[COLUMNS.index(name)] for row in batch.values]


def test_csv_values_are_read_literally() -> None:
    others = "".join(f"{text},,4,9,\n" for text in ("NA", "null", "None", ""))
    batch = read_csv(f"\ufefforigin,extra,wind,hour,\r\nEWR,1,3.0,7,\r\n007,NA,,8,\n1.0,,4,9,x\n{others}")
    assert column(batch, "origin") == ["EWR", "007", "1.0", "NA", "null", "None", None]
    assert column(batch, "wind") == [3.0, None, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert len(set(batch.observation_ids)) == 7


def test_ids_and_times_of_csv_are_used() -> None:
    batch = read_csv(
        "observation_id,observed_at,origin,wind,hour\n1152921504606846977,2013-06-01T12:00:00+02:00,JFK,1,2\n"
    )
    assert batch.observation_ids == ["1152921504606846977"]
    assert batch.observed_at == [to_micros(datetime(2013, 6, 1, 10, tzinfo=UTC))]


WRONG_CSV = {
    "a comma too many": ("origin,wind,hour\nEWR,3.0,7,\n", "line 2: has 4 values, and there are 3 columns: is there a"),
    "a comma too few": ("origin,wind,hour\nEWR,3.0\n", "line 2: has 2 values, and there are 3 columns"),
    "a number that is none": ("origin,wind,hour\nEWR,NA,7\n", "column 'wind' .*row 0: 'NA' is no number"),
    "semicolons": ("origin;wind;hour\nEWR;3,0;7\n", "heading is separated by semicolons, and commas are"),
    "tabs": ("origin\twind\thour\nEWR\t3\t7\n", "separated by tabs"),
    "blanks": ("origin, wind, hour\nEWR,3,7\n", r"lacks the columns \['wind', 'hour'\].*blanks around ' wind'"),
    "a column twice": ("origin,wind,wind,hour\nEWR,3,3,7\n", "more than one column 'wind'"),
    "no heading": ("", "no CSV with a heading"),
    "a quote left open": ('origin,wind,hour\n"EWR,3,7\n', "line 2: cannot be read as CSV"),
    "a time without a zone": ("observed_at,origin,wind,hour\n2013-06-01 12:00,EWR,3,7\n", "no ISO moment with a time"),
    "a date": ("observed_at,origin,wind,hour\n2013-06-01,EWR,3,7\n", "'2013-06-01' is no ISO moment with a time zone"),
    "no moment": ("observed_at,origin,wind,hour\nsoon,EWR,3,7\n", "observed_at, row 0: 'soon' is no ISO moment"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_CSV.values(), ids=WRONG_CSV)
def test_invalid_csv_is_an_error(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        read_csv(text)


def test_the_error_for_invalid_utf8_names_the_line() -> None:
    with pytest.raises(SchemaError, match="line 2: is not UTF-8"):
        READER.read_csv(b"origin,wind,hour\nS\xe3o,1,2\n")


VALUES: list[tuple[Any, str]] = [
    (1, "1"),
    (1.0, "1"),
    (True, "true"),
    ("1.0", "1.0"),
    ("007", "007"),
    (2**60 + 1, str(2**60 + 1)),
    (0.5, "0.5"),
]


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_a_category_is_converted_alike_with_and_without_missing_values(value: Any, text: str) -> None:
    body = msgspec.json.encode({"dataframe_records": [{"origin": value}]})
    (alone,) = column(read_rows(*READER.rows(READER.decoder.decode(body))), "origin")
    assert [alone, None] == column(read_rows({"origin": value}, {"origin": None}), "origin") == [text, None]
    assert column(read_rows({"origin": value}, {"origin": "x", "wind": "3"}), "origin") == [text, "x"]


def test_numbers_are_accepted_as_texts_and_truth_values() -> None:
    assert column(read_rows({"wind": "3"}, {"wind": True}, {"wind": 2**64}, {}), "wind") == [3.0, 1.0, 2.0**64, 1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"wind": [1]}, r"column 'wind' .*row 0: the list \[1\] is no number"),
        ({"wind": ""}, "row 0: '' is no number"),
        ({"origin": {"a": 1}}, "column 'origin' .*row 0: the dictionary {'a': 1} is no text"),
        ({"origin": 2.0**60}, r"from 2\^53 on"),
        ({"origin": 1, "observed_at": "2013-06-01T12:00:00"}, "is no ISO moment with a time zone"),
        ({"origin": 1, "observed_at": 1370088000}, "1370088000 is no ISO moment with a time zone"),
    ],
)
def test_an_error_names_the_column_and_the_value(row: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        read_rows(row)


def test_a_duplicate_column_is_an_error() -> None:
    split = {"dataframe_split": {"columns": ["wind", "hour", "origin", "wind"], "data": [[1, 2, "EWR", 3]]}}
    request = msgspec.convert(split, READER.decoder.type)
    with pytest.raises(SchemaError, match="more than one column 'wind'"):
        READER.rows(request)
    with pytest.raises(SchemaError, match="more than one column 'wind'"):
        READER.frame_batch(pd.DataFrame([[1, 2, "EWR", 3]], columns=["wind", "hour", "origin", "wind"]))
