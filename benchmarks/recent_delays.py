"""The gain of a refresh for the flights agent, with and without columns of recent delays.

``python -m benchmarks.recent_delays`` takes about a minute and a half of one core; ``--quick`` takes fifteen seconds:
one seed, 16 weeks, nothing written.

The flights agent has no columns computed from outcomes (docs/decisions/0108). This benchmark adds them to a copy of the
agent: the share of late departures among the flights of the last 7 and 28 days whose outcome was known before the row's
own scheduled departure, over all flights, over those of its airport and over those of its carrier. They need a feed of
outcomes on the device, which they read at every decision.

On both sets of columns two float32 students of ``agents/flights.yaml`` are compared. Both learn from labels alone; no
teacher is asked, and nothing is compressed or gated.

never refreshed
    trained once, before week 8.
refreshed
    a new student every 8 weeks, trained on the 12 weeks before it as far as their outcomes are known by then.

The score is the mean over weeks 8 to 51 of 2013 of the AUC within a week; the gain of a refresh is that of the
refreshed student minus that of the never-refreshed one. A seed decides the initial weights and the order of the
batches; the rows are the same for all.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from benchmarks.report import Goal, begin, print_goals
from examples.flights import ACTIONS, departures, lateness, week_start
from stillhouse import config
from stillhouse.config import AgentConfig, NumberColumn
from stillhouse.distill.students import columns_of, input_widths, new_student
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.variant import encode

CLAIM = (
    "with columns of recent delays a refresh of the flights student gains less AUC than without them: they raise the "
    "AUC of the student that is never refreshed, and leave that of the refreshed one about as it is"
)

WEEKS = range(8, 52)
RETRAIN_EVERY_WEEKS = 8
TRAINING_WEEKS = 12
DELAY_DAYS = (7, 28)
DELAY_GROUPS = (None, "origin", "carrier")

Auc = dict[str, float]


@dataclass(frozen=True)
class Model:
    """A trained student and the columns that it reads."""

    student: nn.Module
    columns: list[dict[str, Any]]

    def auc(self, rows: pd.DataFrame) -> float:
        """AUC of the probability of ``late`` on ``rows``."""
        result = measure_quality(
            student_probabilities(self.student, encode(rows, self.columns)), rows["label"].to_numpy()
        )
        if result.auc is None:
            raise ValueError("AUC needs late and punctual departures; the rows have only one of them")
        return result.auc


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how often all students are trained")
    parser.add_argument("--quick", action="store_true", help="one seed, 16 weeks, no file written")
    options = parser.parse_args()
    run = begin("recent_delays", writes_result=not options.quick)
    weeks = WEEKS[:16] if options.quick else WEEKS
    rows = with_recent_delays(departures_with_outcomes(week_start(0), week_start(weeks.stop)))
    flights = config.load("flights")
    per_seed: list[dict[str, Any]] = []
    for seed in range(1 if options.quick else options.seeds):
        seeded = with_seed(flights, seed)
        auc = {
            "without_columns": mean_weekly_auc(seeded, rows, weeks),
            "with_columns": mean_weekly_auc(with_delay_columns(seeded), rows, weeks),
        }
        per_seed.append({"seed": seed, **auc})
        print(f"seed {seed}: {auc}", flush=True)
    goals = goals_of(per_seed)
    if options.quick:
        print_goals(CLAIM, goals)
    else:
        detail = {
            "seeds": per_seed,
            "columns": delay_columns(),
            "weeks": [weeks.start, weeks.stop - 1],
            "retrain_every_weeks": RETRAIN_EVERY_WEEKS,
            "training_weeks": TRAINING_WEEKS,
        }
        run.write(CLAIM, goals, detail, ("torch", "scikit-learn"))


def goals_of(per_seed: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """The gain of a refresh on both sets of columns: median and range over the seeds."""
    goals = []
    for columns in ("without_columns", "with_columns"):
        gains = [result[columns]["refreshed"] - result[columns]["never_refreshed"] for result in per_seed]
        goals.append(Goal(f"gain_{columns}", 0.0, "higher", statistics.median(gains), min(gains), max(gains)))
    return goals


# --------------------------------------------------------------------------- columns


def departures_with_outcomes(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """The departures scheduled in [start, end), oldest first, with ``known_at`` and ``label`` (index in ACTIONS)."""
    outcomes = lateness(start, end)[["observation_id", "known_at", "action"]]
    rows = departures(start, end).merge(outcomes, on="observation_id", validate="one_to_one")
    return rows.assign(label=(rows["action"] == ACTIONS[1]).astype(np.int64)).drop(columns="action")


def delay_columns() -> list[str]:
    """Names of the columns that :func:`with_recent_delays` adds."""
    return [_name(days, group) for group in DELAY_GROUPS for days in DELAY_DAYS]


def with_recent_delays(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows``, which must be ordered by ``observed_at``, with the columns of recent delays."""
    columns = {}
    for group in DELAY_GROUPS:
        parts = [rows] if group is None else [part for _, part in rows.groupby(group)]
        for days in DELAY_DAYS:
            columns[_name(days, group)] = pd.concat([share_late(part, days) for part in parts])
    return rows.assign(**columns)


