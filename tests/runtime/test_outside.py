"""Values outside the data contract: decided all the same, told by name, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import Observations
from stillhouse.runtime.outside import OutsideContract
from tests.runtime.test_server import DECISIONS, put_champion, served, write_agent

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


def outside(**changes: Any) -> list[tuple[str, str]]:
    observations = Observations.model_validate(
        {"source": "a:b", "since": "2024-01-01T00:00:00Z", "columns": COLUMNS, "rules": RULES}
    )
    row = tuple(changes.get(name, value) for name, value in zip(COLUMNS, GOOD, strict=True))
    found = OutsideContract(observations, [*COLUMNS])([GOOD, row])
    assert set(found) <= {1} and all(each.message.startswith(f"{each.column} ") for each in found.get(1, []))
    return [(each.column, each.rule) for each in found.get(1, [])]


@pytest.mark.parametrize(
    ("changes", "told"),
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
def test_each_way_to_lie_outside(changes: dict[str, Any], told: list[tuple[str, str]]) -> None:
    assert outside(**changes) == told


def test_a_message_says_the_value_and_what_is_allowed() -> None:
    observations = Observations.model_validate({"source": "a:b", "since": "2024-01-01T00:00:00Z", "columns": COLUMNS})
    row = (41.0, -0.5, None, "x" * 1000, None, "a" * 6)
    (found,) = OutsideContract(observations, [*COLUMNS])([row]).values()
    assert [each.message for each in found] == [
        "gate is missing",
        "temp is 41: the contract allows -10 to 40",
        "wind is -0.5: the contract allows at least 0",
        f"origin is '{'x' * 100}…': none of the contract's values",
        "said has 6 characters: the contract allows 5",
    ]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    (tmp_path / "agents").mkdir()
    write_agent(tmp_path, "flights")
    put_champion("flights", 1)


def test_the_server_decides_tells_and_counts() -> None:
    good, bad = {"wind": 3.0, "hour": 7, "origin": "EWR"}, {"wind": None, "hour": 7, "origin": "EWR"}

    async def test(client: Any) -> None:
        one = (await client.post(DECISIONS, json={"observation": bad})).json()
        assert one["warnings"] == ["wind is missing"] and one["action"] in ("on_time", "late")
        many = (await client.post(DECISIONS, json={"observations": [good, bad]})).json()["decisions"]
        assert "warnings" not in many[0] and many[1]["warnings"] == ["wind is missing"]
        split = {"dataframe_records": [good, bad]}
        plain = await client.post("/invocations", json=split)
        assert set(plain.json()) == {"predictions"} and plain.headers["stillhouse-warnings"] == "1"
        asked = await client.post("/invocations?warnings=true", json=split)
        assert asked.json()["warnings"] == [[], ["wind is missing"]]
        assert "stillhouse-warnings" not in (await client.post("/invocations", json={"inputs": good})).headers
        text = (await client.get("/metrics")).text
        assert 'stillhouse_outside_contract_total{agent="flights",column="wind",rule="missing"} 4.0' in text
        assert (await client.get("/v1/agents/flights")).json()["outside_contract"] == {"wind": 4}
        agent = client.agents[0]
        decision = agent.decide(bad)
        assert decision.warnings == ("wind is missing",) and agent.decide(good).warnings == ()
        frame = pd.DataFrame([good, bad]).assign(
            observation_id=["a", "b"], observed_at=pd.Timestamp("2024-01-01", tz="UTC")
        )
        assert [each.warnings for each in agent.decide(frame)] == [(), ("wind is missing",)]
        assert agent.status().outside_contract == {"wind": 6}
        assert np.isfinite(decision.confidence)

    served(test)
