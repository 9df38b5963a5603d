"""A service desk that remembers its cases: the sources and the teacher of `agents/memory.yaml`.

The teacher is a nearest-neighbour search over the agent's own knowledge base: what settled the most similar recent
cases settles this one. It fits nothing, and a new outcome counts at once. The student is a small model that imitates it
at a cost that does not grow with the memory.

The teacher knows no more than one could have known. A case is answered from outcomes that were known when it was
observed, never from its own. Rows that a student learns from are answered by what was known at the end of its training
window: so the student learns what the memory says now, and nothing of the rows that judge it.

The stream is made up (seed: `STILLHOUSE_EXAMPLE_SEED`): 21 weeks of cases, six numbers between 0 and 1 each, of 24
kinds. In week 12, and again in week 18, a third of the kinds is settled in another way from then on; what cases look
like never changes. What settled a case is known a day later, and one of ten is settled anyhow.
"""

from __future__ import annotations

import functools
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from stillhouse import KnowledgeBase

__all__ = ["ACTIONS", "COLUMNS", "FIRST_DAY", "TURNS", "WEEKS", "Memory", "cases", "make_stream", "settled"]

ACTIONS, COLUMNS = ("explain", "repair", "replace", "refund"), ("age", "damage", "delay", "loyalty", "price", "tone")
FIRST_DAY, WEEKS, TURNS = pd.Timestamp("2024-01-01T00:00:00Z"), 21, (12, 18)
_KINDS, _SPREAD, _NOISE, _ROWS = 24, 0.06, 0.1, 840  # kinds; standard deviation within one; settled anyhow; rows a week
_DAY, _CHUNK, _PRIOR = 86_400.0, 128, 0.02  # seconds; rows searched at once; the vote for "any action"
_SEED = int(os.environ.get("STILLHOUSE_EXAMPLE_SEED", "0"))
Array = np.ndarray[Any, Any]


