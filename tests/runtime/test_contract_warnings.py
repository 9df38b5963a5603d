"""Warnings about values outside the data contract."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.config import Observations
from stillhouse.runtime.contract_warnings import ContractChecker

COLUMNS = {
    "temp": {"type": "number", "min": -10, "max": 40},
    "wind": {"type": "number", "min": 0, "max_missing": 0.1},
    "gust": {"type": "number", "max_missing": 0.5},
    "origin": {"type": "category", "values": ["EWR", "JFK"], "max_missing": 0.1},
    "gate": {"type": "category"},
    "said": {"type": "text", "max_length": 5},
}
RULES = [
    {"type": "ordered", "low": "wind", "high": "gust"},
    {"type": "pairs", "columns": ["origin", "gate"], "allowed": [["EWR", "1"], ["JFK", "2"]]},
    {"type": "range_when", "column": "temp", "max": 30, "when": {"column": "origin", "values": ["JFK"]}},
    {"type": "present_when", "column": "gust", "when": {"column": "wind", "min": 20}},
]
GOOD = (20.0, 5.0, 9.0, "EWR", "1", "hello")


def find_warnings(**changes: Any) -> list[tuple[str, str]]:
    observations = Observations.model_validate(
        {"source": "a:b", "since": "2024-01-01T00:00:00Z", "columns": COLUMNS, "rules": RULES}
    )
    row = tuple(changes.get(name, value) for name, value in zip(COLUMNS, GOOD, strict=True))
    by_row = ContractChecker(observations, [*COLUMNS]).check([GOOD, row])
    assert set(by_row) <= {1}
    warnings = by_row.get(1, [])
    assert all(warning.message.startswith(f"{warning.column} ") for warning in warnings)
    return [(warning.column, warning.rule) for warning in warnings]


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({}, []),
        ({"temp": -10.0}, []),
        ({"temp": 40.5}, [("temp", "range")]),
        ({"temp": -11.0}, [("temp", "range")]),
        ({"temp": None}, [("temp", "missing")]),
        ({"wind": None, "gust": None, "origin": None}, []),
        ({"wind": -1.0}, [("wind", "range")]),
        ({"origin": "SFO"}, [("origin", "value"), ("origin", "pairs")]),
        ({"origin": ""}, [("origin", "value"), ("origin", "pairs")]),
        ({"gate": None}, [("gate", "missing")]),
        ({"gate": "anything"}, [("origin", "pairs")]),
        ({"said": "longer"}, [("said", "length")]),
        ({"said": " \n"}, [("said", "missing")]),
        ({"said": None}, [("said", "missing")]),
        ({"wind": 9.5}, [("wind", "ordered")]),
        ({"origin": "JFK"}, [("origin", "pairs")]),
        ({"origin": "JFK", "gate": "2", "temp": 31.0}, [("temp", "range_when")]),
        ({"origin": "JFK", "gate": "2", "temp": 30.0}, []),
        ({"wind": 20.0, "gust": None}, [("gust", "present_when")]),
        ({"wind": 19.0, "gust": None}, []),
    ],
)
def test_each_rule_gives_its_warning(changes: dict[str, Any], warnings: list[tuple[str, str]]) -> None:
    assert find_warnings(**changes) == warnings


def test_a_message_has_the_value_and_the_allowed_values() -> None:
    observations = Observations.model_validate({"source": "a:b", "since": "2024-01-01T00:00:00Z", "columns": COLUMNS})
    row = (41.0, -0.5, None, "x" * 1000, None, "a" * 6)
    (warnings,) = ContractChecker(observations, [*COLUMNS]).check([row]).values()
    assert [warning.message for warning in warnings] == [
        "gate is missing",
        "temp is 41: the contract allows -10 to 40",
        "wind is -0.5: the contract allows at least 0",
        f"origin is '{'x' * 100}…': none of the contract's values",
        "said has 6 characters: the contract allows 5",
    ]
