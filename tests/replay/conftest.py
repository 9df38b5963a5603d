"""A history of the toy agent and a student that trains in milliseconds."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from stillhouse.config import AgentConfig, load_file
from stillhouse.replay.history import History
from stillhouse.replay.rows import read_rows
from stillhouse.replay.training import TrainedModel
from stillhouse.replay.world import World
from tests.flows.toy import BEGIN

TOY = Path(__file__).parents[1] / "flows" / "toy.yaml"
STEP = timedelta(days=4)


def train_regression(settings: AgentConfig, rows: pd.DataFrame, ready: Any) -> TrainedModel:
    """A logistic regression instead of a distilled student."""
    model = LogisticRegression().fit(rows[["a", "b"]], rows["outcome"])
    return TrainedModel(lambda later: model.predict_proba(later[["a", "b"]]), len(rows))


@pytest.fixture(scope="session")
def history() -> History:
    """Twenty days to train on, then ten steps of four days; the world turns over on day 24."""
    settings = load_file(TOY)
    begin = BEGIN.to_pydatetime()
    rows = read_rows(settings, begin, begin + timedelta(days=60), from_sources=True)
    return History.of(settings, rows, begin + timedelta(days=20), STEP, 10)


@pytest.fixture
def world(history: History) -> World:
    return World(history, train_regression)
