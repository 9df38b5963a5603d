"""The streams of `benchmarks.streams`: rows in the order of time, the settings of the agent that decides them, steps.

:func:`dev_streams` are for development: no result reports them, and constants may be chosen on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig

__all__ = ["Stream", "dev_streams"]

Array = np.ndarray[Any, Any]

DAY, WEEK = timedelta(days=1), timedelta(weeks=1)
FIRST_DAY = pd.Timestamp("2024-01-01T00:00:00Z")
"""Start of every generated stream, a Monday."""

GENERATED_WEEKS = 80
FIRST_STEPS = 8


@dataclass(frozen=True)
class Stream:
    """Rows in the order of time, and how an agent decides them.

    >>> stream = dev_streams(seed=0)[0]
    >>> stream.name, stream.steps, stream.first_steps, len(stream.rows_of(0))
    ('rotating', 80, 8, 336)

    :param settings: of the agent: columns, actions, teacher, student.
    :param rows: ``observation_id`` (unique), ``observed_at`` (UTC, not decreasing), the columns of ``settings``,
        ``outcome`` (action index, int64; −1: never known) and ``known_at`` (when the outcome is known, UTC).
    :param step: time between two chances to respond; steps are counted from ``start``.
    :param first_steps: steps before the first champion, whose rows it learns from.
    :param measure_note: what quality means on this stream, in a sentence.
    :param change_points: moments at which the concept begins to change, where they are known; for pages only.
    :param held_out: rows that are in no step, with ``outcome`` and ``known_from`` (the moment from which rows like them
        can occur); None: quality is measured on ``rows``.
    :param teacher_probs: answers of a teacher that was recorded, ``[len(rows), K]``; a row of NaN has none. None: the
        teachers of ``settings`` are asked.
    """

    name: str
    settings: AgentConfig
    rows: pd.DataFrame
    step: timedelta
    first_steps: int
    measure_note: str
    change_points: tuple[datetime, ...] = ()
    held_out: pd.DataFrame | None = None
    teacher_probs: Array | None = None

    @property
    def start(self) -> pd.Timestamp:
        """The moment at which step 0 begins: the midnight (UTC) before the first row."""
        first: pd.Timestamp = self.rows["observed_at"].iloc[0]
        return first.floor("D")

    @property
    def steps(self) -> int:
        """Number of steps, the last of which may be incomplete."""
        return int(self.step_numbers()[-1]) + 1

    def step_numbers(self) -> Array:
        """The step of each row, int64 ``[len(rows)]``, not decreasing."""
        elapsed = (self.rows["observed_at"] - self.start) // pd.Timedelta(self.step)
        return elapsed.to_numpy(dtype=np.int64)

    def rows_of(self, step: int) -> pd.DataFrame:
        """The rows of step ``step`` (0 … ``steps`` − 1); there may be none."""
        first, last = np.searchsorted(self.step_numbers(), [step, step + 1])
        return self.rows.iloc[first:last]


# --------------------------------------------------------------------------- settings


def agent_settings(
    name: str,
    actions: list[str],
    columns: Mapping[str, Mapping[str, Any]],
    teacher: str,
    student: Mapping[str, Any] | None = None,
    **sections: Any,
) -> AgentConfig:
    """The settings of a stream's agent: defaults, but for its columns, its actions and its teacher.

    :param teacher: ``"module:Class"``.
    :param student: section ``student``; None: the default of a table.
    :param sections: further sections of the agent file, such as ``distillation``.
    """
    return AgentConfig.model_validate(
        {
            "agent": name,
            "actions": actions,
            "observations": {"source": _SOURCE, "since": "1990-01-01T00:00:00Z", "columns": dict(columns)},
            "outcomes": {"source": _SOURCE, "delay": "1d"},
            "teachers": [
                {"kind": "python", "name": "teacher", "target": teacher, "settings": {"actions": len(actions)}}
            ],
            "student": dict(student or {"kind": "tabular"}),
            "windows": {"train": "26w", "test": "7d", "current": "7d"},
            "watch": {},
        }
        | sections
    )


def no_source(start: datetime, end: datetime) -> pd.DataFrame:
    """The source in the settings of a stream, whose rows are at hand: it cannot be called.

    :raises RuntimeError: always.
    """
    raise RuntimeError("the rows of a stream are in `Stream.rows`; it has no source")


_SOURCE = f"{__name__}:{no_source.__name__}"
_BOOSTING = "benchmarks.stream_teachers:Boosting"


def table_columns(features: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The columns of a table for the agent file: numbers where they are numeric, else categories.

    >>> table_columns(pd.DataFrame({"age": [1.0], "ward": ["a"]}))
    {'age': {'type': 'number'}, 'ward': {'type': 'category'}}
    """
    numeric = set(features.select_dtypes("number").columns)
    return {str(name): {"type": "number" if name in numeric else "category"} for name in features.columns}


