"""The gain of teacher weights that are learned from outcomes, where outcomes become known a day late.

``python -m benchmarks.teacher_weights`` takes some minutes; ``--quick`` takes under one, and writes no file.

Four teachers of the flights of 2013 are fitted once and then fixed: boosted trees and a logistic regression on winter
(weeks 0 to 8), boosted trees on summer (weeks 20 to 27), and boosted trees on JFK alone. From week 28 to the end of the
year the weights of each morning are learned from the outcomes known by then and scored on that day's departures. The
loss is −ln of the probability that the weighted mean gave to the outcome (nats).

Rivals: the equal mean; the best teacher and the best constant mixture, both chosen in hindsight; and the same weights
with each row as independent evidence, as such methods are usually run (:mod:`stillhouse.teachers.mixture_weights`
treats an hour of departures as one unit).

*Staged*: from week 40 on the summer teacher's probabilities are inverted. Repeats are disjoint quarters of the
departures, with other seeds of the trees.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.report import Goal, begin
from examples import flights
from stillhouse.config import load
from stillhouse.teachers import mixture_weights

CLAIM = (
    "weights learned from outcomes that arrive a day late have a lower log loss than equal weights, and nearly that "
    "of the best constant mixture chosen in hindsight"
)
NAMES = ("trees_of_winter", "logistic_of_winter", "trees_of_summer", "trees_of_jfk")
NUMBERS = [
    "minute",
    "weekday",
    "distance",
    "n_hour",
    "n_prev3",
    "temp",
    "dewp",
    "humid",
    "wind_speed",
    "precip",
    "visib",
    "precip_6h",
    "visib_6h",
    "nyc_precip_3h",
]
HOUR = timedelta(hours=1)  # promotion.cluster of the flights agent
INVERSION_WEEK = 40
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat on a few weeks; writes nothing")
    quick = parser.parse_args().quick
    run = begin("teacher_weights", writes_result=not quick)
    repeats = [run_repeat(seed, 1 if quick else 4, 32 if quick else 52) for seed in range(1 if quick else 4)]
    goals = [
        median_goal(
            "nats_below_the_equal_mean", 0.0, "higher", [r["real"]["equal"] - r["real"]["followed"] for r in repeats]
        ),
        median_goal(
            "nats_above_the_best_mixture_in_hindsight",
            0.002,
            "lower",
            [r["real"]["followed"] - r["real"]["best_mixture"] for r in repeats],
        ),
        median_goal(
            "nats_that_slices_cost",
            0.0005,
            "lower",
            [r["real"]["followed"] - r["real"]["without_slices"] for r in repeats],
        ),
        median_goal(
            "staged_nats_above_the_mean_without_the_bad_one",
            0.005,
            "lower",
            [r["staged"]["followed"] - r["staged"]["without_the_bad_one"] for r in repeats],
        ),
        median_goal("staged_days_to_a_tenth_of_the_weight", 7.0, "lower", [r["staged"]["days"] for r in repeats]),
    ]
    if quick:
        for median in goals:
            print(f"{median.name}: {median.measured:.4g} (goal {median.goal:g})")
        return
    run.write(CLAIM, goals, {"repeats": repeats}, ("numpy", "scikit-learn", "lightgbm"))


def run_repeat(seed: int, every_nth_row: int, last_week: int) -> dict[str, Any]:
    """Fit the teachers and learn their weights day by day on one quarter of the departures."""
    winter, summer = read_weeks(0, 9), read_weeks(20, 28)
    teachers = [
        fit_trees(winter, seed),
        logistic_pipeline().fit(winter, winter["outcome"]),
        fit_trees(summer, seed),
        fit_trees(summer[summer["origin"] == "JFK"], seed),
    ]
    rows = read_weeks(28, last_week).sort_values(["known_at", "observed_at", "observation_id"], ignore_index=True)
    rows = rows.iloc[seed % every_nth_row :: every_nth_row].reset_index(drop=True)
    teacher_probs = np.stack([teacher.predict_proba(rows) for teacher in teachers], axis=1)
    labels = rows["outcome"].to_numpy()
    losses = -np.log(outcome_probs(teacher_probs, labels))
    slices = list(load("flights").promotion.slices)
    learned_shares, _ = learn_daily(teacher_probs, rows, slices)
    real = {
        "rows": len(rows),
        "followed": log_loss_of(learned_shares, teacher_probs, labels),
        "without_slices": log_loss_of(learn_daily(teacher_probs, rows, [])[0], teacher_probs, labels),
        "row_by_row": log_loss_of(learn_daily(teacher_probs, rows, slices, by_row=True)[0], teacher_probs, labels),
        "equal": log_loss_of(np.full(losses.shape, 1 / len(NAMES)), teacher_probs, labels),
        "best_teacher": float(losses.mean(axis=0).min()),
        "best_mixture": best_mixture(teacher_probs, labels),
        "teachers": dict(zip(NAMES, losses.mean(axis=0).round(5).tolist(), strict=True)),
        "auc": {
            "followed": auc(learned_shares, teacher_probs, labels),
            "equal": auc(np.full(losses.shape, 0.25), teacher_probs, labels),
        },
    }
    return {"seed": seed, "real": real, "staged": measure_staged(teacher_probs, rows, slices, last_week)}


def measure_staged(teacher_probs: Array, rows: pd.DataFrame, slices: Sequence[str], last_week: int) -> dict[str, Any]:
    """Invert the summer teacher from one week on; return log losses after it and days until its weight is low."""
    inversion = flights.week_start(min(INVERSION_WEEK, last_week - 2))
    after, labels = (rows["observed_at"] >= inversion).to_numpy(), rows["outcome"].to_numpy()
    inverted_probs = teacher_probs.copy()
    inverted_probs[after, 2] = teacher_probs[after, 2, ::-1]
    shares, shares_by_day = learn_daily(inverted_probs, rows, slices)
    others = np.full(shares.shape, 1 / 3)
    others[:, 2] = 0.0
    days = sorted(day for day in shares_by_day if day >= inversion.floor("D"))
    before = shares_by_day[max(day for day in shares_by_day if day < inversion.floor("D"))][2]
    recovery_day = next((day for day in days if shares_by_day[day][2] < before / 10), days[-1])
    return {
        "followed": log_loss_of(shares[after], inverted_probs[after], labels[after]),
        "equal": log_loss_of(np.full((after.sum(), 4), 0.25), inverted_probs[after], labels[after]),
        "without_the_bad_one": log_loss_of(others[after], inverted_probs[after], labels[after]),
        "weight_before": round(float(before), 4),
        "days": float((recovery_day - inversion.floor("D")).days),
    }


def learn_daily(
    teacher_probs: Array, rows: pd.DataFrame, slices: Sequence[str], by_row: bool = False
) -> tuple[Array, Mapping[pd.Timestamp, Array]]:
    """Learn the weights day by day from the outcomes known each morning.

    :param by_row: treat every row as independent evidence, not every hour.
    :return: share of each teacher in each row ``[n, M]``, and the mean shares by day.
    """
    mixture = mixture_weights.start_weights(
        NAMES, [1 / len(NAMES)] * len(NAMES), slices, flights.week_start(28).to_pydatetime()
    )
    shares, shares_by_day, seen_rows = np.empty(teacher_probs.shape[:2]), {}, 0
    time_blocks = (rows["observed_at"] - pd.Timestamp(0, tz="UTC")) // HOUR
    known_at, days = rows["known_at"].to_numpy(), rows["observed_at"].dt.floor("D")
    for day in sorted(days.unique()):
        end = int(np.searchsorted(known_at, day))
        if end > seen_rows:
            new = slice(seen_rows, end)
            mixture = mixture_weights.learn(
                mixture,
                teacher_probs[new],
                rows["outcome"].to_numpy()[new],
                rows.iloc[new],
                day.to_pydatetime(),
                None if by_row else time_blocks.to_numpy()[new],
            ).mixture
            seen_rows = end
        today = (days == day).to_numpy()
        shares[today], shares_by_day[day] = (
            mixture_weights.row_shares(mixture, rows[today]),
            mixture_weights.slice_shares(mixture),
        )
    return shares, shares_by_day


# --------------------------------------------------------------------------- measures


def outcome_probs(teacher_probs: Array, labels: Array) -> Array:
    """Probability that each teacher gave to the outcome ``[n, M]``, mixed with the uniform one as in the engine."""
    probs = np.take_along_axis(teacher_probs, labels[:, None, None], axis=2)[:, :, 0]
    clipped: Array = (1 - mixture_weights.UNIFORM_SHARE) * probs + mixture_weights.UNIFORM_SHARE / teacher_probs.shape[
        2
    ]
    return clipped


def log_loss_of(shares: Array, teacher_probs: Array, labels: Array) -> float:
    """Mean −ln probability of the outcome under the weighted mean (nats)."""
    return float(-np.log((shares * outcome_probs(teacher_probs, labels)).sum(axis=1)).mean())


def auc(shares: Array, teacher_probs: Array, labels: Array) -> float:
    return round(float(roc_auc_score(labels, (shares * teacher_probs[:, :, 1]).sum(axis=1))), 4)


def best_mixture(teacher_probs: Array, labels: Array) -> float:
    """Log loss of the best constant mixture, found by EM."""
    probs = outcome_probs(teacher_probs, labels)
    mixture = np.full(probs.shape[1], 1 / probs.shape[1])
    for _ in range(500):
        responsibilities = mixture * probs
        mixture = (responsibilities / responsibilities.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(-np.log(probs @ mixture).mean())


def median_goal(name: str, aim: float, better: Any, values: Sequence[float]) -> Goal:
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


# --------------------------------------------------------------------------- teachers


def read_weeks(first: int, last_week: int) -> pd.DataFrame:
    start, end = flights.week_start(first), flights.week_start(last_week)
    outcomes = flights.lateness(start, end)[["observation_id", "known_at", "action"]]
    rows = flights.departures(start, end).merge(outcomes, on="observation_id")
    return rows.assign(outcome=(rows["action"] == "late").astype(int))


def fit_trees(rows: pd.DataFrame, seed: int) -> flights.Boosting:
    return flights.Boosting(seed=seed).fit(rows, rows["outcome"].to_numpy())


def logistic_pipeline() -> Pipeline:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (numbers, NUMBERS), (OneHotEncoder(handle_unknown="ignore"), ["carrier", "origin"])
    )
    return make_pipeline(columns, LogisticRegression(max_iter=500))


if __name__ == "__main__":
    main()
