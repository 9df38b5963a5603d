"""Rankings of the shelf by week: `python -m examples.shelf_weeks`, after `make demo AGENT=shelf`.

At a person's first rating of a week, 300 candidates are ranked: the films that this person rates within a day (150 at
most), and others, drawn at random, that somebody had rated by then and the person had not. Relevant are those that the
person then likes. Each measure is taken twice: among the rated candidates, whose outcomes are known, and among all,
where a film that nobody rated counts as not liked, although nobody knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from examples import shelf
from stillhouse import config
from stillhouse.champion import load_version, open_registry
from stillhouse.demonstrating import find_first_champion
from stillhouse.runtime import Agent
from stillhouse.stats import measure_auc
from stillhouse.variant import Variant

__all__ = ["candidates", "hit", "ndcg", "offer", "score_visits", "visits"]

MEASURES = ("AUC", "NDCG@10, rated", "hit rate@10, rated", "NDCG@10, all", "hit rate@10, all")
Model = Callable[[pd.DataFrame], Any]
"""Gives a score a row, by which it ranks."""


def candidates(person: int, at: pd.Timestamp, count: int = 300) -> pd.DataFrame:
    """Return up to `count` films for a person who comes at a time, as observations."""
    return offer(person, at, count)[["observation_id", "observed_at", *shelf.FEATURES]]


def offer(person: int, at: pd.Timestamp, count: int = 300, seed: int = 0) -> pd.DataFrame:
    """Return the same with `person`, `film` and `at`, those that the person rates soon first."""
    stream, rng, seconds = shelf.stream(), np.random.default_rng([seed, person]), int(at.timestamp())
    first = stream.drop_duplicates("film")
    known = first.loc[first["at"] < seconds, "film"]
    own = stream[(stream["person"] == person) & (stream["at"] < seconds + shelf.DAY)]
    soon = np.intersect1d(own.loc[own["at"] >= seconds, "film"], known)
    films = np.concatenate([rng.permutation(soon)[: count // 2], rng.permutation(np.setdiff1d(known, own["film"]))])
    return shelf.add_features(pd.DataFrame({"person": person, "film": films[:count], "at": seconds}))


def visits(start: pd.Timestamp, end: pd.Timestamp) -> Iterator[pd.DataFrame]:
    """Yield the candidates of each person's first rating in [start, end), with `liked`: NaN where not rated."""
    stream = shelf.stream()
    week = stream[(stream["observed_at"] >= start) & (stream["observed_at"] < end)]
    for person, at in week.groupby("person")["observed_at"].min().items():
        own = stream[(stream["person"] == person) & (stream["observed_at"] >= at)]
        soon = own[own["at"] < at.timestamp() + shelf.DAY].set_index("film")["liked"].astype(float)
        offered = offer(person, at)
        offered["liked"] = soon.reindex(offered["film"]).to_numpy()
        if offered["liked"].eq(1).any():
            yield offered


def ndcg(score: np.ndarray, relevant: np.ndarray, top: int = 10) -> float:
    """Return the normalised discounted cumulative gain of the `top` largest scores; relevant is 1 or 0.

    >>> ndcg(np.array([0.9, 0.1, 0.5]), np.array([1, 0, 1])), round(ndcg(np.array([0.1, 0.9]), np.array([1, 0])), 3)
    (1.0, 0.631)
    """
    discount = 1 / np.log2(np.arange(2, top + 2))
    gain = relevant[np.argsort(-score, kind="stable")][:top]
    best = np.sort(relevant)[::-1][:top]
    return float(gain @ discount[: len(gain)] / (best @ discount[: len(best)]))


def hit(score: np.ndarray, relevant: np.ndarray, top: int = 10) -> float:
    """Return 1 if any of the `top` largest scores is relevant, else 0."""
    return float(relevant[np.argsort(-score, kind="stable")][:top].any())


def score_visits(
    offers: Iterable[pd.DataFrame], rows: pd.DataFrame, liked: np.ndarray, models: Mapping[str, Model]
) -> dict[str, dict[str, float]]:
    """Return the measures of each model: the means over visits, and the AUC on the rated `rows`, `liked` or not."""
    values: dict[str, list[list[float]]] = {name: [] for name in models}
    for offered in offers:
        rated, relevant = offered["liked"].notna().to_numpy(), offered["liked"].eq(1).to_numpy(float)
        for name, model in models.items():
            score = np.asarray(model(offered))
            pairs = ((score[rated], relevant[rated]), (score, relevant))
            values[name].append([measure(*pair) for pair in pairs for measure in (ndcg, hit)])
    aucs = [measure_auc(liked, np.asarray(model(rows))) for model in models.values()]
    means = [np.mean(values[name], axis=0).tolist() for name in models]
    return {
        name: dict(zip(MEASURES, (auc, *row), strict=True)) for name, auc, row in zip(models, aucs, means, strict=True)
    }


def read_weeks(folder: Path) -> Iterator[tuple[pd.Timestamp, dict[str, Model]]]:
    """Yield the end of each week of the demo with its models: champion, never refreshed, popularity."""
    registry, first = open_registry("shelf"), load_version("shelf", find_first_champion("shelf")).variant
    for week in json.loads((folder / "weeks.json").read_bytes()):
        version = registry.version("shelf", week["champion"].rpartition("@")[2])
        assert version is not None  # it decided that week
        students = {"champion": load_version("shelf", version).variant, "never refreshed": first}
        models = {name: partial(_like, student) for name, student in students.items()}
        yield pd.Timestamp(week["ending"]), {**models, "popularity": itemgetter("film_ratings")}


def time_ranking(offered: pd.DataFrame, calls: int = 50) -> float:
    """Return the median milliseconds of a ranking of these candidates, as dictionaries, without its recording."""
    rows, times = offered[["observation_id", "observed_at", *shelf.FEATURES]].to_dict("records"), []
    with Agent("shelf", follow=False, flush=False) as agent:
        for _ in range(calls):
            began = perf_counter()
            agent.predict_ranking(agent.schema.read(rows), 10)
            times.append(1000 * (perf_counter() - began))
    return float(np.median(times))


def main() -> None:
    """Print the measures of each week and their means, and write them to `rankings.json` beside `weeks.json`."""
    folder, table = config.home() / "demo" / "shelf", []
    for end, models in read_weeks(folder):
        start = end - pd.Timedelta(weeks=1)
        rows, offers = shelf.ratings(start, end), list(visits(start, end))
        liked = shelf.likes(start, end)["action"].eq("like").to_numpy(np.int64)
        for name, measures in score_visits(offers, rows, liked, models).items():
            table.append({"week to": f"{end:%Y-%m-%d}", "model": name, "visits": len(offers), **measures})
    frame = pd.DataFrame(table)
    means = frame.groupby("model", sort=False)[list(MEASURES)].mean()
    wide = frame.pivot(index=["week to", "visits"], columns="model", values=list(MEASURES))
    for shown in (wide, means):
        sys.stdout.write(shown.round(3).to_string() + "\n\n")
    milliseconds = time_ranking(offers[-1])
    sys.stdout.write(f"a ranking of {len(offers[-1])} candidates: {milliseconds:.1f} ms (median), not recorded\n")
    content = {"weeks": table, "means": means.to_dict("index"), "rank_300_ms": milliseconds}
    (folder / "rankings.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _like(student: Variant, rows: pd.DataFrame) -> np.ndarray:
    return student.predict_proba(rows)[:, 1]


if __name__ == "__main__":
    main()