# --------------------------------------------------------------------------- generated streams


def generated_stream(
    name: str, features: pd.DataFrame, outcome: Array, rows_per_week: int, change_weeks: tuple[float, ...] = ()
) -> Stream:
    """A stream of two actions with as many rows each week, evenly spread over it; outcomes are known a day later.

    :param features: columns that the agent sees, ``[n]`` rows in the order of time.
    :param outcome: action indices ``[n]``, 0 or 1.
    :param change_weeks: when the concept begins to change, in weeks since the start.
    """
    spacing = WEEK / rows_per_week
    observed_at = FIRST_DAY + pd.to_timedelta(np.arange(len(features)) * spacing.total_seconds(), unit="s")
    rows = features.assign(
        observation_id=[f"{name}-{index}" for index in range(len(features))],
        observed_at=observed_at,
        outcome=outcome.astype(np.int64),
        known_at=observed_at + DAY,
    )
    return Stream(
        name,
        agent_settings(name, ["no", "yes"], table_columns(features), _BOOSTING),
        rows,
        WEEK,
        FIRST_STEPS,
        "log loss, with accuracy and AUC beside it",
        tuple((FIRST_DAY + week * WEEK).to_pydatetime() for week in change_weeks),
    )


def dev_streams(seed: int) -> tuple[Stream, Stream, Stream]:
    """Three streams of 80 weeks for development: sudden and slow rotation, a slow threshold, and a recurring season."""
    return rotating(seed), moving_threshold(seed), two_seasons(seed)


def rotating(seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 336) -> Stream:
    """A boundary that turns by about a degree a week and, three times, by 60° to 120° at once."""
    rng = np.random.default_rng([seed, 1])
    week = np.arange(weeks * per_week) // per_week
    x = rng.normal(size=(len(week), 6))
    jumps = np.sort((np.array([0.2, 0.45, 0.7]) + rng.uniform(0, 0.15, 3)) * weeks).astype(int)
    turns = rng.choice([-1, 1], 3) * rng.uniform(np.pi / 3, 2 * np.pi / 3, 3)
    angle = 0.02 * week + (turns * (week[:, None] >= jumps)).sum(axis=1)
    logits = 2.5 * (np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1]) + x[:, 2] * x[:, 3]
    return generated_stream("rotating", _number_columns(x), _draw(rng, logits), per_week, tuple(map(float, jumps)))


def moving_threshold(seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 210) -> Stream:
    """A fixed score, of which only the threshold moves: up and down within about 45 weeks, with a small random walk."""
    rng = np.random.default_rng([seed, 2])
    week = np.arange(weeks * per_week) // per_week
    x = rng.normal(size=(len(week), 5))
    site = rng.integers(0, 4, len(week))
    walk = np.cumsum(rng.normal(0, 0.12, weeks))
    intercept = 1.8 * np.sin(2 * np.pi * (np.arange(weeks) / 45 + rng.uniform())) + walk
    score = 1.6 * x[:, 0] - np.abs(x[:, 1]) + 0.8 * x[:, 2] + np.array([-1.0, 0.0, 0.6, 1.2])[site]
    features = _number_columns(x).assign(site=np.array(["north", "east", "south", "west"])[site])
    return generated_stream("threshold", features, _draw(rng, score + intercept[week]), per_week)


def two_seasons(seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 700) -> Stream:
    """Two concepts that take turns every 9 to 14 weeks, and inputs that tell the season only in part."""
    rng = np.random.default_rng([seed, 3])
    week = np.arange(weeks * per_week) // per_week
    starts = np.cumsum(rng.integers(9, 15, weeks // 9))
    starts = starts[starts < weeks]
    second = (week[:, None] >= starts).sum(axis=1) % 2 == 1
    x = rng.normal(size=(len(week), 6))
    x[:, 0] += 0.8 * second
    shop = np.where(rng.uniform(size=len(week)) < np.where(second, 0.6, 0.3), "online", "counter")
    first_logits = 2 * x[:, 1] - 1.5 * x[:, 2] + 0.7 * x[:, 3] ** 2 - 0.7
    second_logits = -1.2 * x[:, 1] - 1.5 * x[:, 2] + 1.5 * x[:, 4]
    logits = np.where(second, second_logits, first_logits) + 0.6 * (shop == "online")
    features = _number_columns(x).assign(shop=shop)
    return generated_stream("seasons", features, _draw(rng, logits), per_week, tuple(map(float, starts)))


def _number_columns(x: Array) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"x{index}" for index in range(x.shape[1])])


def _draw(rng: np.random.Generator, logits: Array) -> Array:
    """Outcomes 0 or 1 ``[n]``, of which 1 has the probability sigmoid(logits)."""
    return (rng.uniform(size=len(logits)) < 1 / (1 + np.exp(-logits))).astype(np.int64)
