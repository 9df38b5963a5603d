"""The gain of teacher weights that are learned from outcomes, where outcomes become known a day late.

``python -m benchmarks.teacher_weights`` takes some minutes; ``--quick`` takes under one, and writes nothing.

Four teachers of the flights of 2013 are fitted once and then fixed: boosted trees and a logistic regression on winter
(weeks 0 to 8), boosted trees on summer (weeks 20 to 27), and boosted trees on JFK alone. From week 28 to the end of
the year the weights of each morning follow from the outcomes known by then, and are scored on that day's departures.
The loss is −ln of the probability that the weighted mean gave to the outcome (nats).

Rivals: the equal mean; the best teacher and the best constant mixture, both chosen in hindsight; and the same weights
with each outcome taken as one piece of evidence, as such methods are usually run
(:mod:`stillhouse.teachers.mixture_weights` takes an hour of departures as one).

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
BAD_FROM = 40
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat on a few weeks; writes nothing")
    quick = parser.parse_args().quick
    run = begin("teacher_weights", recorded=not quick)
    repeats = [repeat(seed, 1 if quick else 4, 32 if quick else 52) for seed in range(1 if quick else 4)]
    goals = [
        goal("nats_below_the_equal_mean", 0.0, "higher", [r["real"]["equal"] - r["real"]["followed"] for r in repeats]),
        goal(
            "nats_above_the_best_mixture_in_hindsight",
            0.002,
            "lower",
            [r["real"]["followed"] - r["real"]["best_mixture"] for r in repeats],
        ),
        goal(
            "nats_that_slices_cost",
            0.0005,
            "lower",
            [r["real"]["followed"] - r["real"]["without_slices"] for r in repeats],
        ),
        goal(
            "staged_nats_above_the_mean_without_the_bad_one",
            0.005,
            "lower",
            [r["staged"]["followed"] - r["staged"]["without_the_bad_one"] for r in repeats],
        ),
        goal("staged_days_to_a_tenth_of_the_weight", 7.0, "lower", [r["staged"]["days"] for r in repeats]),
    ]
    if quick:
        for each in goals:
            print(f"{each.name}: {each.measured:.4g} (goal {each.goal:g})")
        return
    run.write(CLAIM, goals, {"repeats": repeats}, ("numpy", "scikit-learn", "lightgbm"))


def repeat(seed: int, every: int, last: int) -> dict[str, Any]:
    """One quarter of the departures: the teachers made, then followed day by day."""
    winter, summer = weeks(0, 9), weeks(20, 28)
    made = [
        trees(winter, seed),
        logistic().fit(winter, winter["outcome"]),
        trees(summer, seed),
        trees(summer[summer["origin"] == "JFK"], seed),
    ]
    lived = weeks(28, last).sort_values(["known_at", "observed_at", "observation_id"], ignore_index=True)
    lived = lived.iloc[seed % every :: every].reset_index(drop=True)
    said = np.stack([teacher.predict_proba(lived) for teacher in made], axis=1)
    outcomes = lived["outcome"].to_numpy()
    losses = -np.log(told(said, outcomes))
    slices = list(load("flights").promotion.slices)
    followed, _ = follow(said, lived, slices)
    real = {
        "rows": len(lived),
        "followed": loss_of(followed, said, outcomes),
        "without_slices": loss_of(follow(said, lived, [])[0], said, outcomes),
        "row_by_row": loss_of(follow(said, lived, slices, by_row=True)[0], said, outcomes),
        "equal": loss_of(np.full(losses.shape, 1 / len(NAMES)), said, outcomes),
        "best_teacher": float(losses.mean(axis=0).min()),
        "best_mixture": best_mixture(said, outcomes),
        "teachers": dict(zip(NAMES, losses.mean(axis=0).round(5).tolist(), strict=True)),
        "auc": {"followed": auc(followed, said, outcomes), "equal": auc(np.full(losses.shape, 0.25), said, outcomes)},
    }
    return {"seed": seed, "real": real, "staged": staged(said, lived, slices, last)}


def staged(said: Array, lived: pd.DataFrame, slices: Sequence[str], last: int) -> dict[str, Any]:
    """The summer's teacher turns round at a known moment; what is lost from then on, and how soon it is out."""
    turn = flights.week_start(min(BAD_FROM, last - 2))
    after, outcomes = (lived["observed_at"] >= turn).to_numpy(), lived["outcome"].to_numpy()
    turned = said.copy()
    turned[after, 2] = said[after, 2, ::-1]
    shares, mornings = follow(turned, lived, slices)
    others = np.full(shares.shape, 1 / 3)
    others[:, 2] = 0.0
    days = sorted(day for day in mornings if day >= turn.floor("D"))
    before = mornings[max(day for day in mornings if day < turn.floor("D"))][2]
    out = next((day for day in days if mornings[day][2] < before / 10), days[-1])
    return {
        "followed": loss_of(shares[after], turned[after], outcomes[after]),
        "equal": loss_of(np.full((after.sum(), 4), 0.25), turned[after], outcomes[after]),
        "without_the_bad_one": loss_of(others[after], turned[after], outcomes[after]),
        "weight_before": round(float(before), 4),
        "days": float((out - turn.floor("D")).days),
    }


