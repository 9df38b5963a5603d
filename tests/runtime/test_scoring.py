"""MLflow's protocol read as observations: values by their types, CSV as `stillhouse import` reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.runtime.rows import Batch, Contract, micros
from stillhouse.runtime.scoring import Scoring
from tests.runtime.conftest import AGENT

SCORING = Scoring(Contract(AgentConfig.model_validate(AGENT)))
COLUMNS = SCORING._contract.columns


def csv(text: str) -> Batch:
    return SCORING.frame(SCORING.csv(text.encode()))


def rows(*given: dict[str, Any]) -> Batch:
    return SCORING.batch([{"wind": 1.0, "hour": 2.0, "origin": "EWR"} | row for row in given])


def column(batch: Batch, name: str) -> list[Any]:
    return [row[COLUMNS.index(name)] for row in batch.values]


def test_csv_reads_what_stands_there() -> None:
    others = "".join(f"{text},,4,9,\n" for text in ("NA", "null", "None", ""))
    batch = csv(f"\ufefforigin,extra,wind,hour,\r\nEWR,1,3.0,7,\r\n007,NA,,8,\n1.0,,4,9,x\n{others}")
    assert column(batch, "origin") == ["EWR", "007", "1.0", "NA", "null", "None", None]
    assert column(batch, "wind") == [3.0, None, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert len(set(batch.observation_ids)) == 7


def test_ids_and_moments_of_csv_are_taken() -> None:
    batch = csv("observation_id,observed_at,origin,wind,hour\n1152921504606846977,2013-06-01T12:00:00+02:00,JFK,1,2\n")
    assert batch.observation_ids == ["1152921504606846977"]
    assert batch.observed_at == [micros(datetime(2013, 6, 1, 10, tzinfo=UTC))]


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


@pytest.mark.parametrize(("text", "said"), WRONG_CSV.values(), ids=WRONG_CSV)
def test_what_csv_may_not_be(text: str, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        csv(text)


def test_no_utf_8_is_told_by_line() -> None:
    with pytest.raises(SchemaError, match="line 2: is not UTF-8"):
        SCORING.csv(b"origin,wind,hour\nS\xe3o,1,2\n")


VALUES: list[tuple[Any, str]] = [
    (1, "1"),
    (1.0, "1"),
    (True, "true"),
    ("1.0", "1.0"),
    ("007", "007"),
    (2**60 + 1, str(2**60 + 1)),
    (0.5, "0.5"),
]


@pytest.mark.parametrize(("given", "written"), VALUES)
def test_a_category_is_the_same_alone_and_beside_a_gap(given: Any, written: str) -> None:
    body = msgspec.json.encode({"dataframe_records": [{"origin": given}]})
    (alone,) = column(rows(*SCORING.rows_of(SCORING.decoder.decode(body))), "origin")
    assert [alone, None] == column(rows({"origin": given}, {"origin": None}), "origin") == [written, None]
    assert column(rows({"origin": given}, {"origin": "x", "wind": "3"}), "origin") == [written, "x"]


def test_numbers_may_be_texts_and_truth_values() -> None:
    assert column(rows({"wind": "3"}, {"wind": True}, {"wind": 2**64}, {}), "wind") == [3.0, 1.0, 2.0**64, 1.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"wind": [1]}, r"column 'wind' .*row 0: the list \[1\] is no number"),
        ({"wind": ""}, "row 0: '' is no number"),
        ({"origin": {"a": 1}}, "column 'origin' .*row 0: the dictionary {'a': 1} is no text"),
        ({"origin": 2.0**60}, r"from 2\^53 on"),
        ({"origin": 1, "observed_at": "2013-06-01T12:00:00"}, "is no ISO moment with a time zone"),
        ({"origin": 1, "observed_at": 1370088000}, "1370088000 is no ISO moment with a time zone"),
    ],
)
def test_what_is_refused_names_the_column_and_the_value(row: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        rows(row)


def test_two_columns_of_one_name_are_refused() -> None:
    split = {"dataframe_split": {"columns": ["wind", "hour", "origin", "wind"], "data": [[1, 2, "EWR", 3]]}}
    asked = msgspec.convert(split, SCORING.decoder.type)
    with pytest.raises(SchemaError, match="more than one column 'wind'"):
        SCORING.rows_of(asked)
    with pytest.raises(SchemaError, match="more than one column 'wind'"):
        SCORING.frame(pd.DataFrame([[1, 2, "EWR", 3]], columns=["wind", "hour", "origin", "wind"]))
