"""A small agent with table rows (three numbers, one category, two actions) and concept drift on a known day."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

BEGIN = pd.Timestamp("2024-01-01T00:00:00Z")
DRIFT_START = BEGIN + pd.Timedelta(days=24)  # from here on, the effect of `a` is reversed and its mean is larger
PER_DAY = 120


def _history() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    n = 60 * PER_DAY
    observed = BEGIN + pd.to_timedelta(np.arange(n) * (86_400 // PER_DAY), unit="s")
    after_drift = np.asarray(observed >= DRIFT_START)
    frame = pd.DataFrame(
        {
            "observation_id": [f"toy-{i:05d}" for i in range(n)],
            "observed_at": observed,
            "a": rng.normal(size=n) + np.where(after_drift, 1.5, 0.0),
            "b": rng.normal(size=n),
            "c": np.where(rng.random(n) < 0.05, np.nan, rng.uniform(0, 10, n)),
            "place": rng.choice(["north", "south"], n),
        }
    )
    a = frame["a"] - np.where(after_drift, 1.5, 0.0)
    score = np.where(after_drift, -1.0, 1.0) * 2 * a + frame["b"] + np.where(frame["place"] == "north", 0.7, -0.7)
    frame["action"] = np.where(rng.random(n) < 1 / (1 + np.exp(-score)), "go", "wait")
    return frame


HISTORY = _history()


def observations(start: datetime, end: datetime) -> pd.DataFrame:
    return _between(start, end).drop(columns="action")


def outcomes(start: datetime, end: datetime) -> pd.DataFrame:
    rows = _between(start, end)[["observation_id", "observed_at", "action"]]
    return rows.assign(known_at=rows["observed_at"] + pd.Timedelta(days=1))


def _between(start: datetime, end: datetime) -> pd.DataFrame:
    return HISTORY[(HISTORY["observed_at"] >= start) & (HISTORY["observed_at"] < end)].reset_index(drop=True)


class Logistic:
    """A logistic regression as teacher, saved as JSON."""

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> None:
        self.model = LogisticRegression().fit(self._matrix(rows), labels)

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        return self.model.predict_proba(self._matrix(rows))

    def save(self, folder: Path) -> None:
        stored = {"coef": self.model.coef_.tolist(), "intercept": self.model.intercept_.tolist()}
        (folder / "logistic.json").write_text(json.dumps(stored))

    @classmethod
    def load(cls, folder: Path) -> Logistic:
        stored = json.loads((folder / "logistic.json").read_text())
        loaded = cls()
        loaded.model = LogisticRegression()
        loaded.model.coef_, loaded.model.intercept_ = np.array(stored["coef"]), np.array(stored["intercept"])
        loaded.model.classes_ = np.arange(max(2, len(stored["coef"])))
        return loaded

    def _matrix(self, rows: pd.DataFrame) -> np.ndarray:
        places = [rows["place"] == place for place in ("north", "west")]
        return np.column_stack([rows["a"], rows["b"], rows["c"].fillna(5.0), *places]).astype(float)


class Network(nn.Module):
    """A custom student: missing numbers become 5, categories are codes."""

    def __init__(self, columns: list[dict], actions: tuple[str, ...], width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(len(columns), width), nn.Tanh(), nn.Linear(width, len(actions)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.where(torch.isnan(x), 5.0, x))


class FixedRules:
    """A teacher that is never fitted: the toy's true probabilities before the drift, with three features."""

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        go = 1 / (1 + np.exp(-self.features(rows).astype(float).sum(axis=1)))
        return np.column_stack([1 - go, go])

    def features(self, rows: pd.DataFrame) -> np.ndarray:
        place = np.where(rows["place"] == "north", 0.7, -0.7)
        return np.column_stack([2 * rows["a"], rows["b"], place]).astype(np.float32)