def cases(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the cases of [start, end), oldest first."""
    return _between(start, end)[["observation_id", "observed_at", *COLUMNS]]


def settled(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return `observation_id`, `observed_at`, `known_at` and the `action` that settled the cases of [start, end)."""
    return _between(start, end)[["observation_id", "observed_at", "known_at", "action"]]


class Memory:
    """A teacher: a vote of the nearest memories, where age counts as distance.

    A memory at distance d and of age a votes with the weight exp(−d²/(2 reach²)) · 2^(−a / half_life).

    :param near: number of memories that vote (≥ 1); `reach` is in the unit of the columns, `half_life` in days.
    :param training_end: end of the training window, ISO 8601; None: there is none.
    """

    def __init__(self, near: int = 40, reach: float = 0.15, half_life: float = 2.0, training_end: str | None = None):
        self.settings = {"near": near, "reach": reach, "half_life": half_life, "training_end": training_end}
        self.near, self.reach, self.ageing, self._seen = near, reach, np.log(2) / half_life / _DAY, list[Any]()
        self.training_end = -np.inf if training_end is None else pd.Timestamp(training_end).timestamp()

    def at(self, now: datetime, training_end: datetime) -> Self:
        """Return the memory for a student whose training rows end at `training_end`."""
        return type(self)(**{**self.settings, "training_end": training_end.isoformat()})

    def use_knowledge_base(self, base: KnowledgeBase) -> None:
        """Search this knowledge base."""
        self.base = base

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Return float64 `[n, K]`, each row by what was known at the later of its own time and `training_end`."""
        memories, actions = self.recall(), len(self.base.config.actions)
        columns = rows[list(self.base.config.observations.numbers)].to_numpy(dtype=np.float32)
        asked_at = np.maximum(_seconds(rows["observed_at"]), self.training_end)
        own = memories[0].get_indexer(rows["observation_id"]) if memories else asked_at
        votes = np.full((len(rows), actions), _PRIOR / actions)
        for start in range(0, len(rows) if memories else 0, _CHUNK):
            part = slice(start, start + _CHUNK)
            near, weights = self._search(own[part], columns[part], asked_at[part, None], memories)
            for action in range(actions):
                votes[part, action] += (weights * (memories[4][near] == action)).sum(axis=1)
        return votes / votes.sum(axis=1, keepdims=True)

    def _search(self, own: Array, x: Array, asked_at: Array, memories: tuple[Any, ...]) -> tuple[Array, Array]:
        """Return indices and weights `[n, near]` of the nearest memories of rows."""
        _, y, observed_at, known_at, _ = memories
        apart = ((x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)) / (2 * self.reach**2)
        apart = apart + (asked_at - observed_at) * self.ageing
        apart[known_at > asked_at] = np.inf  # not known yet
        apart[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf  # its own outcome
        near = np.argpartition(apart, min(self.near, len(y)) - 1, axis=1)[:, : self.near]
        return near, np.exp(-np.take_along_axis(apart, near, axis=1))

    def recall(self) -> tuple[Any, ...]:
        """Return ids, columns, `observed_at`, `known_at` and actions of all memories; read when there are new ones."""
        tables = [self.base.tables.open(name) for name in ("observations", "outcomes", "quarantine")]
        seen = [(table, table.version()) for table in tables if table is not None]
        if seen != self._seen and (until := self.base.observed_until()) is not None:
            window = self.base.window("memories", self.base.observed_since(until), until)
            rows = self.base.join_known_at(self.base.read_labelled(window, datetime.now(UTC)), datetime.now(UTC))
            columns = rows[list(self.base.config.observations.numbers)].to_numpy(dtype=np.float32)
            times, outcomes = (_seconds(rows[name]) for name in ("observed_at", "known_at")), rows["outcome"].to_numpy()
            self._memories = (pd.Index(rows["observation_id"]), columns, *times, outcomes) if len(rows) else ()
            self._seen = seen
        return self._memories if self._seen else ()

    @property
    def bytes_elsewhere(self) -> int:
        """Size of the tables that are searched."""
        files = (file for name in ("observations", "outcomes") for file in (self.base.root / name).rglob("*.parquet"))
        return sum(file.stat().st_size for file in files)

    def save(self, folder: Path) -> None:
        """Write the settings; the memories stay in the knowledge base."""
        Path(folder, "memory.json").write_text(json.dumps(self.settings), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        return cls(**json.loads(Path(folder, "memory.json").read_text(encoding="utf-8")))


def make_stream(rows: int, weeks: int = WEEKS, turns: tuple[int, ...] = TURNS, seed: int = _SEED) -> pd.DataFrame:
    """Return `rows` cases a week with `known_at` and `action`, by time."""
    rng, n = np.random.default_rng(seed), rows * weeks
    centres, ways = rng.random((_KINDS, len(COLUMNS))), [rng.integers(0, len(ACTIONS), _KINDS)]
    for turn in range(len(turns)):  # the kinds number turn, turn + 3, … are settled in another way
        ways.append((ways[-1] + np.where(np.arange(_KINDS) % 3 == turn, rng.integers(1, 4, _KINDS), 0)) % len(ACTIONS))
    kinds, seconds = rng.integers(0, _KINDS, n), np.sort(rng.integers(0, weeks * 7 * int(_DAY), n))
    actions = np.array(ways)[np.searchsorted(np.array(turns) * 7 * int(_DAY), seconds, side="right"), kinds]
    actions = np.where(rng.random(n) < _NOISE, rng.integers(0, len(ACTIONS), n), actions)
    stream = pd.DataFrame((centres[kinds] + rng.normal(0, _SPREAD, (n, len(COLUMNS)))).clip(0, 1), columns=COLUMNS)
    stream["observation_id"] = [f"case-{i:07d}" for i in range(n)]
    stream["observed_at"] = FIRST_DAY + pd.to_timedelta(seconds, unit="s")
    return stream.assign(known_at=stream["observed_at"] + pd.Timedelta(days=1), action=np.array(ACTIONS)[actions])


_stream = functools.cache(functools.partial(make_stream, _ROWS))


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    return _stream()[_stream()["observed_at"].between(start, end, inclusive="left")].reset_index(drop=True)


def _seconds(times: pd.Series) -> Array:
    """Return times as seconds since 1970."""
    return np.asarray(times.dt.as_unit("us").astype("int64").to_numpy() / 1e6)