def share_late(rows: pd.DataFrame, days: int) -> pd.Series:
    """Share of late departures among the recent rows whose outcome was known before each row's ``observed_at``.

    :param rows: ordered by ``observed_at`` and by ``known_at``.
    :param days: how far back a departure counts as recent.
    :return: 0 … 1, indexed as ``rows``; NaN where no recent outcome was known.
    """
    now = rows["observed_at"]
    first = now.searchsorted(now - pd.Timedelta(days=days), side="left")
    end = rows["known_at"].searchsorted(now, side="left")  # the first row whose outcome was not known before `now`
    late_before = np.concatenate([[0], np.cumsum(rows["label"].to_numpy())])
    count = np.maximum(end - first, 0)
    with np.errstate(invalid="ignore"):
        share = np.where(count > 0, late_before[end] - late_before[first], np.nan) / count
    return pd.Series(share, index=rows.index)


def _name(days: int, group: str | None) -> str:
    return f"late_{days}d" if group is None else f"late_{days}d_{group}"


# --------------------------------------------------------------------------- students


def with_seed(agent: AgentConfig, seed: int) -> AgentConfig:
    """The same agent whose student learns at fixed settings under this seed."""
    settings = agent.distillation.model_copy(update={"seed": seed, "controller": "fixed"})
    return agent.model_copy(update={"distillation": settings})


def with_delay_columns(agent: AgentConfig) -> AgentConfig:
    """The same agent whose student also reads the columns of recent delays."""
    share = NumberColumn(type="number", min=0, max=1, max_missing=1)
    columns = {**agent.observations.columns, **dict.fromkeys(delay_columns(), share)}
    return agent.model_copy(update={"observations": agent.observations.model_copy(update={"columns": columns})})


def mean_weekly_auc(agent: AgentConfig, rows: pd.DataFrame, weeks: range) -> Auc:
    """Mean AUC within a week of both students, over ``weeks``; the first of them is when both are first trained."""
    never_refreshed = refreshed = train(agent, rows, week_start(weeks.start))
    per_week: dict[str, list[float]] = {"never_refreshed": [], "refreshed": []}
    for week in weeks:
        age = week - weeks.start
        if age > 0 and age % RETRAIN_EVERY_WEEKS == 0:
            refreshed = train(agent, rows, week_start(week))
        now = rows["observed_at"]
        rows_of_week = rows[(now >= week_start(week)) & (now < week_start(week + 1))]
        per_week["never_refreshed"].append(never_refreshed.auc(rows_of_week))
        per_week["refreshed"].append(refreshed.auc(rows_of_week))
    return {name: statistics.mean(values) for name, values in per_week.items()}


def train(agent: AgentConfig, rows: pd.DataFrame, moment: pd.Timestamp) -> Model:
    """A student trained on the labels known before ``moment`` of the ``TRAINING_WEEKS`` before it."""
    window = training_window(rows, moment)
    columns = columns_of(agent, window)
    x = encode(window, columns)
    no_teacher_probs = np.full((len(window), len(ACTIONS)), np.nan)
    training_set = TrainingSet(x, no_teacher_probs, window["label"].to_numpy(), input_widths(columns).numbers)
    student = new_student(agent, columns, x)
    distil(student, training_set, agent.distillation)
    return Model(student.eval(), columns)


def training_window(rows: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The rows of the ``TRAINING_WEEKS`` before ``moment`` whose outcome is known before it."""
    recent = rows["observed_at"] >= moment - pd.Timedelta(weeks=TRAINING_WEEKS)
    return rows[recent & (rows["known_at"] < moment)]


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
