"""An agent with a data contract, and a window that meets it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.records import Window
from tests.agents import agent_config

START = datetime(2013, 6, 1, tzinfo=UTC)
WINDOW = Window(name="current", start=START, end=START + timedelta(days=7))


def make_config(student: str = "tabular", **observations: Any) -> AgentConfig:
    columns = {
        "temp": {"type": "number", "min": -40, "max": 50},
        "wind": {"type": "number", "max_missing": 0.2},
        "carrier": {"type": "category", "values": ["AA", "DL", "UA"], "max_unknown": 0.1},
        "dest": {"type": "category"},
    }
    return agent_config(
        observations={"columns": columns, "max_bad_rows": 0.1, **observations}, student={"kind": student}
    )


@pytest.fixture
def config() -> AgentConfig:
    return make_config()


@pytest.fixture
def configured() -> Any:
    return make_config


@pytest.fixture
def window() -> Window:
    return WINDOW


@pytest.fixture
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 100
    return pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(n)],
            "observed_at": pd.date_range(START, periods=n, freq="h"),
            "temp": rng.uniform(-10, 30, n),
            "wind": rng.exponential(size=n),
            "carrier": rng.choice(["AA", "DL", "UA"], n),
            "dest": rng.choice(["LAX", "BOS"], n),
        }
    )