def follow(
    said: Array, lived: pd.DataFrame, slices: Sequence[str], by_row: bool = False
) -> tuple[Array, Mapping[pd.Timestamp, Array]]:
    """Share of each teacher in each row, by the outcomes known on the morning of its day, and everywhere by day."""
    weights = mixture_weights.start_weights(
        NAMES, [1 / len(NAMES)] * len(NAMES), slices, flights.week_start(28).to_pydatetime()
    )
    shares, mornings, heard = np.empty(said.shape[:2]), {}, 0
    stretches = (lived["observed_at"] - pd.Timestamp(0, tz="UTC")) // HOUR
    known, days = lived["known_at"].to_numpy(), lived["observed_at"].dt.floor("D")
    for day in sorted(days.unique()):
        until = int(np.searchsorted(known, day))
        if until > heard:
            new = slice(heard, until)
            weights = mixture_weights.learn(
                weights,
                said[new],
                lived["outcome"].to_numpy()[new],
                lived.iloc[new],
                day.to_pydatetime(),
                None if by_row else stretches.to_numpy()[new],
            ).weights
            heard = until
        today = (days == day).to_numpy()
        shares[today], mornings[day] = (
            mixture_weights.row_shares(weights, lived[today]),
            mixture_weights.slice_shares(weights),
        )
    return shares, mornings


# --------------------------------------------------------------------------- measures


def told(said: Array, outcomes: Array) -> Array:
    """Probability that each teacher gave each outcome ``[n, M]``, kept from zero as the weights see it."""
    given = np.take_along_axis(said, outcomes[:, None, None], axis=2)[:, :, 0]
    kept: Array = (1 - mixture_weights.UNIFORM_SHARE) * given + mixture_weights.UNIFORM_SHARE / said.shape[2]
    return kept


def loss_of(shares: Array, said: Array, outcomes: Array) -> float:
    """Mean −ln probability of the outcome under the weighted mean (nats)."""
    return float(-np.log((shares * told(said, outcomes)).sum(axis=1)).mean())


def auc(shares: Array, said: Array, outcomes: Array) -> float:
    return round(float(roc_auc_score(outcomes, (shares * said[:, :, 1]).sum(axis=1))), 4)


def best_mixture(said: Array, outcomes: Array) -> float:
    """The loss of the best constant mixture, by steps of EM, which converge to it."""
    given = told(said, outcomes)
    mixture = np.full(given.shape[1], 1 / given.shape[1])
    for _ in range(500):
        parts = mixture * given
        mixture = (parts / parts.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(-np.log(given @ mixture).mean())


def goal(name: str, aim: float, better: Any, values: Sequence[float]) -> Goal:
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


# --------------------------------------------------------------------------- teachers


def weeks(first: int, last: int) -> pd.DataFrame:
    start, end = flights.week_start(first), flights.week_start(last)
    outcomes = flights.lateness(start, end)[["observation_id", "known_at", "action"]]
    rows = flights.departures(start, end).merge(outcomes, on="observation_id")
    return rows.assign(outcome=(rows["action"] == "late").astype(int))


def trees(rows: pd.DataFrame, seed: int) -> flights.Boosting:
    return flights.Boosting(seed=seed).fit(rows, rows["outcome"].to_numpy())


def logistic() -> Pipeline:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (numbers, NUMBERS), (OneHotEncoder(handle_unknown="ignore"), ["carrier", "origin"])
    )
    return make_pipeline(columns, LogisticRegression(max_iter=500))


if __name__ == "__main__":
    main()
