"""Any table with times and outcomes, here support tickets: the sources and the teacher of `agents/table.yaml`.

To begin an agent from a table of your own, change the names in capitals and `read_table`; the rest follows from them.

The tickets are made up (seed: `STILLHOUSE_EXAMPLE_SEED`): 14 weeks, each ticket answered at once or escalated. After
eight weeks a new channel opens, the customer portal, whose tickets follow other rules.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Self

import lightgbm
import numpy as np
import pandas as pd

__all__ = ["ACTIONS", "CATEGORIES", "NUMBERS", "Trees", "observations", "outcomes", "read_table"]

TIME, OUTCOME, ID = "opened", "result", None
"""Columns of the table: when it was observed (UTC), what was right, and its key; None: the number of the row."""
ACTIONS = ("answer", "escalate")
"""The values of the column `OUTCOME`, in the order of `actions` in the agent file."""
NUMBERS = ("length", "customers", "hour")
CATEGORIES = ("channel",)
"""What the agent sees, as `observations.columns` in the agent file describes it."""
KNOWN_AFTER = pd.Timedelta(days=1)
"""Time until an outcome is known, as `outcomes.delay` in the agent file."""


def read_table() -> pd.DataFrame:
    """Return the table, one row an observation. Your own: `pd.read_csv(Path(__file__).with_name("mine.csv"))`."""
    rng, count = np.random.default_rng(int(os.environ.get("STILLHOUSE_EXAMPLE_SEED", "0"))), 14 * 7 * 180
    opened = pd.date_range("2026-01-05", periods=count, freq="8min", tz="UTC")  # 180 a day
    portal = (opened >= "2026-03-02") & (rng.random(count) < 0.4)
    length, customers = rng.lognormal(5, 1, count).round(), rng.poisson(3, count)
    channel = np.where(portal, "portal", rng.choice(["mail", "phone", "chat"], count, p=[0.5, 0.2, 0.3]))
    score = np.where(portal, -1.5, 1.2) * (np.log(length + 1) - 5) + 0.4 * (customers - 3) + (channel == "phone") - 1
    result = np.where(rng.random(count) < 1 / (1 + np.exp(-score)), "escalate", "answer")
    columns = {"length": length, "customers": customers, "hour": opened.hour, "channel": channel}
    return pd.DataFrame({"opened": opened, **columns, "result": result})


def observations(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return what was observed in [start, end), oldest first."""
    return _between(start, end)[["observation_id", "observed_at", *NUMBERS, *CATEGORIES]]


def outcomes(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the right actions of these observations, without those that nobody knows."""
    rows = _between(start, end).dropna(subset=OUTCOME)
    known_at = rows["observed_at"] + KNOWN_AFTER
    return rows[["observation_id", "observed_at"]].assign(known_at=known_at, action=rows[OUTCOME].astype(str))


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    rows = _table()
    return rows[(rows["observed_at"] >= start) & (rows["observed_at"] < end)]


@functools.cache
def _table() -> pd.DataFrame:
    rows = read_table()
    keys = rows.index if ID is None else rows[ID]
    rows = rows.assign(observation_id=keys.astype(str), observed_at=pd.to_datetime(rows[TIME], utc=True))
    return rows.sort_values(["observed_at", "observation_id"], ignore_index=True)


class Trees:
    """A teacher: gradient-boosted trees (LightGBM). An unknown category and a missing number are both missing.

    :param trees: rounds of boosting (≥ 1).
    :param leaves: leaves of a tree (≥ 2).
    """

    def __init__(self, *, trees: int = 60, leaves: int = 7) -> None:
        self.settings = {"trees": trees, "leaves": leaves}
        self.known: dict[str, list[str]] = {}
        self.booster: lightgbm.Booster | None = None

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any]) -> None:
        """Fit on rows `[n]` and labels `[n]`, indices into `ACTIONS`."""
        self.known = {name: sorted(rows[name].dropna().unique().tolist()) for name in CATEGORIES}
        settings = {"objective": "multiclass", "num_class": len(ACTIONS), "num_leaves": self.settings["leaves"]}
        settings |= {"min_data_in_leaf": 20, "seed": 0, "deterministic": True, "num_threads": 1, "verbose": -1}
        categories = list(range(len(NUMBERS), len(NUMBERS) + len(CATEGORIES)))
        data = lightgbm.Dataset(self._matrix(rows), labels, categorical_feature=categories)
        self.booster = lightgbm.train(settings, data, self.settings["trees"])

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return the probability of each action, `[n, K]`, in the order of `ACTIONS`."""
        assert self.booster is not None, "call fit or load first"
        return np.asarray(self.booster.predict(self._matrix(rows), num_threads=1))

    def save(self, folder: Path) -> None:
        """Write `teacher.json` and, in LightGBM's format, `trees.txt`."""
        assert self.booster is not None, "call fit first"
        self.booster.save_model(folder / "trees.txt")
        text = json.dumps({"settings": self.settings, "known": self.known})
        (folder / "teacher.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        stored = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        teacher = cls(**stored["settings"])
        teacher.known, teacher.booster = stored["known"], lightgbm.Booster(model_file=folder / "trees.txt")
        return teacher

    def _matrix(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return numbers, then codes of categories, float64 `[n, F + C]`."""
        codes = {name: {value: code for code, value in enumerate(self.known[name])} for name in CATEGORIES}
        columns = [rows[name].astype(float) for name in NUMBERS]
        columns += [rows[name].map(codes[name]).astype(float) for name in CATEGORIES]
        return np.column_stack([column.to_numpy() for column in columns])
