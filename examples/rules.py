"""A shop that screens its orders by rules that people edit: the sources and the teacher of `agents/rules.yaml`.

The rules stand in `examples/rules.yaml`, in dated versions. The stream is made up (seed: `STILLHOUSE_EXAMPLE_SEED`): 21
weeks of orders. Whether an order was right to pass, to be reviewed or to be rejected is known two days later: as the
rules of its day say, with two exceptions that nobody wrote down. Customers with twelve earlier orders or more are not
reviewed, and large orders by night are. Three of a hundred outcomes are anything.

The student learns the rules, and from outcomes their exceptions. When a version of the rules begins, the teacher is
another one (its fingerprint changes), so the watch asks for a refresh.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import yaml

from stillhouse.errors import PartError

__all__ = ["ACTIONS", "FIRST_DAY", "WEEKS", "Rules", "orders", "right_actions"]

ACTIONS, FILE = ("pass", "review", "reject"), Path(__file__).with_suffix(".yaml")
FIRST_DAY, WEEKS = pd.Timestamp("2024-01-01T00:00:00Z"), 21
_ROWS, _SURE, _NOISE = 700, 0.9, 0.03  # orders a week; probability of a rule's action; of a random outcome
_SEED = int(os.environ.get("STILLHOUSE_EXAMPLE_SEED", "0"))
_COMPARE = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
_CONDITION = re.compile(r"\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*")


def orders(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the orders of [start, end), oldest first."""
    return _between(start, end).drop(columns=["known_at", "action"])


def right_actions(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return `observation_id`, `observed_at`, `known_at` and the right `action` of the orders of [start, end)."""
    return _between(start, end)[["observation_id", "observed_at", "known_at", "action"]]


class Rules:
    """A teacher: the rules of a file.

    :param fixed: whether the last version decides every row, whatever its day.
    """

    def __init__(self, file: str | None = None, fixed: bool = False) -> None:
        self.versions, self.fixed = _read(Path(file) if file else FILE), fixed

    def at(self, now: datetime, training_end: datetime) -> Self:
        """Return the rules that are in force at `now`; they are taught for older orders too."""
        rules, last = type(self)(fixed=True), _in_force(self.versions, pd.Series([pd.Timestamp(now)]))[0]
        rules.versions = self.versions[: last + 1]
        return rules

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return float64 `[n, 3]` by the last version; if no moment is given, by that of the day of each row."""
        chosen = _apply(self.versions[-1], rows) if self.fixed else self._then(rows)
        return np.where(np.arange(3) == chosen[:, None], _SURE, (1 - _SURE) / 2)

    def overrules(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return which rows were decided by an earlier version that says something else: their outcomes follow it."""
        return np.asarray(self._then(rows) != _apply(self.versions[-1], rows))

    def _then(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return the index of each row's action by the version that was in force when the row was observed."""
        chosen, index = np.zeros(len(rows), dtype=np.int64), _in_force(self.versions, rows["observed_at"])
        for number, version in enumerate(self.versions):
            chosen[index == number] = _apply(version, rows[index == number])
        return chosen

    def fingerprint(self) -> str:
        """Return a hash of the rules in force and before: comments and the order of keys do not count."""
        return hashlib.sha256(json.dumps(self.versions, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Write `rules.yaml`, so that the champion keeps the rules that it was taught."""
        Path(folder, "rules.yaml").write_text(yaml.safe_dump(self.versions, sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(str(Path(folder, "rules.yaml")), fixed=True)


def _read(file: Path) -> list[dict[str, Any]]:
    versions = yaml.safe_load(file.read_text(encoding="utf-8"))
    for rule in (rule for version in versions for rule in [*version["rules"], {"then": version["otherwise"]}]):
        if rule["then"] not in ACTIONS:
            raise PartError(f"{file}: {rule}: `then` must be one of {', '.join(ACTIONS)}")
        for column, condition in rule.get("when", {}).items():
            if not isinstance(condition, list) and not _CONDITION.fullmatch(str(condition)):
                raise PartError(f"{file}: {column}: {condition!r} must be a list, or like '> 900'")
    return sorted(versions, key=lambda version: str(version["from"]))


def _in_force(versions: list[dict[str, Any]], times: pd.Series) -> np.ndarray[Any, Any]:
    """Return the index of the version in force at each time; the first one also before its day."""
    starts = [pd.Timestamp(str(version["from"]), tz="UTC") for version in versions[1:]]
    return np.sum([times >= start for start in starts], axis=0) if starts else np.zeros(len(times), dtype=np.int64)


def _apply(version: dict[str, Any], rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Return the index of the action that the first fitting rule names."""
    chosen = np.full(len(rows), ACTIONS.index(version["otherwise"]))
    for rule in reversed(version["rules"]):
        fits = np.ones(len(rows), dtype=bool)
        for column, condition in rule["when"].items():
            fits &= _fits(rows[column], condition)
        chosen[fits] = ACTIONS.index(rule["then"])
    return chosen


def _fits(values: pd.Series, condition: list[str] | str) -> np.ndarray[Any, Any]:
    if isinstance(condition, list):
        return values.isin(condition).to_numpy()
    sign, number = _CONDITION.findall(condition)[0]
    return np.asarray(_COMPARE[sign](values.to_numpy(dtype=np.float64), float(number)))


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    return _stream()[_stream()["observed_at"].between(start, end, inclusive="left")].reset_index(drop=True)


@functools.cache
def _stream() -> pd.DataFrame:
    rng, n = np.random.default_rng(_SEED), _ROWS * WEEKS
    times = FIRST_DAY + pd.to_timedelta(np.sort(rng.integers(0, WEEKS * 7 * 86_400, n)), unit="s")
    rows = pd.DataFrame({"observation_id": [f"order-{i:06d}" for i in range(n)], "observed_at": times})
    rows["amount"] = np.exp(rng.normal(5.8, 0.9, n)).round(2)
    rows["items"] = 1.0 + rng.poisson(2.5, n)
    rows["account_days"] = np.exp(rng.normal(4.2, 1.5, n)).round()
    rows["earlier_orders"] = rng.negative_binomial(1, 0.12, n).astype(float)
    rows["hour"] = rows["observed_at"].dt.hour.astype(float)
    rows["region"] = rng.choice(["home", "near", "far", "islands"], n, p=[0.45, 0.25, 0.2, 0.1])
    rows["express"] = rng.choice(["yes", "no"], n, p=[0.35, 0.65])
    chosen = Rules().predict_proba(rows).argmax(axis=1)
    chosen[(chosen == 1) & (rows["earlier_orders"] >= 12)] = 0
    chosen[(chosen == 0) & (rows["hour"] < 6) & (rows["amount"] > 500)] = 1
    anything = rng.random(n) < _NOISE
    chosen[anything] = rng.integers(0, 3, anything.sum())
    return rows.assign(known_at=times + pd.Timedelta(days=2), action=np.array(ACTIONS)[chosen])
